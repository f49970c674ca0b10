# SPDX-License-Identifier: Apache-2.0
"""Which member of the family weights and files are of: said everywhere, guessed nowhere, and never mixed up."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlic_reader
import numpy as np
import pytest
import torch
from checkpoint_samples import as_compressai_model
from family_samples import ARCHITECTURES, SMALL, golden_model, tiny_model

import mlic_fast
import mlic_fast.pillow
from mlic_fast import MLIC, MLICPlus, MLICPlusPlus, ModelConfig
from mlic_fast.bitstream import container
from mlic_fast.checkpoint import convert, fingerprint, read_checkpoint, read_header, write_native
from mlic_fast.cli.main import main
from mlic_fast.codec import encode, model_fingerprint
from mlic_fast.contexts import Architecture, member_of
from mlic_fast.errors import (
    BitstreamError,
    CheckpointError,
    ConfigError,
    TargetError,
    WrongWeightsError,
)
from mlic_fast.model import CodecModel, class_of
from mlic_fast.nn.network import Network
from mlic_fast.rate_control import ladder
from mlic_fast.registry import ENVIRONMENT, KnownWeights, find_by_fingerprint

each = pytest.mark.parametrize("architecture", ARCHITECTURES)
BESIDE = [architecture for architecture in ARCHITECTURES if architecture != "mlicpp"]

PICTURE = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def saved(model: CodecModel, path: Path, **labels: Any) -> Path:
    """The model's weights as a native file."""
    write_native(path, dict(model.state_dict()), model.config, **{"name": path.stem, **labels})
    return path


@pytest.fixture(scope="module")
def twins() -> tuple[CodecModel, CodecModel]:
    """An MLIC++ and an MLIC+ model whose tensors are equal."""
    plain, plus = golden_model("mlicpp"), golden_model("mlic+")
    assert all(torch.equal(tensor, plus.state_dict()[name]) for name, tensor in plain.state_dict().items())
    return plain, plus


def test_a_file_is_refused_with_equal_tensors_of_another_member(twins: tuple[CodecModel, CodecModel]) -> None:
    for own, other in (twins, twins[::-1]):
        data = encode(PICTURE, own)
        mlic_fast.decode(data, own)
        with pytest.raises(WrongWeightsError, match=r"written with an MLIC\+\+? model.* an MLIC\+\+? one"):
            mlic_fast.decode(data, other)


def test_a_file_that_hides_its_architecture_is_refused_all_the_same(twins: tuple[CodecModel, CodecModel]) -> None:
    import dataclasses

    plain, plus = twins
    lying = dataclasses.replace(container.read(encode(PICTURE, plus)), architecture="mlicpp")
    with pytest.raises(WrongWeightsError, match="was written with the weights"):
        mlic_fast.decode(container.write(lying), plain)


def test_strings_of_another_member_are_refused(twins: tuple[CodecModel, CodecModel], test_image: Any) -> None:
    x = test_image(64, 128, 20)
    for own, other in (twins, twins[::-1]):
        for guard in (None, own.guard_deltas):
            coded = own.compress(x, guard=guard)
            with pytest.raises(BitstreamError):
                other.decompress(coded["strings"], coded["shape"], guard=coded.get("guard"))


def test_the_official_layout_is_mlicpps(twins: tuple[CodecModel, CodecModel]) -> None:
    plain, plus = twins
    data = encode(PICTURE, plain, format="official")
    mlic_fast.decode(data, plain)
    with pytest.raises(WrongWeightsError, match=r"official layout are MLIC\+\+'s; this model is MLIC\+"):
        mlic_fast.decode(data, plus)
    with pytest.raises(BitstreamError, match=r"the format mlic for MLIC\+"):
        encode(PICTURE, plus, format="official")


def test_files_find_the_weights_of_their_member(
    twins: tuple[CodecModel, CodecModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, plus = twins
    paths = [saved(plain, tmp_path / "plain.safetensors"), saved(plus, tmp_path / "plus.safetensors")]
    for path in (*paths, *paths[::-1]):
        monkeypatch.setenv(ENVIRONMENT, f"{path}:{paths[1 - paths.index(path)]}")
        for model in twins:
            data = encode(PICTURE, model)
            found = find_by_fingerprint(container.read(data).fingerprint)
            assert found.config == model.config
            assert np.array_equal(np.asarray(mlic_fast.decode(data)), np.asarray(mlic_fast.decode(data, model)))
    # weights that do not say whose they are stay MLIC++'s, and the error says what to do
    torch.save(plus.state_dict(), tmp_path / "unsaid.pth")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "unsaid.pth"))
    with pytest.raises(WrongWeightsError, match=r"an MLIC\+ model \(convert its weights with --architecture mlic\+"):
        mlic_fast.decode(encode(PICTURE, plus))
    mlic_fast.decode(encode(PICTURE, plain))


def test_fingerprints(twins: tuple[CodecModel, CodecModel]) -> None:
    state = twins[0].state_dict()
    found = {model_fingerprint(twins[0]), model_fingerprint(twins[1]), fingerprint(state, "mlic")}
    assert len(found) == 3
    assert fingerprint(state) == model_fingerprint(twins[0])
    with pytest.raises(ConfigError, match=r"architecture must be one of mlicpp, .* not 'mlic-'"):
        fingerprint(state, "mlic-")  # type: ignore[arg-type]


@pytest.mark.parametrize("half", [False, True])
@each
def test_native_files(architecture: Architecture, half: bool, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    path = saved(model, tmp_path / "a.safetensors", half=half)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    labels = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["mlic_fast"])
    # what older releases can read is what they would have written
    assert labels["format"] == (3 if architecture != "mlicpp" else 2 if half else 1)
    assert labels["config"].get("architecture") == (None if architecture == "mlicpp" else architecture)
    header = read_header(path)
    assert header is not None
    assert header.config == model.config
    loaded = mlic_fast.load(path)
    assert type(loaded) is class_of(architecture)
    assert loaded.config == model.config
    assert model_fingerprint(loaded) == header.fingerprint
    assert Network.from_checkpoint(path).config == model.config
    again = convert(path, tmp_path / "b.safetensors").written
    assert (again.config, again.fingerprint) == (header.config, header.fingerprint)
    for other in ARCHITECTURES:
        if other != architecture:
            with pytest.raises(CheckpointError, match="the file says that it holds an MLIC"):
                class_of(other).from_checkpoint(path)
            with pytest.raises(CheckpointError, match="the file says that it holds an MLIC"):
                convert(path, tmp_path / "c.safetensors", architecture=other)
    assert not (tmp_path / "c.safetensors").exists()


def _relabelled(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    labels = json.loads(header["__metadata__"]["mlic_fast"])
    change(labels)
    header["__metadata__"]["mlic_fast"] = json.dumps(labels)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels["config"].update(architecture="mlicpp"), "damaged or was edited"),
        (lambda labels: labels["config"].pop("architecture"), "damaged or was edited"),
        (
            lambda labels: labels["config"].update(architecture="mlic"),
            "weights of an MLIC\\+\\+ model, not of an MLIC ",
        ),
        (lambda labels: labels["config"].update(architecture="mlic-"), "architecture must be one of"),
        (lambda labels: labels["config"].update(architecture=["mlic+"]), "architecture must be one of"),
        (lambda labels: labels.update(format=2), "an architecture in format 2"),
        (lambda labels: labels.update(rates={}), "take a quantisation step"),
    ],
    ids=["as MLIC++", "unsaid", "as MLIC", "unknown", "no text", "as an older format", "with steps"],
)
def test_edited_native_files_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = saved(tiny_model("mlic+"), tmp_path / "a.safetensors")
    _relabelled(path, lambda labels: None)
    assert read_checkpoint(path).config.architecture == "mlic+"
    _relabelled(path, change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("layout", ["official", "compressai"])
def test_weights_that_fit_two_members(layout: str, tmp_path: Path) -> None:
    state = tiny_model("mlic+").state_dict()
    given = state if layout == "official" else as_compressai_model(state, 3)
    path = tmp_path / "a.pth"
    torch.save({"state_dict": given}, path)
    assert read_checkpoint(path).config.architecture == "mlicpp"
    assert type(mlic_fast.load(path)) is MLICPlusPlus
    assert type(mlic_fast.load(path, architecture="mlic+")) is MLICPlus
    assert MLICPlus.from_checkpoint(path).config.architecture == "mlic+"
    assert MLICPlus.from_state_dict(given).config.architecture == "mlic+"
    assert Network.from_state_dict(given, "mlic+").config.architecture == "mlic+"
    assert read_checkpoint(path, "mlic+").fingerprint != read_checkpoint(path).fingerprint
    with pytest.raises(CheckpointError, match=r"weights of an MLIC\+\+ model, not of an MLIC model: they lack"):
        MLIC.from_checkpoint(path)
    with pytest.raises(ConfigError, match=r"MLIC has the architecture 'mlic', not 'mlic\+'"):
        MLIC.from_checkpoint(path, architecture="mlic+")
    with pytest.raises(ConfigError, match="architecture must be one of"):
        mlic_fast.load(path, architecture="mlic-")  # type: ignore[arg-type]


def test_weights_of_one_member_alone_need_no_word(tmp_path: Path) -> None:
    for given in (tiny_model("mlic").state_dict(), as_compressai_model(tiny_model("mlic").state_dict(), 3)):
        path = tmp_path / "a.pth"
        torch.save(given, path)
        assert type(mlic_fast.load(path)) is MLIC
        for other in (MLICPlusPlus, MLICPlus):
            with pytest.raises(CheckpointError, match=r"weights of an MLIC model, not of an MLIC\+") as caught:
                other.from_checkpoint(path)
            assert "they lack global_inter_context.1" in str(caught.value)
            assert "hold local_context.0.context.0.bias" in str(caught.value)


@each
def test_missing_and_extra_modules_are_named(architecture: Architecture) -> None:
    state = tiny_model(architecture).state_dict()
    pattern = f"an {member_of(architecture).title} model".replace("+", r"\+")
    known = None if architecture != "mlic+" else architecture
    # MLICv2 has it one level deeper
    (lost,) = (name for name in state if re.fullmatch(r"global_intra_context\.1\.(?:\w+\.)*reprojection\.bias", name))
    fewer = {name: tensor for name, tensor in state.items() if name != lost}
    with pytest.raises(CheckpointError, match=f"{pattern} .*lack {lost}"):
        Network.from_state_dict(fewer, known)
    more = {**state, "global_intra_context.1.gate.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=f"{pattern} .*does not have: global_intra_context.1.gate.weight"):
        Network.from_state_dict(more, known)
    wide = {**state, lost: torch.zeros(3)}
    with pytest.raises(CheckpointError, match=f"of other shapes than {pattern}"):
        Network.from_state_dict(wide, known)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "mlicpp+"}, "architecture must be one of mlicpp, mlic"),
        ({"architecture": ""}, "architecture must be one of"),
        ({"architecture": None}, "architecture must be one of"),
        ({"architecture": "mlic+", "variant": "old"}, r"MLIC\+ has no variant 'old'"),
        ({"architecture": "mlic", "variant": "old"}, "MLIC has no variant 'old'"),
        ({"architecture": "mlic+", "M": 96, "slice_num": 6}, r"MLIC\+, M=96.*slice 1 has 16 channels"),
        ({"architecture": "mlic+", "M": 200, "slice_num": 4}, r"MLIC\+, M=200.*150|100 channels.*3 heads"),
        ({"M": 96, "slice_num": 6}, r"MLIC\+\+, M=96"),
        ({"architecture": "mlic", "M": 99, "slice_num": 9}, "must be even"),
        ({"architecture": "mlic", "M": 98, "slice_num": 14}, "must be even"),
    ],
)
def test_configurations_that_a_member_does_not_allow(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**values)
    ModelConfig(architecture="mlic", M=96, slice_num=6)


def test_classes_take_their_own_configuration() -> None:
    official = type("Config", (), {"N": 8, "M": 64, "slice_num": 2, "context_window": 5})()
    assert MLICPlus(official).config.architecture == "mlic+"
    assert MLIC({"N": 8, "M": 16, "slice_num": 2, "context_window": 5}).config.architecture == "mlic"
    assert Network(ModelConfig(N=8, M=16, slice_num=2, architecture="mlic")).config.architecture == "mlic"
    with pytest.raises(ConfigError, match=r"a configuration of MLIC\+ is wanted, this is one of MLIC\+\+"):
        MLICPlus(ModelConfig(**SMALL))
    with pytest.raises(ConfigError, match="configuration of MLIC is wanted"):
        MLIC({"N": 8, "M": 64, "slice_num": 2, "context_window": 5, "architecture": "mlic+"})


@each
def test_the_container_says_it(architecture: Architecture) -> None:
    data = encode(PICTURE, tiny_model(architecture))
    assert container.read(data).architecture == architecture
    assert container.describe(data)["model"]["architecture"] == architecture
    assert mlic_reader.read(data)["architecture"] == architecture


def test_models_without_a_code_are_not_written() -> None:
    import dataclasses

    mlic = container.read(encode(PICTURE, tiny_model("mlic")))
    for change in ({"variant": "old"}, {"architecture": "mlic-"}):
        with pytest.raises(BitstreamError, match="no file can say that its model is"):
            container.write(dataclasses.replace(mlic, **change))  # type: ignore[arg-type]


def known(name: str, lmbda: float, architecture: Architecture) -> KnownWeights:
    config = ModelConfig(**SMALL, architecture=architecture)
    return KnownWeights(name, Path(name), "path", bytes(32), config, lmbda, "mse", None, 0)


def test_rate_control_does_not_mix_members(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlic_fast import rate_control
    from mlic_fast.registry import Listing

    models = [known("a", 0.1, "mlic+"), known("b", 0.2, "mlicpp"), known("c", 0.3, "mlicpp"), known("d", 0.4, "mlic+")]
    monkeypatch.setattr(rate_control, "available", lambda: Listing(tuple(models), ()))
    assert [model.name for model in ladder()] == ["b", "c"]  # of families that are alike, MLIC++'s
    models.append(known("e", 0.5, "mlic+"))
    assert [model.name for model in ladder()] == ["a", "d", "e"]
    with pytest.raises(TargetError, match=r"different architectures \(MLIC\+, MLIC\+\+\)"):
        ladder(models[:2])
    assert [model.name for model in ladder(models[1:3])] == ["b", "c"]


@pytest.mark.parametrize("architecture", BESIDE)
def test_the_command_line(architecture: Architecture, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from PIL import Image

    model = tiny_model(architecture)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    native = tmp_path / "w.safetensors"
    assert main(["convert", str(tmp_path / "w.pth"), str(native), "--architecture", architecture, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["architecture"] == architecture
    picture = tmp_path / "p.png"
    Image.fromarray(PICTURE).save(picture)
    coded, decoded = tmp_path / "p.mlic", tmp_path / "q.png"
    assert main(["encode", str(picture), "-o", str(coded), "--model", str(native)]) == 0
    assert main(["info", str(coded)]) == 0
    assert f"architecture: {architecture}" in capsys.readouterr().out
    monkeypatch.setenv(ENVIRONMENT, str(native))
    assert main(["decode", str(coded), "-o", str(decoded)]) == 0
    assert main(["models"]) == 0
    assert f"{model.config.member.title} 16/96/3 new" in capsys.readouterr().out
    with Image.open(coded) as image:  # by the plugin
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(decoded)))
        image.save(tmp_path / "again.mlic", model=str(native))
    assert container.read((tmp_path / "again.mlic").read_bytes()).architecture == architecture
    # as another member's: refused, and nothing is written
    other = "mlic" if architecture != "mlic" else "mlicpp"
    arguments = ["convert", str(tmp_path / "w.pth"), str(tmp_path / "v.safetensors"), "--architecture", other]
    assert main(arguments) != 0
    assert "not of an MLIC" in capsys.readouterr().err
    assert not (tmp_path / "v.safetensors").exists()
