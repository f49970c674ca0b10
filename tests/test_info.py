# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast info`: everything that a file carries, as text and as JSON, without torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mlic_fast.bitstream import container
from mlic_fast.bitstream.container import ChunkKind, Metadata, Mlic
from mlic_fast.cli.main import main
from mlic_fast.entropy.guard import MoveWriter
from mlic_fast.pictures import metadata
from mlic_fast.pictures.image import Picture
from mlic_fast.pictures.resolution import Resolution

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def full() -> Mlic:
    """A file with every chunk that there is."""
    exif = Image.Exif()
    exif[0x010F] = "a maker\x1b[31m"
    picture = Picture(
        PIXELS,
        "rgb-alpha",
        alpha=PIXELS[..., 0].copy(),
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        exif=exif.tobytes().removeprefix(b"Exif\0\0"),
        xmp=b"<x/>",
        comment="ein Grüß",
        resolution=Resolution(300, 150),
    )
    chunks = metadata.to_chunks(picture, metadata=True, thumbnail=30, limits=container.NO_LIMITS)
    return Mlic(
        width=60,
        height=40,
        mode="rgb-alpha",
        variant="new",
        model_name="a model",
        fingerprint=bytes(range(8)),
        z=b"z",
        y=b"y" * 1234,
        guard=MoveWriter(5e-5).finish(),
        alpha=b"\x80",
        metadata=(*chunks, Metadata(0xFE, b"new")),
    )


def test_text(full: Mlic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "full.mlic"
    path.write_bytes(container.write(full))
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines()]
    for line in (
        "mode: rgb-alpha",
        "fingerprint: 0001020304050607",
        "kind: moved-boundaries",
        "delta: 5e-05",
        "y: 1,234",
        "constant: 128",
        "- kind: icc_profile",
        "description: sRGB built-in",
        "- kind: exif",
        "- kind: resolution",
        "text: 300 x 150 pixels an inch",
        "Make: a maker [31m",
        "text: ein Grüß",
        "- kind: thumbnail",
        "width: 30",
        "- kind: 0xfe",
    ):
        assert line in lines, line
    assert all(line.isprintable() for line in lines)


def test_json(full: Mlic, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "full.mlic"
    data = container.write(full)
    path.write_bytes(data)
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["guard"] == {"kind": "moved-boundaries", "bytes": len(full.guard or b""), "delta": pytest.approx(5e-5)}
    assert facts["alpha"] == {"bytes": 1, "constant": 128}
    kinds = ["icc_profile", "exif", "xmp", "comment", "thumbnail", "resolution", "0xfe"]
    assert [chunk["kind"] for chunk in facts["metadata"]] == kinds
    thumbnail = facts["metadata"][4]
    assert (thumbnail["format"], thumbnail["width"], thumbnail["height"]) == ("PNG", 30, 20)
    assert facts["file_bytes"] == len(data)


def test_damaged_contents_of_metadata_do_not_hide_the_rest(
    full: Mlic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.mlic"
    kinds = [ChunkKind.ICC_PROFILE, ChunkKind.EXIF, ChunkKind.XMP, ChunkKind.COMMENT, ChunkKind.THUMBNAIL]
    damaged = tuple(Metadata(kind, b"\xff\xfe\x1b") for kind in kinds)
    path.write_bytes(container.write(dataclasses.replace(full, metadata=damaged)))
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert ["problem" in chunk for chunk in facts["metadata"]] == [True, True, False, False, True]
    path.write_bytes(container.write(dataclasses.replace(full, guard=b"")))
    assert main(["info", str(path)]) == 5
