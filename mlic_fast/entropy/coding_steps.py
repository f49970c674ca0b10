# SPDX-License-Identifier: Apache-2.0
"""The three ways to code one pass of a slice: estimate its rate, write its symbols, read them.

Each is a function for `mlic_fast.nn.slices.walk`.
"""

from __future__ import annotations

import torch
from compressai.entropy_models import GaussianConditional
from compressai.ops import quantize_ste
from torch import Tensor

from mlic_fast.checkerboard import Pass, keep, pack, unpack
from mlic_fast.entropy.indexes import build_indexes, check_finite
from mlic_fast.entropy.range_coder import Decoder, Encoder


class Estimator:
    """Rounds y about its means with a straight-through gradient and collects the likelihoods."""

    def __init__(self, gaussian: GaussianConditional) -> None:
        self._gaussian = gaussian
        self._likelihoods: list[Tensor] = []
        self._anchor_parameters: tuple[Tensor, Tensor] | None = None

    def __call__(self, colour: Pass, y: Tensor | None, scales: Tensor, means: Tensor) -> Tensor:
        assert y is not None
        scales, means = keep(scales, colour), keep(means, colour)
        if self._anchor_parameters is None:
            self._anchor_parameters = scales, means
        else:
            # Of the whole slice, and before the non-anchors are rounded: the official order, in which
            # noise is drawn and gradients are added.
            anchor_scales, anchor_means = self._anchor_parameters
            self._anchor_parameters = None
            self._likelihoods.append(self._gaussian(y, anchor_scales + scales, anchor_means + means)[1])
        return quantize_ste(keep(y, colour) - means) + means

    def likelihoods(self) -> Tensor:
        """Likelihoods of y [B, M, h, w], anchor and non-anchor parameters merged; noise in training mode."""
        return torch.cat(self._likelihoods, dim=1)


class Writer:
    """Turns each pass into symbols and indexes and pushes them to the encoder."""

    def __init__(self, encoder: Encoder, gaussian: GaussianConditional) -> None:
        self._encoder = encoder
        self._gaussian = gaussian

    def __call__(self, colour: Pass, y: Tensor | None, scales: Tensor, means: Tensor) -> Tensor:
        assert y is not None
        scales, means, values = pack(scales, colour), pack(means, colour), pack(y, colour)
        check_finite("scales", scales)
        residual = torch.round(values - means)
        check_finite("latents and means", residual)
        symbols = residual.int()
        indexes = build_indexes(scales, self._gaussian.scale_table, self._gaussian.scale_bound)
        self._encoder.push(symbols.cpu(), indexes.cpu())
        return unpack(symbols + means, colour)


class Reader:
    """Looks each pass's indexes up and reads its symbols from the decoder."""

    def __init__(self, decoder: Decoder, gaussian: GaussianConditional) -> None:
        self._decoder = decoder
        self._gaussian = gaussian

    def __call__(self, colour: Pass, y: Tensor | None, scales: Tensor, means: Tensor) -> Tensor:
        scales, means = pack(scales, colour), pack(means, colour)
        check_finite("scales", scales)
        check_finite("means", means)
        indexes = build_indexes(scales, self._gaussian.scale_table, self._gaussian.scale_bound)
        symbols = torch.from_numpy(self._decoder.decode(indexes.cpu())).to(means.device)
        return unpack(symbols + means, colour)
