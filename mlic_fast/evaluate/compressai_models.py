# SPDX-License-Identifier: Apache-2.0
"""Models of CompressAI as contestants: its registry and zoo, and classes of the same interface from elsewhere.

A model codes through its own `compress` and `decompress`. Between them stands a file (`strings_file`) with all that
the decoder needs. Pictures are padded with zeros on all four sides, as CompressAI's eval_model does.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.checkpoint.labels import stem
from mlic_fast.errors import CheckpointError, CodecError, CodecRunError, MlicError
from mlic_fast.evaluate import strings_file
from mlic_fast.evaluate.dataset import Coded, Contestant
from mlic_fast.evaluate.metrics import compare
from mlic_fast.output import write_whole
from mlic_fast.pictures.image import Picture, to_pixels, to_tensor

if TYPE_CHECKING:
    import torch
    from torch import nn

# What most models divide a picture by: four halvings to y, two more to z.
PAD_TO = 64
LARGEST_PAD = 4096

# Classes of CompressAI's registry that take no pictures.
_OTHER_MODULES = ("compressai.models.pointcloud", "compressai.models.video")

# Quantisation steps of CompressAI's models of variable rate, one for each λ that they are trained for.
_STEPS = 8


@dataclass(frozen=True)
class Weights:
    """One point of a curve: an architecture with weights.

    name: CompressAI's, or MODULE:CLASS. checkpoint: a file; None: CompressAI's own weights, trained for MSE.
    quality: of those; of a model of variable rate, the index of its quantisation step; None where a file says all.
    """

    name: str
    checkpoint: Path | None = None
    quality: int | None = None

    @property
    def label(self) -> str:
        """The point's name."""
        parts = [] if self.checkpoint is None else [stem(self.checkpoint)]
        return ", ".join(parts if self.quality is None else [*parts, f"quality {self.quality}"])


def points_of(name: str, checkpoints: Sequence[Path] = (), qualities: Sequence[int] | None = None) -> list[Weights]:
    """The points that a choice means: a file each, or CompressAI's own weights, of all qualities if none is named.

    Raises CodecError for unknown names, for qualities that there are not, for points with the same name, and
    FileNotFoundError for missing files.
    """
    steps = range(_STEPS) if _has_variable_rate(_class_of(name)) else None
    own = _own_qualities(name) if steps is None else steps
    for path in checkpoints:
        if not path.is_file():
            raise FileNotFoundError(f"there is no weights file {path}")
    if checkpoints and qualities is not None and steps is None:
        raise CodecError(f"{name} has one rate a file: give files, or qualities of CompressAI's own weights, not both")
    if not checkpoints and not own:
        raise CodecError(f"CompressAI has no weights of its own for {name}: name a file with --checkpoint")
    for quality in qualities or ():
        if quality not in own:
            raise CodecError(f"{name} has no quality {quality}: it has {', '.join(map(str, own))}")
    chosen = own if qualities is None else qualities
    if not checkpoints:
        points = [Weights(name, None, quality) for quality in chosen]
    elif steps is None:
        points = [Weights(name, path) for path in checkpoints]
    else:
        points = [Weights(name, path, step) for path in checkpoints for step in chosen]
    labels = [point.label for point in points]
    for label in labels:
        if labels.count(label) > 1:
            raise CodecError(f"two points of {name} are called {label!r}, so their results could not be told apart")
    return points


def contestants_of(
    title: str,
    points: Sequence[Weights],
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    fast_coder: bool = False,
    pad_to: int | None = None,
) -> list[Contestant]:
    """The points as contestants of the curve `title`. folder: where the files go, in a folder for each point.

    fast_coder: strings are made and read by this package's range coder, see `entropy.compressai_coder`.
    pad_to: pictures are padded to multiples of this, 1 to 4096; None: of what the model says, else of 64.

    All models are loaded here, one after another, so that what does not fit is known at the beginning; the latest one
    is kept. Raises CodecError, CheckpointError, DeviceError.
    """
    if pad_to is not None and not 1 <= pad_to <= LARGEST_PAD:
        raise CodecError(f"pictures are padded to multiples of 1 to {LARGEST_PAD}, not {pad_to}")
    latest = functools.lru_cache(maxsize=1)(functools.partial(load, device=device, fast_coder=fast_coder))
    for point in points:
        latest(point)
    return [
        _contestant(title, point, functools.partial(latest, point), folder / point.label, pad_to) for point in points
    ]


def load(point: Weights, *, device: torch.device | str = "cpu", fast_coder: bool = False) -> nn.Module:
    """The model of a point, ready to code. Coding tables in its file are kept, missing ones computed.

    Raises CheckpointError for weights that do not fit or cannot be had, CodecError for a coder that does not,
    DeviceError for too little memory.
    """
    from mlic_fast.compute.device import memory_errors

    with memory_errors(f"loading {point.name}"):
        model = _own_model(point) if point.checkpoint is None else _from_file(point.name, point.checkpoint)
        with _words(f"{point.name}, {point.label}, cannot compute its coding tables", CheckpointError):
            if hasattr(model, "gayn2zqstep") and point.quality is not None:
                # tables of z for this quantisation step
                model.update(force=True, scale=model.Gain[point.quality].detach().abs())
            else:
                model.update()
        if fast_coder:
            from mlic_fast.entropy.compressai_coder import use_range_coder

            use_range_coder(model)
        return model.to(device).eval().requires_grad_(False)


def settings(name: str, fast_coder: bool) -> str:
    """How a model is run, in words."""
    from compressai import __version__

    coder = "mlic_fast's range coder" if fast_coder else "its own coder"
    return f"{name} in CompressAI {__version__}, {coder}; files of the picture's size, sizes of latents, and strings"


def names() -> list[str]:
    """The architectures of CompressAI's registry that take pictures."""
    import compressai.models  # noqa: F401 - registers them
    from compressai.registry import MODELS

    return sorted(name for name, cls in MODELS.items() if not cls.__module__.startswith(_OTHER_MODULES))


def _contestant(
    title: str, point: Weights, model_of: Callable[[], nn.Module], folder: Path, pad_to: int | None
) -> Contestant:
    def code(picture: Picture, name: Path) -> Coded:
        import torch

        from mlic_fast.compute.device import memory_errors

        size = f"{picture.width} x {picture.height} pixels"
        model: Any = model_of()
        multiple = _multiple(model) if pad_to is None else pad_to
        step = {"s": point.quality} if _has_variable_rate(type(model)) else {}
        device = next(model.parameters()).device
        file = folder / name.with_name(f"{name.name}.strings")

        with torch.no_grad(), memory_errors(f"coding {size} with {title}"):
            start = time.perf_counter()
            x = _padded(picture, multiple).to(device)
            with _words(f"{title} cannot compress {size}", CodecRunError):
                compressed = model.compress(x, **step)
                strings, shape = compressed["strings"], compressed["shape"]
            data = strings_file.write(strings_file.Strings(picture.width, picture.height, strings, shape))
            encoded = time.perf_counter()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, data)

            data = file.read_bytes()
            begin = time.perf_counter()
            content = strings_file.read(data)
            with _words(f"{title} cannot decompress its strings of {size}", CodecRunError):
                decompressed = model.decompress(content.strings, content.shape, **step)["x_hat"]
            x_hat = _cropped(decompressed, content.width, content.height, multiple, title)
            to_pixels(x_hat, picture.mode)  # for the time it takes
            end = time.perf_counter()
            return Coded(len(data), content.string_bytes, compare(picture, x_hat), encoded - start, end - begin)

    return Contestant(title, point.label, code, warm_up=True)


def _multiple(model: Any) -> int:
    """What the sides of a model's pictures have to be multiples of."""
    factor = getattr(model, "downsampling_factor", PAD_TO)
    return factor if isinstance(factor, int) and 1 <= factor <= LARGEST_PAD else PAD_TO


def _padded(picture: Picture, multiple: int) -> torch.Tensor:
    """float32 [1, 3, H', W'] in [0, 1]."""
    from compressai.ops import compute_padding
    from torch.nn.functional import pad

    added, _ = compute_padding(picture.height, picture.width, min_div=multiple)
    return pad(to_tensor(picture), added)


def _cropped(x_hat: Any, width: int, height: int, multiple: int, title: str) -> torch.Tensor:
    """[1, 3, height, width] of what was padded. Raises CodecRunError for another size."""
    from compressai.ops import compute_padding
    from torch.nn.functional import pad

    (left, right, top, bottom), removed = compute_padding(height, width, min_div=multiple)
    expected = [1, 3, top + height + bottom, left + width + right]
    found = list(getattr(x_hat, "shape", ()))
    if found != expected:
        raise CodecRunError(
            f"{title} decompresses to {found} where {expected} was compressed: it may need pictures padded to larger "
            "multiples (--pad-to)"
        )
    return pad(x_hat, removed)


def _class_of(name: str) -> Any:
    """The class of an architecture, or the function that makes a model of a state dict. Raises CodecError."""
    from compressai.registry import MODELS

    known = names()
    if name in known:
        return MODELS[name]
    if name in MODELS:
        raise CodecError(f"CompressAI's {name} takes no pictures: use one of {', '.join(known)}")
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise CodecError(
            f"CompressAI has no model {name!r}: use one of {', '.join(known)}, or MODULE:CLASS for a class of yours"
        )
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except Exception as error:  # a module may do anything when it is imported
        raise CodecError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise CodecError(f"{name} is neither a class nor a function, but {type(found).__name__}")
    return found


def _has_variable_rate(cls: Any) -> bool:
    from compressai.models import ScaleHyperpriorVbr

    return isinstance(cls, type) and issubclass(cls, ScaleHyperpriorVbr)


def _own_qualities(name: str) -> Sequence[int]:
    """Of CompressAI's own weights for MSE; none for architectures that it has no weights of."""
    from compressai.zoo.image import model_urls

    return sorted(model_urls.get(name, {}).get("mse", {}))


def _own_model(point: Weights) -> Any:
    """With CompressAI's own weights, which it downloads unless torch's cache has them."""
    from compressai.zoo import image_models

    with _words(f"CompressAI's own weights of {point.name}, {point.label}, cannot be had", CheckpointError):
        return image_models[point.name](quality=point.quality, metric="mse", pretrained=True, progress=False)


def _from_file(name: str, path: Path) -> Any:
    from compressai.zoo import load_state_dict as renamed

    from mlic_fast.checkpoint.foreign import read_foreign

    cls = _class_of(name)
    tensors: dict[str, Any] = read_foreign(path)
    if cls.__module__.startswith("compressai."):
        tensors = renamed(tensors)  # names of older releases, which another class's names might be taken for
    options = {}
    if _has_variable_rate(cls) and any(key.startswith("gayn2zqstep.") for key in tensors):
        # z has a quantisation step of its own. Its tables are of one step, and do not load into an empty model
        options["vr_entbttlnck"] = True
        tables = {f"entropy_bottleneck.{table}" for table in ("_offset", "_quantized_cdf", "_cdf_length")}
        tensors = {key: value.new_empty(0) if key in tables else value for key, value in tensors.items()}
    with _words(f"the weights in {path} are not those of {name}", CheckpointError):
        model = getattr(cls, "from_state_dict", cls)(tensors, **options)
    if not all(callable(getattr(model, method, None)) for method in ("compress", "decompress", "update")):
        raise CodecError(f"{name} gives a {type(model).__name__}, which has no compress, decompress and update")
    return model


@contextmanager
def _words(what: str, kind: type[MlicError]) -> Iterator[None]:
    """Errors of code that is not ours, in words of ours; those about memory stay what they are."""
    import torch

    from mlic_fast.compute.device import is_memory_error

    try:
        yield
    except MlicError:
        raise
    except Exception as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or is_memory_error(error):
            raise
        told = " ".join(str(error).split())[:500]
        raise kind(f"{what}: {type(error).__name__}: {told}") from error
