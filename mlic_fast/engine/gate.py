# SPDX-License-Identifier: Apache-2.0
"""The gate of mlic_fast.nn.gate, compiled for the entropy path."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, pack
from mlic_fast.engine.layers import LAYOUT, compile_module, normalised
from mlic_fast.nn.gate import parts_of_gate


class CompiledGate:
    """x [B, D, h, w] times its gate, added to another map."""

    def __init__(self, layers: nn.Sequential) -> None:
        self._norm, convolutions = parts_of_gate(layers)
        self._wide, self._near, self._last = (compile_module(layer) for layer in convolutions)

    def add_to(self, out: Tensor, x: Tensor, parity: Parity | None = None) -> Tensor:
        """Adds the gated x to `out`, in place; returns `out`. parity: `out` is packed, [B, D, h, w/2]; None: whole."""
        hidden = self._near(self._wide(normalised(x, self._norm), gelu=True), gelu=True)
        if parity is not None:
            hidden, x = (pack(one, parity, LAYOUT) for one in (hidden, x))
        return out.addcmul_(x, self._last(hidden).sigmoid_())
