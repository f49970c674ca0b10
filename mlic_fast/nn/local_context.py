# SPDX-License-Identifier: Apache-2.0
"""Local context: attention in overlapping 5×5 windows, from the anchors to their neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.compute.precision import Conv2d, KeepsFloat32, Linear
from mlic_fast.config import WINDOW
from mlic_fast.kernels.local_attention import HEADS, relative_position_index
from mlic_fast.nn.rotation import AxialRotation
from mlic_fast.ops.local_attention import local_attention_map


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
    relative_position_table: Tensor

    def __init__(self, slice_width: int, *, rotated: bool = False) -> None:
        """rotated: positions turn queries and keys, in the place of what a table adds to the scores."""
        super().__init__()
        self.qkv_proj = Linear(slice_width, 3 * slice_width)
        table = torch.zeros((2 * WINDOW - 1) ** 2, HEADS)
        self.rope: AxialRotation | None = None
        if rotated:
            self.rope = AxialRotation(slice_width)
            self.register_buffer("relative_position_table", table, persistent=False)
        else:
            self.relative_position_table = nn.Parameter(table)
            nn.init.trunc_normal_(self.relative_position_table, std=0.02)
        self.proj = Linear(2 * slice_width, 2 * slice_width)
        self.mlp = Perceptron(2 * slice_width, 4 * slice_width, 2 * slice_width)
        self.norm1 = nn.LayerNorm(slice_width)
        self.norm2 = nn.LayerNorm(2 * slice_width)
        if not rotated:
            self.register_buffer("relative_position_index", relative_position_index())
        self.fusion = Conv2d(slice_width, 2 * slice_width, WINDOW)

    def forward(self, anchors: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is `shared_mask` of the same height and width; None where it is not at hand."""
        out = local_attention_map(self.qkv(anchors), *self.parameters_of_attention(), mask)  # [B, positions, 2C]
        out = out + self.mlp(self.norm2(out))
        return out.transpose(1, 2).reshape(anchors.shape[0], -1, *anchors.shape[2:])

    def qkv(self, anchors: Tensor) -> Tensor:
        """Queries, keys and values of every position, [B, 3C, h, w]."""
        batch, channels, height, width = anchors.shape
        qkv = self.qkv_proj(self.norm1(anchors.flatten(2).transpose(1, 2)))  # [B, positions, 3C]
        maps = qkv.transpose(1, 2).reshape(batch, 3 * channels, height, width)
        if self.rope is None:
            return maps
        return torch.cat([self.rope(maps[:, : 2 * channels]), maps[:, 2 * channels :]], dim=1)

    def parameters_of_attention(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the attention, the convolution over its windows and the projection take."""
        fusion_bias, proj_bias = self.fusion.get_parameter("bias"), self.proj.get_parameter("bias")
        return self.relative_position_table, self.fusion.weight, fusion_bias, self.proj.weight, proj_bias
