# SPDX-License-Identifier: Apache-2.0
"""Selective compression of MLICv2: a predictor of which symbols are worth coding.

After CompressAI's reading of the paper (arXiv 2504.19119), with its parameter names. What it finds hangs on the last
bit of a float, which no guard covers: so files of this project are never coded by it. It is here for the estimate
that CompressAI's model gives, and so that its weights are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, keep
from mlic_fast.compute.precision import KeepsFloat32, conv

# Scales from here on speak for coding.
_LOUD = 0.3


class SelectivePredictor(KeepsFloat32):
    """What is known of a slice beside its scales and means, [B, side, h, w], and these [B, C, h, w] → [B, C, h, w]."""

    def __init__(self, side: int, slice_width: int) -> None:
        """side: channels of the hyper-parameters, the decoded slices and their contexts; slice_width: C."""
        super().__init__()
        hidden = max(16, slice_width)
        self.side_proj = conv(side, hidden, 1)
        self.predictor = nn.Sequential(
            conv(hidden + 3 * slice_width, hidden, 3),
            nn.GELU(),
            conv(hidden, hidden, 3),
            nn.GELU(),
            conv(hidden, slice_width, 1),
        )
        self.step_bias = nn.Parameter(torch.zeros(2, slice_width, 1, 1))
        self.scale_slope = nn.Parameter(torch.tensor(8.0))

    def forward(self, side: Tensor, scales: Tensor, means: Tensor, parity: Parity) -> Tensor:
        """How much each symbol of a pass is worth coding, 0 to 1; from 1/2 on it is coded. Of use at `parity` alone."""
        scales, means = keep(scales, parity), keep(means, parity)
        features = torch.cat([self.side_proj(side), scales, means, (scales >= _LOUD).to(scales.dtype)], dim=1)
        bias = self.step_bias[0 if parity is Parity.ANCHOR else 1]
        return torch.sigmoid(self.predictor(features) + self.scale_slope * (scales - _LOUD) + bias)
