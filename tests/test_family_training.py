# SPDX-License-Identifier: Apache-2.0
"""Every member of the family trains, is validated by real coding, is resumed, calibrated and evaluated as itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_samples import ARCHITECTURES, golden_model, tiny_model
from training_samples import SHORT, TINY, one_thread, pictures, rows

import mlic_fast
from mlic_fast import ModelConfig
from mlic_fast.checkpoint import read_checkpoint, write_native
from mlic_fast.cli.main import main
from mlic_fast.contexts import Architecture
from mlic_fast.errors import CheckpointError, ConfigError, RecipeError
from mlic_fast.evaluate import calibration
from mlic_fast.model import class_of
from mlic_fast.train.loop import train
from mlic_fast.train.recipe import Recipe, model_config, recipe_from

__all__ = ["one_thread"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")
each = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"))


@each
def test_a_training_is_its_member_s_from_end_to_end(
    architecture: Architecture, data: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    settings = SHORT | {"model": TINY | {"architecture": architecture}}
    outcome = train(data, run, settings | {"steps": 4})
    assert (outcome.steps, outcome.skipped) == (4, 0)
    assert train(data, run, {"steps": 6}, resume=True).steps == 6
    assert json.loads((run / "recipe.json").read_text())["model"]["architecture"] == architecture
    assert all(row["failed"] == "0" for row in rows(run / "validation.csv"))
    # whoever reads the file knows whose weights they are, though MLIC+'s have MLIC++'s names
    model = mlic_fast.load(run / "last.pth.tar")
    assert type(model) is class_of(architecture)
    for another in set(ARCHITECTURES) - {architecture}:
        with pytest.raises(CheckpointError, match="the file says that it holds an MLIC"):
            read_checkpoint(run / "last.pth.tar", another)
    picture = next(data.glob("*.png"))
    assert mlic_fast.decode(mlic_fast.encode(picture, model), run / "last.pth.tar").size == (128, 96)
    # and another training that begins with it is of the same member
    again = ["train", str(data), "-o", str(tmp_path / "again"), "--start-from", str(run / "last.pth.tar")]
    small = ["--steps", "1", "--batch", "1", "--patches", "64", "--validation-images", "0", "--json"]
    assert main([*again, *small]) == 0
    assert read_checkpoint(tmp_path / "again" / "last.pth.tar").config.architecture == architecture
    with pytest.raises(RecipeError, match="resumed with its own model"):
        train(
            data, run, {"model": TINY | {"architecture": "mlic" if architecture != "mlic" else "mlicpp"}}, resume=True
        )


def test_a_training_of_a_member_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth.tar"
    saved = {"state_dict": tiny_model("mlic+").state_dict(), "mlic_fast": {"recipe": {"model": {"architecture": "x"}}}}
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match="it was trained as 'x', which this release does not know"):
        read_checkpoint(path)


def test_options_about_members(data: Path, tmp_path: Path, capsys: Any) -> None:
    size = tmp_path / "size.json"
    size.write_text(json.dumps(TINY))
    short = ["--steps", "1", "--batch", "1", "--patches", "64", "--validation-images", "0"]
    for number, (options, expected) in enumerate(
        (
            (["--config", str(size), "--architecture", "mlic"], "mlic"),
            (["--config", str(size), "--architecture", "mlic+"], "mlic+"),
            (["--config", str(size), "--variant", "old"], "mlicpp"),
        )
    ):
        run = tmp_path / f"run{number}"
        assert main(["train", str(data), "-o", str(run), *short, *options]) == 0
        assert read_checkpoint(run / "last.pth.tar").config == ModelConfig(
            **TINY, architecture=expected, variant="old" if "old" in options else "new"  # type: ignore[arg-type]
        )  # fmt: skip
    capsys.readouterr()
    old = ["--config", str(size), "--architecture", "mlic", "--variant", "old"]
    assert main(["train", str(data), "-o", str(tmp_path / "x"), *short, *old]) != 0
    assert "MLIC has no variant 'old'" in capsys.readouterr().err
    assert main(["train", str(data), "-o", str(tmp_path / "run0"), "--resume", "--architecture", "mlic"]) != 0
    assert "leave the options about models out" in capsys.readouterr().err


def test_sizes_of_members() -> None:
    assert model_config("full", architecture="mlic") == ModelConfig(192, 192, 6, architecture="mlic")
    assert model_config("small", architecture="mlic") == ModelConfig(64, 96, 3, architecture="mlic")
    assert model_config({"architecture": "mlic"}) == ModelConfig.published("mlic")
    assert model_config({"architecture": "mlic", "N": 64}).M == 192
    assert model_config({"N": 64}, architecture="mlic+") == ModelConfig(64, 320, 10, architecture="mlic+")
    assert recipe_from({"model": {"architecture": "mlic+"}}).model == ModelConfig.published("mlic+")
    recipe = Recipe(model=ModelConfig.published("mlic"))
    assert recipe_from(recipe.as_dict()) == recipe
    for wrong in ("mlic-", 3, ["mlic"]):
        with pytest.raises(ConfigError, match="architecture must be one of"):
            model_config({"architecture": wrong})


@each
def test_calibration_finds_its_deltas(
    architecture: Architecture, tmp_path: Path, capsys: Any, test_image: Callable[..., torch.Tensor]
) -> None:
    model = golden_model(architecture)
    path = tmp_path / "a.safetensors"
    write_native(path, dict(model.state_dict()), model.config, name="a")
    assert main(["calibrate", str(path), "-o", str(path), "--size", "64x64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(channels) for channels in found["deltas"]] == [model.slice_ch] * 2 * model.slice_num
    loaded = mlic_fast.load(path)
    assert loaded.config == model.config
    assert torch.is_tensor(loaded.guard_deltas)
    # the reference is in float64, from which float32 is away, but not far
    pixels = (test_image(64, 128, 96)[0] * 255).byte().permute(1, 2, 0).numpy()
    given = calibration.given_symbols(model, pixels)
    single, double = (calibration.log_scales(each, given) for each in (model, calibration.in_float64(model)))
    apart = [float((a - b).abs().max()) for a, b in zip(single, double, strict=True)]
    assert 0 < max(apart) < 5e-5
    assert min(apart[2:]) > 0


@each
def test_evaluation(architecture: Architecture, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(architecture)
    path = tmp_path / "a.safetensors"
    write_native(path, dict(model.state_dict()), model.config, name="a", lmbda=0.01, metric="mse")
    assert main(["eval", str(data), "--model", str(path), "-o", str(tmp_path / "out"), "--name", "a"]) == 0
    assert list((tmp_path / "out").glob("*.json"))
    coded, decoded = tmp_path / "coded", tmp_path / "decoded"
    assert main(["encode", str(data), "-o", str(coded), "--model", str(path)]) == 0
    monkeypatch.setenv("MLIC_FAST_MODELS", str(path))
    assert main(["decode", str(coded), "-o", str(decoded)]) == 0
    assert len(list(decoded.glob("*.png"))) == 3
