# SPDX-License-Identifier: Apache-2.0
"""A global context of MLICv2: rotated by its positions, then reweighted."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mlic_fast.compute.precision import KeepsFloat32
from mlic_fast.nn.reweighting import Reweighting
from mlic_fast.nn.rotation import Rotation


class RefinedContext(KeepsFloat32):
    """What `context` gives, [B, 2C, h, w], refined; it takes what `context` takes. Parameter names are CompressAI's."""

    context: Any

    def __init__(self, context: nn.Module, slice_width: int, *, rotated: bool = True) -> None:
        """rotated: whether the result is; where queries and keys of the local context are rotated, this is not."""
        super().__init__()
        self.context = context
        self.rope = Rotation(2 * slice_width) if rotated else None
        self.reweighting = Reweighting(2 * slice_width)

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.context(*inputs)
        if self.rope is not None:
            out = self.rope(out)
        result: Tensor = self.reweighting(out)
        return result
