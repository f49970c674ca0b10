# SPDX-License-Identifier: Apache-2.0
"""Linear attention against its plain twin and torch.compile of the twin: time, memory, share of the floor.

    python bench/bench_linear_attention.py [--rounds N] [--write]  a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_linear_attention.py                the same calls under pytest-benchmark

Runs on the CUDA device where there is one, else on the CPU, where the operation is the twin. The floor:
every map read or written once, the products with the contexts once.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import pytest
import torch
from mlic_fast.kernels.linear_attention import checkerboard_linear_attention_ref, linear_attention_ref
from torch import Tensor

from mlic_fast.ops.linear_attention import checkerboard_linear_attention, linear_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
CONTESTANTS = ("operation", "twin", "compiled twin")


@functools.cache
def compiled_twin(checkerboard: bool) -> Callable[..., Tensor]:
    twin = checkerboard_linear_attention_ref if checkerboard else linear_attention_ref
    compiled: Callable[..., Tensor] = torch.compile(twin, dynamic=False)
    return compiled


def call_of(case: Case, contestant: str) -> Callable[[], Any]:
    """One call of a contestant on inputs of its own."""
    attention: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    if contestant == "operation":
        attention = checkerboard_linear_attention if case.checkerboard else linear_attention
    elif contestant == "twin":
        attention = checkerboard_linear_attention_ref if case.checkerboard else linear_attention_ref
    else:
        attention = compiled_twin(case.checkerboard)
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(4, 1, *case.size, generator=random).to(DEVICE)
    q, k, v, grad = (x.clone().requires_grad_(case.gradients) for x in maps)
    if case.gradients:
        return lambda: torch.autograd.grad(attention(q, k, v, case.heads), (q, k, v), grad)

    def forward() -> Any:
        with torch.no_grad():
            return attention(q, k, v, case.heads)

    return forward


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("case", CASES)
def test_linear_attention(benchmark: Any, case: str, contestant: str) -> None:
    call = call_of(CASES[case], contestant)

    def once() -> None:
        call()
        common.synchronise(DEVICE)

    once()
    benchmark.group = f"linear attention, {case}"
    benchmark.extra_info["floor_ms"] = 1e3 * CASES[case].work().floor(DEVICE)
    benchmark(once)


def main() -> None:
    """Print the table; keep it where asked to."""
    parser = argparse.ArgumentParser(description="Linear attention against its plain twin.")
    parser.add_argument("--rounds", type=int, default=20, help="repetitions of each call (default 20)")
    parser.add_argument("--case", default="", metavar="WORDS", help="only cases whose names have these words in them")
    parser.add_argument("--write", action="store_true", help="keep the table in bench/results/")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTESTANT"), help="print the peak memory of one call")
    options = parser.parse_args()
    if options.peak:
        call = call_of(CASES[options.peak[0]], options.peak[1])
        call()
        call()
        print(common.peak_memory(call, DEVICE))
        return
    rows = [
        common.measure(name, contestant, call_of(case, contestant), case.work(), DEVICE, options.rounds, __file__)
        for name, case in CASES.items()
        if options.case in name
        for contestant in CONTESTANTS
    ]
    common.show(rows, DEVICE)
    if options.write:
        print(common.keep(rows, "linear_attention", DEVICE))


if __name__ == "__main__":
    main()
