# SPDX-License-Identifier: Apache-2.0
"""Coding steps on packed maps, for the engine's walk: write a pass's symbols, or read them."""

from __future__ import annotations

import torch
from compressai.entropy_models import GaussianConditional
from torch import Tensor

from mlic_fast.checkerboard import Pass
from mlic_fast.compute.nonfinite import check_finite
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.kernels.coding_steps import build_indexes_ref

_INT16, _WIDE = 2**15 - 1, 2**30


class PackedWriter:
    """Turns each pass into symbols and indexes and pushes them to the encoder, guarded if a guard is given."""

    def __init__(self, encoder: Encoder, gaussian: GaussianConditional, guard: GuardWriter | None = None) -> None:
        self._encoder, self._guard = encoder, guard
        self._boundaries = gaussian.scale_table, gaussian.scale_bound
        self._indexes: Tensor | None = None

    def begin(self, colour: Pass, scales: Tensor) -> None:
        check_finite("scales", scales)
        if self._guard is not None:
            scales = self._guard.move(scales)
        self._indexes = _indexes(scales, *self._boundaries)
        if self._guard is not None:
            self._guard.record(self._indexes)

    def finish(self, colour: Pass, y: Tensor | None, means: Tensor) -> Tensor:
        assert y is not None
        assert self._indexes is not None  # begin came before
        rounded = torch.sub(y, means).round_()
        check_finite("latents and means", rounded)
        # saturated, so that the encoder refuses what no symbol can say
        large = bool(rounded.abs().max() > _INT16)
        symbols = rounded.clamp_(-_WIDE, _WIDE).to(torch.int32 if large else torch.int16)
        self._encoder.push(symbols.cpu(), self._indexes)
        return symbols + means


class PackedReader:
    """Looks each pass's indexes up, checks them where the strings are guarded, and reads its symbols."""

    def __init__(self, decoder: Decoder, gaussian: GaussianConditional, guard: GuardReader | None = None) -> None:
        self._decoder, self._guard = decoder, guard
        self._boundaries = gaussian.scale_table, gaussian.scale_bound
        self._symbols: Tensor | None = None

    def begin(self, colour: Pass, scales: Tensor) -> None:
        check_finite("scales", scales)
        if self._guard is not None:
            scales = self._guard.move(scales)
        indexes = _indexes(scales, *self._boundaries)
        if self._guard is not None:
            self._guard.check(indexes)
        self._symbols = torch.from_numpy(self._decoder.decode(indexes))

    def finish(self, colour: Pass, y: Tensor | None, means: Tensor) -> Tensor:
        assert self._symbols is not None  # begin came before
        check_finite("means", means)
        return self._symbols.to(means.device) + means


def _indexes(scales: Tensor, table: Tensor, bound: Tensor) -> Tensor:
    """uint8, on the CPU, contiguous."""
    return build_indexes_ref(scales, table, bound).to("cpu", torch.uint8)
