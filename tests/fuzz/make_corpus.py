# SPDX-License-Identifier: Apache-2.0
"""Writes the Python fuzzers' first inputs: whole valid files, small, with every feature of each format.

    python tests/fuzz/make_corpus.py

What fuzzing found is kept beside them, under names that begin with "found-"; this leaves those alone.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter, OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms

from mlic_fast.bitstream import container, official
from mlic_fast.bitstream.container import ChunkKind, Metadata, Mlic
from mlic_fast.entropy.guard import MoveWriter
from mlic_fast.evaluate import strings_file
from mlic_fast.pictures.image import pack_alpha

CORPUS = Path(__file__).with_name("corpus")


def main() -> None:
    alpha = pack_alpha(np.arange(45, dtype=np.uint8).reshape(5, 9))
    files = mlic_files(alpha)
    write("container", files)
    write("pillow", files)
    write("official", [official.write(official.OfficialFile(65, 40, y=b"stream y", z=b"zzzz"))])
    write("guard", [guard(moves) for moves in ([], [0], [3, None, 1, 2, 0, 0], [65534, 0, None, None, 5])])
    write("alpha", [b"\x80", alpha + b"\0", alpha + b"\1"])
    write("native", native_headers())
    write("pickle", pickles())
    write("picture", pictures())
    write("strings", strings())


def write(target: str, inputs: list[bytes]) -> None:
    """Replace the target's numbered inputs."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9]*"):
        old.unlink()
    for number, data in enumerate(inputs):
        (folder / f"{number:02}").write_bytes(data)


def strings() -> list[bytes]:
    """Of a model with a hyperprior, and of one with groups of channels and two passes each."""
    shape = {"y": [torch.Size([16, 4, 8]), torch.Size([32, 4, 8])], "hyper": torch.Size([1, 2])}
    groups = [[b"anchors"], [b""], [b"more"], [b"others"], [b"z"]]
    return [
        strings_file.write(strings_file.Strings(97, 81, [[b"stream y"], [b"zzzz"]], torch.Size([2, 2]))),
        strings_file.write(strings_file.Strings(300, 1, groups, shape)),
    ]


def mlic_files(alpha: bytes) -> list[bytes]:
    """From the plainest file to one with everything."""
    plain = Mlic(
        width=9,
        height=5,
        mode="grey",
        variant="new",
        model_name="model",
        fingerprint=bytes(range(8)),
        z=b"zzzz",
        y=b"stream y",
    )
    exif = Image.Exif()
    exif[271], exif[306] = "maker", "2024:01:01 00:00:00"
    thumbnail = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(thumbnail, "JPEG")
    small = io.BytesIO()
    Image.new("RGBA", (9, 5), "red").save(small, "PNG")
    metadata = (
        Metadata(ChunkKind.ICC_PROFILE, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        Metadata(ChunkKind.EXIF, exif.tobytes().removeprefix(b"Exif\0\0")),
        Metadata(ChunkKind.XMP, b"<x:xmpmeta/>"),
        Metadata(ChunkKind.COMMENT, "é".encode()),
        Metadata(0xFE, b"unknown"),
    )
    whole = replace(
        plain,
        mode="rgb-alpha",
        variant="old",
        padding="fade",
        alpha=alpha,
        guard=guard([3, None, 1, 2, 0]),
        metadata=(*metadata, Metadata(ChunkKind.THUMBNAIL, small.getvalue())),
    )
    return [
        container.write(file)
        for file in (
            plain,
            replace(plain, mode="rgb", model_name="", metadata=(Metadata(ChunkKind.THUMBNAIL, thumbnail.getvalue()),)),
            replace(plain, mode="grey-alpha", alpha=b"\x80"),
            replace(plain, guard=guard([0, 0, 4])),
            replace(plain, width=600, height=400),
            whole,
        )
    ]


def guard(moves: list[int | None]) -> bytes:
    """A guard's chunk with these moves (None: a split) and a checksum in front of each five."""
    writer = MoveWriter(5e-5)
    for number, move in enumerate(moves):
        if number % 5 == 0:
            writer.checksum(number)
        if move is None:
            writer.split()
        else:
            writer.move(move)
    return writer.finish()


def native_headers() -> list[bytes]:
    """Safetensors files with a header of ours, of others, and with none."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    ours = {
        "format": 1,
        "name": "model",
        "lmbda": 0.013,
        "metric": "mse",
        "config": {"N": 8, "M": 64, "slice_num": 2, "context_window": 5, "variant": "old"},
        "fingerprint": "00" * 32,
        "guard_deltas": [[500] * 32] * 4,
    }
    headers = ({"__metadata__": {"mlic_fast": json.dumps(ours)}, "a": tensor}, {"a": tensor}, {})
    texts = [json.dumps(header).encode() for header in headers]
    return [len(text).to_bytes(8, "little") + text + bytes(4) for text in texts]


def pickles() -> list[bytes]:
    """The pickle inside a checkpoint, and the pickles at the start of one of the kind before zip files."""
    weights = OrderedDict(a=torch.zeros(2), b=torch.nn.Parameter(torch.zeros(1)))
    weights._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    checkpoint = {
        "state_dict": weights,
        "epoch": 3,
        "loss": 1.5,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "lr_scheduler": {"milestones": Counter([450, 550]), "verbose": False, "last": None},
    }
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(checkpoint, zipped)
    torch.save(checkpoint, legacy, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(zipped) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return [archive.read(name), legacy.getvalue()]


def pictures() -> list[bytes]:
    """The same few pixels in several formats."""
    rgb = Image.fromarray(np.arange(135, dtype=np.uint8).reshape(5, 9, 3))
    exif = Image.Exif()
    exif[274] = 6
    saved = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "ICO", "TGA", "JPEG2000"):
        buffer = io.BytesIO()
        options = {"exif": exif} if kind in {"PNG", "JPEG", "TIFF", "WEBP"} else {}
        rgb.save(buffer, kind, **options)
        saved.append(buffer.getvalue())
    return saved


if __name__ == "__main__":
    main()
