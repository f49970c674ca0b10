# SPDX-License-Identifier: Apache-2.0
"""Local window attention against its plain twin (the unfold form) and torch.compile of the twin.

    python bench/bench_local_attention.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_local_attention.py                the same calls under pytest-benchmark

The floor: q, k, v and the weights read and the result
written once; each of a query's products with the 81 keys around it once, and for each window the weighted sums, the
convolution and the projection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import torch
from mlic_fast.kernels.local_attention import AREA, local_attention_ref
from torch import Tensor

from mlic_fast.ops.local_attention import local_attention

C = 32


class Case(NamedTuple):
    """Latents of one picture, and whether gradients are wanted as well."""

    height: int
    width: int
    gradients: bool

    def work(self) -> common.Work:
        positions = self.height * self.width
        windows = positions // 2
        numbers = positions * 3 * C + windows * 2 * C + 2 * C * C * AREA + 4 * C * C
        products = positions * 81 * C + windows * (AREA * AREA * C + AREA * C * 2 * C + 4 * C * C)
        # backward: again what the fusion reads, then two products for each one
        times = 4 if self.gradients else 1
        return common.Work(bytes=4 * numbers * (3 if self.gradients else 1), flops=2 * products * times)


CASES = {
    "768×512, forward": Case(32, 48, False),
    "768×512, forward and backward": Case(32, 48, True),
    "3840×2160, forward": Case(136, 240, False),
}
SMOKE = {
    "128×64, forward": Case(4, 8, False),
    "128×64, forward and backward": Case(4, 8, True),
}
CONTESTANTS = ("operation", "twin", "compiled twin")


@functools.cache
def compiled_twin() -> Callable[..., Tensor]:
    twin: Callable[..., Tensor] = torch.compile(local_attention_ref, dynamic=False)
    return twin


def call_of(case: Case, contestant: str, device: torch.device) -> Callable[[], Any]:
    """One call of a contestant on inputs of its own."""
    random = torch.Generator().manual_seed(0)
    shapes = (1, 3 * C, case.height, case.width), (81, 2), (2 * C, C, 5, 5), (2 * C,), (2 * C, 2 * C), (2 * C,)
    inputs = [torch.randn(*shape, generator=random).div_(4).to(device) for shape in shapes]
    attention = {"operation": local_attention, "twin": local_attention_ref}.get(contestant) or compiled_twin()
    if not case.gradients:

        def forward() -> Any:
            with torch.no_grad():
                return attention(*inputs)

        return forward
    leaves = [x.requires_grad_() for x in inputs]
    grad = torch.ones(1, case.height, case.width // 2, 2 * C, device=device)
    return lambda: torch.autograd.grad(attention(*leaves), leaves, grad)


BENCHMARK = common.Benchmark("local attention", CASES, SMOKE, CONTESTANTS, call_of, __file__)


def test_local_attention(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
