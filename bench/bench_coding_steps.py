# SPDX-License-Identifier: Apache-2.0
"""Coding steps of one pass against their plain twins, torch.compile of those, and the official sequence.

    python bench/bench_coding_steps.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_coding_steps.py                the same calls under pytest-benchmark

The official sequence is squeeze, CompressAI's build_indexes and quantise, unsqueeze, and Python lists for the coder.
The others end with arrays on the CPU, ready for the coder, or begin with them. The floor: the coded half of every
map read or written once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import torch
from compressai.entropy_models import GaussianConditional
from mlic_fast.kernels import coding_steps as kernels
from torch import Tensor

from mlic_fast.checkerboard import Parity, keep, pack, unpack
from mlic_fast.ops import coding_steps as ops

C = 32
COLOUR = Parity.ANCHOR


class Case(NamedTuple):
    """One step over a slice of one picture's latents."""

    step: str  # encode, decode or residual
    height: int
    width: int

    def work(self) -> common.Work:
        positions = C * self.height * self.width // 2
        # encode: y, scale, mean in; symbol, index, value and its zero neighbour out. decode: scale, index; symbol,
        # mean, value and neighbour. residual: logit, value, value.
        numbers = {"encode": 12 + 3 + 8, "decode": 4 + 1 + 4 + 4 + 8, "residual": 12}[self.step]
        return common.Work(bytes=numbers * positions, flops=0)


CASES = {
    f"{step}, {image}": Case(step, *latent)
    for image, latent in (("768×512", (32, 48)), ("3840×2160", (136, 240)))
    for step in ("encode", "decode", "residual")
}
SMOKE = {f"{step}, 128×64": Case(step, 4, 8) for step in ("encode", "decode", "residual")}
CONTESTANTS = ("operation", "twin", "compiled twin", "official")


@functools.cache
def gaussian_on(device: torch.device) -> GaussianConditional:
    table = torch.exp(torch.linspace(math.log(0.11), math.log(256), 64))
    return GaussianConditional(table.tolist()).to(device)


@functools.cache
def compiled(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = torch.compile(getattr(kernels, name), dynamic=False)
    return function


def twins(name: str, contestant: str) -> Callable[..., Any]:
    """The plain function of that name, or its compiled form."""
    function: Callable[..., Any] = getattr(kernels, f"{name}_ref")
    return function if contestant == "twin" else compiled(f"{name}_ref")


def call_of(case: Case, contestant: str, device: torch.device) -> Callable[[], Any]:
    """One call of a contestant on inputs of its own, with scales as they are: two thirds below the bound."""
    random = torch.Generator().manual_seed(0)
    y, scales, means = torch.randn(3, 1, C, case.height, case.width, generator=random).to(device).unbind()
    y, scales = 2 * y, (1.5 * scales - 2.9).exp()
    values = torch.zeros_like(y)
    gaussian = gaussian_on(device)
    boundaries = gaussian.scale_table, gaussian.scale_bound
    symbols = pack((y - means).round(), COLOUR).short().cpu()
    as_list = symbols.flatten().tolist()

    def encode() -> Any:
        if contestant == "official":
            packed = [pack(x, COLOUR) for x in (y, scales, means)]
            indexes = gaussian.build_indexes(packed[1])
            found = gaussian.quantize(packed[0], "symbols", packed[2])
            decoded = unpack(found + packed[2], COLOUR)
            return found.reshape(-1).tolist(), indexes.reshape(-1).tolist(), decoded
        if contestant == "operation":
            result = ops.encode_step(values, y, scales, means, COLOUR, *boundaries, clear=True)
        else:
            step = twins("encode_step", contestant)
            result = step(values, y, scales, means, *boundaries, COLOUR.value, True, False)
        fetched = [x.cpu() for x in result]
        ops.check_flags(fetched[2])
        return fetched

    def decode() -> Any:
        if contestant == "official":
            packed = [pack(x, COLOUR) for x in (scales, means)]
            indexes = gaussian.build_indexes(packed[0]).reshape(-1).tolist()
            found = torch.tensor(as_list, device=device).reshape(packed[1].shape)
            return indexes, unpack(found + packed[1], COLOUR)
        if contestant == "operation":
            result = ops.decode_indexes(scales, means, COLOUR, *boundaries)
        else:
            result = twins("decode_indexes", contestant)(scales, means, *boundaries, COLOUR.value)
        fetched = [x.cpu() for x in result]
        ops.check_flags(fetched[1])
        if contestant == "operation":
            ops.decode_values(values, symbols.to(device), means, COLOUR, clear=True)
        else:
            twins("decode_values", contestant)(values, symbols.to(device), means, COLOUR.value, True)
        return fetched

    def residual() -> Tensor:
        if contestant == "official":
            return y + keep(0.5 * torch.tanh(means), COLOUR)
        if contestant == "operation":
            ops.residual_step(values, means, COLOUR)
        else:
            twins("residual_step", contestant)(values, means, COLOUR.value)
        return values

    step = {"encode": encode, "decode": decode, "residual": residual}[case.step]

    def call() -> Any:
        with torch.inference_mode():
            return step()

    return call


BENCHMARK = common.Benchmark("coding steps", CASES, SMOKE, CONTESTANTS, call_of, __file__, rounds=50)


def test_coding_steps(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
