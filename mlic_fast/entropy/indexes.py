# SPDX-License-Identifier: Apache-2.0
"""Scales to table indexes: which row of the Gaussian coding tables a symbol is coded with."""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.errors import NonFiniteError


def build_indexes(scales: Tensor, scale_table: Tensor, scale_bound: Tensor) -> Tensor:
    """int32 indexes, shape of `scales`: the smallest k with max(scale, bound) ≤ table[k], else the last row.

    Compared in float32 with the saved table, as CompressAI's GaussianConditional.build_indexes does:
    a value on a boundary belongs to the row below it. scale_table: float32 [rows], increasing;
    scale_bound: float32 [1].
    """
    bounded = torch.maximum(scales.float(), scale_bound)
    return torch.bucketize(bounded, scale_table[:-1], out_int32=True)


def check_finite(what: str, x: Tensor) -> None:
    """Raise NonFiniteError if any value of `x` is NaN or infinite."""
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(
            f"{what} are not all finite: the weights or the picture hold NaN or infinite values, "
            "or the arithmetic overflowed; nothing that decodes could be written"
        )
