# SPDX-License-Identifier: Apache-2.0
"""3×3 convolutions by Winograd's method in float32 on a CPU: 16 products where others need 36, as exact to rounding.

Where there are instructions for bfloat16 but no matrix unit, they are as fast as those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.engine.map_memory import shared_map_memory
from mlic_fast.ops.winograd import CHANNELS, coefficients_of, convolve

if TYPE_CHECKING:
    from mlic_fast.engine.layers import Weights

# Results with fewer positions than this are left to others: too few products for each weight that is read.
MIN_POSITIONS = 256


def suits(weight: Weights, stride: int, groups: int, dtype: torch.dtype) -> bool:
    """Whether a convolution of this weight [out, in / groups, k, k] can be taken by Winograd's method."""
    return (
        weight.device.type == "cpu"
        and dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and weight.shape[0] % CHANNELS == weight.shape[1] % CHANNELS == 0
        and (stride, groups) == (1, 1)
    )


class Packed(Protocol):
    """A convolution that keeps its weights in a layout of its own."""

    def __call__(self, x: Tensor, *, gelu: bool = False, pad_rows: bool = True) -> Tensor: ...

    def forget(self) -> None:
        """Gives up what is packed; what is asked for again is packed again."""
        ...


class WinogradConvolution:
    """A convolution that `suits`; another one takes maps for which it is not worthwhile. Not for the entropy path."""

    kernel, stride, dtype = 3, 1, torch.float32

    def __init__(self, weight: Weights, bias: Tensor | None, otherwise: Packed) -> None:
        self._weight = weight
        self._coefficients: Tensor | None = None  # until a map is worthwhile
        self._bias = None if bias is None else bias.detach()
        self._otherwise = otherwise
        self._blocks = shared_map_memory()

    def __call__(self, x: Tensor, *, gelu: bool = False, pad_rows: bool = True) -> Tensor:
        if not self.takes([x]):
            return self._otherwise(x, gelu=gelu, pad_rows=pad_rows)
        return self.of_pieces([x], gelu=gelu, pad_rows=pad_rows, factor=1)

    def takes(self, pieces: Sequence[Tensor]) -> bool:
        """Whether a map of these pieces is worthwhile."""
        batch, _, _, width = pieces[0].shape
        return (
            width % 2 == 0
            and batch * sum(piece.shape[2] for piece in pieces) * width >= MIN_POSITIONS
            and backend.choose(pieces[0]) == "cpu"
            and backend.cpu_kernels.isa() != "generic"  # which is slower than oneDNN's convolutions
        )

    def of_pieces(self, pieces: Sequence[Tensor], *, gelu: bool, pad_rows: bool, factor: int) -> Tensor:
        """As `mlic_fast.ops.winograd.convolve`, of pieces that it `takes`."""
        if self._coefficients is None:
            self._coefficients = coefficients_of(self._weight.joined())
            self._otherwise.forget()  # small maps, which it was packed for, seldom alternate with large ones
        return convolve(
            pieces,
            self._coefficients,
            self._bias,
            pad_rows=pad_rows,
            gelu=gelu,
            factor=factor,
            empty=self._blocks.empty,
        )

    def shuffles(self, factor: int) -> bool:
        """Whether `of_pieces` takes this factor."""
        return self._weight.shape[0] % (factor**2 * CHANNELS) == 0

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        return out.add_(self(x))
