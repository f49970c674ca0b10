# SPDX-License-Identifier: Apache-2.0
"""Latent residual prediction (LRP): guesses what rounding took away from a slice."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from mlic_fast.compute.precision import KeepsFloat32, conv
from mlic_fast.contexts import Variant
from mlic_fast.kernels.residual import half_tanh_ref


class LatentResidualPrediction(KeepsFloat32):
    """Hyper means, decoded slices and current slice [B, in, h, w] → residual [B, C, h, w].

    0.5·tanh keeps the residual within half a quantisation step.
    """

    def __init__(self, in_channels: int, slice_width: int, variant: Variant) -> None:
        super().__init__()
        drop = in_channels - slice_width
        inner = [in_channels - drop * quarters // 4 for quarters in (1, 2, 3)] if variant == "old" else [224, 128]
        widths = [in_channels, *inner, slice_width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [conv(before, after, 3), nn.GELU()]
        self.lrp_transform = nn.Sequential(*layers[:-1])

    def forward(self, contexts: Tensor) -> Tensor:
        return half_tanh_ref(self.lrp_transform(contexts))
