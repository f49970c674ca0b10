# SPDX-License-Identifier: Apache-2.0
"""A model's engine as a codec of whole calls on a device, a model for which that takes a moment, and their fixtures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded_operators import OperatorRecorder

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.engine import Engine, Options, engine_for
from mlic_fast.engine.gpu.programs import compress, decompress
from mlic_fast.engine.gpu.recordings import RecordedPrograms
from mlic_fast.entropy.coders import Coded

FLOAT32 = Options(transform_dtype="float32")
DELTA = 5e-5


class Codec:
    """A model's engine with what compresses and decompresses on a device."""

    def __init__(self, model: Any, instances: RecordedPrograms | None, options: Options = FLOAT32) -> None:
        self.model, self.instances, self._options = model, instances, options
        self.entropy = model.entropy

    @property
    def engine(self) -> Engine:
        found = engine_for(self.model, self._options)
        assert found is not None
        return found

    def compress(self, x: torch.Tensor, deltas: Any = DELTA) -> Coded:
        return compress(self.engine, self.entropy, x, deltas, self.instances)

    def decompress(self, coded: Coded, shape: torch.Size) -> torch.Tensor:
        z_shape = shape[2] // 64, shape[3] // 64
        return decompress(self.engine, self.entropy, coded.y, coded.z, z_shape, coded.guard, self.instances)

    def both(self, x: torch.Tensor, deltas: Any = DELTA) -> tuple[Coded, torch.Tensor]:
        coded = self.compress(x, deltas)
        return coded, self.decompress(coded, x.shape)


def tiny_model() -> Any:
    """A model whose calls are recorded in a moment, and whose latents are not all zero."""
    torch.manual_seed(0)
    model = MLICPlusPlus(ModelConfig(N=16, M=64, slice_num=2)).eval()
    with torch.no_grad():
        model.g_a.analysis_transform[-1].weight.mul_(30)
        model.h_a.reduction[-1].weight.mul_(300)
    model.update()
    return model


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_model()


@pytest.fixture
def recorder() -> OperatorRecorder:
    return OperatorRecorder()


@pytest.fixture
def recorded(tiny: Any, recorder: OperatorRecorder) -> Codec:
    return Codec(tiny, RecordedPrograms(recorder))


@pytest.fixture
def plain(tiny: Any) -> Codec:
    return Codec(tiny, None)


# a module assigns them to these names, which it cannot import: its tests' parameters are called so
FIXTURES = tiny, recorder, recorded, plain
