# SPDX-License-Identifier: Apache-2.0
"""Softmax attention against its plain twin, and against the formula with all scores in memory at once.

    python bench/bench_softmax_attention.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_softmax_attention.py                the same calls under pytest-benchmark

The floor: every map read or written once, each product of scores, results and gradients once. The formula is left out
where its scores would take more than a GiB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import common
import torch
from mlic_fast.kernels.softmax_attention import (
    EXCLUDED,
    Near,
    checkerboard_softmax_attention_ref,
    read_checkerboard,
    softmax_attention_ref,
)
from torch import Tensor

from mlic_fast.checkerboard import Parity, unpack
from mlic_fast.ops.softmax_attention import checkerboard_softmax_attention, softmax_attention

RADIUS = 2


class Case(NamedTuple):
    """The last slice's context of the published model at the latents of one picture, and whether with gradients."""

    checkerboard: bool
    size: tuple[int, int, int]  # channels, height, width
    gradients: bool

    @property
    def heads(self) -> int:
        return 2 if self.checkerboard else self.size[0] // 32

    @property
    def read(self) -> int:
        return self.size[1] * self.size[2] // (2 if self.checkerboard else 1)

    def work(self) -> common.Work:
        channels, height, width = self.size
        # forward: Q, K, V in, the result out; backward: those and the result's gradient in, three gradients out
        numbers = channels * (3 * self.read + height * width)
        products = 2  # for the scores and the result; backward: those of the scores again, and of four gradients
        if self.gradients:
            numbers += channels * (4 * self.read + 3 * height * width)
            products += 5
        return common.Work(bytes=4 * numbers, flops=2 * products * channels * self.read**2)


CASES = {
    "inter, 768×512, forward": Case(False, (288, 32, 48), False),
    "inter, 768×512, forward and backward": Case(False, (288, 32, 48), True),
    "inter, one head of nine, 3840×2160, forward": Case(False, (32, 136, 240), False),
    "intra, 768×512, forward": Case(True, (32, 32, 48), False),
    "intra, 768×512, forward and backward": Case(True, (32, 32, 48), True),
    "intra, 3840×2160, forward": Case(True, (32, 136, 240), False),
}
SMOKE = {
    f"{form}, 128×64, forward and backward": Case(form == "intra", (32, 4, 8), True) for form in ("inter", "intra")
}
CONTESTANTS = ("operation", "twin", "formula")


def formula(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention over all positions, all scores at once."""
    return _whole(queries.flatten(2), keys.flatten(2), values.flatten(2), heads, None).view(queries.shape)


def checkerboard_formula(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """From anchors to non-anchors, all scores at once."""
    batch, channels, height, width = queries.shape
    near = Near(height, width, RADIUS, queries.device)[:]
    read = read_checkerboard(queries, keys, values)
    attended = _whole(read[0], read[1], read[2], heads, near)
    return unpack(attended.view(batch, channels, height, width // 2), Parity.NONANCHOR)


def _whole(queries: Tensor, keys: Tensor, values: Tensor, heads: int, near: Tensor | None) -> Tensor:
    batch, _, positions = queries.shape
    q, k, v = (x.view(batch, heads, -1, positions) for x in (queries, keys, values))  # [B, heads, width, positions]
    scores = (q * q.shape[2] ** -0.5).transpose(2, 3) @ k
    if near is not None:
        scores = torch.where(near, EXCLUDED, scores)
    return (v @ scores.softmax(dim=3).transpose(2, 3)).flatten(1, 2)


class SoftmaxBenchmark(common.Benchmark):
    def of(self, name: str, settings: common.Settings) -> list[str]:
        case = {**self.cases, **self.smoke}[name]
        too_large = 4 * case.heads * case.read**2 > 2**30
        return [c for c in self.contestants if not (too_large and c == "formula")]


def call_of(case: Case, contestant: str, device: torch.device) -> Callable[[], Any]:
    """One call of a contestant on inputs of its own."""
    attention: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    if contestant == "operation":
        attention = checkerboard_softmax_attention if case.checkerboard else softmax_attention
    elif contestant == "twin":
        attention = checkerboard_softmax_attention_ref if case.checkerboard else softmax_attention_ref
    else:
        attention = checkerboard_formula if case.checkerboard else formula
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 1, *case.size, generator=random).to(device)
    q, k, v, grad = (x.clone().requires_grad_(case.gradients) for x in maps)
    if case.gradients:
        return lambda: torch.autograd.grad(attention(q, k, v, case.heads), (q, k, v), grad)

    def forward() -> Any:
        with torch.no_grad():
            return attention(q, k, v, case.heads)

    return forward


BENCHMARK = SoftmaxBenchmark("softmax attention", CASES, SMOKE, CONTESTANTS, call_of, __file__)


def test_softmax_attention(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
