# SPDX-License-Identifier: Apache-2.0
"""Rate control: choosing among models trained for several λ, by quality or by a target for rate or PSNR.

A model has one rate-distortion trade-off; a larger λ gives larger files and closer pictures. So models of one
architecture, widths and metric, sorted by λ, are a ladder, and a target is met by encoding with a few of its rungs: a
binary search. torch is imported only where something is encoded.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from mlic_fast.checkpoint.labels import RELEASED_LAMBDAS
from mlic_fast.config import LossMetric
from mlic_fast.contexts import FAMILY
from mlic_fast.errors import NotAModelError, TargetError
from mlic_fast.registry import ENVIRONMENT, KnownWeights, available, find

if TYPE_CHECKING:
    from mlic_fast.pictures.image import Picture

Models = Sequence["KnownWeights | str | PathLike[str]"]

# quality: Pillow's scale
MAX_QUALITY = 100


@dataclass(frozen=True)
class Target:
    """What a file is to reach; exactly one of the three.

    bpp: bits per pixel of the whole file, at most. bytes: size of the file, at most.
    psnr: decibels of the decoded picture, at least. Raises TargetError.
    """

    bpp: float | None = None
    bytes: int | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        if len(given) != 1:
            raise TargetError(f"a target is one of bpp, bytes and psnr, not {' and '.join(given) or 'nothing'}")
        ((name, value),) = given.items()
        whole = name == "bytes"
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not (math.isfinite(value) and value > 0):
            wanted = "positive whole number" if whole else "finite positive number"
            raise TargetError(f"the target {name} must be a {wanted}, not {value!r}")

    def __str__(self) -> str:
        if self.bpp is not None:
            return f"at most {self.bpp:g} bpp"
        return f"at most {self.bytes:,} bytes" if self.bytes is not None else f"at least {self.psnr:g} dB"


@dataclass(frozen=True)
class Trial:
    """One encoding: with which model, and what came of it. psnr: None where it was not measured."""

    model: str
    lmbda: float | None
    bytes: int
    bpp: float
    psnr: float | None

    def __str__(self) -> str:
        quality = "" if self.psnr is None else f", {self.psnr:.2f} dB"
        return f"{self.bytes:,} bytes, {self.bpp:.4f} bpp{quality} with {self.model}"


@dataclass(frozen=True)
class Hit:
    """The file that came nearest to a target, and what it reached.

    data: the file. model, lmbda: name and λ of the model that wrote it. bytes, bpp: the file's. psnr: decibels of the
    decoded picture, None unless the target is one. reached: whether the target is met; if not, the file is the
    nearest that any of the models gives. tried: all encodings made, in the order of making.
    """

    target: Target
    data: builtins.bytes
    model: str
    lmbda: float | None
    bytes: int
    bpp: float
    psnr: float | None
    reached: bool
    tried: tuple[Trial, ...]

    def summary(self) -> str:
        """One line for people, which says what to do where the target was missed."""
        got = Trial(self.model, self.lmbda, self.bytes, self.bpp, self.psnr)
        if self.reached:
            return f"{self.target}: {got}"
        end = "smallest" if self.target.psnr is None else "largest"
        return (
            f"no model at hand reaches {self.target}; the nearest gives {got}, the {end} λ there is. Ask for "
            f"{'more' if self.target.psnr is None else 'less'}, or name further models in {ENVIRONMENT}"
        )


def encode_to_target(
    image: Any,
    target: Target,
    *,
    models: Models | None = None,
    metric: LossMetric = "mse",
    device: Any = None,
    **encode_options: Any,
) -> Hit:
    """Compress a picture with the one of several models that comes nearest to a target and keeps it.

    For bpp and bytes that is the largest λ whose file is no larger, for psnr the smallest λ whose picture is no
    further from the original. With n models about log2(n) of them are tried, each by encoding (and decoding, for psnr).

    image: as `encode` takes it. target: a Target.
    models: registry models, names or paths to choose from; None: the ladder of `metric` at hand.
    device, encode_options: for `encode`: limits, guard, metadata, thumbnail, reduce_depth, frame, strict.

    Raises TargetError if there is no model to choose among, and what `encode` raises. A target that no model reaches
    raises nothing: `Hit.reached` is False then, and the nearest file is given.
    """
    from mlic_fast.pictures.image import open_image

    rungs = ladder(models, metric)
    opening = {
        name: encode_options[name] for name in ("limits", "reduce_depth", "frame", "strict") if name in encode_options
    }
    picture = open_image(image, **opening)
    best: Hit | None = None
    nearest: Hit | None = None
    tried: list[Trial] = []
    low, high = 0, len(rungs) - 1
    while low <= high:
        middle = (low + high) // 2
        attempt = _attempt(picture, target, rungs[middle], device, encode_options)
        tried.append(Trial(attempt.model, attempt.lmbda, attempt.bytes, attempt.bpp, attempt.psnr))
        if attempt.reached:
            best = attempt
        elif nearest is None or _shortfall(attempt) < _shortfall(nearest):
            nearest = attempt
        # a rate that is kept can be used up by a larger λ; a quality that is reached can do with a smaller one
        if attempt.reached == (target.psnr is None):
            low = middle + 1
        else:
            high = middle - 1
    hit = best or nearest
    assert hit is not None  # a ladder has a rung
    return replace(hit, tried=tuple(tried))


def choose_by_quality(quality: float, *, metric: LossMetric = "mse", models: Models | None = None) -> KnownWeights:
    """The model for a quality from 0 to 100, as Pillow's users give it.

    A quality stands for a λ, whatever models are at hand: λ grows by equal factors from that of the smallest published
    model of the metric to that of the largest, which makes those six 0, 20, 40, 60, 80 and 100. The model whose λ is
    nearest (by ratio) is taken; one model alone is taken for every quality.

    models: registry models, names or paths to choose from; None: the ladder of `metric` at hand.
    Raises TargetError.
    """
    known = isinstance(quality, (int, float)) and not isinstance(quality, bool)
    if not known or not 0 <= quality <= MAX_QUALITY:
        raise TargetError(f"quality must be a number from 0 to {MAX_QUALITY}, not {quality!r}")
    rungs = ladder(models, metric)
    if len(rungs) == 1:
        return rungs[0]
    smallest, *_, largest = RELEASED_LAMBDAS[rungs[0].metric or metric]
    wanted = math.log(smallest) + quality / MAX_QUALITY * math.log(largest / smallest)
    return min(rungs, key=lambda model: abs(math.log(_lambda_of(model)) - wanted))


def ladder(models: Models | None = None, metric: LossMetric = "mse") -> tuple[KnownWeights, ...]:
    """The models to choose among, by rising λ; one for each λ.

    models: registry models, names or paths: just these. None: the largest family at hand, which is the models
        with a known λ, this metric, and the same N, M and number of slices; among equally large ones the widest.
        Models in MLIC_FAST_MODELS go before bundled ones, be it as families or as two models for one λ.

    Raises TargetError: there is none, or those that were named have no λ or several metrics. FileNotFoundError,
    WrongWeightsError, CheckpointError for names and paths. NotAModelError for what is neither.
    """
    if models is None:
        chosen = _largest_family(metric)
    else:
        if isinstance(models, (str, PathLike)):  # else its letters would be taken for names
            models = [models]
        if not isinstance(models, Iterable):
            raise NotAModelError(f"names or paths of models are wanted, not {type(models).__name__}")
        chosen = [model if isinstance(model, KnownWeights) else find(model) for model in models]
        _check_named(chosen)
    if len(chosen) == 1:
        return tuple(chosen)
    by_lambda: dict[float, KnownWeights] = {}
    for model in sorted(chosen, key=lambda model: model.origin == "bundled"):
        by_lambda.setdefault(_lambda_of(model), model)
    return tuple(model for _, model in sorted(by_lambda.items()))


def _attempt(picture: Picture, target: Target, model: KnownWeights, device: Any, encode_options: dict[str, Any]) -> Hit:
    from mlic_fast.codec import decode_tensor, encode, open_model
    from mlic_fast.evaluate.metrics import bits_per_pixel, psnr
    from mlic_fast.pictures.image import to_pixels

    network = open_model(model.path, device)
    data = encode(picture, network, **encode_options)
    bpp = bits_per_pixel(len(data), picture.height, picture.width)
    quality: float | None = None
    if target.psnr is not None:
        x_hat, mode = decode_tensor(data, network, limits=encode_options.get("limits"))
        quality = psnr(picture.pixels, to_pixels(x_hat, mode))
        reached = quality >= target.psnr
    elif target.bpp is not None:
        reached = bpp <= target.bpp
    else:
        reached = target.bytes is not None and len(data) <= target.bytes
    return Hit(target, data, model.name, model.lmbda, len(data), bpp, quality, reached, tried=())


def _shortfall(hit: Hit) -> float:
    """How far a missed target is, for comparing encodings of one picture."""
    return hit.bytes if hit.psnr is None else -hit.psnr


def _largest_family(metric: LossMetric) -> list[KnownWeights]:
    families: dict[tuple[int, int, int, int], list[KnownWeights]] = {}
    rank = {architecture: -number for number, architecture in enumerate(FAMILY)}
    for model in available().models:
        if model.lmbda is not None and model.metric == metric:
            c = model.config
            families.setdefault((c.N, c.M, c.slice_num, rank[c.architecture]), []).append(model)
    if not families:
        raise TargetError(
            f"there is no model at hand that says it was trained for {metric} and with which λ; `mlic-fast convert "
            f"--lambda --metric` writes both into a file, and {ENVIRONMENT} names files and folders of weights"
        )

    def extent(family: tuple[int, int, int, int]) -> tuple[int, ...]:
        members = families[family]
        return any(model.origin != "bundled" for model in members), len({model.lmbda for model in members}), *family

    return families[max(families, key=extent)]


def _check_named(models: list[KnownWeights]) -> None:
    if not models:
        raise TargetError("an empty list of models: name at least one")
    if len(models) == 1:
        return  # nothing to choose, so nothing needs to be known
    silent = [model.name for model in models if model.lmbda is None]
    if silent:
        raise TargetError(
            f"{', '.join(silent)}: λ is not known, so models cannot be put in order; write it into the file with "
            "`mlic-fast convert --lambda`"
        )
    metrics = sorted({model.metric or "unknown" for model in models})
    if len(metrics) > 1:
        raise TargetError(f"the models were trained for different metrics ({', '.join(metrics)}): name those of one")
    titles = sorted({model.config.member.title for model in models})
    if len(titles) > 1:
        raise TargetError(f"the models are of different architectures ({', '.join(titles)}): name those of one")


def _lambda_of(model: KnownWeights) -> float:
    assert model.lmbda is not None  # made sure of by whoever made the ladder
    return model.lmbda
