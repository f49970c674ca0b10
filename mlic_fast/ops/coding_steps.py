# SPDX-License-Identifier: Apache-2.0
"""Coding steps of a pass on packed maps: symbols, indexes and decoded values, written to parts of larger buffers.

They have no gradients: training estimates rates instead of coding (see Estimator). None of them waits for the device,
and each runs the same operators whatever the numbers are, so they can be recorded. Their caller has prepared the
buffers and hands over what fits. On a CPU the twins run: there the steps are less than a hundredth of a picture's time.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mlic_fast.compute.backend import choose
from mlic_fast.compute.nonfinite import non_finite
from mlic_fast.kernels import coding_steps as kernels


def flag_count(n: int) -> int:
    """Bytes of flags that a step on n numbers writes; `check_flags` reads them."""
    count: int = kernels.flag_count(n)
    return count


def encode_step(
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
    run = kernels.encode_step if choose(y) == "triton" else kernels.encode_step_ref
    values: Tensor = run(y, scales, means, table, bound, symbols, indexes, flags)
    return values


def decode_indexes(
    scales: Tensor, factors: Tensor | None, table: Tensor, bound: Tensor, indexes: Tensor, flags: Tensor
) -> None:
    """Table indexes of scales · factors; factors: float32 [n], those of the guard's moves, or None."""
    run = kernels.decode_indexes if choose(scales) == "triton" else kernels.decode_indexes_ref
    run(scales, factors, table, bound, indexes, flags)


def decode_values(symbols: Tensor, means: Tensor, flags: Tensor) -> Tensor:
    """symbols int16 or int32 [n] + means [B, C, h, w/2] → decoded values."""
    run = kernels.decode_values if choose(means) == "triton" else kernels.decode_values_ref
    values: Tensor = run(symbols, means, flags)
    return values


def check_flags(flags: Tensor) -> bool:
    """Whether a symbol was too large for int16.

    flags: as a step returned them; best on the CPU, since reading them elsewhere waits for the device.
    Raises NonFiniteError if a scale, a mean, or y − mean was NaN or infinite.
    """
    found = int(np.bitwise_or.reduce(flags.cpu().numpy()))
    if found & (kernels.BAD_SCALE | kernels.BAD_VALUE):
        what = "scales" if found & kernels.BAD_SCALE else "latents and means"
        raise non_finite(what)
    return bool(found & kernels.LARGE_SYMBOL)
