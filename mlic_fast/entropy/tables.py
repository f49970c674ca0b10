# SPDX-License-Identifier: Apache-2.0
"""Coding tables of a model's entropy models, handed to the range coder once and kept while they are valid."""

from __future__ import annotations

import torch
from compressai.entropy_models import EntropyModel

from mlic_fast.compute.derived import Remembered
from mlic_fast.entropy.range_coder import CodingTables
from mlic_fast.errors import CodingError

_tables: Remembered[CodingTables] = Remembered()


def forget_tables(entropy_model: EntropyModel) -> None:
    """Hand the tables over again at the next use."""
    _tables.forget(entropy_model)


def coding_tables(entropy_model: EntropyModel) -> CodingTables:
    """Tables of an entropy bottleneck or a Gaussian conditional as they are saved in its buffers.

    Raises CodingError where they are missing or could not code anything.
    """
    buffers = (entropy_model._quantized_cdf, entropy_model._cdf_length, entropy_model._offset)
    if any(buffer.numel() == 0 for buffer in buffers):
        raise CodingError(
            "the model has no coding tables yet: call update() on it after training, or load weights that hold them"
        )

    def hand_over() -> CodingTables:
        return CodingTables(*(buffer.detach().to("cpu", torch.int32).contiguous() for buffer in buffers))

    return _tables.get(entropy_model, buffers, hand_over)
