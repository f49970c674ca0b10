# SPDX-License-Identifier: Apache-2.0
"""Steps around the range coder at one colour of the checkerboard, one launch each.

encode_step     s = round(y − mean), index = smallest k with max(scale, bound) ≤ table[k], else the
                last row; both packed in coding order; value = s + mean written at its position.
decode_indexes  the same indexes from scales alone.
decode_values   value = s + mean written at its position.
residual_step   value += 0.5·tanh(logit) at the colour's positions.

Maps are [B, C, h, w] with any strides (slices of channels, channels-last), w even; packed tensors are
[B, C, h, w/2], contiguous. `first` is the colour: the first coded column of row 0 (see Pass).
What fuses: pack, quantise, index, cast, finiteness checks, unpack (and the addition of the map that
holds the other colour). Every program reports what it met in a byte of its own, so that a caller
learns of it in the transfer that brings the symbols. Called by mlic_fast.ops.coding_steps.

No floating-point contraction: indexes and symbols must not depend on who compiled this.
"""

from typing import Any

import torch
from mlic_fast.kernels.language import HAS_TRITON, tl, triton
from torch import Tensor

from mlic_fast.checkerboard import Pass, keep, pack

# What a byte of flags says.
BAD_SCALE = 1  # a scale is NaN or infinite
BAD_VALUE = 2  # a mean, or y − mean, is
LARGE_SYMBOL = 4  # a symbol does not fit in int16: the step must be done again with wide symbols

# Wide symbols saturate here, exactly representable and far outside of what can be coded.
WIDE_LIMIT = 2**30

BLOCK = 512
_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _positions(n, channels, height, half, first: tl.constexpr, BLOCK: tl.constexpr):
    """Packed offset of each element of this program → itself, mask, b, c, row, left column of its pair, parity."""
    packed = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = packed < n
    row = (packed // half) % height
    plane = packed // half // height
    b, c = (plane // channels).to(tl.int64), (plane % channels).to(tl.int64)
    return packed, mask, b, c, row.to(tl.int64), 2 * (packed % half).to(tl.int64), (row + first) % 2


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
def _store_values(values_ptr, at, stride_w, parity, values, mask, CLEAR: tl.constexpr):
    """Write one colour of each pair of columns; zeros to the other one if CLEAR."""
    side = tl.arange(0, 2)[None, :]
    coded = side == parity[:, None]
    pair = tl.where(coded, values[:, None], 0.0)
    where = values_ptr + at[:, None] + side * stride_w
    if CLEAR:
        tl.store(where, pair, mask=mask[:, None] & (side < 2))
    else:
        tl.store(where, pair, mask=mask[:, None] & coded)


@triton.jit
def _encode_step_kernel(
    values_ptr,
    y_ptr,
    scales_ptr,
    means_ptr,
    table_ptr,
    bound_ptr,
    symbols_ptr,
    indexes_ptr,
    flags_ptr,
    n,
    channels,
    height,
    half,
    rows,
    stride_vb,
    stride_vc,
    stride_vh,
    stride_vw,
    stride_yb,
    stride_yc,
    stride_yh,
    stride_yw,
    stride_sb,
    stride_sc,
    stride_sh,
    stride_sw,
    stride_mb,
    stride_mc,
    stride_mh,
    stride_mw,
    FIRST: tl.constexpr,
    CLEAR: tl.constexpr,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    packed, mask, b, c, row, left, parity = _positions(n, channels, height, half, FIRST, BLOCK)
    column = left + parity
    y = tl.load(y_ptr + b * stride_yb + c * stride_yc + row * stride_yh + column * stride_yw, mask=mask, other=0.0)
    scale_at = b * stride_sb + c * stride_sc + row * stride_sh + column * stride_sw
    scales = tl.load(scales_ptr + scale_at, mask=mask, other=1.0)
    mean_at = b * stride_mb + c * stride_mc + row * stride_mh + column * stride_mw
    means = tl.load(means_ptr + mean_at, mask=mask, other=0.0)

    residual = y - means
    good_scale, good_value = _finite(scales), _finite(residual)
    rounded = _round(tl.where(good_value, residual, 0.0))
    inside = (rounded >= LOWEST) & (rounded <= HIGHEST)
    symbols = tl.minimum(tl.maximum(rounded, LOWEST), HIGHEST).to(tl.int32)
    indexes = _table_index(scales, table_ptr, bound_ptr, rows, STEPS)

    tl.store(symbols_ptr + packed, symbols.to(symbols_ptr.dtype.element_ty), mask=mask)
    tl.store(indexes_ptr + packed, indexes.to(tl.uint8), mask=mask)
    at = b * stride_vb + c * stride_vc + row * stride_vh + left * stride_vw
    _store_values(values_ptr, at, stride_vw, parity, symbols.to(tl.float32) + means, mask, CLEAR)
    flags = tl.where(good_scale, 0, 1) | tl.where(good_value, 0, 2) | tl.where(inside, 0, 4)
    met = tl.max(flags & 1, axis=0) + tl.max(flags & 2, axis=0) + tl.max(flags & 4, axis=0)
    tl.store(flags_ptr + tl.program_id(0), met.to(tl.uint8))


@triton.jit
def _decode_indexes_kernel(
    scales_ptr,
    means_ptr,
    table_ptr,
    bound_ptr,
    indexes_ptr,
    flags_ptr,
    n,
    channels,
    height,
    half,
    rows,
    stride_sb,
    stride_sc,
    stride_sh,
    stride_sw,
    stride_mb,
    stride_mc,
    stride_mh,
    stride_mw,
    FIRST: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    packed, mask, b, c, row, left, parity = _positions(n, channels, height, half, FIRST, BLOCK)
    column = left + parity
    scale_at = b * stride_sb + c * stride_sc + row * stride_sh + column * stride_sw
    scales = tl.load(scales_ptr + scale_at, mask=mask, other=1.0)
    mean_at = b * stride_mb + c * stride_mc + row * stride_mh + column * stride_mw
    means = tl.load(means_ptr + mean_at, mask=mask, other=0.0)

    indexes = _table_index(scales, table_ptr, bound_ptr, rows, STEPS)
    tl.store(indexes_ptr + packed, indexes.to(tl.uint8), mask=mask)
    met = tl.max(tl.where(_finite(scales), 0, 1), axis=0) + tl.max(tl.where(_finite(means), 0, 2), axis=0)
    tl.store(flags_ptr + tl.program_id(0), met.to(tl.uint8))


@triton.jit
def _decode_values_kernel(
    values_ptr,
    symbols_ptr,
    means_ptr,
    n,
    channels,
    height,
    half,
    stride_vb,
    stride_vc,
    stride_vh,
    stride_vw,
    stride_mb,
    stride_mc,
    stride_mh,
    stride_mw,
    FIRST: tl.constexpr,
    CLEAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    packed, mask, b, c, row, left, parity = _positions(n, channels, height, half, FIRST, BLOCK)
    symbols = tl.load(symbols_ptr + packed, mask=mask, other=0)
    mean_at = b * stride_mb + c * stride_mc + row * stride_mh + (left + parity) * stride_mw
    means = tl.load(means_ptr + mean_at, mask=mask, other=0.0)
    at = b * stride_vb + c * stride_vc + row * stride_vh + left * stride_vw
    _store_values(values_ptr, at, stride_vw, parity, symbols.to(tl.float32) + means, mask, CLEAR)


@triton.jit
def _residual_step_kernel(
    values_ptr,
    logits_ptr,
    n,
    channels,
    height,
    half,
    stride_vb,
    stride_vc,
    stride_vh,
    stride_vw,
    stride_lb,
    stride_lc,
    stride_lh,
    stride_lw,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    _, mask, b, c, row, left, parity = _positions(n, channels, height, half, FIRST, BLOCK)
    column = left + parity
    logits = tl.load(
        logits_ptr + b * stride_lb + c * stride_lc + row * stride_lh + column * stride_lw, mask=mask, other=0.0
    )
    at = b * stride_vb + c * stride_vc + row * stride_vh + column * stride_vw
    values = tl.load(values_ptr + at, mask=mask, other=0.0)

    # tanh(x) = x + x³·p(x²) near zero, where the exponential form would cancel; p is a least-maximum
    # fit on |x| ≤ 0.65, off by less than 1e-8 of tanh
    square = logits * logits
    p = -0.005515154678 * square + 0.0204694101
    p = p * square - 0.05368801948
    p = p * square + 0.1333083029
    p = p * square - 0.3333325985
    series = 0.5 * (logits + logits * (square * p))
    decay = tl.exp(-2.0 * tl.abs(logits))
    tail = 0.5 - decay / (1.0 + decay)
    tail = tl.where(logits < 0, -tail, tail)
    half_tanh = tl.where(tl.abs(logits) < 0.625, series, tail)
    tl.store(values_ptr + at, values + half_tanh, mask=mask)


def packed_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised packed pass [B, C, h, w/2] for maps like x [B, C, h, w]."""
    batch, channels, height, width = x.shape
    return x.new_empty((batch, channels, height, width // 2), dtype=dtype)


def flags_like(x: Tensor) -> Tensor:
    """Uninitialised flags for maps like x [B, C, h, w]: a byte for each program."""
    return x.new_empty((_programs(x),), dtype=torch.uint8)


def _programs(x: Tensor) -> int:
    return (x.numel() // 2 + BLOCK - 1) // BLOCK


def _steps(table: Tensor) -> int:
    return (len(table) - 1).bit_length()


def encode_step(
    values: Tensor,
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    table: Tensor,
    bound: Tensor,
    first: int,
    clear: bool,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols and indexes of one colour; decoded values written to `values` at that colour.

    values, y, scales, means: float32 [B, C, h, w]; table: float32 [rows], increasing; bound: float32 [1].
    clear: write zeros to the other colour of `values`; otherwise it is left as it is.
    wide: int32 symbols, saturated at ±2³⁰, instead of int16 ones, saturated and reported.
    Returns symbols [B, C, h, w/2], indexes uint8 [B, C, h, w/2] and flags uint8 [⌈n / BLOCK⌉].
    """
    _, channels, height, width = y.shape
    symbols = packed_like(y, torch.int32 if wide else torch.int16)
    indexes, flags = packed_like(y, torch.uint8), flags_like(y)
    lowest, highest = (-WIDE_LIMIT, WIDE_LIMIT) if wide else (-(2**15), 2**15 - 1)
    with torch.cuda.device_of(y):
        _encode_step_kernel[(_programs(y),)](
            values,
            y,
            scales,
            means,
            table,
            bound,
            symbols,
            indexes,
            flags,
            symbols.numel(),
            channels,
            height,
            width // 2,
            len(table),
            *values.stride(),
            *y.stride(),
            *scales.stride(),
            *means.stride(),
            FIRST=first,
            CLEAR=clear,
            LOWEST=float(lowest),
            HIGHEST=float(highest),
            STEPS=_steps(table),
            BLOCK=BLOCK,
            **_OPTIONS,
        )
    return symbols, indexes, flags


def decode_indexes(scales: Tensor, means: Tensor, table: Tensor, bound: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Indexes uint8 [B, C, h, w/2] and flags uint8 [⌈n / BLOCK⌉] of one colour; means are only checked."""
    _, channels, height, width = scales.shape
    indexes, flags = packed_like(scales, torch.uint8), flags_like(scales)
    with torch.cuda.device_of(scales):
        _decode_indexes_kernel[(_programs(scales),)](
            scales,
            means,
            table,
            bound,
            indexes,
            flags,
            indexes.numel(),
            channels,
            height,
            width // 2,
            len(table),
            *scales.stride(),
            *means.stride(),
            FIRST=first,
            STEPS=_steps(table),
            BLOCK=BLOCK,
            **_OPTIONS,
        )
    return indexes, flags


def decode_values(values: Tensor, symbols: Tensor, means: Tensor, first: int, clear: bool) -> None:
    """Write symbols [B, C, h, w/2] + means to `values` at one colour; see `encode_step` for `clear`."""
    _, channels, height, width = means.shape
    with torch.cuda.device_of(means):
        _decode_values_kernel[(_programs(means),)](
            values,
            symbols,
            means,
            symbols.numel(),
            channels,
            height,
            width // 2,
            *values.stride(),
            *means.stride(),
            FIRST=first,
            CLEAR=clear,
            BLOCK=BLOCK,
            **_OPTIONS,
        )


def residual_step(values: Tensor, logits: Tensor, first: int) -> None:
    """Add 0.5·tanh(logits) to `values` at one colour; both float32 [B, C, h, w]."""
    _, channels, height, width = values.shape
    with torch.cuda.device_of(values):
        _residual_step_kernel[(_programs(values),)](
            values,
            logits,
            values.numel() // 2,
            channels,
            height,
            width // 2,
            *values.stride(),
            *logits.stride(),
            FIRST=first,
            BLOCK=BLOCK,
            **_OPTIONS,
        )


def build_indexes_ref(scales: Tensor, table: Tensor, bound: Tensor) -> Tensor:
    """int32 indexes, shape of `scales`: the smallest k with max(scale, bound) ≤ table[k], else the last row.

    Compared in float32 with the saved table, as CompressAI's GaussianConditional.build_indexes does:
    a value on a boundary belongs to the row below it.
    """
    bounded = torch.maximum(scales.float(), bound)
    return torch.bucketize(bounded, table[:-1], out_int32=True)


def half_tanh_ref(logits: Tensor) -> Tensor:
    """0.5·tanh(logits): the residual that LRP predicts."""
    return 0.5 * torch.tanh(logits)


def encode_step_ref(
    values: Tensor,
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    table: Tensor,
    bound: Tensor,
    first: int,
    clear: bool,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain twin of `encode_step`; its first flag stands for all."""
    colour = Pass(first)
    flags = flags_like(y)
    scales, means, y = pack(scales, colour), pack(means, colour), pack(y, colour)
    rounded = torch.round(y - means)
    lowest, highest = (-WIDE_LIMIT, WIDE_LIMIT) if wide else (-(2**15), 2**15 - 1)
    symbols = rounded.clamp(lowest, highest).to(torch.int32 if wide else torch.int16)
    indexes = build_indexes_ref(scales, table, bound).to(torch.uint8)
    _write_ref(values, symbols + means, colour, clear)
    _write_flags_ref(flags, scales, rounded)
    flags[0] += LARGE_SYMBOL * ((rounded < lowest) | (rounded > highest)).any()
    return symbols, indexes, flags


def decode_indexes_ref(
    scales: Tensor, means: Tensor, table: Tensor, bound: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """Plain twin of `decode_indexes`; its first flag stands for all."""
    colour = Pass(first)
    flags = flags_like(scales)
    scales, means = pack(scales, colour), pack(means, colour)
    _write_flags_ref(flags, scales, means)
    return build_indexes_ref(scales, table, bound).to(torch.uint8), flags


def decode_values_ref(values: Tensor, symbols: Tensor, means: Tensor, first: int, clear: bool) -> None:
    """Plain twin of `decode_values`."""
    colour = Pass(first)
    _write_ref(values, symbols + pack(means, colour), colour, clear)


def residual_step_ref(values: Tensor, logits: Tensor, first: int) -> None:
    """Plain twin of `residual_step`."""
    values += keep(half_tanh_ref(logits), Pass(first))


def _write_ref(values: Tensor, packed: Tensor, colour: Pass, clear: bool) -> None:
    first = colour.value
    if clear:
        values.zero_()
    values[:, :, 0::2, first::2] = packed[:, :, 0::2]
    values[:, :, 1::2, 1 - first :: 2] = packed[:, :, 1::2]


def _write_flags_ref(flags: Tensor, scales: Tensor, other: Tensor) -> None:
    flags.zero_()
    flags[0] = BAD_SCALE * ~torch.isfinite(scales).all() + BAD_VALUE * ~torch.isfinite(other).all()


def _aot(kernel: Any, constants: dict[str, Any], types: dict[str, str]) -> tuple[Any, ...]:
    """How one kernel is launched for maps whose columns lie side by side."""
    if not HAS_TRITON:
        return kernel, {}, constants, {}
    known = {name: 1 for name in kernel.arg_names if name.startswith("stride_") and name.endswith("w")}
    known |= constants | {"BLOCK": BLOCK}
    kinds = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names if name not in known}
    return kernel, kinds | types, known, _OPTIONS


_NARROW = {"LOWEST": -32768.0, "HIGHEST": 32767.0}
_WIDE = {"LOWEST": -float(WIDE_LIMIT), "HIGHEST": float(WIDE_LIMIT)}
_BYTES = {"indexes_ptr": "*u8", "flags_ptr": "*u8"}

AOT_CONFIGS = [
    _aot(_encode_step_kernel, {"FIRST": 1, "CLEAR": True, **_NARROW, "STEPS": 6}, {"symbols_ptr": "*i16", **_BYTES}),
    _aot(_encode_step_kernel, {"FIRST": 0, "CLEAR": False, **_WIDE, "STEPS": 6}, {"symbols_ptr": "*i32", **_BYTES}),
    _aot(_decode_indexes_kernel, {"FIRST": 1, "STEPS": 6}, _BYTES),
    _aot(_decode_values_kernel, {"FIRST": 1, "CLEAR": True}, {"symbols_ptr": "*i32"}),
    _aot(_decode_values_kernel, {"FIRST": 0, "CLEAR": False}, {"symbols_ptr": "*i16"}),
    _aot(_residual_step_kernel, {"FIRST": 1}, {}),
]
