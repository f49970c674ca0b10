# SPDX-License-Identifier: Apache-2.0
"""Synthesis transform g_s: decoded latent to picture."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.contexts import Variant
from mlic_fast.nn.blocks import ResidualBlock, UpsamplingBlock, subpixel_conv
from mlic_fast.nn.token_mixing import token_mixing_pair


class SynthesisTransform(nn.Module):
    """ŷ [B, M, h, w] → x̂ [B, 3, 16h, 16w], not clamped.

    The old variant narrows to N channels in the first block, the new one in the second.
    """

    def __init__(self, N: int, M: int, variant: Variant, *, token_mixing: bool = False) -> None:
        """token_mixing: pairs of token mixing in the place of residual blocks; not for the old variant."""
        super().__init__()
        width = N if variant == "old" else M

        def between(channels: int, out_channels: int) -> nn.Module:
            return token_mixing_pair(channels) if token_mixing else ResidualBlock(channels, out_channels)

        self.synthesis_transform = nn.Sequential(
            between(M, width),
            UpsamplingBlock(width, N),
            between(N, N),
            UpsamplingBlock(N, N),
            between(N, N),
            UpsamplingBlock(N, N),
            between(N, N),
            subpixel_conv(N, 3, 2),
        )

    def forward(self, y_hat: Tensor) -> Tensor:
        x_hat: Tensor = self.synthesis_transform(y_hat)
        return x_hat
