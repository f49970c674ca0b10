# SPDX-License-Identifier: Apache-2.0
"""The two entropy models of a codec: what coding reads of them, and their tables as the range coder keeps them."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mlic_fast.compute.derived import Derived
from mlic_fast.compute.precision import KeepsFloat32
from mlic_fast.entropy.range_coder import CodingTables
from mlic_fast.errors import CodingError

_tables: Derived[CodingTables] = Derived()


class Tables(Protocol):
    """Coding tables, under the names that CompressAI's entropy models give them: int32, a row for each index."""

    _quantized_cdf: Tensor
    _cdf_length: Tensor
    _offset: Tensor


class GaussianTables(Tables, Protocol):
    """Those of y: the rows belong to the scales of the scale table."""

    scale_table: Tensor  # float32 [rows], increasing
    scale_bound: Tensor  # float32 [1]: smaller scales count as this one


class EntropyModels(NamedTuple):
    """A codec's two entropy models; CompressAI's classes and those below have what coding needs."""

    gaussian: Any  # of y: GaussianTables
    bottleneck: Any  # of z: Tables, with `quantiles` [N, 1, 3]

    def medians(self) -> Tensor:
        """Of z's channels, [N, 1, 1]."""
        quantiles: Tensor = self.bottleneck.quantiles
        return quantiles.detach()[:, :, 1:2]


class _Constant(nn.Module):
    """A constant that is saved with the weights."""

    bound: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bound", torch.zeros(1, dtype=torch.float32))


class _SavedTables(KeepsFloat32):
    def __init__(self) -> None:
        super().__init__()
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int32))
        self.likelihood_lower_bound = _Constant()


class SavedBottleneck(_SavedTables):
    """The tensors of CompressAI's EntropyBottleneck, to be loaded. Coding reads tables and medians of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        filters = (1, 3, 3, 3, 3, 1)
        shapes = list(zip(filters[1:], filters[:-1], strict=True))

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(channels, *shape, dtype=torch.float32))

        self.quantiles = empty(1, 3)
        self.register_buffer("target", torch.zeros(3, dtype=torch.float32))
        self.matrices = nn.ParameterList([empty(outputs, inputs) for outputs, inputs in shapes])
        self.biases = nn.ParameterList([empty(outputs, 1) for outputs, _ in shapes])
        self.factors = nn.ParameterList([empty(outputs, 1) for outputs, _ in shapes[:-1]])


class SavedGaussian(_SavedTables):
    """The tensors of CompressAI's GaussianConditional, to be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_table", torch.zeros(0, dtype=torch.float32))
        self.register_buffer("scale_bound", torch.zeros(1, dtype=torch.float32))
        self.lower_bound_scale = _Constant()


def forget_tables(entropy_model: Any) -> None:
    """Hand the tables over again at the next use."""
    _tables.forget(entropy_model)


def forget_all_tables() -> None:
    """Hand every entropy model's tables over again."""
    _tables.clear()


def coding_tables(entropy_model: Any) -> CodingTables:
    """Tables of an entropy model (`Tables`) as they are saved in its buffers.

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
