# SPDX-License-Identifier: Apache-2.0
"""Latent residual prediction (LRP): guesses what rounding took away from a slice."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from mlic_fast.checkerboard import Pass, keep
from mlic_fast.compute.backend import choose
from mlic_fast.compute.precision import KeepsFloat32, conv
from mlic_fast.config import Variant
from mlic_fast.kernels.coding_steps import half_tanh_ref
from mlic_fast.ops.coding_steps import residual_step


class LatentResidualPrediction(KeepsFloat32):
    """Hyper means, decoded slices and current slice [B, in, h, w] → residual [B, C, h, w].

    0.5·tanh keeps the residual within half a quantisation step.
    """

    def __init__(self, in_channels: int, slice_width: int, variant: Variant) -> None:
        super().__init__()
        drop = in_channels - slice_width
        inner = [224, 128] if variant == "new" else [in_channels - drop * quarters // 4 for quarters in (1, 2, 3)]
        widths = [in_channels, *inner, slice_width]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [conv(before, after, 3), nn.GELU()]
        self.lrp_transform = nn.Sequential(*layers[:-1])

    def forward(self, contexts: Tensor) -> Tensor:
        return half_tanh_ref(self.logits(contexts))

    def logits(self, contexts: Tensor) -> Tensor:
        """What tanh is applied to, [B, C, h, w]."""
        logits: Tensor = self.lrp_transform(contexts)
        return logits


def add_residual(network: nn.Module, contexts: Tensor, values: Tensor, colour: Pass) -> Tensor:
    """values [B, C, h, w] plus the residual that `network` (a LatentResidualPrediction) predicts at `colour`.

    May reuse the memory of `values`.
    """
    if torch.is_grad_enabled() or choose(values) == "torch":
        return values + keep(network(contexts), colour)
    residual_step(values, cast(LatentResidualPrediction, network).logits(contexts), colour)
    return values
