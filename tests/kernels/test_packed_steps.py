# SPDX-License-Identifier: Apache-2.0
"""Coding steps on packed maps: the kernels and their twins against CompressAI's formulas, and flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mlic_fast.kernels import packed_steps as kernels
from mlic_fast.kernels.coding_steps import BAD_SCALE, BAD_VALUE, LARGE_SYMBOL, WIDE_LIMIT
from mlic_fast.kernels.language import HAS_TRITON
from torch import Tensor

from mlic_fast.compute.backend import use_backend
from mlic_fast.ops import packed_steps as ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = [
    "torch",
    pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton has packages for Linux only")),
]
# below, on and behind a program's block
COUNTS = [1, 31, 512, 513, 1500]

TABLE = torch.exp(torch.linspace(math.log(0.11), math.log(256), 64)).to(DEVICE)
BOUND = torch.tensor([0.11], device=DEVICE)


class Buffers:
    """What a step writes to, with room around it that must stay as it is."""

    def __init__(self, n: int, dtype: torch.dtype = torch.int16) -> None:
        self._all = {
            "symbols": torch.full((n + 8,), 77, dtype=dtype, device=DEVICE),
            "indexes": torch.full((n + 8,), 77, dtype=torch.uint8, device=DEVICE),
            "flags": torch.full((ops.flag_count(n) + 8,), 77, dtype=torch.uint8, device=DEVICE),
        }
        self.symbols, self.indexes, self.flags = (x[4:-4] for x in self._all.values())

    def intact(self) -> bool:
        return all((x[:4] == 77).all() and (x[-4:] == 77).all() for x in self._all.values())

    def met(self) -> int:
        found = 0
        for flag in self.flags.tolist():
            found |= flag
        return found


def maps(n: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [(3 * torch.randn(1, 1, n, 1, generator=generator)).to(DEVICE) for _ in range(count)]


def scales_of(n: int) -> Tensor:
    (x,) = maps(n, 1)
    x = (x - 1).exp()
    x.view(-1)[: min(n, 64)] = TABLE[: min(n, 64)]  # on the boundaries
    return x


def expected_indexes(scales: Tensor) -> Tensor:
    bounded = torch.maximum(scales.flatten(), BOUND)
    return (TABLE[:-1, None] < bounded[None]).sum(0).to(torch.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", COUNTS)
def test_encoding(backend: str, n: int) -> None:
    (y, means), scales, out = maps(n, 2), scales_of(n), Buffers(n)
    y.view(-1)[0] = means.view(-1)[0] + 2.5  # a tie goes to the even one
    with use_backend(backend):
        values = ops.encode_packed(y, scales, means, TABLE, BOUND, out.symbols, out.indexes, out.flags)
    rounded = torch.round(y - means)
    assert torch.equal(values, rounded + means)
    assert torch.equal(out.symbols, rounded.flatten().to(torch.int16))
    assert torch.equal(out.indexes, expected_indexes(scales))
    assert out.met() == 0
    assert out.intact()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("moved", [False, True], ids=["plain", "moved"])
@pytest.mark.parametrize("n", COUNTS)
def test_indexes(backend: str, n: int, moved: bool) -> None:
    scales, out = scales_of(n), Buffers(n)
    factors = torch.linspace(0.9, 1.1, n, device=DEVICE) if moved else None
    with use_backend(backend):
        ops.packed_indexes(scales, factors, TABLE, BOUND, out.indexes, out.flags)
    assert torch.equal(out.indexes, expected_indexes(scales.flatten() * factors if factors is not None else scales))
    assert out.met() == 0
    assert out.intact()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=["int16", "int32"])
@pytest.mark.parametrize("n", COUNTS)
def test_values(backend: str, n: int, dtype: torch.dtype) -> None:
    (means,), out = maps(n, 1), Buffers(n, dtype)
    out.symbols.copy_(torch.arange(n, device=DEVICE) - n // 2)
    with use_backend(backend):
        values = ops.packed_values(out.symbols, means, out.flags)
    assert torch.equal(values, out.symbols.view(means.shape) + means)
    assert out.met() == 0
    assert out.intact()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_symbols(backend: str) -> None:
    values = torch.tensor([32767.0, -32768.0, 32768.0, -32769.0, 1e9, -1e9, 1e12, -1e12, 2.0**31], device=DEVICE)
    y, ones, zeros = (
        values.view(1, 1, -1, 1),
        torch.ones(1, 1, 9, 1, device=DEVICE),
        torch.zeros(1, 1, 9, 1, device=DEVICE),
    )
    narrow, wide, first = Buffers(9), Buffers(9, torch.int32), Buffers(2)
    with use_backend(backend):
        for out in (narrow, wide):
            ops.encode_packed(y, ones, zeros, TABLE, BOUND, out.symbols, out.indexes, out.flags)
        two = (x[:, :, :2].contiguous() for x in (y, ones, zeros))
        ops.encode_packed(*two, TABLE, BOUND, first.symbols, first.indexes, first.flags)
    assert (narrow.met(), wide.met(), first.met()) == (LARGE_SYMBOL, LARGE_SYMBOL, 0)
    assert narrow.symbols.tolist() == [32767, -32768] + [32767, -32768] * 3 + [32767]
    exact = [32767, -32768, 32768, -32769, 10**9, -(10**9)]
    assert wide.symbols.tolist() == [*exact, WIDE_LIMIT, -WIDE_LIMIT, WIDE_LIMIT]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 700])
def test_what_is_not_finite_is_reported(backend: str, bad: float, place: int) -> None:
    def spoilt(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[place] = bad
        return x

    (y, means), scales, out = maps(701, 2), scales_of(701), Buffers(701)
    written = out.symbols, out.indexes, out.flags
    steps: list[tuple[Callable[[], Any], int]] = [
        (lambda: ops.encode_packed(spoilt(y), scales, means, TABLE, BOUND, *written), BAD_VALUE),
        (lambda: ops.encode_packed(y, spoilt(scales), means, TABLE, BOUND, *written), BAD_SCALE),
        (lambda: ops.encode_packed(y, scales, spoilt(means), TABLE, BOUND, *written), BAD_VALUE),
        (lambda: ops.packed_indexes(spoilt(scales), None, TABLE, BOUND, *written[1:]), BAD_SCALE),
        (lambda: ops.packed_values(out.symbols, spoilt(means), out.flags), BAD_VALUE),
    ]
    with use_backend(backend):
        for step, flag in steps:
            step()
            assert out.met() & (BAD_SCALE | BAD_VALUE) == flag


@pytest.mark.skipif(not HAS_TRITON, reason="Triton has packages for Linux only")
def test_the_kernels_are_their_twins_to_the_bit() -> None:
    (y, means), scales, a, b = maps(1100, 2), scales_of(1100), Buffers(1100), Buffers(1100)
    own = kernels.encode_packed(y, scales, means, TABLE, BOUND, a.symbols, a.indexes, a.flags)
    twin = kernels.encode_packed_ref(y, scales, means, TABLE, BOUND, b.symbols, b.indexes, b.flags)
    assert torch.equal(own, twin)
    assert torch.equal(a.symbols, b.symbols)
    assert torch.equal(a.indexes, b.indexes)
