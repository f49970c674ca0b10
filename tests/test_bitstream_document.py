# SPDX-License-Identifier: Apache-2.0
"""docs/bitstream.md against the package: a reader written from that page agrees on every file."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import mlic_reader
import numpy as np
import pytest
from PIL import Image

import mlic_fast
from mlic_fast.bitstream import container
from mlic_fast.bitstream.container import Metadata, Mlic
from mlic_fast.errors import BitstreamError
from mlic_fast.pictures import metadata

PLAIN = Mlic(
    width=600,
    height=400,
    mode="rgb",
    variant="new",
    model_name="mlicpp-small",
    fingerprint=bytes(range(8)),
    z=b"zzz",
    y=b"stream y",
)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """One file of each kind that `encode` writes, and hand-made ones for what it does not."""
    path = resources.files("mlic_fast").joinpath("data", "coffee.png")
    with path.open("rb") as file:
        photograph = Image.open(file).convert("RGB").crop((120, 80, 190, 130))
    photograph.info.clear()
    model = mlic_fast.load("mlicpp-s-0.0067", "cpu")
    fading = photograph.copy()
    fading.putalpha(Image.linear_gradient("L").resize(photograph.size))
    described = photograph.copy()
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    described.info.update(icc_profile=b"profile", exif=exif.tobytes(), xmp=b"<x/>", comment=b"a comment")
    scanned = photograph.copy()
    scanned.info["dpi"] = (300, 150.5)
    full = {"alpha": fading, "opaque": photograph.convert("RGBA"), "grey alpha": fading.convert("LA")}
    pictures = {
        "rgb": photograph,
        "grey": photograph.convert("L"),
        "metadata": described,
        "resolution": scanned,
        **full,
    }
    written = {name: mlic_fast.encode(picture, model) for name, picture in pictures.items()}
    written["thumbnail"] = mlic_fast.encode(photograph, model, thumbnail=32)
    written["thumbnail with alpha"] = mlic_fast.encode(fading, model, thumbnail=32, metadata=False)
    by_hand = {
        "of a later release": dataclasses.replace(PLAIN, metadata=(Metadata(0xFE, b"new"), Metadata(0xFE, b"twice"))),
        "old, zeros, nameless": dataclasses.replace(PLAIN, variant="old", padding="zero", model_name=""),
        "one value of alpha": dataclasses.replace(PLAIN, mode="rgb-alpha", alpha=b"\x80"),
        "empty streams": dataclasses.replace(PLAIN, y=b"", z=b""),
        "64 chunks": dataclasses.replace(PLAIN, metadata=(Metadata(0xFD, b""),) * 64),
    }
    return written | {name: container.write(mlic) for name, mlic in by_hand.items()}


def agree(data: bytes) -> None:
    """Both readers refuse the data, or both find the same in it."""
    try:
        ours = container.read(data)
    except BitstreamError:
        ours = None
    try:
        theirs = mlic_reader.read(data)
    except ValueError:
        theirs = None
    assert (ours is None) == (theirs is None), "one reader refuses what the other reads"
    if ours is None or theirs is None:
        return
    assert (ours.width, ours.height, ours.mode) == (theirs["width"], theirs["height"], theirs["mode"])
    assert (ours.architecture, ours.variant) == (theirs["architecture"], theirs["variant"])
    assert ours.padding == theirs["padding"]
    assert (ours.model_name, ours.fingerprint.hex()) == (theirs["name"], theirs["fingerprint"])
    chunks = {"z_stream": ours.z, "y_stream": ours.y, "guard": ours.guard, "alpha": ours.alpha}
    assert theirs["chunks"] == {name: content for name, content in chunks.items() if content is not None}
    assert [content for _, content in theirs["metadata"]] == [chunk.data for chunk in ours.metadata]


def test_both_readers_read_what_is_written(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        assert mlic_reader.read(data)["width"] in (70, 600), name
        agree(data)


def test_both_readers_find_the_same_resolution(files: dict[str, bytes]) -> None:
    assert mlic_reader.read(files["resolution"])["resolution"] == (300, 150.5, True)
    assert mlic_fast.decode(files["resolution"]).info["dpi"] == (300, 150.5)
    assert mlic_reader.read(files["rgb"])["resolution"] is None
    # a chunk that older readers skip: nothing else in the file differs, and without it nothing at all
    rest = [chunk for chunk in container.read(files["resolution"]).metadata if chunk.kind != 0x86]
    assert (
        container.write(dataclasses.replace(container.read(files["resolution"]), metadata=tuple(rest))) == files["rgb"]
    )
    for content in (b"", bytes(9), b"\2" + b"\1" * 8, b"\1" + bytes(4) + b"\1" * 4, b"\1" * 10):
        mlic = dataclasses.replace(container.read(files["rgb"]), metadata=(Metadata(0x86, content),))
        data = container.write(mlic)
        assert mlic_reader.read(data)["resolution"] is None
        assert "dpi" not in metadata.info_of(container.read(data))


def test_both_readers_refuse_the_same_damage(files: dict[str, bytes]) -> None:
    random = np.random.default_rng(0)
    for data in files.values():
        for length in random.integers(0, len(data), 20):
            agree(data[:length])
        for position in random.integers(0, len(data), 40):
            agree(data[:position] + bytes([data[position] ^ random.integers(1, 256)]) + data[position + 1 :])
        agree(data + b"\0")


def with_checksums(data: bytes, header_end: int) -> bytes:
    header, body = data[: header_end - 4], data[header_end:-4]
    crcs = [zlib.crc32(part).to_bytes(4, "little") for part in (header, body)]
    return header + crcs[0] + body + crcs[1]


def test_both_readers_judge_alike_where_the_checksums_are_right(files: dict[str, bytes]) -> None:
    random = np.random.default_rng(1)
    accepted = 0
    for name in ("alpha", "metadata", "of a later release", "one value of alpha", "thumbnail", "64 chunks"):
        data = files[name]
        body = len(container.read(data).model_name) + 4
        header_end = data.index(container.read(data).model_name.encode()) + body
        assert with_checksums(data, header_end) == data
        # bytes of the header, and of the body those that hold kinds and lengths for the most part
        positions = [*range(5, header_end), *random.integers(header_end, min(len(data), header_end + 300) - 4, 60)]
        for position in positions:
            for change in (1, 2, 0x80, int(random.integers(1, 256))):
                damaged = bytearray(data)
                damaged[position] ^= change
                damaged_data = with_checksums(bytes(damaged), header_end)
                try:
                    agree(damaged_data)
                except mlic_fast.errors.LimitError:  # the page leaves the limits to the reader
                    continue
                accepted += 1
    assert accepted > 1000


def test_info_says_what_the_other_reader_finds(files: dict[str, bytes], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mlic_fast.cli.main import main\n"
        "for path in sys.argv[1:]:\n    assert main(['info', path, '--json']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    paths = []
    for number, data in enumerate(files.values()):
        paths.append(tmp_path / f"{number}.mlic")
        paths[-1].write_bytes(data)
    run = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    for line, (name, data) in zip(run.stdout.splitlines(), files.items(), strict=True):
        said, found = json.loads(line), mlic_reader.read(data)
        assert (said["width"], said["height"], said["mode"]) == (found["width"], found["height"], found["mode"]), name
        assert said["model"] == {key: found[key] for key in ("name", "fingerprint", "architecture", "variant")}
        assert said["streams"] == {key: len(found["chunks"][f"{key}_stream"]) for key in "zy"}
        assert [(item["kind"], item["bytes"]) for item in said["metadata"]] == [
            (kind, len(content)) for kind, content in found["metadata"]
        ]
        contents = [*found["chunks"].values(), *(content for _, content in found["metadata"])]
        assert said["overhead_bytes"] == len(data) - sum(map(len, contents))
        alpha: Any = found["chunks"].get("alpha")
        constant = alpha[0] if alpha is not None and len(alpha) == 1 else None
        assert said["alpha"] == (None if alpha is None else {"bytes": len(alpha), "constant": constant})


def test_the_pages_examples_are_files() -> None:
    text = (Path(__file__).parent.parent / "docs" / "bitstream.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```hex\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        data = bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))
        agree(data)
        assert mlic_reader.read(data)["name"] == "mlicpp-small"


def test_the_other_reader_imports_nothing_of_the_package() -> None:
    source = (Path(__file__).parent / "mlic_reader.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"^\s*(?:from|import) (\S+)", source, re.MULTILINE))
    assert imported == {"__future__", "zlib", "typing"}
