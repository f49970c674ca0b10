# SPDX-License-Identifier: Apache-2.0
"""All settings of a training: the published recipe as defaults, configuration files, and what fits together."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mlic_fast.config import PADDING_UNIT, LossMetric, ModelConfig
from mlic_fast.contexts import Architecture
from mlic_fast.errors import RecipeError
from mlic_fast.evaluate.metrics import MS_SSIM_MIN_SIDE
from mlic_fast.train.rates import RateRange

OptimizerName = Literal["adam", "muon", "soap"]
Schedule = Literal["constant", "steps", "cosine"]
Precision = Literal["float32", "bf16"]
Layout = Literal["auto", "yes", "no"]

# Sizes of models with names: one to try things with, and the member's published one.
SIZES = ("small", "full")

# Settings by what files call them, where Python cannot.
_NAMES = {"lambda": "lmbda"}

# A configuration file larger than this is none.
_MAX_FILE_BYTES = 1 << 20

_CHOICES: dict[str, tuple[str, ...]] = {
    "metric": get_args(LossMetric),
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "channels_last": get_args(Layout),
}


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; the defaults are the published ones where such were published.

    model: architecture, shape and variant of the model.
    lmbda, metric: the loss is λ·255²·MSE + bpp ("mse") or λ·(1 − MS-SSIM) + bpp ("ms-ssim"). lmbda: a number, or the
        (low, high) of a range that one model is trained for, with a λ and a quantisation step for each sample.
    steps: optimiser steps in all. epochs: the same in epochs, and in place of `steps`; 0: `steps` counts.
    time_limit: minutes of training, in place of both; the schedule then follows the part of the
        time that has gone by, so that two runs are not equal to the bit.
    batch: patches a step, of all processes together. micro_batch: patches that a process computes at once, gradients
        being added up; 0: its whole part of the batch.
    patches: (first step, side in pixels) of each stage, from step 0.
    epoch_patches: patches an epoch; 0: as many as there are pictures, but at least 1,000 batches.
    optimizer: of the model: "adam"; or "muon" or "soap", which need fewer steps and take the convolutions of g_a, g_s
        and h_a, Adam the rest.
    lr, aux_lr: learning rates for the model and, of Adam, for the quantiles of the entropy bottleneck. clip: largest
        norm of the gradient; 0: no clipping.
    warmup_steps: steps over which the learning rate rises linearly; -1: the first epoch, at most a tenth of the
        training; with a time limit at most 100 steps.
    schedule: "constant"; "steps": `milestones`, pairs of (first step, learning rate); "cosine": from lr to lr_final.
    ema: decay of the exponential moving average of the weights; 0: none. With it, the average is what is validated
        and saved for use.
    precision: "bf16": autocast of the transforms; likelihoods, losses and the entropy path stay in float32.
    channels_last: layout of the transforms; "auto": on CUDA only. compile: torch.compile for the transforms.
    seed: of initial weights, patches and noise.
    validation_images: pictures that are really coded at each validation. validation_epochs: epochs between two.
    checkpoint_minutes: between two saves of the last state. log_steps: steps a line of the log sums up.
    max_bad_steps: so many steps in a row without a finite loss and gradient end the training.

    Raises RecipeError at construction for what makes no sense.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    lmbda: float | tuple[float, float] = 0.0130
    metric: LossMetric = "mse"
    steps: int = 2_000_000
    epochs: int = 0
    time_limit: float = 0.0
    batch: int = 32
    micro_batch: int = 0
    patches: tuple[tuple[int, int], ...] = ((0, 256), (1_200_000, 512))
    epoch_patches: int = 0
    optimizer: OptimizerName = "adam"
    lr: float = 1e-4
    aux_lr: float = 1e-3
    clip: float = 1.0
    warmup_steps: int = -1
    schedule: Schedule = "constant"
    lr_final: float = 1e-6
    milestones: tuple[tuple[int, float], ...] = ()
    ema: float = 0.0
    precision: Precision = "float32"
    channels_last: Layout = "auto"
    compile: bool = False
    seed: int = 0
    validation_images: int = 8
    validation_epochs: int = 1
    checkpoint_minutes: float = 10.0
    log_steps: int = 50
    max_bad_steps: int = 20

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise RecipeError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("steps", "batch", "log_steps", "validation_epochs", "max_bad_steps"):
            self._check(name, int, 1, 2**48)
        for name in ("epochs", "micro_batch", "epoch_patches", "validation_images"):
            self._check(name, int, 0, 2**48)
        self._check("seed", int, 0, 2**63 - 1)
        self._check("warmup_steps", int, -1, 2**48)
        for name in ("lr", "aux_lr", "lr_final", "checkpoint_minutes"):
            self._check(name, float, sys.float_info.min, 1e9)
        self._check_lambda()
        for name in ("time_limit", "clip"):
            self._check(name, float, 0, 1e9)
        self._check("ema", float, 0, 0.9999999)
        if not isinstance(self.compile, bool):
            raise RecipeError(f"compile must be true or false, not {self.compile!r}")
        self._check_stages()

    @property
    def rates(self) -> RateRange | None:
        """The range of λ; None where there is a single one."""
        return RateRange(*self.lmbda) if isinstance(self.lmbda, tuple) else None

    @property
    def single_lambda(self) -> float:
        """λ where it is a single one."""
        assert not isinstance(self.lmbda, tuple)
        return self.lmbda

    def _check_lambda(self) -> None:
        values = self.lmbda if isinstance(self.lmbda, tuple) else (self.lmbda,)
        for value in values:
            self._check_value("lambda", value, float, sys.float_info.min, 1e9)
        if isinstance(self.lmbda, tuple) and not (len(values) == 2 and values[0] < values[1]):
            raise RecipeError(f"a range of lambda must be [low, high], low below high, not {list(values)}")

    def _check(self, name: str, kind: type, low: float, high: float) -> None:
        self._check_value(name, getattr(self, name), kind, low, high)

    @staticmethod
    def _check_value(name: str, value: Any, kind: type, low: float, high: float) -> None:
        fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise RecipeError(f"{name} must be {what} from {low:g} to {high:g}, not {value!r}")

    def _check_stages(self) -> None:
        steps = [first for first, _ in self.patches]
        if not steps or steps[0] != 0 or sorted(set(steps)) != steps:
            raise RecipeError(f"patches must begin at step 0 and name later steps in order, not {self.patches}")
        least = MS_SSIM_MIN_SIDE if self.metric == "ms-ssim" else 1
        for _, side in self.patches:
            if not isinstance(side, int) or not least <= side <= 2**14 or side % PADDING_UNIT:
                why = " (MS-SSIM needs 161 pixels)" if least > 1 else ""
                smallest = -(-least // PADDING_UNIT) * PADDING_UNIT
                raise RecipeError(
                    f"patches must be whole numbers, a multiple of {PADDING_UNIT} from {smallest} to {2**14} pixels a "
                    f"side, not {side}{why}"
                )
        starts = [first for first, _ in self.milestones]
        if sorted(set(starts)) != starts or any(not rate > 0 for _, rate in self.milestones):
            raise RecipeError(f"milestones must name steps in order and positive learning rates, not {self.milestones}")
        if bool(self.milestones) != (self.schedule == "steps"):
            raise RecipeError("the schedule `steps` and milestones go together: give both or neither")

    def patch_side(self, step: int) -> int:
        """Side in pixels of the patches of a step."""
        return [side for first, side in self.patches if first <= step][-1]

    def learning_rate(self, step: int, progress: float, warmup: int) -> float:
        """Learning rate of a step. progress: part of the training that is done; warmup: steps of linear rise."""
        rate = self.lr
        if self.schedule == "cosine":
            rate = self.lr_final + (self.lr - self.lr_final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        elif self.schedule == "steps":
            rate = [self.lr, *(value for first, value in self.milestones if first <= step)][-1]
        return rate * min(1.0, (step + 1) / (warmup + 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in a configuration file; `recipe_from` reads them back."""
        values = dataclasses.asdict(self)
        values["lambda"] = values.pop("lmbda")
        return {
            key: [list(item) if isinstance(item, tuple) else item for item in value]
            if isinstance(value, tuple)
            else value
            for key, value in values.items()
        }


def recipe_from(values: Mapping[str, Any], base: Recipe | None = None, source: str = "the recipe") -> Recipe:
    """A recipe with these values, and those of `base` (None: the published ones) for the others.

    values: as in a configuration file, where `lmbda` is spelt `lambda`; "model" may be a size's name.
    Raises RecipeError, ConfigError.
    """
    base = base or Recipe()
    known = set(_NAMES) | {entry.name for entry in dataclasses.fields(Recipe)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise RecipeError(
            f"{source} has unknown settings: {', '.join(map(str, unknown))}; known are {', '.join(sorted(known))}"
        )
    changed = {_NAMES.get(name, name): value for name, value in values.items()}
    if "model" in changed:
        changed["model"] = model_config(changed["model"], source)
    if isinstance(changed.get("lmbda"), list):
        changed["lmbda"] = tuple(changed["lmbda"])
    for name in ("patches", "milestones"):
        if name in changed:
            changed[name] = _pairs(name, changed[name], source)
    return dataclasses.replace(base, **changed)


def _pairs(name: str, value: Any, source: str) -> tuple[tuple[Any, Any], ...]:
    def is_number(x: Any) -> bool:
        return isinstance(x, (int, float)) and not isinstance(x, bool)

    if not isinstance(value, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], int) and all(map(is_number, pair))
        for pair in value
    ):
        raise RecipeError(f"{source}: {name} must be a list of pairs [first step, value], not {value!r:.80}")
    return tuple((pair[0], pair[1]) for pair in value)


def model_config(
    value: Any, source: str = "the configuration", architecture: Architecture | None = None
) -> ModelConfig:
    """A model's shape from a size's name, a ModelConfig, or a mapping with N, M, slice_num, and maybe more.

    architecture: which member of the family; None: as the value says, else MLIC++. What a mapping leaves out is as in
        the member's published size.
    Raises RecipeError, ConfigError.
    """
    if isinstance(value, ModelConfig):
        return value if architecture is None else dataclasses.replace(value, architecture=architecture)
    if isinstance(value, str):
        if value not in SIZES:
            raise RecipeError(
                f"{source}: no size of a model is called {value!r}: use one of {', '.join(SIZES)}, or a file"
            )
        full = ModelConfig.published(architecture or "mlicpp")
        return full if value == "full" else dataclasses.replace(full, N=64, M=96, slice_num=3)
    known = {entry.name for entry in dataclasses.fields(ModelConfig)}
    if not isinstance(value, Mapping) or set(value) - known:
        raise RecipeError(f"{source}: a model is described by {', '.join(sorted(known))}, not by {value!r:.80}")
    own = architecture or value.get("architecture", "mlicpp")
    return dataclasses.replace(ModelConfig.published(own), **(dict(value) | {"architecture": own}))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file, or the object in a JSON file (`.json`). Raises RecipeError, OSError."""
    path = Path(path)
    with path.open("rb") as file:
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise RecipeError(f"{path} is larger than {_MAX_FILE_BYTES:,} bytes: no configuration file is")
    try:
        values = json.loads(data) if path.suffix.lower() == ".json" else _toml(data.decode())
    except (ValueError, RecursionError) as error:  # both modules' errors, and text that is not UTF-8
        raise RecipeError(
            f"{path} cannot be read as {'JSON' if path.suffix.lower() == '.json' else 'TOML'}: {error}"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds {type(values).__name__} where an object with settings should be")
    return values


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
