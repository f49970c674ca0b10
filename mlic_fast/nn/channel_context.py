# SPDX-License-Identifier: Apache-2.0
"""Channel context: what the decoded slices say about the next one, position by position."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.compute.precision import KeepsFloat32, conv


class ChannelContext(KeepsFloat32):
    """Decoded slices [B, in, h, w] → [B, 4C, h, w]."""

    def __init__(self, in_channels: int, slice_width: int) -> None:
        super().__init__()
        self.fushion = nn.Sequential(
            conv(in_channels, 192, 3),
            nn.GELU(),
            conv(192, 128, 3),
            nn.GELU(),
            conv(128, 4 * slice_width, 3),
        )

    def forward(self, decoded: Tensor) -> Tensor:
        context: Tensor = self.fushion(decoded)
        return context
