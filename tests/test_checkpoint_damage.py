# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, hostile, or something else: a clear refusal, and nothing is run or allocated."""

from __future__ import annotations

import io
import os
import pickle
import random
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_samples import one_thread, weights

from mlic_fast.checkpoint import read_checkpoint
from mlic_fast.errors import CheckpointError

__all__ = ["one_thread"]


class Hostile:
    """Unpickling it as code would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("where", ["beside", "inside"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_never_run(tmp_path: Path, kind: str, where: str) -> None:
    trap = tmp_path / "trap"
    content: dict[str, Any] = {"state_dict": weights(), "loss": 1.0}
    (content if where == "beside" else content["state_dict"])["extra"] = Hostile(trap)
    path = tmp_path / "weights.pth.tar"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert not trap.exists()
    if kind != "pickle":
        assert "Reading such a file can run code" in str(caught.value)
        assert "system" in str(caught.value)


def test_numpy_scalars_are_explained(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "loss": np.float64(1.03)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"Python object, numpy\S*scalar.*save its state dict alone"):
        read_checkpoint(tmp_path / "w.pth")


def test_whole_models_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\0", "PyTorch"),
        (b"hello, world", "PyTorch"),
        (b"PK\x03\x04", "damaged or was not downloaded completely"),
        (b"PK\x03\x04" + bytes(1000), "damaged or was not downloaded completely"),
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning", "web page"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS pointer"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x80\x02.", "PyTorch"),
        (pickle.dumps({"state_dict": {}}), "PyTorch"),
        (bytes([200, 0, 0, 0, 0, 0, 0, 0]) + b"{", "copied completely"),
        (bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}", "not the weights of an MLIC"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file .*nothing\.pth"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list where a state dict should be"),
        (torch.ones(3), "holds a Tensor where a state dict should be"),
        ({}, "an empty dictionary"),
        ({"state_dict": [1]}, "holds a list where"),
        ({"epoch": 3, "model": {}}, r"'epoch' is a int, not a tensor.*begin with 'epoch', 'model'"),
        ({"state_dict": {"weight": "text"}}, "'weight' is a str"),
        ({"weight": torch.ones(3).to_sparse()}, "a kind that weights are not made of .*sparse"),
        ({"weight": torch.ones(3)}, "not the weights of an MLIC"),
        ({1: torch.ones(3)}, "one key is 1"),
    ],
)
def test_other_contents(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small model in each kind of file."""
    from safetensors.torch import save

    tensors = OrderedDict(
        (name, tensor.half() if tensor.is_floating_point() else tensor) for name, tensor in weights().items()
    )
    result = {"safetensors": save(tensors)}
    for kind in ("zip", "legacy"):
        buffer = io.BytesIO()
        torch.save({"state_dict": tensors}, buffer, _use_new_zipfile_serialization=kind == "zip")
        result[kind] = buffer.getvalue()
    return result


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    content = files[kind]
    path = tmp_path / "w.pth"
    choose = random.Random(3)
    ends = [1, 2, 5, 8, 9, 64, len(content) // 2, len(content) - 100, len(content) - 1]
    for end in [*ends, *(choose.randrange(len(content)) for _ in range(10))]:
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_a_flipped_bit_in_a_zip_file_is_noticed(tmp_path: Path, files: dict[str, bytes]) -> None:
    """torch.load would take the changed weight: it does not compare checksums."""
    content = bytearray(files["zip"])
    value = weights()["h_a.reduction.0.weight"].half().numpy().tobytes()
    content[content.index(value) + 100] ^= 1
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksum of entry \S+/data/\d+ does not match"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_flipped_bytes_never_do_worse_than_raise(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    choose = random.Random(5)
    path = tmp_path / "w.pth"
    length = len(files[kind])
    path.write_bytes(files[kind])
    intact = read_checkpoint(path).fingerprint
    heads = [choose.randrange(min(60_000, length)) for _ in range(15)]  # names and structure
    for position in [*heads, *(choose.randrange(length) for _ in range(5)), length - 3]:
        content = bytearray(files[kind])
        content[position] ^= 1 << choose.randrange(8)
        path.write_bytes(content)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            continue
        # the other kinds have no checksums; what is between a zip file's entries does not matter
        assert kind != "zip" or found.fingerprint == intact


def rewritten(content: bytes, edit: Callable[[bytes], bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The zip file with its pickle edited and all checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, edit(data) if entry.filename.endswith("data.pkl") else data)
    return buffer.getvalue()


def plain(size: int = 10) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(float(size))}, buffer)
    return buffer.getvalue()


def swap(*pairs: tuple[bytes, bytes]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        for old, new in pairs:
            assert old in data
            data = data.replace(old, new)
        return data

    return edit


# Opcodes: K one-byte integer, J four-byte integer, t closes the storage's tuple, \x85 a tuple of one.
SIZE, STRIDE, STORAGE = b"K\n\x85", b"K\x01\x85", b"K\nt"
BILLION = b"J\x00\x00\x00\x40"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap((SIZE, BILLION + b"\x85"), (STRIDE, b"K\x00\x85")), "would take 4,294,967,296 bytes"),
        (swap((SIZE, BILLION + b"\x85")), "cannot be read"),
        (swap((SIZE, BILLION + b"\x85"), (STORAGE, BILLION + b"t")), "1,073,741,824 values, more than"),
        (swap((STORAGE, b"J\xff\xff\xff\xfft")), "has -1 values"),
        (swap((b"QK\x00", b"QJ\xff\xff\xff\xff")), "cannot be read"),
        (swap((b"FloatStorage", b"NoneStorage2")), "NoneStorage2"),
    ],
    ids=["stride-0", "size", "size-and-storage", "negative-storage", "negative-offset", "unknown-storage"],
)
def test_tensors_larger_than_the_file(tmp_path: Path, edit: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(rewritten(plain(), edit))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(rewritten(plain(10_000), lambda data: data, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match=r"compressed, which torch\.save never does"):
        read_checkpoint(path)


def test_tar_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(CheckpointError, match="PyTorch"):
        read_checkpoint(path)
