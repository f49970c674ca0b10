# SPDX-License-Identifier: Apache-2.0
"""Entropy parameters: from all contexts to the scales and means of one slice."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, pack
from mlic_fast.compute.precision import KeepsFloat32, conv


class EntropyParameters(KeepsFloat32):
    """Contexts and hyper-parameters [B, in, h, w] → [B, 2C, h, w]: scales, then means."""

    def __init__(self, in_channels: int, slice_width: int) -> None:
        super().__init__()
        self.fusion = nn.Sequential(
            conv(in_channels, 320, 1),
            nn.GELU(),
            conv(320, 256, 1),
            nn.GELU(),
            conv(256, 128, 1),
            nn.GELU(),
            conv(128, 2 * slice_width, 1),
        )

    def forward(self, contexts: Tensor) -> Tensor:
        parameters: Tensor = self.fusion(contexts)
        return parameters

    def of_pass(self, contexts: Tensor, parity: Parity) -> tuple[Tensor, Tensor]:
        """Scales and means of one pass, packed [B, C, h, w/2]."""
        scales, means = self(contexts).chunk(2, dim=1)
        return pack(scales, parity), pack(means, parity)
