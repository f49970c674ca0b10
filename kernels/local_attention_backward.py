# SPDX-License-Identifier: Apache-2.0
"""Gradients of local window attention for a few rows of windows.

With p(i, j) the weights of a window (see local_attention) and g(i) the gradient of Σ_j p(i, j)·v_j:
    dv_j = Σ_i p(i, j)·g_i                          ds(i, j) = p(i, j)·(g_i·v_j − Σ_k p(i, k)·g_i·v_k)
    dq_i = Σ_j ds(i, j)·k_j / √(C/2)                dk_j = Σ_i ds(i, j)·q_i / √(C/2)
    dtable[offset(i, j), head] = Σ ds(i, j)
First each window writes its own share of these for its 25 positions; weights are computed again. Then each position
adds up the shares of the windows that hold it, in a fixed order: no atomics, and two runs give the same bits. Called by
mlic_fast.ops.local_attention, which chooses the number of rows by the memory that the shares take.
"""

from typing import Any

import torch
from mlic_fast.kernels.local_attention import (
    AREA,
    BATCHED,
    HEADS,
    aot_configs,
    read_keys,
    read_query,
    relative_position_index,
    tiles,
    weigh,
    windows_of,
)
from torch import Tensor

from mlic_fast.compute.triton_language import tl, triton

_FOLD_BLOCK = 256


@triton.jit(do_not_specialize=BATCHED)
def _window_shares_kernel(
    qkv_ptr,
    table_ptr,
    attended_grad_ptr,  # [C, 25, count]
    shares_ptr,  # [3, C, 25, count], channels in the order of qkv
    table_shares_ptr,  # [programs, 2, 25, KEYS]
    first,
    last,
    count,
    height,
    half,
    scale,
    stride_qb,
    stride_qc,
    stride_qh,
    stride_qw,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    KEYS: tl.constexpr,
):
    E: tl.constexpr = C // 2
    n, live, b, row, column = windows_of(first, last, count, height, half, BLOCK_P)
    picture_ptr = qkv_ptr + (b * stride_qb)[None, :]
    element = tl.arange(0, BLOCK_E)
    key = tl.arange(0, KEYS)
    mask = live[None, :] & (element < E)[:, None]
    part = count.to(tl.int64) * (C * 25)
    for head in tl.static_range(2):
        keys, keys_inside = read_keys(
            picture_ptr[:, :, None] + C * stride_qc, live, row, column, height, 2 * half,
            stride_qc, stride_qh, stride_qw, head, E, BLOCK_E, KEYS,
        )  # fmt: skip
        values, _ = read_keys(
            picture_ptr[:, :, None] + 2 * C * stride_qc, live, row, column, height, 2 * half,
            stride_qc, stride_qh, stride_qw, head, E, BLOCK_E, KEYS,
        )  # fmt: skip
        key_share = tl.zeros((BLOCK_E, BLOCK_P, KEYS), tl.float32)
        value_share = tl.zeros((BLOCK_E, BLOCK_P, KEYS), tl.float32)
        channel = (2 * element + head).to(tl.int64) * 25
        for i in range(25):
            query, query_inside = read_query(
                picture_ptr, i, live, row, column, height, 2 * half,
                stride_qc, stride_qh, stride_qw, scale, head, E, BLOCK_E,
            )  # fmt: skip
            weights = weigh(query, query_inside, keys, keys_inside, i, table_ptr, head, KEYS)
            plane = ((head * E + element) * 25 + i).to(tl.int64) * count
            grad = tl.load(attended_grad_ptr + plane[:, None] + n[None, :], mask=mask, other=0.0)
            products = tl.sum(grad[:, :, None] * values, axis=0)
            mean = tl.sum(weights * products, axis=1)
            score_grad = weights * (products - mean[:, None])
            value_share += weights[None, :, :] * grad[:, :, None]
            key_share += score_grad[None, :, :] * query[:, :, None]
            query_share = tl.sum(score_grad[None, :, :] * keys, axis=2) * scale
            tl.store(shares_ptr + ((channel + i) * count)[:, None] + n[None, :], query_share, mask=mask)
            # windows that are not there have gradients of zero
            pairs = ((tl.program_id(0).to(tl.int64) * 2 + head) * 25 + i) * KEYS
            tl.store(table_shares_ptr + pairs + key, tl.sum(score_grad, axis=0))
        at = (channel[:, None] + key[None, :]) * count
        share_ptr = shares_ptr + part + at[:, None, :] + n[None, :, None]
        key_mask = mask[:, :, None] & (key < 25)[None, None, :]
        tl.store(share_ptr, key_share, mask=key_mask)
        tl.store(share_ptr + part, value_share, mask=key_mask)


@triton.jit(do_not_specialize=["batch"])
def _gather_shares_kernel(
    shares_ptr,  # [3C, 25, B, last − first, half]
    grad_ptr,  # [B, 3C, height, 2·half]
    first,
    last,
    from_row,
    to_row,
    batch,
    channels,
    height,
    half,
    BLOCK: tl.constexpr,
):
    width = 2 * half
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = n % width
    row = (n // width) % (to_row - from_row) + from_row
    plane = n // width // (to_row - from_row)
    live = plane < batch * channels
    b = plane // channels
    channel = plane % channels
    at = grad_ptr + (plane * height + row) * width + column
    total = tl.load(at, mask=live, other=0.0)
    for i in range(25):
        window_row = row - (i // 5 - 2)
        window_column = column - (i % 5 - 2)
        holds = live & (window_row >= first) & (window_row < last) & (window_column >= 0) & (window_column < width)
        holds = holds & ((window_row + window_column) % 2 == 0)
        share = ((channel * 25 + i) * batch + b) * (last - first) + window_row - first
        total += tl.load(shares_ptr + share * half + window_column // 2, mask=holds, other=0.0)
    tl.store(at, total, mask=live)


def local_attention_rows_backward(
    qkv: Tensor,
    position_table: Tensor,
    first: int,
    last: int,
    attended_grad: Tensor,
    qkv_grad: Tensor,
    table_grad: Tensor,
) -> None:
    """Add what attended_grad, contiguous [C, 25, B, last − first, w/2] flattened, says of rows first ≤ row < last.

    qkv_grad: float32 [B, 3C, h, w], contiguous. table_grad: float64 [B, 2, 81]; the whole batch's sum goes to item 0.
    """
    batch, channels, height, width = qkv.shape
    half = width // 2
    constants = tiles(channels // 3)
    count = batch * (last - first) * half
    programs = triton.cdiv(count, constants["BLOCK_P"])
    shares = torch.empty(channels * AREA * count, dtype=qkv.dtype, device=qkv.device)
    table_shares = torch.empty(programs, HEADS, AREA, constants["KEYS"], dtype=qkv.dtype, device=qkv.device)
    from_row, to_row = max(first - 2, 0), min(last + 2, height)
    elements = batch * channels * (to_row - from_row) * width
    with torch.cuda.device_of(qkv):
        _window_shares_kernel[(programs,)](
            qkv,
            position_table,
            attended_grad,
            shares,
            table_shares,
            first,
            last,
            count,
            height,
            half,
            (channels // 3 // HEADS) ** -0.5,
            *qkv.stride(),
            **constants,
        )
        _gather_shares_kernel[(triton.cdiv(elements, _FOLD_BLOCK),)](
            shares, qkv_grad, first, last, from_row, to_row, batch, channels, height, half, BLOCK=_FOLD_BLOCK
        )
    pairs = table_shares.double().sum(0)[:, :, :AREA].reshape(HEADS, AREA * AREA)
    # a product with ones and zeros, for index_add_ has no fixed order on CUDA
    offsets = relative_position_index().to(qkv.device).flatten()
    ones = torch.nn.functional.one_hot(offsets, position_table.shape[0]).double()
    table_grad[0] += pairs @ ones


def _gather_config() -> Any:
    names = _gather_shares_kernel.arg_names
    signature = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names if name != "BLOCK"}
    return _gather_shares_kernel, signature, {"BLOCK": _FOLD_BLOCK}, {"num_warps": 4}


AOT_CONFIGS = [*aot_configs(_window_shares_kernel, 32, 64, 96, 160), _gather_config()]
