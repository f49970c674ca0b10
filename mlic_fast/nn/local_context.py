# SPDX-License-Identifier: Apache-2.0
"""Local context: attention in overlapping 5×5 windows, from the anchors to their neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.config import WINDOW
from mlic_fast.precision import Conv2d, KeepsFloat32, Linear, matmul

HEADS = 2
AREA = WINDOW**2

# Added to the score of a pair of positions of which one is not an anchor inside the picture.
MASKED = -100.0


def relative_position_index() -> Tensor:
    """int64 [AREA, AREA]: row of the position table for query i and key j of a window."""
    row, column = (grid.flatten() for grid in torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij"))
    rows = row[:, None] - row[None, :] + WINDOW - 1
    columns = column[:, None] - column[None, :] + WINDOW - 1
    return rows * (2 * WINDOW - 1) + columns


def window_mask(height: int, width: int, like: Tensor) -> Tensor:
    """[height·width, AREA, AREA], dtype and device as `like`: 0 where query and key are both anchors, else MASKED."""
    row = torch.arange(height, device=like.device)[:, None]
    column = torch.arange(width, device=like.device)[None, :]
    anchors = ((row + column) % 2).to(like.dtype)[None, None]
    anchor_in_window = F.unfold(anchors, WINDOW, padding=WINDOW // 2)[0].transpose(0, 1)  # [positions, AREA]
    pairs = anchor_in_window[:, :, None] * anchor_in_window[:, None, :]
    return torch.where(pairs == 0, MASKED, 0.0).to(like.dtype)


class Perceptron(nn.Module):
    """Two linear layers with GELU between, over the last axis."""

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = Linear(in_features, hidden)
        self.fc2 = Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LocalContext(KeepsFloat32):
    """Anchors of a slice [B, C, h, w] (zero elsewhere) → [B, 2C, h, w], of use at non-anchors only.

    Every window's positions attend to each other; a convolution over the window's whole area makes
    one vector of the result. A query that is no anchor has the same mask value for all keys, which
    the softmax cancels: it attends to all of them.
    """

    relative_position_index: Tensor

    def __init__(self, slice_width: int) -> None:
        super().__init__()
        self.qkv_proj = Linear(slice_width, 3 * slice_width)
        self.relative_position_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, HEADS))
        nn.init.trunc_normal_(self.relative_position_table, std=0.02)
        self.proj = Linear(2 * slice_width, 2 * slice_width)
        self.mlp = Perceptron(2 * slice_width, 4 * slice_width, 2 * slice_width)
        self.norm1 = nn.LayerNorm(slice_width)
        self.norm2 = nn.LayerNorm(2 * slice_width)
        self.register_buffer("relative_position_index", relative_position_index())
        self.fusion = Conv2d(slice_width, 2 * slice_width, WINDOW)

    def forward(self, anchors: Tensor, mask: Tensor) -> Tensor:
        """`mask` is `window_mask` of the same height and width."""
        batch, channels, height, width = anchors.shape
        positions, head_width = height * width, channels // HEADS
        qkv = self.qkv_proj(self.norm1(anchors.flatten(2).transpose(1, 2)))  # [B, positions, 3C]
        qkv = qkv.transpose(1, 2).reshape(batch, 3 * channels, height, width)
        windows = F.unfold(qkv, WINDOW, padding=WINDOW // 2).transpose(1, 2)  # [B, positions, 3C·AREA]
        # channel = element · HEADS + head
        windows = windows.reshape(batch, positions, 3, head_width, HEADS, AREA)
        query, key, value = windows.permute(2, 0, 1, 4, 5, 3)  # each [B, positions, HEADS, AREA, head width]
        scores = matmul(query * head_width**-0.5, key.transpose(-2, -1))
        scores = scores + self.position_bias()
        scores = scores + mask[:, None]
        attended = matmul(F.softmax(scores, dim=-1), value)  # [B, positions, HEADS, AREA, head width]
        attended = attended.transpose(2, 3).reshape(batch * positions, WINDOW, WINDOW, channels).permute(0, 3, 1, 2)
        out = self.proj(self.fusion(attended).reshape(batch, positions, 2 * channels))
        out = out + self.mlp(self.norm2(out))
        return out.transpose(1, 2).reshape(batch, 2 * channels, height, width)

    def position_bias(self) -> Tensor:
        """[HEADS, AREA, AREA]: what is added to the scores for where a key lies from its query."""
        bias = self.relative_position_table[self.relative_position_index.flatten()]
        return bias.view(AREA, AREA, HEADS).permute(2, 0, 1).contiguous()
