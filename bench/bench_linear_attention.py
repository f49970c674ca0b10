# SPDX-License-Identifier: Apache-2.0
"""Linear attention against its plain twin and torch.compile of the twin: time, memory, share of the floor.

    python bench/bench_linear_attention.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_linear_attention.py                the same calls under pytest-benchmark

On the CPU the operation is the twin. The floor: every map read or written once, the products with the contexts once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import torch
from mlic_fast.kernels.linear_attention import checkerboard_linear_attention_ref, linear_attention_ref
from torch import Tensor

from mlic_fast.ops.linear_attention import checkerboard_linear_attention, linear_attention


class Case(NamedTuple):
    """The last slice's context of the published model at the latents of one picture, and whether with gradients."""

    checkerboard: bool
    size: tuple[int, int, int]  # channels, height, width
    gradients: bool

    @property
    def heads(self) -> int:
        return 2 if self.checkerboard else self.size[0] // 32

    def work(self) -> common.Work:
        channels, height, width = self.size
        read = height * width // (2 if self.checkerboard else 1)
        # forward: Q, K, V in, the result out; backward: those and the result's gradient in, three gradients out
        numbers = channels * (3 * read + height * width)
        products = 2 * channels * (channels // self.heads) * read
        if self.gradients:
            numbers += channels * (4 * read + 3 * height * width)
            products *= 3
        return common.Work(bytes=4 * numbers, flops=2 * products)


CASES = {
    f"{form}, {picture}, {direction}": Case(form == "intra", (channels, *latent), direction != "forward")
    for form, channels in (("inter", 288), ("intra", 32))
    for picture, latent in (("768×512", (32, 48)), ("3840×2160", (136, 240)))
    for direction in ("forward", "forward and backward")
}
SMOKE = {
    f"{form}, 128×64, forward and backward": Case(form == "intra", (32, 4, 8), True) for form in ("inter", "intra")
}
CONTESTANTS = ("operation", "twin", "compiled twin")


@functools.cache
def compiled_twin(checkerboard: bool) -> Callable[..., Tensor]:
    twin = checkerboard_linear_attention_ref if checkerboard else linear_attention_ref
    compiled: Callable[..., Tensor] = torch.compile(twin, dynamic=False)
    return compiled


def call_of(case: Case, contestant: str, device: torch.device) -> Callable[[], Any]:
    """One call of a contestant on inputs of its own."""
    attention: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    if contestant == "operation":
        attention = checkerboard_linear_attention if case.checkerboard else linear_attention
    elif contestant == "twin":
        attention = checkerboard_linear_attention_ref if case.checkerboard else linear_attention_ref
    else:
        attention = compiled_twin(case.checkerboard)
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 1, *case.size, generator=random).to(device)
    q, k, v, grad = (x.clone().requires_grad_(case.gradients) for x in maps)
    if case.gradients:
        return lambda: torch.autograd.grad(attention(q, k, v, case.heads), (q, k, v), grad)

    def forward() -> Any:
        with torch.no_grad():
            return attention(q, k, v, case.heads)

    return forward


BENCHMARK = common.Benchmark("linear attention", CASES, SMOKE, CONTESTANTS, call_of, __file__)


def test_linear_attention(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
