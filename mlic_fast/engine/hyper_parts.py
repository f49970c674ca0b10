# SPDX-License-Identifier: Apache-2.0
"""Contributions of the hyper-parameters to the first layers of all slices, for as many slices at once as memory allows.

They are known before the first slice. One product for several slices keeps a GPU busy where one for each would not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlic_fast.engine.budget import slices_ahead
from mlic_fast.engine.layers import LAYOUT, Convolution, Piece, compile_convolution


class FirstLayers:
    """The pieces of one layer a slice that see the hyper-parameters. Immutable: threads may share one."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """pieces: of each slice, with as many input channels and a bias."""
        self.widths = [len(piece.weight) for piece in pieces]
        weights, biases = [], []
        for weight, bias in pieces:
            assert bias is not None
            weights.append(weight.detach())
            biases.append(bias.detach())
        self._pieces = list(zip(weights, biases, strict=True))
        self._joined: tuple[Tensor, Tensor] | None = None
        if weights[0].device.type == "cuda":
            # in the layout that the convolutions take, so that those of every group are views
            self._joined = torch.cat(weights).contiguous(memory_format=LAYOUT), torch.cat(biases)
        self._compiled: dict[tuple[int, int], Convolution] = {}

    def convolution(self, start: int, stop: int) -> Convolution:
        """Of slices start to stop (exclusive), side by side."""
        compiled = self._compiled.get((start, stop))
        if compiled is None:
            if self._joined is not None:
                first, last = sum(self.widths[:start]), sum(self.widths[:stop])
                weight, bias = (x[first:last] for x in self._joined)
            elif stop - start == 1:
                weight, bias = self._pieces[start]
            else:
                weight, bias = (torch.cat(list(x)) for x in zip(*self._pieces[start:stop], strict=True))
            compiled = self._compiled.setdefault((start, stop), compile_convolution(weight, bias))
        return compiled


class HyperParts:
    """One walk's contributions of a map to `FirstLayers`."""

    def __init__(self, layers: FirstLayers, x: Tensor, slices: int) -> None:
        """x: [B, in, h, w], channels-last; slices: how many are computed at once."""
        self._layers, self._x, self._slices = layers, x, slices
        self._ready: dict[int, Tensor] = {}

    def take(self, i: int) -> Tensor:
        """Slice i's contribution [B, out, h, w], bias included: the caller's to overwrite, so to be taken once."""
        if i not in self._ready:
            widths = self._layers.widths[i : i + self._slices]
            out = self._layers.convolution(i, i + len(widths))(self._x)
            if len(widths) == 1:
                return out
            self._ready = dict(enumerate(torch.split(out, widths, dim=1), start=i))
        return self._ready.pop(i).contiguous(memory_format=LAYOUT)


def hyper_parts(layers: Sequence[FirstLayers], maps: Sequence[Tensor], memory_budget: int) -> list[HyperParts]:
    """`HyperParts` for each of the layers and its map; all keep to a part of the memory budget, in bytes, together."""
    x = maps[0]
    of_a_slice = sum(
        max(one.widths) * m.numel() // m.shape[1] * m.element_size() for one, m in zip(layers, maps, strict=True)
    )
    count = slices_ahead(len(layers[0].widths), of_a_slice, memory_budget, x.device.type == "cuda")
    return [HyperParts(one, m, count) for one, m in zip(layers, maps, strict=True)]
