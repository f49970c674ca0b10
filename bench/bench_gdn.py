# SPDX-License-Identifier: Apache-2.0
"""GDN with the residual addition against its plain twin and torch.compile of the twin.

    python bench/bench_gdn.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_gdn.py                the same calls under pytest-benchmark

Runs on the CUDA device where there is one, else on the CPU. The floor: x and the residual read and y written once,
or the products with gamma at the speed of this machine's own float32 matrix product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import pytest
import torch
from mlic_fast.kernels.gdn import gdn_ref
from torch import Tensor

from mlic_fast.ops.gdn import gdn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
CONTESTANTS = ("operation", "twin", "compiled twin")


@functools.cache
def compiled_twin() -> Callable[..., Tensor]:
    twin: Callable[..., Tensor] = torch.compile(gdn_ref, dynamic=False)
    return twin


def operation(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor, inverse: bool) -> Tensor:
    return gdn(x, beta, gamma, residual, inverse=inverse)


def call_of(case: Case, contestant: str) -> Callable[[], Any]:
    """One call of a contestant on inputs of its own."""
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 1, N, case.height, case.width, generator=random).to(DEVICE).unbind()
    if case.channels_last:
        maps = tuple(x.contiguous(memory_format=torch.channels_last) for x in maps)
    x, residual, grad = maps
    beta = (torch.rand(N, generator=random) + 0.5).to(DEVICE)
    gamma = (torch.rand(N, N, generator=random) / 100).to(DEVICE)
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


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("case", CASES)
def test_gdn(benchmark: Any, case: str, contestant: str) -> None:
    common.time_case(benchmark, call_of(CASES[case], contestant), __file__, case, contestant, DEVICE)


if __name__ == "__main__":
    common.run("gdn", CASES, CONTESTANTS, call_of, DEVICE, __file__, rounds=10)
