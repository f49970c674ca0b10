# SPDX-License-Identifier: Apache-2.0
"""Stacked local context: 5×5 convolutions, from the anchors to their neighbours."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.compute.precision import KeepsFloat32, conv
from mlic_fast.config import WINDOW


class StackedLocalContext(KeepsFloat32):
    """Anchors of a slice [B, C, h, w] (zero elsewhere) → [B, 2C, h, w], of use at non-anchors only.

    Source: MLIC's stacked checkerboard context (arXiv 2211.07273), its widths after CompressAI's implementation.
    """

    def __init__(self, slice_width: int) -> None:
        super().__init__()
        self.context = nn.Sequential(
            conv(slice_width, slice_width, WINDOW),
            nn.GELU(),
            conv(slice_width, slice_width, WINDOW),
            nn.GELU(),
            conv(slice_width, 2 * slice_width, WINDOW),
        )

    def forward(self, anchors: Tensor) -> Tensor:
        out: Tensor = self.context(anchors)
        return out
