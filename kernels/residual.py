# SPDX-License-Identifier: Apache-2.0
"""Residual addition of the latent residual prediction: value += 0.5·tanh(logit) at one parity of the checkerboard.

Maps are [B, C, h, w] with any strides (slices of channels, channels-last), w even. `first` is the parity: the first
column of row 0 that is added to (see Parity). Called by mlic_fast.ops.residual.
"""

from typing import Any

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, keep
from mlic_fast.compute.triton_language import HAS_TRITON, tl, triton

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
def _add_residual_kernel(
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


def add_residual(values: Tensor, logits: Tensor, first: int) -> None:
    """Add 0.5·tanh(logits) to `values` at one parity; both float32 [B, C, h, w]."""
    _, channels, height, width = values.shape
    with torch.cuda.device_of(values):
        _add_residual_kernel[(-(-(values.numel() // 2) // BLOCK),)](
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


def half_tanh_ref(logits: Tensor) -> Tensor:
    """0.5·tanh(logits): the residual that LRP predicts."""
    return 0.5 * torch.tanh(logits)


def add_residual_ref(values: Tensor, logits: Tensor, first: int) -> None:
    """Plain twin of `add_residual`."""
    values += keep(half_tanh_ref(logits), Parity(first))


_STRIDES = {"stride_vw": 1, "stride_lw": 1}
AOT_CONFIGS: list[tuple[Any, ...]] = []
if HAS_TRITON:
    _known = _STRIDES | {"FIRST": 1, "BLOCK": BLOCK}
    _kinds = {
        name: "*fp32" if name.endswith("_ptr") else "i32"
        for name in _add_residual_kernel.arg_names
        if name not in _known
    }
    AOT_CONFIGS.append((_add_residual_kernel, _kinds, _known, _OPTIONS))
