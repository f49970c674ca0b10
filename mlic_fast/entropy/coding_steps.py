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
from mlic_fast.entropy.factorized import bounded
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.ops.coding_steps import check_flags, decode_indexes, decode_values, encode_step


class Estimator:
    """Rounds y about its means with a straight-through gradient and collects the likelihoods.

    noise: [B, M, h, w], added to y for the likelihoods, in units of the step; None: in training mode, noise is drawn.
    step: quantisation steps Δ, positive [B, 1, 1, 1]: symbols are those of (y − mean) / Δ at scales / Δ, values
        mean + Δ · symbol; None: 1.
    """

    def __init__(self, gaussian: GaussianConditional, noise: Tensor | None = None, step: Tensor | None = None) -> None:
        self._gaussian = gaussian
        self._noise = noise
        self._step = step
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
            self._likelihoods.append(self._likelihood(y, anchor_scales + scales, anchor_means + means))
        residual = keep(y, colour) - means
        if self._step is None:
            return quantize_ste(residual) + means
        return quantize_ste(residual / self._step) * self._step + means

    def _likelihood(self, y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        centre: Tensor | None = means
        if self._step is not None:
            y, scales, centre = (y - means) / self._step, scales / self._step, None
        if self._noise is None:
            likelihood: Tensor = self._gaussian(y, scales, centre)[1]
            return likelihood
        first = sum(done.shape[1] for done in self._likelihoods)
        noisy = y + self._noise[:, first : first + y.shape[1]]
        likelihood = self._gaussian._likelihood(noisy, scales, centre)
        return bounded(self._gaussian, likelihood)

    def likelihoods(self) -> Tensor:
        """Likelihoods of y [B, M, h, w], anchor and non-anchor parameters merged; noise in training mode."""
        return torch.cat(self._likelihoods, dim=1)


class Writer:
    """Turns each pass into symbols and indexes and pushes them to the encoder, guarded if a guard is given."""

    def __init__(self, encoder: Encoder, gaussian: GaussianConditional, guard: GuardWriter | None = None) -> None:
        self._encoder = encoder
        self._gaussian = gaussian
        self._guard = guard

    def __call__(self, colour: Pass, y: Tensor | None, scales: Tensor, means: Tensor) -> Tensor:
        assert y is not None
        if self._guard is not None:
            scales = unpack(self._guard.move(pack(scales, colour)), colour)
        values = torch.empty_like(y, memory_format=torch.contiguous_format)
        boundaries = self._gaussian.scale_table, self._gaussian.scale_bound
        step = encode_step(values, y, scales, means, colour, *boundaries, clear=True)
        symbols, indexes, flags = _fetch(*step)
        if check_flags(flags):
            step = encode_step(values, y, scales, means, colour, *boundaries, clear=True, wide=True)
            symbols, indexes, flags = _fetch(*step)
        if self._guard is not None:
            self._guard.record(indexes)
        self._encoder.push(symbols, indexes)
        return values


class Reader:
    """Looks each pass's indexes up, checks them where the strings are guarded, and reads its symbols."""

    def __init__(self, decoder: Decoder, gaussian: GaussianConditional, guard: GuardReader | None = None) -> None:
        self._decoder = decoder
        self._gaussian = gaussian
        self._guard = guard

    def __call__(self, colour: Pass, y: Tensor | None, scales: Tensor, means: Tensor) -> Tensor:
        if self._guard is not None:
            scales = unpack(self._guard.move(pack(scales, colour)), colour)
        step = decode_indexes(scales, means, colour, self._gaussian.scale_table, self._gaussian.scale_bound)
        indexes, flags = _fetch(*step)
        check_flags(flags)
        if self._guard is not None:
            self._guard.check(indexes)
        symbols = torch.from_numpy(self._decoder.decode(indexes)).to(means.device)
        values = torch.empty_like(means, memory_format=torch.contiguous_format)
        decode_values(values, symbols, means, colour, clear=True)
        return values


def _fetch(*tensors: Tensor) -> list[Tensor]:
    """The tensors on the CPU, with one wait for all of them."""
    if tensors[0].device.type != "cuda":
        return [x.cpu() for x in tensors]
    copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
    for copy, x in zip(copies, tensors, strict=True):
        copy.copy_(x, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
