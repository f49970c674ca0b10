# SPDX-License-Identifier: Apache-2.0
"""Refusing what is not a finite number before it is coded."""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.errors import NonFiniteError


def check_finite(what: str, x: Tensor) -> None:
    """Raise NonFiniteError if any value of `x` is NaN or infinite."""
    if not bool(torch.isfinite(x).all()):
        raise non_finite(what)


def non_finite(what: str) -> NonFiniteError:
    """The error that says that `what` are not all finite, and why that may be."""
    return NonFiniteError(
        f"{what} are not all finite: the weights or the picture hold NaN or infinite values, "
        "or the arithmetic overflowed; nothing that decodes could be written"
    )
