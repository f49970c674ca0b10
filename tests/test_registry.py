# SPDX-License-Identifier: Apache-2.0
"""Finding weights by name, path and fingerprint; the bundled weights and photograph."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest
import torch
from checkpoint_samples import CONFIGS, one_thread, weights

from mlic_fast import registry
from mlic_fast.checkpoint import fingerprint, read_checkpoint, write_native
from mlic_fast.checkpoint.shapes import parameter_count
from mlic_fast.cli.main import main
from mlic_fast.config import ModelConfig
from mlic_fast.errors import CheckpointError, WrongWeightsError

__all__ = ["one_thread"]

BUNDLED = {
    0.0018: "b2c4abe6ae88a1d7cfd54e0be6535803a7a0d579a172333cf5912a039357c9f8",
    0.0067: "97e8facbb7b557b36669b3d3a2661beef29cf0d56c00ac7e1359a9ad5a83e154",
    0.0483: "72cdd609788700270c8a56532ff675a3f745263882402b49b0a95327921cc6eb",
}
NAMES = [f"mlicpp-s-{lmbda:.4f}" for lmbda in BUNDLED]


@pytest.fixture(autouse=True)
def no_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.ENVIRONMENT, raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLIC_FAST_MODELS with a native file, an official one, a broken one and things that are no weights."""
    models = tmp_path / "models"
    models.mkdir()
    write_native(models / "x.safetensors", weights("old"), CONFIGS["old"], name="my-model", lmbda=0.1, metric="mse")
    torch.save({"state_dict": weights("new")}, models / "mlicpp_mse_q5_2960000.pth.tar")
    (models / "broken.pth").write_bytes(b"broken")
    (models / "notes.txt").write_text("no weights")
    (models / "sub.pth").mkdir()
    monkeypatch.setenv(registry.ENVIRONMENT, os.pathsep.join([str(models), "", str(tmp_path / "nowhere")]))
    return models


@pytest.mark.parametrize("lmbda", BUNDLED, ids=str)
def test_bundled_weights(lmbda: float) -> None:
    name, digest = f"mlicpp-s-{lmbda:.4f}", BUNDLED[lmbda]
    path = registry.resolve(name)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == ModelConfig(N=48, M=96, slice_num=3, variant="new")
    assert (checkpoint.name, checkpoint.lmbda, checkpoint.metric) == (name, lmbda, "mse")
    assert checkpoint.tables_saved
    assert checkpoint.guard_deltas is not None
    assert checkpoint.fingerprint.hex() == digest
    card = path.with_name("LICENSES.md").read_text()
    assert digest in card
    assert len(re.findall(r"^\| .+\.(?:jpg|png) \|", card, re.MULTILINE)) == 56
    model = registry.find(name)
    assert (model.name, model.path, model.origin) == (name, path, "bundled")
    assert model.fingerprint == checkpoint.fingerprint
    assert registry.find_by_fingerprint(bytes.fromhex(digest)[:8], "whatever it is called") == model


def test_bundled_models_are_a_ladder_of_60_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.ENVIRONMENT, raising=False)
    models = registry.available().models
    assert [model.name for model in models] == NAMES
    assert registry.DEFAULT_MODEL in NAMES
    assert sum(model.size for model in models) <= 60e6


def test_bundled_photograph() -> None:
    path = Path(str(resources.files("mlic_fast") / "data" / "coffee.png"))
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    assert content == "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"
    assert "CC0" in path.with_name("LICENSES.md").read_text()


def test_by_name(folder: Path) -> None:
    assert registry.resolve("my-model") == folder / "x.safetensors"
    assert registry.resolve("x") == folder / "x.safetensors"
    assert registry.resolve("mlicpp_mse_q5_2960000") == folder / "mlicpp_mse_q5_2960000.pth.tar"
    model = registry.find("my-model")
    assert (model.origin, model.config, model.lmbda) == ("MLIC_FAST_MODELS", CONFIGS["old"], 0.1)
    with pytest.raises(WrongWeightsError, match=r"called 'mine'; at hand are mlicpp-s-0.0018, .*my-model.*nowhere"):
        registry.resolve("mine")


def test_by_path(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "x.safetensors"
    assert registry.resolve(path) == registry.resolve(str(path)) == path
    monkeypatch.chdir(folder)
    assert registry.resolve("x.safetensors") == Path("x.safetensors")
    for missing in ("nowhere/x", "y.pth.tar", tmp_path / "my-model"):
        with pytest.raises(FileNotFoundError, match="there is no weights file"):
            registry.resolve(missing)
    monkeypatch.setenv("HOME", str(folder))
    assert registry.resolve("~/x.safetensors") == path
    monkeypatch.delenv(registry.ENVIRONMENT)
    assert registry.find(path).origin == "path"
    with pytest.raises(CheckpointError, match="PyTorch"):
        registry.find(folder / "broken.pth")


def test_a_file_does_not_hide_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlicpp-s-0.0067").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert registry.resolve("mlicpp-s-0.0067").parent == registry.bundled_folder()
    assert registry.resolve("./mlicpp-s-0.0067") == Path("mlicpp-s-0.0067")


def test_by_fingerprint(folder: Path) -> None:
    for variant, name in (("old", "x.safetensors"), ("new", "mlicpp_mse_q5_2960000.pth.tar")):
        digest = fingerprint(weights(variant))
        for length in (4, 8, 32):
            assert registry.find_by_fingerprint(digest[:length]).path == folder / name
    with pytest.raises(WrongWeightsError) as caught:
        registry.find_by_fingerprint(b"\x01\x02\x03\x04\x05\x06\x07\x08", "mlicpp_mse_q6")
    message = str(caught.value)
    for part in (
        "'mlicpp_mse_q6', fingerprint 0102030405060708",
        f"mlicpp-s-0.0067 ({BUNDLED[0.0067][:16]}",
        f"my-model ({fingerprint(weights('old')).hex()[:16]}",
        f"mlicpp_mse_q5_2960000 ({fingerprint(weights('new')).hex()[:16]}",
        "broken.pth",
        "nowhere",
        "MLIC_FAST_MODELS",
    ):
        assert part in message
    with pytest.raises(WrongWeightsError, match="3 bytes of a fingerprint"):
        registry.find_by_fingerprint(b"abc")


def test_available_lists_models_and_problems(folder: Path, tmp_path: Path) -> None:
    listing = registry.available()
    assert [model.name for model in listing.models] == [*NAMES, "mlicpp_mse_q5_2960000", "my-model"]
    assert {path for path, _ in listing.problems} == {folder / "broken.pth", tmp_path / "nowhere"}


def test_files_are_read_again_only_after_a_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counting(path: Path) -> object:
        read.append(path)
        return read_checkpoint(path)

    monkeypatch.setattr(registry, "read_checkpoint", counting)
    first, second = registry.available(), registry.available()
    assert first == second
    assert sorted(path.name for path in read) == ["broken.pth", "mlicpp_mse_q5_2960000.pth.tar"]
    torch.save({"state_dict": weights("old")}, folder / "broken.pth")
    assert len(registry.available().models) == len(NAMES) + 3
    assert len(read) == 3


def test_what_is_known_of_a_model(folder: Path) -> None:
    *bundled, official, native = registry.available().models
    assert {model.parameters for model in bundled} == {9_683_938}  # as its card says
    for model in (*bundled, official, native):
        assert model.parameters == parameter_count(model.config)
        assert model.size == model.path.stat().st_size
        assert (model.guard_delta is None) == (model.origin != "bundled")
    calibrated = folder / "calibrated.safetensors"
    channels = [5e-5] * CONFIGS["old"].slice_width
    deltas = (*[tuple(channels)] * (2 * CONFIGS["old"].slice_num - 1), (0.0001, *channels[1:]))
    write_native(calibrated, weights("old"), CONFIGS["old"], name="calibrated", guard_deltas=deltas)
    assert registry.find(calibrated).guard_delta == pytest.approx(0.0001, rel=0.01)


def test_parameters_are_those_of_the_network() -> None:
    from mlic_fast import MLICPlusPlus

    for config in CONFIGS.values():
        assert parameter_count(config) == sum(part.numel() for part in MLICPlusPlus(config).parameters())
    assert parameter_count(ModelConfig()) == 83_501_408  # the published one


def test_models_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_native(folder / "y.safetensors", weights(), CONFIGS["new"], name="smaller", lmbda=0.05, metric="mse")
    assert main(["models", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    # by shape and λ, so that a ladder stands together
    assert [model["name"] for model in facts["models"]] == [
        "mlicpp_mse_q5_2960000",
        "smaller",
        "my-model",
        *NAMES,
    ]
    told = {model["name"]: model for model in facts["models"]}
    assert told["my-model"] == {
        "name": "my-model",
        "lambda": 0.1,
        "metric": "mse",
        "config": asdict(CONFIGS["old"]),
        "parameters": parameter_count(CONFIGS["old"]),
        "bytes": (folder / "x.safetensors").stat().st_size,
        "guard_delta": None,
        "fingerprint": fingerprint(weights("old")).hex(),
        "origin": "MLIC_FAST_MODELS",
        "path": str(folder / "x.safetensors"),
    }
    assert facts["ladders"] == {"mse": ["mlicpp_mse_q5_2960000", "smaller", "my-model"], "ms-ssim": []}
    assert {problem["path"] for problem in facts["problems"]} == {str(folder / "broken.pth"), str(tmp_path / "nowhere")}

    assert main(["models"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["name", "λ", "metric", "shape", "parameters", "bytes"]
    assert head.split()[6:] == ["guard", "fingerprint", "target", "where"]
    for name, target in (("mlicpp-s-0.0067", False), ("my-model", True), ("smaller", True)):
        (row,) = (row for row in rows if row.startswith(name + " "))
        assert ("*" in row) == target
        assert told[name]["fingerprint"][:16] in row
        assert told[name]["path"] in row
    assert rows[-3] == "cannot be used:"
    assert sorted(row.count(str(tmp_path)) for row in rows[-2:]) == [1, 1]  # each path once


def test_models_command_needs_no_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT, str(folder / "x.safetensors"))
    program = (
        "import sys; from mlic_fast.cli.main import main; code = main(['models']); "
        "sys.exit(code or (50 if 'torch' in sys.modules else 0))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "my-model" in finished.stdout


def test_single_files_and_duplicates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(folder / "x.safetensors")
    monkeypatch.setenv(registry.ENVIRONMENT, os.pathsep.join([file, file]))
    assert [model.name for model in registry.available().models] == [*NAMES, "my-model"]
