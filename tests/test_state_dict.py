# SPDX-License-Identifier: Apache-2.0
"""Parameter names, shapes and counts are the official ones; configurations are checked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.errors import ConfigError

KEYS = json.loads((Path(__file__).parent / "golden" / "state_dict_keys.json").read_text())


@pytest.mark.parametrize(("variant", "official"), [("new", "official"), ("old", "official_old")])
def test_names_and_shapes_are_official(variant: str, official: str) -> None:
    model = MLICPlusPlus(ModelConfig(variant=variant))
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert own == dict(KEYS[official])
    if variant == "new":
        assert sum(parameter.numel() for parameter in model.parameters()) == 83_501_408


def test_official_configuration_object() -> None:
    official = SimpleNamespace(N=64, M=96, slice_num=3, context_window=5)
    model = MLICPlusPlus(official)
    assert model.config == ModelConfig(N=64, M=96, slice_num=3)
    assert (model.N, model.M, model.slice_num, model.slice_ch, model.context_window) == (64, 96, 3, 32, 5)
    assert MLICPlusPlus({"N": 64, "M": 96, "slice_num": 3, "context_window": 5}).config == model.config


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"N": 0}, "positive"),
        ({"N": "192"}, "positive"),
        ({"N": True}, "positive"),
        ({"M": 320, "slice_num": 3}, "divide"),
        ({"M": 160, "slice_num": 10}, "heads"),  # slices of 16 channels: 16 < 32
        ({"M": 96, "slice_num": 2, "variant": "newest"}, "variant"),
        ({"M": 400, "slice_num": 10}, "heads"),  # 200 channels and 6 heads
        ({"M": 99, "slice_num": 3}, "even"),
        ({"M": 66, "slice_num": 2}, "even"),
        ({"context_window": 7}, "window"),
        ({"N": 1 << 20}, "at most"),
    ],
    ids=lambda value: str(value),
)
def test_invalid_configurations_are_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ModelConfig(**changes)


def test_missing_attribute_is_named() -> None:
    with pytest.raises(ConfigError, match="slice_num"):
        MLICPlusPlus(SimpleNamespace(N=64, M=96, context_window=5))


@pytest.mark.parametrize(("M", "slice_num"), [(96, 3), (96, 2), (64, 1), (40, 1), (128, 4), (96, 1)])
def test_valid_configurations_are_built(M: int, slice_num: int) -> None:
    assert MLICPlusPlus(ModelConfig(N=8, M=M, slice_num=slice_num)).slice_ch == M // slice_num
