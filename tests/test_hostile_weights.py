# SPDX-License-Identifier: Apache-2.0
"""Weights files made to do harm without running code: refused soon, before anything of theirs is built."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_samples import one_thread, weights

from mlic_fast.checkpoint import read_checkpoint
from mlic_fast.errors import CheckpointError

__all__ = ["one_thread"]

SECONDS = 30.0  # far above what a refusal takes on a busy machine

# Pieces of pickles of protocol 2.
START, DICT, STOP = b"\x80\x02", b"}", b"."
REDUCE, SET, BUILD = b"R", b"s", b"b"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    digits = pickle.encode_long(value)
    return b"\x8a" + bytes([len(digits)]) + digits


def tensor(size: bytes = b"K\n\x85", stride: bytes = b"K\x01\x85", hooks: bytes = ORDERED_DICT) -> bytes:
    """The tensor of `saved`, of 10 floats, with another size and stride."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\ntQ"
    return (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + b"K\x00" + size + stride + b"\x89" + hooks + b"t"
    )


def keyed(key: bytes) -> bytes:
    return START + DICT + key + b"K\x01" + SET + STOP


def valued(value: bytes) -> bytes:
    return START + DICT + text("a") + value + SET + STOP


def doubling(step: bytes, times: int) -> bytes:
    """A tuple of itself twice, and so on: small to write, 2^times to walk through."""
    return b"K\x01q\x00" + step * times


ENCODE = name("_codecs", "encode")

PICKLES: dict[str, tuple[bytes, str]] = {
    "a bytearray of 64 GB": (valued(name("builtins", "bytearray") + number(2**36) + b"\x85R"), "builtins.bytearray"),
    "a tensor of 64 GB": (valued(name("torch", "FloatTensor") + number(2**34) + b"\x85R"), "torch.FloatTensor"),
    "hex of hex of hex": (
        valued(
            ENCODE
            + text("a" * 100)
            + text("hex")
            + b"\x86Rq\x00"
            + (ENCODE + b"h\x00" + text("hex") + b"\x86Rq\x00") * 40
        ),
        r"_codecs\.encode",
    ),
    "a key nested 300,000 deep": (keyed(b"K\x01" + b"\x85" * 300_000), "nests tuples"),
    "a key of 2^60 parts": (keyed(doubling(b"h\x00h\x00\x86q\x00", 60)), "nests tuples"),
    "a tuple as key": (keyed(b"K\x01\x85"), "neither text nor a number"),
    "a tensor as key": (keyed(tensor() + REDUCE), "neither text nor a number"),
    "a set": (valued(name("builtins", "set") + b"]\x85R"), "builtins.set"),
    "a dictionary whose items are replaced": (
        START
        + ORDERED_DICT
        + text("a")
        + tensor()
        + REDUCE
        + SET
        + DICT
        + text("items")
        + b"K\x01"
        + SET
        + BUILD
        + STOP,
        "sets other attributes",
    ),
    "a tensor whose methods are replaced": (
        valued(tensor() + REDUCE + DICT + text("numel") + b"K\x01" + SET + BUILD),
        "sets attributes of what is no ordered dictionary",
    ),
    "a tensor rebuilt with attributes": (
        valued(name("torch._tensor", "_rebuild_from_type_v2") + b")R"),
        "_rebuild_from_type_v2",
    ),
    "a wrapper class": (valued(name("torch._utils", "_rebuild_wrapper_subclass") + b")R"), "_rebuild_wrapper_subclass"),
    "a size that overflows": (
        valued(tensor(number(2**62) + b"K\x04\x86", b"K\x00K\x00\x86") + REDUCE),
        "cannot be read|would take",
    ),
    "a size of 2^63 bytes": (valued(tensor(number(2**61) + b"\x85", b"K\x00\x85") + REDUCE), "would take"),
    "storage with a nested key": (
        valued(tensor().replace(text("0"), b"K\x01" + b"\x85" * 5) + REDUCE),
        "refers to data in a way",
    ),
    "a counter of tuples": (
        valued(name("collections", "Counter") + b"]K\x01\x85a\x85R"),
        "fills a collections.Counter",
    ),
    "an ordered dictionary of pairs": (
        valued(name("collections", "OrderedDict") + b"]K\x01K\x02\x86a\x85R"),
        r"fills a collections\.OrderedDict",
    ),
    "a memo that is not there": (START + b"h\x07" + STOP, "object 7, which is not there"),
    "an empty stack": (START + b"R" + STOP, "more from the stack than is there"),
    "no end": (START + DICT, "damaged"),
    "a string longer than the file": (START + b"X\xff\xff\xff\xff" + STOP, "damaged"),
    "an opcode of another protocol": (START + b"\x95" + bytes(8) + STOP, "FRAME, which torch.save does not write"),
    "an instance": (START + b"ccollections\nCounter\n)\x81" + STOP, "NEWOBJ, which torch.save does not write"),
    "itself": (START + DICT + b"q\x00" + text("state_dict") + b"h\x00" + SET + STOP, "a dictionary .* not a tensor"),
}


def saved(data: bytes) -> bytes:
    """A file of torch.save with this pickle, and all checksums right."""
    plain, buffer = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.arange(10.0)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, data if entry.filename.endswith("data.pkl") else old.read(entry))
    return buffer.getvalue()


def legacy(data: bytes) -> bytes:
    """The same in a file of the kind before zip files."""
    data = data.replace(b"K\ntQ", b"K\nNtQ")  # a storage may be a part of another one there: None
    head = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join(head) + data + pickle.dumps(["0"], protocol=2) + struct.pack("<q", 10) + bytes(40)


@pytest.mark.parametrize("wrap", [saved, legacy])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles(tmp_path: Path, kind: str, wrap: object) -> None:
    data, message = PICKLES[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes((saved if wrap is saved else legacy)(data))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=message if wrap is saved else None):
        read_checkpoint(path)
    assert time.perf_counter() - start < SECONDS


def test_the_pieces_make_a_file_that_is_read(tmp_path: Path) -> None:
    """Else the refusals above would prove nothing."""
    for wrap in (saved, legacy):
        path = tmp_path / "weights.pth"
        path.write_bytes(wrap(valued(tensor() + REDUCE)))
        with pytest.raises(CheckpointError, match="not the weights of an MLIC"):
            read_checkpoint(path)


def test_two_pickles_in_one_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(valued(tensor() + REDUCE)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", START + DICT + STOP)
    with pytest.raises(CheckpointError, match=r"2 entries data\.pkl"):
        read_checkpoint(path)


def test_a_zip_file_that_reads_in_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at is compared with what PyTorch's own reader finds."""
    path = tmp_path / "weights.pth"
    path.write_bytes(saved(valued(tensor() + REDUCE)))
    read = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *arguments: read(*arguments) + b".")
    with pytest.raises(CheckpointError, match="reads in more than one way"):
        read_checkpoint(path)


def test_entries_that_overlap(tmp_path: Path) -> None:
    """A zip file whose entries are all the same bytes, so that it unpacks to many times its size."""
    content, kernel = b"", bytes(10_000)
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, len(kernel), len(kernel), 1, 0) + b"a" + kernel
    for index in range(1000):
        entry = f"{index:04}".encode()
        sizes = (0, len(kernel), len(kernel), len(entry), 0, 0, 0, 0, 0, 0)
        content += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *sizes) + entry
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1000, 1000, len(content), len(local), 0)
    path = tmp_path / "weights.pth"
    path.write_bytes(local + content + end)
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["g_a.analysis_transform.0.conv1.weight", "h_s.increase.0.bias"])
def test_values_that_are_not_finite(tmp_path: Path, part: str, value: float) -> None:
    tensors = weights()
    tensors[part] = tensors[part].clone()
    tensors[part].flatten()[-1] = value
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=f"{part} is not finite: 1 of"):
        read_checkpoint(path)


def safetensors(header: dict[str, object], size: int) -> bytes:
    data = json.dumps(header).encode()
    return len(data).to_bytes(8, "little") + data + bytes(size)


def entry(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        safetensors({f"t{i}": entry([1000], 0, 4000) for i in range(1000)}, 4000),
        safetensors({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, 6),
        safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12),
        safetensors({"a": entry([2**31, 2**31, 4], 0, 4)}, 4),
        safetensors({"a": entry([2**62], 0, 4)}, 4),
        safetensors({"a": entry([10**30], 0, 4)}, 4),
        safetensors({"a": entry([1], 0, 2**63)}, 4),
        (2**63).to_bytes(8, "little") + b"{}",
        (2**24 - 1).to_bytes(8, "little") + b"{",
        len(b"[" * 10**6).to_bytes(8, "little") + b"[" * 10**6,
        len(b'{"a":' * 10**5).to_bytes(8, "little") + b'{"a":' * 10**5,
    ],
    ids=[
        *("all the same", "overlap", "hole", "overflow", "2^62", "10^30", "end"),
        *("length", "short", "lists", "objects"),
    ],
)
def test_safetensors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert time.perf_counter() - start < SECONDS


def test_names_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlic_fast.cli.main import main

    path = tmp_path / "weights.safetensors"
    header = json.dumps({"a\x1b[2J\x1b]0;title\x07": entry([1], 0, 4)}, ensure_ascii=False).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 6
    said = capsys.readouterr().err
    assert "]0;title" in said
    assert not set(said) & {"\x1b", "\x07"}
