# SPDX-License-Identifier: Apache-2.0
"""Layers over maps that arrive a strip of rows at a time: each keeps the few rows that its next result needs.

A strip's borders are no borders of the picture, so results are those of the whole map, nothing is computed twice, and
only one strip of each map is in memory. A map that comes in one piece is computed as a whole. Strips are as high as
their block's largest map allows: where the resolution is low, one of them may be the whole map.

Strips are [1, C, rows, W], channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mlic_fast.engine.layers import LAYOUT, Convolution, convolve_pieces, normalised
from mlic_fast.ops.gdn import gdn, gdn_


class RowLayer(Protocol):
    """State of one layer, or of several, while one map passes through."""

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        """The next rows of the input, the last ones if `last` → the next rows of the result, if any are complete."""
        ...


class Block(NamedTuple):
    """One step of a transform."""

    make: Callable[[], RowLayer]  # the state for one map
    values: int  # of its largest map, for each position of its input


def strip_height(height: int, width: int, values: int, largest: int) -> int:
    """Rows of the strips that a block takes its input [1, C, height, width] in, all but the last: an even number.

    values: as of `Block`. largest: bytes that a float32 map should take at most; two rows may take more.
    """
    most = max(1, largest // (4 * values * width))
    rows = -(-height // -(-height // most))
    return rows + rows % 2


def in_strips(blocks: list[tuple[Block, RowLayer]], rows: Tensor, last: bool, largest: int) -> Iterator[Tensor]:
    """The result of blocks, one after the other, for the next rows of a map: its next rows, as they are complete.

    blocks: each with its state. last, largest: as for `RowLayer.push` and `strip_height`. Every block lags behind its
    input, so the last rows complete what all of them owe: what has become too high is divided again.
    """
    for number, (block, layer) in enumerate(blocks):
        height = strip_height(rows.shape[2], rows.shape[3], block.values, largest)
        *parts, rows = torch.split(rows, height, dim=2)
        while parts:
            yield from in_strips(blocks[number:], parts.pop(0), False, largest)
        out = layer.push(rows.float().contiguous(memory_format=LAYOUT), last)
        if out is None:
            return
        rows = out
    yield rows


class ConvolutionRows:
    """A convolution of odd kernel and stride 1, or of kernel 1 or 3 and stride 2, and a pixel shuffle.

    The map's height fits the stride.
    Before the shuffle the output's channels are [factor, factor, C], in this order.
    """

    def __init__(self, convolution: Convolution, *, gelu: bool = False, factor: int = 1) -> None:
        self._convolution, self._gelu, self._factor = convolution, gelu, factor
        self._begun = False
        self._before: Tensor | None = None  # rows that the next result needs as well
        self._skip = 0  # rows of the next input that a kernel of 1 leaves out

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        kernel, stride = self._convolution.kernel, self._convolution.stride
        begun, self._begun = self._begun, True
        rows = rows.to(self._convolution.dtype)
        if not begun and last:
            return self._convolve([rows], True)
        if kernel == 1:
            rows = rows[:, :, self._skip :]
            self._skip = -rows.shape[2] % stride
            return self._convolve([rows], True) if rows.shape[2] else None
        zeros = torch.zeros_like(rows[:, :, :1]).expand(-1, -1, kernel // 2, -1)
        pieces = [zeros if self._before is None else self._before, rows]
        if last and stride == 1:
            pieces.append(zeros)
        count = (sum(piece.shape[2] for piece in pieces) - kernel) // stride + 1
        self._before = _without(pieces, max(count, 0) * stride)
        return self._convolve(pieces, False) if count > 0 else None

    def _convolve(self, pieces: list[Tensor], pad_rows: bool) -> Tensor:
        return convolve_pieces(self._convolution, pieces, gelu=self._gelu, pad_rows=pad_rows, factor=self._factor)


class _Waiting:
    """Rows of a skip connection that wait until the result that they are added to is complete."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None

    def match(self, out: Tensor | None, rows: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """The result's next rows `out` with those to be added to them, in parts; adds rows to those that wait.

        A result never comes before its skip connection's.
        """
        waiting = [piece for piece in (self._rows, rows) if piece is not None]
        parts, done, count = [], 0, 0 if out is None else out.shape[2]
        for piece in waiting:
            taken = min(count - done, piece.shape[2])
            if out is not None and taken:
                parts.append((out[:, :, done : done + taken], piece[:, :, :taken]))
            done += taken
        self._rows = _without(waiting, done)
        return parts


def _without(pieces: list[Tensor], rows: int) -> Tensor | None:
    """A copy of the rows of joined pieces that come after so many, so that the others can be freed; None if none do."""
    left = []
    for piece in pieces:
        if rows < piece.shape[2]:
            left.append(piece[:, :, rows:])
        rows = max(rows - piece.shape[2], 0)
    return torch.cat(left, dim=2).contiguous(memory_format=LAYOUT) if left else None


class Sequence:
    """Layers one after the other."""

    def __init__(self, *layers: RowLayer) -> None:
        self._layers = layers

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        out: Tensor | None = rows
        for layer in self._layers:
            if out is None:
                break
            out = layer.push(out, last)
        return out


class NormRows:
    """LayerNorm over the channels."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self._norm = norm

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        return normalised(rows, self._norm)


class Residual:
    """layers(x) + skip(x); without a skip the input itself is added."""

    def __init__(self, layers: RowLayer, skip: RowLayer | None = None) -> None:
        self._layers, self._skip, self._waiting = layers, skip, _Waiting()

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        out = self._layers.push(rows, last)
        parts = self._waiting.match(out, rows if self._skip is None else self._skip.push(rows, last))
        if out is None:
            return None
        total = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
        done = 0
        for part, beside in parts:
            self._join(part, beside, total[:, :, done : done + part.shape[2]])
            done += part.shape[2]
        return total

    @staticmethod
    def _join(part: Tensor, beside: Tensor, out: Tensor) -> None:
        torch.add(part, beside, out=out)


class Gated(Residual):
    """The input times the sigmoid of layers(x)."""

    @staticmethod
    def _join(part: Tensor, beside: Tensor, out: Tensor) -> None:
        torch.mul(part.float().sigmoid_(), beside, out=out)


class Normalised:
    """GDN, or its inverse, of layers(x), plus skip(x)."""

    def __init__(self, layers: RowLayer, skip: RowLayer, beta: Tensor, gamma: Tensor, inverse: bool) -> None:
        self._layers, self._skip, self._waiting = layers, skip, _Waiting()
        self._beta, self._gamma, self._inverse = beta, gamma, inverse

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        out = self._layers.push(rows, last)
        out = None if out is None else out.float()
        parts = self._waiting.match(out, self._skip.push(rows, last))
        if len(parts) == 1:  # all of it, without the copy that a GPU's in-place operation makes
            part, beside = parts[0]
            return gdn(part, self._beta, self._gamma, beside, inverse=self._inverse)
        for part, beside in parts:
            gdn_(part, self._beta, self._gamma, beside, inverse=self._inverse)
        return out


def whole(block: Block, x: Tensor) -> Tensor:
    """The block's result for a map [B, C, H, W] in one piece, channels-last."""
    out = block.make().push(x.contiguous(memory_format=LAYOUT), True)
    assert out is not None  # the last rows complete everything
    return out
