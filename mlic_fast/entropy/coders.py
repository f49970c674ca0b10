# SPDX-License-Identifier: Apache-2.0
"""What drives a walk over the slices: writing the symbols of each pass, and reading them.

`code` takes any walk (`mlic_fast.nn.walk` or the compiled one) and any coder; `mlic_fast.entropy.estimator` holds
one more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from mlic_fast.compute.nonfinite import check_finite
from mlic_fast.kernels.coding_steps import build_indexes_ref
from mlic_fast.passes import Walk, passes, send

if TYPE_CHECKING:
    from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter
    from mlic_fast.entropy.range_coder import Decoder, Encoder
    from mlic_fast.entropy.tables import GaussianTables

_INT16, _WIDE = 2**15 - 1, 2**30


class Coded(NamedTuple):
    """The y string of a whole batch, a z string for each item, and the guard if one was asked for."""

    y: bytes
    z: list[bytes]
    guard: bytes | None


class Coder(Protocol):
    """Codes the passes of a walk in order; all maps are packed [B, C, h, w/2], contiguous in coding order."""

    def begin(self, scales: Tensor) -> None:
        """Scales of the next pass: its indexes can be found, and its symbols be read, before the means are computed."""
        ...

    def finish(self, means: Tensor) -> Tensor:
        """Means of the pass that was begun → its decoded values."""
        ...


def code(walk: Walk, coder: Coder) -> Tensor:
    """Drive a walk to its end, coding every pass; returns ŷ [B, M, h, w]. Raises what the coder raises."""
    scales: Tensor | None = next(walk)
    y_hat: Tensor | None = None
    while scales is not None:
        coder.begin(scales)
        del scales  # not kept while the means are computed
        scales, y_hat = send(walk, coder.finish(next(walk)))
    assert y_hat is not None  # a walk ends with it
    return y_hat


class Writer:
    """Turns each pass into symbols and indexes and pushes them to the encoder, guarded if a guard is given."""

    def __init__(
        self, encoder: Encoder, tables: GaussianTables, y: Tensor, slice_num: int, guard: GuardWriter | None = None
    ) -> None:
        """y: latent [B, M, h, w]."""
        self._encoder, self._tables, self._guard = encoder, tables, guard
        self._y = passes(y, slice_num)
        self._indexes: Tensor | None = None  # of the pass that was begun

    def begin(self, scales: Tensor) -> None:
        check_finite("scales", scales)
        if self._guard is not None:
            scales = self._guard.move(scales)
        self._indexes = _indexes(scales, self._tables)
        if self._guard is not None:
            self._guard.record(self._indexes)

    def finish(self, means: Tensor) -> Tensor:
        rounded = torch.sub(next(self._y), means).round_()
        check_finite("latents and means", rounded)
        # saturated, so that the encoder refuses what no symbol can say
        large = bool(rounded.abs().max() > _INT16)
        symbols = rounded.clamp_(-_WIDE, _WIDE).to(torch.int32 if large else torch.int16)
        self._encoder.push(symbols.cpu(), self._indexes)
        return symbols + means


class Reader:
    """Looks each pass's indexes up, checks them where the strings are guarded, and reads its symbols."""

    def __init__(self, decoder: Decoder, tables: GaussianTables, guard: GuardReader | None = None) -> None:
        self._decoder, self._tables, self._guard = decoder, tables, guard
        self._symbols: Tensor | None = None  # of the pass that was begun

    def begin(self, scales: Tensor) -> None:
        check_finite("scales", scales)
        if self._guard is not None:
            scales = self._guard.move(scales)
        indexes = _indexes(scales, self._tables)
        if self._guard is not None:
            self._guard.check(indexes)
        self._symbols = torch.from_numpy(self._decoder.decode(indexes))

    def finish(self, means: Tensor) -> Tensor:
        assert self._symbols is not None  # begin came before
        check_finite("means", means)
        return self._symbols.to(means.device) + means


def _indexes(scales: Tensor, tables: GaussianTables) -> Tensor:
    """uint8, on the CPU, contiguous."""
    return build_indexes_ref(scales, tables.scale_table, tables.scale_bound).to("cpu", torch.uint8)
