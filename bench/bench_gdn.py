# SPDX-License-Identifier: Apache-2.0
"""GDN with the residual addition against its plain twin and torch.compile of the twin.

    python bench/bench_gdn.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_gdn.py                the same calls under pytest-benchmark

The floor: x and the residual read and y written once,
or the products with gamma at the speed of this machine's own float32 matrix product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import torch
from mlic_fast.kernels.gdn import gdn_ref
from torch import Tensor

from mlic_fast.ops.gdn import gdn

N = 192


class Case(NamedTuple):
    """Maps of one picture at half or a quarter of its resolution."""

    height: int
    width: int
    channels_last: bool = False
    gradients: bool = False

    def work(self) -> common.Work:
        positions = self.height * self.width
        # backward: x and y's gradient in, that of x out; norm again, and two products more
        maps, products = (6, 4) if self.gradients else (3, 1)
        return common.Work(bytes=4 * maps * N * positions, flops=2 * products * N * N * positions)


CASES = {
    "192×128, forward": Case(128, 192),
    "192×128, channels-last, forward": Case(128, 192, channels_last=True),
    "192×128, forward and backward": Case(128, 192, gradients=True),
    "384×256, forward": Case(256, 384),
    "384×256, channels-last, forward": Case(256, 384, channels_last=True),
    "384×256, forward and backward": Case(256, 384, gradients=True),
}
SMOKE = {
    "20×12, channels-last, forward": Case(12, 20, channels_last=True),
    "20×12, forward and backward": Case(12, 20, gradients=True),
}
CONTESTANTS = ("operation", "twin", "compiled twin")


@functools.cache
def compiled_twin() -> Callable[..., Tensor]:
    twin: Callable[..., Tensor] = torch.compile(gdn_ref, dynamic=False)
    return twin


def operation(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor, inverse: bool) -> Tensor:
    return gdn(x, beta, gamma, residual, inverse=inverse)


def call_of(case: Case, contestant: str, device: torch.device) -> Callable[[], Any]:
    """One call of a contestant on inputs of its own."""
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 1, N, case.height, case.width, generator=random).to(device).unbind()
    if case.channels_last:
        maps = tuple(x.contiguous(memory_format=torch.channels_last) for x in maps)
    x, residual, grad = maps
    beta = (torch.rand(N, generator=random) + 0.5).to(device)
    gamma = (torch.rand(N, N, generator=random) / 100).to(device)
    eager: dict[str, Callable[..., Tensor]] = {"operation": operation, "twin": gdn_ref}
    how = eager.get(contestant) or compiled_twin()
    inputs = (x, beta, gamma, residual)
    if not case.gradients:

        def forward() -> Any:
            with torch.inference_mode():
                return how(*inputs, False)

        return forward
    leaves = [t.requires_grad_() for t in inputs]
    return lambda: torch.autograd.grad(how(*leaves, False), leaves, grad)


BENCHMARK = common.Benchmark("GDN", CASES, SMOKE, CONTESTANTS, call_of, __file__, rounds=10)


def test_gdn(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
