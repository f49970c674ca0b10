# SPDX-License-Identifier: Apache-2.0
"""Expected names and shapes, and finding the configuration in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlic_fast import contexts
from mlic_fast.checkpoint import expected_shapes, infer_config
from mlic_fast.config import ModelConfig
from mlic_fast.errors import CheckpointError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "state_dict_keys.json").read_text())


@pytest.mark.parametrize(("variant", "key"), [("new", "official"), ("old", "official_old")])
def test_full_model_has_the_official_names_shapes_and_order(variant: str, key: str) -> None:
    official = {name: tuple(shape) for name, shape in GOLDEN[key].items()}
    expected = expected_shapes(ModelConfig(variant=variant))
    assert list(expected.items()) == list(official.items())
    assert infer_config(official) == ModelConfig(variant=variant)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(N=8, M=96, slice_num=3),
        ModelConfig(N=8, M=96, slice_num=3, variant="old"),
        ModelConfig(N=16, M=32, slice_num=1),
        ModelConfig(N=64, M=64, slice_num=2, variant="old"),  # no skip in the first block: M = N
        ModelConfig(N=12, M=66, slice_num=1, variant="old"),
    ],
    ids=lambda config: f"{config.N}-{config.M}-{config.slice_num}-{config.variant}",
)
def test_other_configurations_agree_with_the_network(config: ModelConfig) -> None:
    from mlic_fast.model import MLICPlusPlus

    shapes = {name: tuple(tensor.shape) for name, tensor in MLICPlusPlus(config).state_dict().items()}
    assert shapes == expected_shapes(config)
    assert infer_config(shapes) == config


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"local_context.0.fusion.weight": None}, "numbered from 0 without gaps"),
        ({"g_a.analysis_transform.6.weight": None}, "g_a.analysis_transform.6.weight is missing"),
        ({"g_a.analysis_transform.6.weight": (64, 4)}, "must have 4 dimensions"),
        ({"g_a.analysis_transform.6.weight": (63, 4, 3, 3)}, "no valid MLIC"),
        ({"g_a.analysis_transform.6.weight": (10**6, 4, 3, 3)}, "at most 4096"),
        ({"g_a.analysis_transform.0.conv1.weight": (0, 3, 3, 3)}, "no valid MLIC"),
        ({"local_context.0.fusion.weight": (64, 32, 7, 7)}, "context_window=7"),
    ],
)
def test_other_tensors_are_refused(edit: dict[str, tuple[int, ...] | None], message: str) -> None:
    shapes = {**expected_shapes(ModelConfig(N=4, M=64, slice_num=2)), **edit}
    with pytest.raises(CheckpointError, match=message):
        infer_config({name: shape for name, shape in shapes.items() if shape is not None})


def test_other_models_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"not the weights of an MLIC\+\+.* model.*conv1\.weight"):
        infer_config({"conv1.weight": (64, 3, 7, 7)})
    with pytest.raises(CheckpointError, match="nothing"):
        infer_config({})


def test_widths_and_first_slices_come_from_the_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of the family without one of the contexts has other shapes, and they follow from the table alone."""
    config = ModelConfig(N=64, M=96, slice_num=3)
    whole = expected_shapes(config)
    member = contexts.FAMILY["mlicpp"]
    fewer = tuple(context for context in member.contexts if context.name != "global_intra_context")
    late = tuple(c._replace(first=2) if c.name == "channel_context" else c for c in member.contexts)
    name = "entropy_parameters_nonanchor.1.fusion.0.weight"
    monkeypatch.setitem(contexts.FAMILY, "mlicpp", member._replace(contexts=fewer))
    assert expected_shapes(config)[name][1] == whole[name][1] - 2 * config.slice_width
    assert not [key for key in expected_shapes(config) if key.startswith("global_intra_context.")]
    monkeypatch.setitem(contexts.FAMILY, "mlicpp", member._replace(contexts=late))
    assert not [key for key in expected_shapes(config) if key.startswith("channel_context.1.")]
