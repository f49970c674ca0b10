# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in two dimensions: pairs of channels turned by angles that grow with column and row.

`Rotation` is CompressAI's reading of MLICv2 (arXiv 2504.19119), with its parameter names: it turns what a global
context gives. `AxialRotation` is ours: it turns queries and keys, whose products then depend on distances alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlic_fast.compute.precision import KeepsFloat32

# What θ begins with. Where the distances are those within a window, angles must grow faster.
_START, _AXIAL_START = 10000.0, 100.0


class Rotation(KeepsFloat32):
    """A map [B, D, h, w] → the same shape; channels 2j and 2j + 1 are turned by column·θx^(−2j/D) + row·θy^(−2j/D).

    |θ| counts, and no less than 1.
    """

    frequency: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta_x = nn.Parameter(torch.tensor(_START))
        self.theta_y = nn.Parameter(torch.tensor(_START))
        self.register_buffer("frequency", torch.arange(0, channels, 2, dtype=torch.float32) / channels)

    def speeds(self) -> tuple[Tensor, Tensor]:
        """What each pair turns by from a column to the next, and from a row to the next; [D/2] each, float64."""
        speed_x, speed_y = (
            theta.double().abs().clamp(min=1.0) ** -self.frequency.double() for theta in (self.theta_x, self.theta_y)
        )
        return speed_x, speed_y

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = (table.to(x.dtype) for table in tables(*self.speeds(), *x.shape[2:]))
        even, odd = x[:, 0::2], x[:, 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=2).flatten(1, 2)


class AxialRotation(Rotation):
    """Queries and keys [B, 2C, h, w] of the local context's two heads → the same shape.

    Element e of head t is channel 2e + t. Elements 4j and 4j + 1 are turned by column·θx^(−8j/C), elements 4j + 2
    and 4j + 3 by row·θy^(−8j/C).
    """

    def __init__(self, slice_width: int) -> None:
        """slice_width: C, a multiple of 4."""
        super().__init__(slice_width // 2)
        nn.init.constant_(self.theta_x, _AXIAL_START)
        nn.init.constant_(self.theta_y, _AXIAL_START)
        self.frequency[1::2] = self.frequency[0::2][: len(self.frequency) // 2]

    def speeds(self) -> tuple[Tensor, Tensor]:
        speed_x, speed_y = super().speeds()
        of_columns = torch.arange(len(speed_x), device=speed_x.device) % 2 == 0
        return speed_x * of_columns, speed_y * ~of_columns

    def forward(self, x: Tensor) -> Tensor:
        # [1, C/4, 1, h, w], for queries and keys, and both heads
        cos, sin = (table.to(x.dtype)[None, :, None] for table in tables(*self.speeds(), *x.shape[2:]))
        even, odd = x.reshape(len(x), 2, -1, 2, 2, *x.shape[2:]).unbind(3)  # [B, 2, C/4, 2, h, w]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=3).flatten(1, 4)


def tables(speed_x: Tensor, speed_y: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [P, h, w] of the angles at each position, from the speeds [P] of P pairs.

    In float64: angles grow with the map, and scales must not depend on whose powers and sines they came from.
    """
    columns, rows = (
        torch.arange(side, dtype=torch.float64, device=speed.device) * speed[:, None]
        for side, speed in ((width, speed_x), (height, speed_y))
    )
    columns, rows = columns[:, None, :], rows[:, :, None]
    cos = columns.cos() * rows.cos() - columns.sin() * rows.sin()
    sin = columns.sin() * rows.cos() + columns.cos() * rows.sin()
    return cos, sin
