# SPDX-License-Identifier: Apache-2.0
"""Synthesis transform g_s: decoded latent to picture."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.config import Variant
from mlic_fast.nn.blocks import ResidualBlock, UpsamplingBlock, subpixel_conv


class SynthesisTransform(nn.Module):
    """ŷ [B, M, h, w] → x̂ [B, 3, 16h, 16w], not clamped.

    The old variant narrows to N channels in the first block, the new one in the second.
    """

    def __init__(self, N: int, M: int, variant: Variant) -> None:
        super().__init__()
        width = M if variant == "new" else N
        self.synthesis_transform = nn.Sequential(
            ResidualBlock(M, width),
            UpsamplingBlock(width, N),
            ResidualBlock(N, N),
            UpsamplingBlock(N, N),
            ResidualBlock(N, N),
            UpsamplingBlock(N, N),
            ResidualBlock(N, N),
            subpixel_conv(N, 3, 2),
        )

    def forward(self, y_hat: Tensor) -> Tensor:
        x_hat: Tensor = self.synthesis_transform(y_hat)
        return x_hat
