# SPDX-License-Identifier: Apache-2.0
"""Global contexts: linear attention over all positions, between slices and within the current one.

Both are "efficient attention": softmax of the keys over the positions and of the queries over a
head's channels, so that keys · valuesᵀ is a small matrix and nothing of size positions² exists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.checkerboard import Pass, keep, pack, unpack
from mlic_fast.config import HEAD_WIDTH
from mlic_fast.precision import KeepsFloat32, conv, matmul

INTRA_HEADS = 2


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Three maps [B, D, h, w] → [B, D, h, w]; heads are contiguous groups of channels."""
    width = queries.shape[1] // heads
    attended = []
    for query, key, value in zip(*(x.flatten(2).split(width, dim=1) for x in (queries, keys, values)), strict=True):
        context = matmul(F.softmax(key, dim=2), value.transpose(1, 2))  # [B, width, width]
        attended.append(matmul(context.transpose(1, 2), F.softmax(query, dim=1)))
    return torch.cat(attended, dim=1).view_as(queries)


def checkerboard_linear_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """The same with keys and values read at anchors, queries at non-anchors: three maps [B, D, h, w] → [B, D, h, w].

    The result is zero at anchors. The sums run over the whole map, zeros included, because the
    official code's do and the order of a sum decides its last bit.
    """
    width = queries.shape[1] // heads
    keys, values = pack(keys, Pass.ANCHOR), pack(values, Pass.ANCHOR)
    queries = pack(queries, Pass.NONANCHOR)
    attended = []
    for query, key, value in zip(*(x.split(width, dim=1) for x in (queries, keys, values)), strict=True):
        shares = F.softmax(key.flatten(2), dim=2).view_as(key)
        key, value = unpack(shares, Pass.ANCHOR), unpack(value, Pass.ANCHOR)
        query = unpack(F.softmax(query, dim=1), Pass.NONANCHOR)
        context = matmul(key.flatten(2), value.flatten(2).transpose(1, 2))  # [B, width, width]
        attended.append(matmul(context.transpose(1, 2), query.flatten(2)).view_as(query))
    return torch.cat(attended, dim=1)


def _projection(channels: int) -> nn.Sequential:
    return nn.Sequential(conv(channels, channels, 1), conv(channels, channels, 3, groups=channels))


def _perceptron(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        conv(in_channels, hidden, 1),
        nn.GELU(),
        conv(hidden, hidden, 3, groups=hidden),
        nn.GELU(),
        conv(hidden, out_channels, 1),
    )


class GlobalInterContext(KeepsFloat32):
    """Decoded slices [B, D, h, w] → what they say of the next slice, [B, 2C, h, w]."""

    def __init__(self, channels: int, slice_width: int) -> None:
        super().__init__()
        out_channels = 2 * slice_width
        self.heads = channels // HEAD_WIDTH
        self.keys = _projection(channels)
        self.queries = _projection(channels)
        self.values = _projection(channels)
        self.reprojection = conv(channels, out_channels * 3 // 2, 5)
        self.mlp = _perceptron(out_channels * 3 // 2, out_channels * 2, out_channels)
        self.skip = conv(out_channels * 3 // 2, out_channels, 1)

    def forward(self, decoded: Tensor) -> Tensor:
        queries, keys, values = self.queries(decoded), self.keys(decoded), self.values(decoded)
        attention = self.reprojection(linear_attention(queries, keys, values, self.heads))
        out: Tensor = self.skip(attention) + self.mlp(attention)
        return out


class GlobalIntraContext(KeepsFloat32):
    """Previous slice and anchors of the current one, [B, C, h, w] each → [B, 2C, h, w].

    Where the previous slice's anchors and non-anchors are alike, the current slice's values at
    the anchors tell of those at the non-anchors. Attended values are zero at the anchors.
    """

    def __init__(self, slice_width: int) -> None:
        super().__init__()
        self.keys = _projection(slice_width)
        self.queries = _projection(slice_width)
        self.values = _projection(slice_width)
        self.reprojection = conv(slice_width, 2 * slice_width, 5)
        self.mlp = _perceptron(2 * slice_width, 4 * slice_width, 2 * slice_width)

    def forward(self, previous: Tensor, anchors: Tensor) -> Tensor:
        queries = self.queries(keep(previous, Pass.NONANCHOR))
        keys = self.keys(keep(previous, Pass.ANCHOR))
        values = self.values(anchors)
        attention = self.reprojection(checkerboard_linear_attention(queries, keys, values, INTRA_HEADS))
        out: Tensor = attention + self.mlp(attention)
        return out
