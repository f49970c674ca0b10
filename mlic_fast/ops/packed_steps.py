# SPDX-License-Identifier: Apache-2.0
"""Coding steps on packed maps that write to parts of larger buffers, for passes that are coded on the device.

None of them waits for the device, and each runs the same operators whatever the numbers are, so they can be captured.
Their caller has prepared the buffers itself and hands over what fits. On the CPU the twins run, for tests.
"""

from __future__ import annotations

from torch import Tensor

from mlic_fast.compute.backend import choose
from mlic_fast.kernels import packed_steps as kernels


def flag_count(n: int) -> int:
    """Bytes of flags that a step on n numbers writes; mlic_fast.ops.coding_steps.check_flags reads them."""
    count: int = kernels.flag_count(n)
    return count


def encode_packed(
    y: Tensor,
    scales: Tensor,
    means: Tensor,
    table: Tensor,
    bound: Tensor,
    symbols: Tensor,
    indexes: Tensor,
    flags: Tensor,
) -> Tensor:
    """Quantise y about its means and find the symbols' table indexes → decoded values [B, C, h, w/2].

    y, scales, means: float32 [B, C, h, w/2], contiguous, n numbers; table: float32 [rows]; bound: float32 [1].
    Written: symbols int16 or int32 [n], indexes uint8 [n], flags uint8 [flag_count(n)].
    """
    run = kernels.encode_packed if choose(y) == "triton" else kernels.encode_packed_ref
    values: Tensor = run(y, scales, means, table, bound, symbols, indexes, flags)
    return values


def packed_indexes(
    scales: Tensor, factors: Tensor | None, table: Tensor, bound: Tensor, indexes: Tensor, flags: Tensor
) -> None:
    """Table indexes of scales · factors; factors: float32 [n], those of the guard's moves, or None."""
    run = kernels.packed_indexes if choose(scales) == "triton" else kernels.packed_indexes_ref
    run(scales, factors, table, bound, indexes, flags)


def packed_values(symbols: Tensor, means: Tensor, flags: Tensor) -> Tensor:
    """symbols int16 or int32 [n] + means [B, C, h, w/2] → decoded values."""
    run = kernels.packed_values if choose(means) == "triton" else kernels.packed_values_ref
    values: Tensor = run(symbols, means, flags)
    return values
