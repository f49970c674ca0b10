# SPDX-License-Identifier: Apache-2.0
"""Attention of channels-last maps, over all positions and from anchors to non-anchors.

The formulas are those of mlic_fast.kernels.linear_attention and mlic_fast.kernels.softmax_attention. Linear attention
without a kernel computes all heads at once here, and turns nothing into another layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, scatter
from mlic_fast.compute.backend import choose
from mlic_fast.compute.precision import matmul
from mlic_fast.contexts import Form
from mlic_fast.engine.layers import LAYOUT
from mlic_fast.ops.linear_attention import checkerboard_linear_attention, linear_attention
from mlic_fast.ops.softmax_attention import checkerboard_softmax_attention, softmax_attention


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, form: Form) -> Tensor:
    """Three maps [B, D, h, w] → [B, D, h, w]. Heads are contiguous groups of channels."""
    if form == "softmax attention":
        return softmax_attention(queries, keys, values, heads).contiguous(memory_format=LAYOUT)
    if choose(queries) == "triton":
        return linear_attention(queries, keys, values, heads).contiguous(memory_format=LAYOUT)
    return _attend(queries, keys, values, heads)


def attend_across(queries: Tensor, keys: Tensor, values: Tensor, heads: int, form: Form) -> Tensor:
    """The same with keys and values read at anchors, queries at non-anchors; zero at anchors."""
    if form == "softmax attention":
        return checkerboard_softmax_attention(queries, keys, values, heads).contiguous(memory_format=LAYOUT)
    if choose(queries) == "triton":
        return checkerboard_linear_attention(queries, keys, values, heads).contiguous(memory_format=LAYOUT)
    keys, values = (pack(x, Parity.ANCHOR, LAYOUT) for x in (keys, values))
    out = torch.zeros_like(queries, memory_format=LAYOUT)
    scatter(out, _attend(pack(queries, Parity.NONANCHOR, LAYOUT), keys, values, heads), Parity.NONANCHOR)
    return out


def _attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    batch, channels, height, width = queries.shape
    shares, spread = (_rows(x, heads) for x in (torch.softmax(_flat(keys), dim=1), _flat(values)))
    chosen = torch.softmax(_rows(_flat(queries), heads), dim=3)
    context = matmul(shares.permute(0, 2, 3, 1), spread.transpose(1, 2))  # [B, heads, D / heads, D / heads]
    attended = matmul(chosen.transpose(1, 2), context)  # [B, heads, positions, D / heads]
    return attended.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _flat(x: Tensor) -> Tensor:
    """[B, D, h, w] → [B, positions, D]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _rows(x: Tensor, heads: int) -> Tensor:
    """[B, positions, D] → [B, positions, heads, D / heads]."""
    return x.view(*x.shape[:2], heads, -1)
