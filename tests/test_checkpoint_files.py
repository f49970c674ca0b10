# SPDX-License-Identifier: Apache-2.0
"""Reading weights in every form that files have them in; all forms of one model are one model."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import (
    CONFIGS,
    NAMES,
    PREFIXES,
    as_compressai_120,
    as_compressai_model,
    one_thread,
    weights,
    without_tables,
)

from mlic_fast.checkpoint import checkpoint_from_state_dict, fingerprint, read_checkpoint
from mlic_fast.checkpoint.labels import guess_labels, stem
from mlic_fast.checkpoint.layouts import official_names
from mlic_fast.errors import CheckpointError

__all__ = ["one_thread"]


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("names", NAMES)
def test_names(names: str, prefix: str, variant: str) -> None:
    disguised = {PREFIXES[prefix](name): tensor for name, tensor in NAMES[names](weights(variant)).items()}
    found, expected = official_names(disguised), weights(variant)
    assert set(found) == set(expected)
    assert all(found[name] is tensor for name, tensor in expected.items())


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("names", NAMES)
def test_layouts(names: str, variant: str) -> None:
    disguised = {f"module.{name}": tensor for name, tensor in NAMES[names](weights(variant)).items()}
    checkpoint = checkpoint_from_state_dict(disguised)
    assert_same(checkpoint.state_dict, weights(variant))
    assert checkpoint.config == CONFIGS[variant]
    assert checkpoint.layout == ("compressai" if names == "compressai-model" else "official")
    assert checkpoint.tables_saved


def official_file(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The structure that the official training script saves."""
    parameter = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([parameter], lr=1e-4)
    parameter.sum().backward()
    adam.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [450, 550])
    return {
        "epoch": 583,
        "state_dict": OrderedDict(state_dict),
        "loss": 1.03,
        "optimizer": adam.state_dict(),
        "aux_optimizer": adam.state_dict(),
        "lr_scheduler": schedule.state_dict(),
    }


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("structure", ["official", "bare", "ordered"])
def test_pickles(tmp_path: Path, structure: str, zipped: bool, variant: str) -> None:
    structures = {"official": official_file, "bare": dict, "ordered": OrderedDict}
    content = structures[structure](as_compressai_120(weights(variant)))
    path = saved(tmp_path / "mlicpp_mse_q5_2960000.pth.tar", content, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.state_dict, weights(variant))
    assert checkpoint.fingerprint == fingerprint(weights(variant))
    assert checkpoint.config == CONFIGS[variant]
    assert (checkpoint.name, checkpoint.lmbda, checkpoint.metric) == ("mlicpp_mse_q5_2960000", 0.025, "mse")
    assert checkpoint.guessed
    assert checkpoint.source == str(path)


def test_safetensors_of_others(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"module.{name}": tensor.clone() for name, tensor in weights().items()}, tmp_path / "w.safetensors")
    checkpoint = read_checkpoint(str(tmp_path / "w.safetensors"))
    assert_same(checkpoint.state_dict, weights())
    assert (checkpoint.lmbda, checkpoint.metric, checkpoint.guessed) == (None, None, False)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_saved_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path = saved(tmp_path / "gpu.pth", official_file(weights()), _use_new_zipfile_serialization=zipped)
    assert b"cuda:0" in path.read_bytes()
    assert_same(read_checkpoint(path).state_dict, weights())


def test_what_is_read_no_longer_depends_on_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", weights())
    checkpoint = read_checkpoint(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert fingerprint(checkpoint.state_dict) == checkpoint.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    other = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights().items()}
    found = read_checkpoint(saved(tmp_path / "w.pth", other)).state_dict
    assert_same(found, {name: other[name].to(tensor.dtype) for name, tensor in weights().items()})


def test_wide_tables_and_transposed_tensors() -> None:
    other = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
        for name, tensor in weights().items()
    }
    for name in ("entropy_bottleneck._quantized_cdf", "gaussian_conditional._offset"):
        other[name] = other[name].long()
    assert_same(checkpoint_from_state_dict(other).state_dict, weights())


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "absent"])
@pytest.mark.parametrize("prefix", ["", "entropy_bottleneck", "gaussian_conditional"])
def test_missing_tables_are_computed(prefix: str, empty: bool) -> None:
    checkpoint = checkpoint_from_state_dict(without_tables(weights(), prefix, empty=empty))
    assert not checkpoint.tables_saved
    assert_same(checkpoint.state_dict, weights())


def test_computed_tables_are_those_of_update() -> None:
    from compressai.models.base import get_scale_table

    from mlic_fast.model import MLICPlusPlus

    model = MLICPlusPlus(CONFIGS["new"])
    model.load_state_dict(without_tables(weights()))
    model.update(get_scale_table(), force=True)
    assert_same(checkpoint_from_state_dict(without_tables(weights())).state_dict, dict(model.state_dict()))


def test_saved_tables_are_kept() -> None:
    other = weights()
    cdfs = other["gaussian_conditional._quantized_cdf"].clone()
    cdfs[5, 1] += 1
    scales = other["gaussian_conditional.scale_table"] * 1.01
    other.update({"gaussian_conditional._quantized_cdf": cdfs, "gaussian_conditional.scale_table": scales})
    checkpoint = checkpoint_from_state_dict(other)
    assert checkpoint.tables_saved
    assert_same(checkpoint.state_dict, other)
    assert checkpoint.fingerprint != fingerprint(weights())


def test_a_saved_scale_table_decides_computed_tables() -> None:
    scales = torch.linspace(0.2, 30, 40)
    other = {**without_tables(weights(), "gaussian_conditional"), "gaussian_conditional.scale_table": scales}
    found = checkpoint_from_state_dict(other).state_dict
    assert torch.equal(found["gaussian_conditional.scale_table"], scales)
    assert found["gaussian_conditional._cdf_length"].shape == (40,)


def test_missing_position_indexes_are_rebuilt() -> None:
    other = {name: tensor for name, tensor in weights().items() if not name.endswith("position_index")}
    checkpoint = checkpoint_from_state_dict(other)
    assert_same(checkpoint.state_dict, weights())
    # query 7 (row 1, column 2) and key 21 (row 4, column 1): (1 - 4 + 4) * 9 + (2 - 1 + 4)
    assert checkpoint.state_dict["local_context.0.relative_position_index"][7, 21] == 14


def test_the_given_tensors_are_copied_and_gradients_left_behind() -> None:
    given = {
        name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in weights().items()
    }
    checkpoint = checkpoint_from_state_dict(given, name="mine")
    assert checkpoint.name == "mine"
    assert not any(tensor.requires_grad for tensor in checkpoint.state_dict.values())
    pointers = {tensor.data_ptr() for tensor in given.values() if tensor.numel()}
    assert not pointers & {tensor.data_ptr() for tensor in checkpoint.state_dict.values()}
    assert dataclasses.is_dataclass(checkpoint)
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.name = "other"  # type: ignore[misc]


def test_official_names_keeps_what_it_does_not_know() -> None:
    assert official_names({"module.optimizer.x": 1, "latent_codec.w": 2}) == {"optimizer.x": 1, "latent_codec.w": 2}


def test_copies_of_the_gaussian_tables_must_agree() -> None:
    other = as_compressai_model(weights())
    name = "latent_codec.y.latent_codec.y1.y.gaussian_conditional._offset"
    with pytest.raises(CheckpointError, match=r"y0\.y\.gaussian_conditional\._offset and .*y1.* differ"):
        checkpoint_from_state_dict({**other, name: other[name] + 1})
    del other[name]
    with pytest.raises(CheckpointError, match="there 1 times, others 2 times"):
        checkpoint_from_state_dict(other)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("mlicpp_mse_q1_2960000.pth.tar", (0.0018, "mse")),
        ("mlicpp_new_mse_q6.pth", (0.0483, "mse")),
        ("mlicpp_small_mse_0067.pth.tar", (0.0067, "mse")),
        ("mlicpp_mse_0250_checkpoint_best.pth.tar", (0.025, "mse")),
        ("mlicpp_msssim_q3.pt", (8.73, "ms-ssim")),
        ("mlicpp_ms_ssim_60.5.pth", (60.5, "ms-ssim")),
        ("MLICPP_MS-SSIM_4_58.pth", (4.58, "ms-ssim")),
        ("mlicpp_mse_q7.pth", (None, "mse")),
        ("mlicpp_mse_2960000.pth.tar", (None, "mse")),
        ("mlicpp_mse_0000.pth", (None, "mse")),
        ("mlicpp_ms_ssim_9.99.pth", (None, "ms-ssim")),
        ("checkpoint_best_loss.pth.tar", (None, None)),
        ("q5.pth", (None, None)),
    ],
)
def test_labels_in_file_names(name: str, labels: tuple[float | None, str | None]) -> None:
    assert guess_labels(Path("some_mse_q2_folder") / name) == labels


def test_stem() -> None:
    assert [stem(name) for name in ("a/b.pth.tar", "b.PTH", "b.c.safetensors", "b.v1", ".pth")] == [
        "b",
        "b",
        "b.c",
        "b.v1",
        ".pth",
    ]
