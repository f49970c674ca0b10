# SPDX-License-Identifier: Apache-2.0
"""The native form: what is written is what is read, rounded where asked; its header needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_samples import CONFIGS, as_compressai_120, one_thread, weights, without_tables
from safetensors import safe_open
from safetensors.torch import save_file

from mlic_fast.checkpoint import convert, fingerprint, read_checkpoint, read_header, write_native
from mlic_fast.checkpoint.native import is_native, with_deltas
from mlic_fast.errors import CheckpointError

__all__ = ["one_thread"]


@pytest.mark.parametrize("variant", CONFIGS)
def test_round_trip(tmp_path: Path, variant: str) -> None:
    path = tmp_path / "a.safetensors"
    written = write_native(path, weights(variant), CONFIGS[variant], name="a model", lmbda=8.73, metric="ms-ssim")
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.state_dict) == list(weights(variant))
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in weights(variant).items())
    assert checkpoint.fingerprint == written.fingerprint == fingerprint(weights(variant))
    assert (checkpoint.name, checkpoint.lmbda, checkpoint.metric) == ("a model", 8.73, "ms-ssim")
    assert checkpoint.config == CONFIGS[variant]
    assert (checkpoint.layout, checkpoint.guessed, checkpoint.tables_saved) == ("native", False, True)
    assert read_header(path) == written
    assert is_native(path)


def test_half_rounds_convolutions_and_linear_layers_only(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written = write_native(path, weights(), CONFIGS["new"], name="a", half=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint.fingerprint == written.fingerprint == fingerprint(checkpoint.state_dict)
    rounded = set()
    for name, tensor in weights().items():
        found = checkpoint.state_dict[name]
        assert found.dtype == tensor.dtype
        if not torch.equal(found, tensor):
            rounded.add(name)
            assert torch.equal(found, tensor.half().float())
    kept = ("entropy_bottleneck.", "gaussian_conditional.")
    layers = {name for name, tensor in weights().items() if name.endswith(".weight") and tensor.dim() > 1}
    assert rounded == {name for name in layers if not name.startswith(kept)}
    assert not any(part in name for name in rounded for part in ("gdn", "norm", "bias", "table"))
    exact = tmp_path / "b.safetensors"
    write_native(exact, weights(), CONFIGS["new"], name="a")
    assert path.stat().st_size < 0.6 * exact.stat().st_size


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_tables_are_kept_to_the_last_bit(tmp_path: Path, half: bool) -> None:
    """Also bounds beyond 15 bits, and rows that end before the table does."""
    path = tmp_path / "a.safetensors"
    write_native(path, weights(), CONFIGS["new"], name="a", half=half)
    tables = [name for name in weights() if name.endswith(("_quantized_cdf", "_cdf_length", "_offset"))]
    assert len(tables) == 6
    found = read_checkpoint(path).state_dict
    assert all(torch.equal(found[name], weights()[name]) for name in tables)
    bounds = weights()["gaussian_conditional._quantized_cdf"]
    assert {0, 65536} < set(bounds.flatten().tolist())
    assert (bounds[:, -1] == 0).any()
    stored, header = safe_open(path, framework="pt"), json.loads(metadata(path))
    assert stored.get_tensor("gaussian_conditional._quantized_cdf").dtype == (torch.int16 if half else torch.int32)
    assert header["format"] == (2 if half else 1)


@pytest.mark.parametrize("which", ["gaussian_conditional", "entropy_bottleneck"])
@pytest.mark.parametrize("what", ["length", "end"])
def test_packed_tables_that_do_not_end(tmp_path: Path, which: str, what: str) -> None:
    path = tmp_path / "a.safetensors"
    write_native(path, weights(), CONFIGS["new"], name="a", half=True)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if what == "length":
        tensors[f"{which}._cdf_length"][3] = 2**31 - 1
    else:
        tensors[f"{which}._quantized_cdf"][3, int(tensors[f"{which}._cdf_length"][3]) - 1] = 7
    save_file(tensors, path, metadata={"mlic_fast": metadata(path)})
    with pytest.raises(CheckpointError, match=f"{which}._{'cdf_length' if what == 'length' else 'quantized_cdf'}"):
        read_checkpoint(path)


def metadata(path: Path) -> str:
    """What a native file says about itself, JSON."""
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["mlic_fast"]


def test_the_same_weights_make_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for path, given in zip(paths, (weights(), dict(reversed(weights().items()))), strict=True):
        write_native(path, given, CONFIGS["new"], name="a", lmbda=0.1, metric="mse", half=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_native(path, weights(), CONFIGS["new"], name="a", lmbda=0.1)
    script = (
        "import sys; from mlic_fast.checkpoint import read_header; from mlic_fast.registry import available;"
        "print(read_header(sys.argv[1]).fingerprint.hex()); available(); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == fingerprint(weights()).hex()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"name": ""}, "cannot be a model's name"),
        ({"name": "x" * 256}, "cannot be a model's name"),
        ({"name": "a/b"}, "cannot be a model's name"),
        ({"name": "a\nb"}, "cannot be a model's name"),
        ({"name": " a"}, "cannot be a model's name"),
        ({"lmbda": 0.0}, "positive"),
        ({"lmbda": float("nan")}, "positive"),
        ({"metric": "psnr"}, "one of mse, ms-ssim"),
    ],
)
def test_labels_are_checked(tmp_path: Path, labels: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_native(tmp_path / "a.safetensors", weights(), CONFIGS["new"], **{"name": "a", **labels})
    assert not list(tmp_path.iterdir())


def test_weights_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"what was there")
    large = {**weights(), "h_a.reduction.0.weight": weights()["h_a.reduction.0.weight"] + 1e5}
    with pytest.raises(CheckpointError, match="too large for half precision"):
        write_native(path, large, CONFIGS["new"], name="a", half=True)
    with pytest.raises(CheckpointError, match="has shape"):
        write_native(path, without_tables(weights()), CONFIGS["new"], name="a")
    with pytest.raises(CheckpointError, match="does not have"):
        write_native(path, weights("old"), CONFIGS["new"], name="a")
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def edited(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the metadata of a native file."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    values = json.loads(header["__metadata__"]["mlic_fast"])
    changed = edit(values)
    header["__metadata__"]["mlic_fast"] = json.dumps(values) if changed is None else changed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.__setitem__(key, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("format", 4), "a newer one wrote it, update"),
        (put("rates", [0.0018, 0.0483]), "take a quantisation step.*cannot apply: update"),
        (
            put("config", {"N": 4, "M": 64, "slice_num": 2, "context_window": 5, "architecture": "mlicpp"}),
            "in format 1",
        ),
        (put("format", 0), "no format number"),
        (put("format", "1"), "no format number"),
        (put("name", "a/b"), "cannot be a model's name"),
        (put("name", 3), "wrong type"),
        (put("lmbda", -1), "positive"),
        (put("lmbda", 10**400), "cannot be used"),
        (put("metric", []), "metric must be one of"),
        (put("fingerprint", "00"), "1 bytes, not 32"),
        (put("fingerprint", "xy"), "cannot be used"),
        (put("fingerprint", "00" * 32), "damaged or was edited: its tensors have fingerprint"),
        (put("config", {"N": 8, "M": 64, "slice_num": 2, "context_window": 5}), "the header says"),
        (put("config", {"N": 4}), "cannot be used"),
        (put("config", [4]), "cannot be used"),
        (lambda values: "[1]", "JSON list, not an object"),
        (lambda values: "{", "no JSON"),
        (lambda values: "[" * 100_000, "no JSON"),
    ],
)
def test_impossible_metadata(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = tmp_path / "a.safetensors"
    write_native(path, weights(), CONFIGS["new"], name="a")
    edited(path, edit)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_keys_of_later_releases_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_native(path, weights(), CONFIGS["new"], name="a")
    edited(path, put("guard", {"delta": 5e-5}))
    assert read_checkpoint(path).name == "a"


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_native(path, weights(), CONFIGS["new"], name="a")
    content = bytearray(path.read_bytes())
    content[content.index(weights()["h_a.reduction.0.weight"].numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or was edited"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "b": 1}', "damaged"),
        (b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}', "damaged"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', "damaged"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "damaged"),
        (b'{"__metadata__":{"mlic_fast":7}}', "not a string"),
        (b'{"\xff":1}', "not UTF-8"),
        (b'{"a"', "no JSON"),
    ],
)
def test_impossible_headers(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_convert(tmp_path: Path) -> None:
    source = tmp_path / "mlicpp_mse_q2_1000.pth.tar"
    torch.save({"state_dict": as_compressai_120(without_tables(weights("old")))}, source)
    done = convert(source, tmp_path / "out.safetensors")
    assert done.labels_guessed
    assert not done.source.tables_saved
    assert (done.written.name, done.written.lmbda, done.written.metric) == ("mlicpp_mse_q2_1000", 0.0035, "mse")
    found = read_checkpoint(tmp_path / "out.safetensors")
    assert found.fingerprint == done.written.fingerprint == done.source.fingerprint == fingerprint(weights("old"))

    done = convert(source, tmp_path / "b.safetensors", name="b", lmbda=0.5, metric="ms-ssim", half=True)
    assert not done.labels_guessed
    assert (done.written.name, done.written.lmbda, done.written.metric) == ("b", 0.5, "ms-ssim")
    assert read_checkpoint(tmp_path / "b.safetensors").fingerprint == done.written.fingerprint != found.fingerprint

    again = convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", half=True)
    assert not again.labels_guessed
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_convert_failures(tmp_path: Path) -> None:
    source = tmp_path / "a.pth"
    torch.save(weights(), source)
    with pytest.raises(CheckpointError, match=r"end in \.safetensors"):
        convert(source, tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError):
        convert(source, tmp_path / "none" / "a.safetensors")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "none.pth", tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == [source]


def test_a_header_length_that_looks_like_text_is_no_web_page(tmp_path: Path) -> None:
    # 0x3c20 begins with the bytes of " <"
    path = tmp_path / "weights.safetensors"
    header = b"{}".ljust(0x3C20)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert "web page" not in str(error.value)


def test_deltas_are_put_into_a_native_file_without_touching_its_tensors(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    config = CONFIGS["new"]
    written = write_native(source, weights("new"), config, name="model", lmbda=0.01, half=True)
    deltas = tuple((5e-5,) * (config.slice_width - 1) + (1e-4 + 1e-6 * i,) for i in range(2 * config.slice_num))
    with_deltas(source, target, deltas)
    header = read_header(target)
    assert header is not None
    assert header.guard_deltas is not None
    assert np.allclose(header.guard_deltas, deltas, rtol=1e-6)
    assert (header.fingerprint, header.name, header.lmbda) == (written.fingerprint, "model", 0.01)
    assert read_checkpoint(target).fingerprint == written.fingerprint
    assert target.stat().st_size - source.stat().st_size < 10_000
    with_deltas(target, target, deltas)  # once more, in place
    assert read_header(target) == header


@pytest.mark.parametrize(
    "deltas",
    [
        "none at all",
        5e-5,
        [],
        [[500]],
        [[500] * 32] * 3 + [[500] * 31],
        [[500.5] * 32] * 4,
        [[1] * 32] * 4,
        [[10**9] * 32] * 4,
        [[True] * 32] * 4,
    ],
)
def test_deltas_that_make_no_sense_are_refused(tmp_path: Path, deltas: object) -> None:
    path = tmp_path / "a.safetensors"
    write_native(path, weights("new"), CONFIGS["new"], name="model")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    labels = json.loads(header["__metadata__"]["mlic_fast"]) | {"guard_deltas": deltas}
    header["__metadata__"]["mlic_fast"] = json.dumps(labels)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match=r"δ|metadata cannot be used"):
        read_header(path)
