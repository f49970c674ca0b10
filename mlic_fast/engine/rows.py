# SPDX-License-Identifier: Apache-2.0
"""Layers over maps that arrive a strip of rows at a time: each keeps the few rows that its next result needs.

A strip's borders are no borders of the picture, so results are those of the whole map, nothing is computed twice, and
only one strip of each map is in memory. A map that comes in one piece is computed as a whole.

Strips are [1, C, rows, W], channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mlic_fast.engine.layers import LAYOUT, Convolution
from mlic_fast.ops.gdn import gdn


class RowLayer(Protocol):
    """State of one layer, or of several, while one map passes through."""

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        """The next rows of the input, the last ones if `last` → the next rows of the result, if any are complete."""
        ...


# makes the state for one map
Block = Callable[[], RowLayer]


class ConvolutionRows:
    """A convolution of kernel 1 or 3 and stride 1 or 2; the map's height is a multiple of the stride."""

    def __init__(self, convolution: Convolution, gelu: bool = False) -> None:
        self._convolution, self._gelu = convolution, gelu
        self._begun = False
        self._before: Tensor | None = None  # rows that the next result needs as well
        self._skip = 0  # rows of the next input that a kernel of 1 leaves out

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        convolution, stride = self._convolution, self._convolution.stride
        begun, self._begun = self._begun, True
        rows = rows.to(convolution.dtype)
        if not begun and last:
            return convolution(rows, gelu=self._gelu)
        if convolution.kernel == 1:
            rows = rows[:, :, self._skip :]
            self._skip = -rows.shape[2] % stride
            return convolution(rows, gelu=self._gelu) if rows.shape[2] else None
        zeros = torch.zeros_like(rows[:, :, :1])
        pieces = [zeros if self._before is None else self._before, rows]
        if last and stride == 1:
            pieces.append(zeros)
        joined = torch.cat(pieces, dim=2)
        count = (joined.shape[2] - 3) // stride + 1
        self._before = joined[:, :, max(count, 0) * stride :].clone()
        return convolution(joined, gelu=self._gelu, pad_rows=False) if count > 0 else None


class _Waiting:
    """Rows of a skip connection that wait until the result that they are added to is complete."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None

    def match(self, out: Tensor | None, rows: Tensor | None) -> Tensor | None:
        """Adds rows at the end, and takes those of `out` from the beginning; None if there is no `out`.

        A result never comes before its skip connection's.
        """
        pieces = [piece for piece in (self._rows, rows) if piece is not None]
        joined = torch.cat(pieces, dim=2) if len(pieces) == 2 else pieces[0] if pieces else None
        count = 0 if out is None else out.shape[2]
        # a copy, so that what was taken can be freed
        self._rows = joined[:, :, count:].clone() if joined is not None and joined.shape[2] > count else None
        return None if joined is None or out is None else joined[:, :, :count]


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


class Residual:
    """layers(x) + skip(x); without a skip the input itself is added."""

    def __init__(self, layers: RowLayer, skip: RowLayer | None = None) -> None:
        self._layers, self._skip, self._waiting = layers, skip, _Waiting()

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        out = self._layers.push(rows, last)
        beside = rows if self._skip is None else self._skip.push(rows, last)
        other = self._waiting.match(out, beside)
        if out is None or other is None:
            return None
        return out.add_(other) if out.dtype == torch.float32 else torch.add(other, out)


class Normalised:
    """GDN, or its inverse, of layers(x), plus skip(x)."""

    def __init__(self, layers: RowLayer, skip: RowLayer, beta: Tensor, gamma: Tensor, inverse: bool) -> None:
        self._layers, self._skip, self._waiting = layers, skip, _Waiting()
        self._beta, self._gamma, self._inverse = beta, gamma, inverse

    def push(self, rows: Tensor, last: bool) -> Tensor | None:
        out = self._layers.push(rows, last)
        beside = self._skip.push(rows, last)
        other = self._waiting.match(out, beside)
        return None if out is None else gdn(out.float(), self._beta, self._gamma, other, inverse=self._inverse)


class Shuffle:
    """Channels [factor, factor, C], in this order, of each position → factor × factor positions of C channels."""

    def __init__(self, factor: int) -> None:
        self._factor = factor

    def push(self, rows: Tensor, last: bool) -> Tensor:
        return shuffle(rows, self._factor)


def shuffle(x: Tensor, factor: int) -> Tensor:
    """[B, factor·factor·C, H, W] → [B, C, factor·H, factor·W], channels-last."""
    batch, channels, height, width = x.shape
    C = channels // factor**2
    spread = x.permute(0, 2, 3, 1).reshape(batch, height, width, factor, factor * C).transpose(2, 3)
    return spread.reshape(batch, factor * height, factor * width, C).permute(0, 3, 1, 2)


def whole(block: Block, x: Tensor) -> Tensor:
    """The block's result for a map [B, C, H, W] in one piece, channels-last."""
    out = block().push(x.contiguous(memory_format=LAYOUT), True)
    assert out is not None  # the last rows complete everything
    return out
