# SPDX-License-Identifier: Apache-2.0
"""Selective compression of MLICv2: a predictor of which symbols are worth coding.

After CompressAI's reading of the paper (arXiv 2504.19119), with its parameter names. What it finds hangs on the last
bit of a float, which no guard covers: so files of this project are never coded by it. It is here for the estimate
that CompressAI's model gives, and so that its weights are kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, keep, pack, unpack
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
        self.requires_grad_(False)  # nothing here trains it

    def forward(self, side: Tensor, scales: Tensor, means: Tensor, parity: Parity) -> Tensor:
        """How much each symbol of a pass is worth coding, 0 to 1; from 1/2 on it is coded. Of use at `parity` alone."""
        scales, means = keep(scales, parity), keep(means, parity)
        features = torch.cat([self.side_proj(side), scales, means, (scales >= _LOUD).to(scales.dtype)], dim=1)
        bias = self.step_bias[0 if parity is Parity.ANCHOR else 1]
        return torch.sigmoid(self.predictor(features) + self.scale_slope * (scales - _LOUD) + bias)


class Selection:
    """What the predictors of all slices leave out of one walk: such a symbol's value is its mean, without residual."""

    def __init__(self, predictors: Iterable[nn.Module]) -> None:
        self._passes = iter([(predictor, parity) for predictor in predictors for parity in Parity])
        self._maps: list[Tensor] = []  # 1 where a symbol of the pass is coded, 0 elsewhere; [B, C, h, w]
        self._parity = Parity.ANCHOR

    def values(self, values: Tensor, scales: Tensor, means: Tensor, side: Tensor) -> Tensor:
        """The next pass's values, with means for those left out; packed [B, C, h, w/2], but side [B, side, h, w]."""
        predictor, self._parity = next(self._passes)
        worth = predictor(side, *(unpack(x, self._parity) for x in (scales, means)), self._parity)
        coded = pack(worth >= 0.5, self._parity)
        self._maps.append(unpack(coded.to(values.dtype), self._parity))
        return torch.where(coded, values, means)

    def residual(self, residual: Tensor) -> Tensor:
        """The residual [B, C, h, w] of the pass whose values came last, zero where they were left out."""
        return residual * self._maps[-1]

    def likelihoods(self, likelihoods: Tensor) -> Tensor:
        """Likelihoods [B, M, h, w] of all passes, 1 of those left out: what is not coded costs nothing."""
        anchors, nonanchors = self._maps[0::2], self._maps[1::2]
        coded = torch.cat([a + b for a, b in zip(anchors, nonanchors, strict=True)], dim=1)
        return torch.where(coded > 0, likelihoods, torch.ones_like(likelihoods))
