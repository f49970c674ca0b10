# SPDX-License-Identifier: Apache-2.0
"""One step of training: the trainer as it is, against the same step of the plain model.

    python bench/bench_training.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_training.py                the same calls under pytest-benchmark

A step is forward, loss, backward, clipping and both optimisers, on patches that are in memory. The plain model is the
official formulation (unfold, masks, concatenations, full maps; PyTorch's convolutions), which the layers of training
are on backend torch, with PyTorch's Adam as the official script constructs it; weights, patches, noise, precision and
threads are the same. Memory is what a step takes beyond weights and the optimisers' moments, so gradients are in it.
Both losses are compared first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import common
import torch

from mlic_fast.compute.backend import use_backend
from mlic_fast.config import ModelConfig
from mlic_fast.model import MLICPlusPlus
from mlic_fast.train.distributed import Processes
from mlic_fast.train.recipe import Precision, Recipe
from mlic_fast.train.step import StepResult, Trainee

SMALL = ModelConfig(N=64, M=96, slice_num=3)
FULL = ModelConfig()
TINY = ModelConfig(N=16, M=64, slice_num=2)

# By how much the losses of the first step may differ, relatively. In bfloat16 layouts and rounding differ.
TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "bf16": 2e-2}


class Case(NamedTuple):
    """A model and its batch."""

    model: ModelConfig
    batch: int
    side: int
    precision: Precision = "float32"

    def work(self) -> None:
        """No floor: how few operations a step needs is what this is about."""
        return None


CASES = {
    "small, 8 × 128×128, float32": Case(SMALL, 8, 128),
    "small, 8 × 128×128, bf16": Case(SMALL, 8, 128, "bf16"),
    "full, 2 × 256×256, float32": Case(FULL, 2, 256),
    "full, 2 × 256×256, bf16": Case(FULL, 2, 256, "bf16"),
}
SMOKE = {"tiny, 1 × 64×64, float32": Case(TINY, 1, 64)}
CONTESTANTS = ("plain model", "trainer")


class Step:
    """Training of one contestant; a call is one step."""

    def __init__(self, case: Case, contestant: str, device: torch.device) -> None:
        torch.manual_seed(0)
        recipe = Recipe(
            model=case.model, batch=case.batch, patches=((0, case.side),), precision=case.precision, epoch_patches=10**6
        )
        self._plain = contestant == "plain model"
        self._trainee = Trainee(MLICPlusPlus(case.model), recipe, Processes(0, 1, device))
        if self._plain:
            self._trainee.optimizers["optimizer"] = torch.optim.Adam(self._trainee.main, lr=recipe.lr)
        random = torch.Generator().manual_seed(1)
        coarse = torch.rand(case.batch, 3, case.side // 8, case.side // 8, generator=random)
        smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)
        self._patches = smooth.mul(255).round().to(torch.uint8)
        self._number = 0

    def __call__(self) -> StepResult:
        with use_backend("torch") if self._plain else nullcontext():
            result = self._trainee.step(self._number, self._patches, 1e-4)
        self._number += 1
        return result


class TrainingBenchmark(common.Benchmark):
    """Steps that are the same to rounding, which is looked at before they are timed."""

    def prepare(self, name: str, device: torch.device, settings: common.Settings) -> Mapping[str, common.Call]:
        calls = super().prepare(name, device, settings)
        plain, ours = (step() for step in calls.values())
        assert isinstance(plain, StepResult)
        assert isinstance(ours, StepResult)
        case: Case = {**self.cases, **self.smoke}[name]
        for quantity in ("loss", "norm"):
            values = getattr(plain, quantity), getattr(ours, quantity)
            if not math.isclose(*values, rel_tol=TOLERANCES[case.precision]):
                raise RuntimeError(f"{name}: {quantity} of the first step is {values[0]} and {values[1]}")
        return calls


def call_of(case: Case, contestant: str, device: torch.device) -> common.Call:
    """One contestant with a model of its own."""
    return Step(case, contestant, device)


BENCHMARK = TrainingBenchmark(
    "training step",
    CASES,
    SMOKE,
    CONTESTANTS,
    call_of,
    __file__,
    ours="trainer",
    baseline="plain model",
    rounds=7,
    warm_calls=1,
)


def test_training(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
