# SPDX-License-Identifier: Apache-2.0
"""What must hold of weights before a model is built from them and native code sees their tables.

Every check raises CheckpointError with the tensor's name, what is wrong and where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mlic_fast.checkpoint.shapes import (
    BOTTLENECK_TABLES,
    GAUSSIAN_TABLES,
    SCALE_TABLE,
    TABLES,
    Shape,
    expected_shapes,
    is_position_index,
)
from mlic_fast.config import ModelConfig
from mlic_fast.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Probabilities have 16 bits and none is zero, so a row cannot have more intervals than that.
CDF_TOTAL = 1 << 16
MAX_CDF_LENGTH = CDF_TOTAL + 1
# One interval for a value and one for the escape: three bounds.
MIN_CDF_LENGTH = 3
# Symbols reach ±2^27 in the coder; an offset (minus a table's smallest value) is nowhere near that.
MAX_OFFSET = 1 << 24
# Table indexes travel as uint8.
MAX_SCALES = 256


def check_shapes(shapes: Mapping[str, Shape], config: ModelConfig) -> None:
    """Names and shapes are exactly those of the configuration. Coding tables may be missing, empty or of any size."""
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in shapes and name not in TABLES and not is_position_index(name)]
    if missing:
        raise CheckpointError(f"the weights of {_text(config)} lack {_some(missing)}: the file is incomplete")
    unknown = [name for name in shapes if name not in expected]
    if unknown:
        raise CheckpointError(
            f"the weights hold tensors that {_text(config)} does not have: {_some(unknown)}; "
            "remove them if they are no part of the model"
        )
    wrong = [name for name, shape in shapes.items() if name not in TABLES and shape != expected[name]]
    if wrong:
        details = [f"{name} is {list(shapes[name])}, not {list(expected[name])}" for name in wrong]
        raise CheckpointError(f"tensors of other shapes than {_text(config)} has: {_some(details)}")


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """No float tensor holds NaN or infinity."""
    import numpy as np

    for name, tensor in state_dict.items():
        # NumPy: hundreds of small reductions on torch's thread pool take seconds on a busy machine
        if tensor.is_floating_point() and not np.isfinite(tensor.detach().cpu().numpy()).all():
            where = (~tensor.isfinite()).nonzero()
            raise CheckpointError(
                f"{name} is not finite: {len(where)} of {tensor.numel()} values, the first at {where[0].tolist()} "
                f"is {tensor[tuple(where[0])].item()}; training diverged, or a half-precision value overflowed"
            )


def check_position_indexes(state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Saved index tables of the local contexts are what the window size makes them."""
    import torch

    expected = position_index(config.context_window)
    for name, tensor in state_dict.items():
        if is_position_index(name) and not torch.equal(tensor, expected):
            raise CheckpointError(
                f"{name} is not the index table of a {config.context_window} × {config.context_window} window: "
                "remove it from the file, it is rebuilt when it is missing"
            )


def position_index(window: int) -> Tensor:
    """Row of the relative position table for query i and key j of a window, int64 [window², window²]."""
    import torch

    rows, columns = torch.arange(window**2) // window, torch.arange(window**2) % window
    row = rows[:, None] - rows[None, :] + window - 1
    column = columns[:, None] - columns[None, :] + window - 1
    return row * (2 * window - 1) + column


def missing_tables(state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Which entropy models have no coding tables: of "entropy_bottleneck", "gaussian_conditional".

    Raises CheckpointError where only some of a model's tables are there.
    """
    missing = []
    for group in (BOTTLENECK_TABLES, GAUSSIAN_TABLES):
        empty = [name for name in group if name not in state_dict or not state_dict[name].numel()]
        if 0 < len(empty) < len(group):
            there = [name for name in group if name not in empty]
            raise CheckpointError(
                f"{_some(there)} without {_some(empty)}: coding tables must be there together or not at all; "
                "call update(force=True) on the model and save it again"
            )
        if empty:
            missing.append(group[0].split(".")[0])
    scales = state_dict.get(SCALE_TABLE)
    if "gaussian_conditional" not in missing and (scales is None or not scales.numel()):
        raise CheckpointError(f"{SCALE_TABLE} is missing, though the tables computed from it are there")
    return tuple(missing)


def check_tables(state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """All coding tables are there and could code: see the constants above. Call after `check_finite`."""
    check_scale_table(state_dict[SCALE_TABLE])
    rows = {"entropy_bottleneck": config.N, "gaussian_conditional": len(state_dict[SCALE_TABLE])}
    reasons = {"entropy_bottleneck": "channels of z", "gaussian_conditional": "scales in scale_table"}
    for prefix, count in rows.items():
        _check_cdfs(prefix, state_dict, count, reasons[prefix])


def check_scale_table(scales: Tensor) -> None:
    """float32 [2 to 256], finite, positive, strictly increasing."""
    if scales.dim() != 1 or not 2 <= len(scales) <= MAX_SCALES:
        raise CheckpointError(f"{SCALE_TABLE} has shape {list(scales.shape)}, it must hold 2 to {MAX_SCALES} scales")
    if not bool((scales > 0).all()):
        raise CheckpointError(f"{SCALE_TABLE}: scales must be positive, the smallest is {scales.min().item()}")
    steps = scales.diff()
    if not bool((steps > 0).all()):
        k = int((steps <= 0).nonzero()[0])
        raise CheckpointError(
            f"{SCALE_TABLE} must increase; scale {k + 1} is {scales[k + 1].item()}, after {scales[k].item()}"
        )


def _check_cdfs(prefix: str, state_dict: Mapping[str, Tensor], count: int, reason: str) -> None:
    import numpy as np

    # NumPy: as in `check_finite`
    cdfs, lengths, offsets = (
        state_dict[f"{prefix}.{name}"].numpy() for name in ("_quantized_cdf", "_cdf_length", "_offset")
    )
    if cdfs.ndim != 2 or cdfs.shape[0] != count or not MIN_CDF_LENGTH <= cdfs.shape[1] <= MAX_CDF_LENGTH:
        raise CheckpointError(
            f"{prefix}._quantized_cdf has shape {list(cdfs.shape)}; it must have {count} rows ({reason}) "
            f"of {MIN_CDF_LENGTH} to {MAX_CDF_LENGTH} bounds"
        )
    for name, tensor in (("_cdf_length", lengths), ("_offset", offsets)):
        if tuple(tensor.shape) != (count,):
            raise CheckpointError(f"{prefix}.{name} has shape {list(tensor.shape)}, it must be [{count}] ({reason})")
    width = cdfs.shape[1]
    bad = (lengths < MIN_CDF_LENGTH) | (lengths > width)
    if bad.any():
        row = int(bad.argmax())
        raise CheckpointError(
            f"{prefix}._cdf_length[{row}] is {int(lengths[row])}, it must be {MIN_CDF_LENGTH} to {width}, "
            "the table's width"
        )
    bad = (offsets < -MAX_OFFSET) | (offsets > MAX_OFFSET)  # abs() would keep the smallest int32 negative
    if bad.any():
        row = int(bad.argmax())
        raise CheckpointError(f"{prefix}._offset[{row}] is {int(offsets[row])}, beyond ±{MAX_OFFSET}")
    bad = cdfs[:, 0] != 0
    if bad.any():
        row = int(bad.argmax())
        raise CheckpointError(f"{prefix}._quantized_cdf row {row} must begin with 0, not with {int(cdfs[row, 0])}")
    inside = np.arange(1, width)[None, :] < lengths[:, None]
    bad = (cdfs[:, 1:] <= cdfs[:, :-1]) & inside
    if bad.any():
        row, column = (int(k) for k in np.argwhere(bad)[0])
        raise CheckpointError(
            f"{prefix}._quantized_cdf row {row} must increase; bound {column + 1} is {int(cdfs[row, column + 1])}, "
            f"after {int(cdfs[row, column])}"
        )
    last = cdfs[np.arange(count), lengths - 1]
    bad = last != CDF_TOTAL
    if bad.any():
        row = int(bad.argmax())
        raise CheckpointError(
            f"{prefix}._quantized_cdf row {row} ends with {int(last[row])} at bound {int(lengths[row]) - 1}, "
            f"it must end with {CDF_TOTAL}"
        )


def _text(config: ModelConfig) -> str:
    shape = f"N={config.N}, M={config.M}, {config.slice_num} slices, variant {config.variant!r}"
    return f"an {config.member.title} model with {shape}"


def _some(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
