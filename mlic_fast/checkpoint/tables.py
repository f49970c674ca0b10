# SPDX-License-Identifier: Apache-2.0
"""Coding tables for weights that were saved without them, computed as CompressAI's update() computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlic_fast.checkpoint.shapes import BOTTLENECK_TABLES, GAUSSIAN_TABLES, SCALE_TABLE
from mlic_fast.checkpoint.validate import check_scale_table, missing_tables
from mlic_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# The published scale table (Minnen et al. 2018): logarithmic, smallest, largest, count.
_SCALE_RANGE = (0.11, 256.0, 64)

# Bounds on what hostile weights make us compute: a row has at most 2^16 intervals, and a
# Gaussian's row spans some 12 standard deviations.
_MAX_ROW = (1 << 16) - 2
_MAX_SCALE = 4096.0


def standard_scale_table() -> Tensor:
    """The scale table of update() without an argument, float32 [64], computed in float32."""
    import torch

    smallest, largest, count = _SCALE_RANGE
    return torch.exp(torch.linspace(math.log(smallest), math.log(largest), count, dtype=torch.float32))


def with_tables(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Canonical tensors with every coding table, and whether all of them had been saved.

    Saved tables are kept as they are; missing or empty ones are computed from the entropy bottleneck's
    parameters and from the saved scale table, or the standard one. Computed on another machine they may differ
    by a count, and so may the fingerprint: convert weights once and pass the result on.
    Raises CheckpointError for tables saved in part, or that would be of an absurd size.
    """
    missing = missing_tables(state_dict)
    result = dict(state_dict)
    if "entropy_bottleneck" in missing:
        result.update(_bottleneck_tables(state_dict))
    if "gaussian_conditional" in missing:
        result.update(_gaussian_tables(state_dict))
    return result, not missing


def _bottleneck_tables(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from compressai.entropy_models import EntropyBottleneck

    from mlic_fast.compute.precision import sums_for_products

    prefix = "entropy_bottleneck."
    quantiles = state_dict[f"{prefix}quantiles"].double()
    span = (quantiles[:, 0, 2] - quantiles[:, 0, 0]).max().item()
    if span > _MAX_ROW - 3:
        raise CheckpointError(
            f"{prefix}quantiles of one channel are {span:.6g} apart: no 16-bit table is that long; "
            "the auxiliary loss was not trained, or the file is damaged"
        )
    bottleneck = EntropyBottleneck(quantiles.shape[0])
    own = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
    for table in BOTTLENECK_TABLES:
        own.pop(table.removeprefix(prefix), None)
    bottleneck.load_state_dict(own, strict=False)
    with sums_for_products(quantiles.device):
        bottleneck.update(force=True)
    return {name: getattr(bottleneck, name.removeprefix(prefix)).detach().int().clone() for name in BOTTLENECK_TABLES}


def _gaussian_tables(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from compressai.entropy_models import GaussianConditional

    prefix = "gaussian_conditional."
    scales = state_dict.get(SCALE_TABLE)
    if scales is None or not scales.numel():
        scales = standard_scale_table()
    check_scale_table(scales)
    if scales[-1] > _MAX_SCALE:
        raise CheckpointError(
            f"{SCALE_TABLE} reaches {scales[-1].item():.6g}; tables can be computed up to {_MAX_SCALE:g}"
        )
    gaussian = GaussianConditional(None)
    gaussian.update_scale_table(scales, force=True)
    tables = {name: getattr(gaussian, name.removeprefix(prefix)).detach().int().clone() for name in GAUSSIAN_TABLES}
    return {**tables, SCALE_TABLE: scales.clone()}
