# SPDX-License-Identifier: Apache-2.0
"""Rates without coding: likelihoods of y and z under CompressAI's entropy models, for `forward` and training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack, unpack


def round_straight_through(x: Tensor) -> Tensor:
    """Rounded to the nearest integer, with the gradient of x itself."""
    return (torch.round(x) - x).detach() + x


def bounded(entropy_model: Any, likelihoods: Tensor) -> Tensor:
    """The likelihoods, kept away from zero as the entropy model keeps those of its own forward."""
    if entropy_model.use_likelihood_bound:
        likelihoods = entropy_model.likelihood_lower_bound(likelihoods)
    return likelihoods


def likelihoods_with_noise(bottleneck: Any, z: Tensor, noise: Tensor) -> Tensor:
    """Likelihoods of z + noise, all [B, N, h, w]: those of the bottleneck in training mode, with the noise given."""
    channels = (z + noise).transpose(0, 1)
    likelihoods = bottleneck._likelihood(channels.reshape(len(channels), 1, -1))[0]
    return bounded(bottleneck, likelihoods).reshape(channels.shape).transpose(0, 1).contiguous()


class Estimator:
    """Rounds y about its means with a straight-through gradient and collects the likelihoods."""

    def __init__(
        self, gaussian: Any, y: Tensor, slice_num: int, noise: Tensor | None = None, step: Tensor | None = None
    ) -> None:
        """y: [B, M, h, w].

        noise: [B, M, h, w], added to y for the likelihoods, in units of the step; None: in training mode, it is drawn.
        step: quantisation steps Δ, positive [B, 1, 1, 1]: symbols are those of (y − mean) / Δ at scales / Δ, values
            mean + Δ · symbol; None: 1.
        """
        self._gaussian, self._step = gaussian, step
        self._slices = y.chunk(slice_num, dim=1)
        self._noise = (None,) * slice_num if noise is None else noise.chunk(slice_num, dim=1)
        self._likelihoods: list[Tensor] = []
        self._scales: list[Tensor] = []  # of the slice that is being coded, packed: anchors', non-anchors'
        self._means: list[Tensor] = []

    def begin(self, scales: Tensor) -> None:
        self._scales.append(scales)

    def finish(self, means: Tensor) -> Tensor:
        self._means.append(means)
        y = self._slices[len(self._likelihoods)]
        parity = (Parity.ANCHOR, Parity.NONANCHOR)[len(self._means) - 1]
        if parity is Parity.NONANCHOR:
            # Of the whole slice, and before the non-anchors are rounded: the official order, in which
            # noise is drawn and gradients are added.
            scales, means_of_both = (_merged(x) for x in (self._scales, self._means))
            self._likelihoods.append(self._likelihood(y, scales, means_of_both))
            self._scales, self._means = [], []
        residual = pack(y, parity) - means
        if self._step is None:
            return round_straight_through(residual) + means
        return round_straight_through(residual / self._step) * self._step + means

    def _likelihood(self, y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        noise = self._noise[len(self._likelihoods)]
        centre: Tensor | None = means
        if self._step is not None:
            y, scales, centre = (y - means) / self._step, scales / self._step, None
        if noise is None:
            likelihood: Tensor = self._gaussian(y, scales, centre)[1]
            return likelihood
        return bounded(self._gaussian, self._gaussian._likelihood(y + noise, scales, centre))

    def likelihoods(self) -> Tensor:
        """Likelihoods of y [B, M, h, w], anchor and non-anchor parameters merged; noise in training mode."""
        return torch.cat(self._likelihoods, dim=1)


def _merged(packed: list[Tensor]) -> Tensor:
    anchors, nonanchors = packed
    return unpack(anchors, Parity.ANCHOR) + unpack(nonanchors, Parity.NONANCHOR)
