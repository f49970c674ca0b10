# SPDX-License-Identifier: Apache-2.0
"""Steps around the range coder on the packed maps of a pass, one launch each.

encode_step     s = round(y − mean), index = smallest k with max(scale, bound) ≤ table[k], else the last row;
                value = s + mean.
decode_indexes  the same indexes from scale · factor, factor being the guard's.
decode_values   value = s + mean.

All maps are packed [B, C, h, w/2] in coding order and contiguous, so the steps see rows of n numbers. Results that
the host fetches go to parts of a larger buffer. Every program reports what it met in a byte of its own, so that a
caller learns of it in the transfer that brings the symbols. Called by mlic_fast.ops.coding_steps.

No floating-point contraction: indexes and symbols must not depend on who compiled this.
"""

from typing import Any

import torch
from torch import Tensor

from mlic_fast.compute.triton_language import HAS_TRITON, tl, triton

# What a byte of flags says.
BAD_SCALE = 1  # a scale is NaN or infinite
BAD_VALUE = 2  # a mean, or y − mean, is
LARGE_SYMBOL = 4  # a symbol does not fit in int16: the step must be done again with wide symbols

# Wide symbols saturate here, exactly representable and far outside of what can be coded.
WIDE_LIMIT = 2**30

BLOCK = 512
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _round(x):
    """Nearest integer, ties to even. Adding 2²³ leaves no bit for a fraction."""
    magnitude = tl.abs(x)
    rounded = (magnitude + 8388608.0) - 8388608.0
    rounded = tl.where(magnitude < 8388608.0, rounded, magnitude)
    return tl.where(x < 0, -rounded, rounded)


@triton.jit
def _table_index(scales, table_ptr, bound_ptr, rows, STEPS: tl.constexpr):
    """How many of the first rows − 1 entries lie below max(scale, bound), by bisection."""
    bounded = tl.maximum(scales, tl.load(bound_ptr))
    below = tl.zeros_like(bounded).to(tl.int32)
    for step in tl.static_range(STEPS):
        candidate = below + (1 << (STEPS - 1 - step))
        inside = candidate < rows
        entry = tl.load(table_ptr + candidate - 1, mask=inside, other=float("inf"))
        below = tl.where(inside & (entry < bounded), candidate, below)
    return below


@triton.jit
def _encode_step_kernel(
    values_ptr,
    symbols_ptr,
    indexes_ptr,
    flags_ptr,
    y_ptr,
    scales_ptr,
    means_ptr,
    table_ptr,
    bound_ptr,
    n,
    rows,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    y = tl.load(y_ptr + at, mask=mask, other=0.0)
    scales = tl.load(scales_ptr + at, mask=mask, other=1.0)
    means = tl.load(means_ptr + at, mask=mask, other=0.0)

    residual = y - means
    good_scale, good_value = _finite(scales), _finite(residual)
    rounded = _round(tl.where(good_value, residual, 0.0))
    inside = (rounded >= LOWEST) & (rounded <= HIGHEST)
    symbols = tl.minimum(tl.maximum(rounded, LOWEST), HIGHEST).to(tl.int32)
    indexes = _table_index(scales, table_ptr, bound_ptr, rows, STEPS)

    tl.store(values_ptr + at, symbols.to(tl.float32) + means, mask=mask)
    tl.store(symbols_ptr + at, symbols.to(symbols_ptr.dtype.element_ty), mask=mask)
    tl.store(indexes_ptr + at, indexes.to(tl.uint8), mask=mask)
    flags = tl.where(good_scale, 0, 1) | tl.where(good_value, 0, 2) | tl.where(inside, 0, 4)
    met = tl.max(flags & 1, axis=0) + tl.max(flags & 2, axis=0) + tl.max(flags & 4, axis=0)
    tl.store(flags_ptr + tl.program_id(0), met.to(tl.uint8))


@triton.jit
def _decode_indexes_kernel(
    indexes_ptr,
    flags_ptr,
    scales_ptr,
    factors_ptr,
    table_ptr,
    bound_ptr,
    n,
    rows,
    MOVED: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    scales = tl.load(scales_ptr + at, mask=mask, other=1.0)
    flags = tl.where(_finite(scales), 0, 1)
    if MOVED:
        scales *= tl.load(factors_ptr + at, mask=mask, other=1.0)
    indexes = _table_index(scales, table_ptr, bound_ptr, rows, STEPS)
    tl.store(indexes_ptr + at, indexes.to(tl.uint8), mask=mask)
    tl.store(flags_ptr + tl.program_id(0), tl.max(flags, axis=0).to(tl.uint8))


@triton.jit
def _decode_values_kernel(values_ptr, flags_ptr, symbols_ptr, means_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    symbols = tl.load(symbols_ptr + at, mask=mask, other=0)
    means = tl.load(means_ptr + at, mask=mask, other=0.0)
    tl.store(values_ptr + at, symbols.to(tl.float32) + means, mask=mask)
    flags = tl.where(_finite(means), 0, 2)
    tl.store(flags_ptr + tl.program_id(0), tl.max(flags, axis=0).to(tl.uint8))


def flag_count(n: int) -> int:
    """Bytes of flags that a step on n numbers writes."""
    return -(-n // BLOCK)


def _steps(table: Tensor) -> int:
    return (len(table) - 1).bit_length()


def encode_step(
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    table: Tensor,
    bound: Tensor,
    symbols: Tensor,
    indexes: Tensor,
    flags: Tensor,
) -> Tensor:
    """Quantise y, find the symbols' table indexes and return the decoded values, float32, in the shape of y.

    y, scales, means: float32 [B, C, h, w/2], contiguous; table: float32 [rows], increasing; bound: float32 [1].
    symbols: int16 or int32 [n], indexes: uint8 [n], flags: uint8 [flag_count(n)]: written. Symbols that do not fit
    saturate and are reported; int32 ones do so beyond ±2³⁰.
    """
    values = torch.empty_like(y)
    lowest, highest = _limits(symbols)
    with torch.cuda.device_of(y):
        _encode_step_kernel[(len(flags),)](
            values,
            symbols,
            indexes,
            flags,
            y,
            scales,
            means,
            table,
            bound,
            y.numel(),
            len(table),
            LOWEST=float(lowest),
            HIGHEST=float(highest),
            STEPS=_steps(table),
            BLOCK=BLOCK,
            **_OPTIONS,
        )
    return values


def decode_indexes(
    scales: Tensor, factors: Tensor | None, table: Tensor, bound: Tensor, indexes: Tensor, flags: Tensor
) -> None:
    """Find the table indexes of scales [B, C, h, w/2], times factors [n] if there are any; see `encode_step`."""
    with torch.cuda.device_of(scales):
        _decode_indexes_kernel[(len(flags),)](
            indexes,
            flags,
            scales,
            scales if factors is None else factors,
            table,
            bound,
            scales.numel(),
            len(table),
            MOVED=factors is not None,
            STEPS=_steps(table),
            BLOCK=BLOCK,
            **_OPTIONS,
        )


def decode_values(symbols: Tensor, means: Tensor, flags: Tensor) -> Tensor:
    """symbols int16 or int32 [n] + means [B, C, h, w/2], float32; flags as in `encode_step`."""
    values = torch.empty_like(means)
    with torch.cuda.device_of(means):
        _decode_values_kernel[(len(flags),)](values, flags, symbols, means, means.numel(), BLOCK=BLOCK, **_OPTIONS)
    return values


def build_indexes_ref(scales: Tensor, table: Tensor, bound: Tensor) -> Tensor:
    """int32 indexes, shape of `scales`: the smallest k with max(scale, bound) ≤ table[k], else the last row.

    Compared in float32 with the saved table, as CompressAI's GaussianConditional.build_indexes does:
    a value on a boundary belongs to the row below it.
    """
    bounded = torch.maximum(scales.float(), bound)
    return torch.bucketize(bounded, table[:-1], out_int32=True)


def encode_step_ref(
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    table: Tensor,
    bound: Tensor,
    symbols: Tensor,
    indexes: Tensor,
    flags: Tensor,
) -> Tensor:
    """Plain twin of `encode_step`; its first flag stands for all."""
    rounded = torch.round(y - means)
    lowest, highest = _limits(symbols)
    found = rounded.clamp(lowest, highest).to(symbols.dtype)
    symbols.copy_(found.flatten())
    indexes.copy_(build_indexes_ref(scales, table, bound).flatten())
    large = LARGE_SYMBOL * ((rounded < lowest) | (rounded > highest)).any()
    _write_flags(flags, BAD_SCALE * _infinite(scales) + BAD_VALUE * _infinite(rounded) + large)
    return found + means


def decode_indexes_ref(
    scales: Tensor, factors: Tensor | None, table: Tensor, bound: Tensor, indexes: Tensor, flags: Tensor
) -> None:
    """Plain twin of `decode_indexes`; its first flag stands for all."""
    _write_flags(flags, BAD_SCALE * _infinite(scales))
    moved = scales if factors is None else scales * factors.view(scales.shape)
    indexes.copy_(build_indexes_ref(moved, table, bound).flatten())


def decode_values_ref(symbols: Tensor, means: Tensor, flags: Tensor) -> Tensor:
    """Plain twin of `decode_values`; its first flag stands for all."""
    _write_flags(flags, BAD_VALUE * _infinite(means))
    return symbols.view(means.shape) + means


def _limits(symbols: Tensor) -> tuple[int, int]:
    return (-WIDE_LIMIT, WIDE_LIMIT) if symbols.dtype == torch.int32 else (-(2**15), 2**15 - 1)


def _infinite(x: Tensor) -> Tensor:
    return ~torch.isfinite(x).all()


def _write_flags(flags: Tensor, met: Tensor) -> None:
    flags.zero_()
    flags[:1] = met


def _aot(kernel: Any, constants: dict[str, Any], symbols: str = "*i16") -> tuple[Any, ...]:
    if not HAS_TRITON:
        return kernel, {}, constants, {}
    known = constants | {"BLOCK": BLOCK}
    types = {"symbols_ptr": symbols, "indexes_ptr": "*u8", "flags_ptr": "*u8"}
    kinds = {
        name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
        if name not in known
    }
    return kernel, kinds, known, _OPTIONS


AOT_CONFIGS = [
    _aot(_encode_step_kernel, {"LOWEST": -32768.0, "HIGHEST": 32767.0, "STEPS": 6}),
    _aot(_encode_step_kernel, {"LOWEST": -float(WIDE_LIMIT), "HIGHEST": float(WIDE_LIMIT), "STEPS": 6}, "*i32"),
    _aot(_decode_indexes_kernel, {"MOVED": True, "STEPS": 6}),
    _aot(_decode_indexes_kernel, {"MOVED": False, "STEPS": 6}),
    _aot(_decode_values_kernel, {}),
    _aot(_decode_values_kernel, {}, "*i32"),
]
