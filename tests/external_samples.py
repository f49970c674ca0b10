# SPDX-License-Identifier: Apache-2.0
"""External codecs of a few lines of Python, recipes for them, and pictures."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlic_fast.evaluate.recipes import ExternalCodec, read_recipe
from mlic_fast.pictures.image import Picture, open_image

posix = pytest.mark.skipif(os.name != "posix", reason="processes and signals of POSIX")

# A codec of a few lines: PNG to zlib and back, coarser with a larger quality; what it finds in its folder, it tells.
PROGRAM = """
import os, sys, zlib
from PIL import Image
role, source, target, quality = sys.argv[1:5]
if role == "encode":
    image = Image.open(source)
    step = int(quality)
    image = image.point(lambda v: v // step * step)
    data = zlib.compress(image.tobytes())
    open(target, "wb").write(f"{image.mode} {image.width} {image.height} ".encode() + data)
else:
    mode, width, height, data = open(source, "rb").read().split(b" ", 3)
    size = int(width), int(height)
    Image.frombytes(mode.decode(), size, zlib.decompress(data)).save(target)
    print("in the folder:", sorted(os.listdir(".")), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        return Image.open(file).convert("RGB").crop((200, 150, 297, 231))


@pytest.fixture(scope="module")
def picture(photograph: Image.Image) -> Picture:
    return open_image(photograph)


@pytest.fixture
def temporaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go, to see that they go away."""
    folder = tmp_path / "temporaries"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


Recipe = Callable[..., ExternalCodec]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """(settings) → the codec. Commands are Python programs, or names of files with them."""

    def make(**settings: Any) -> ExternalCodec:
        path = tmp_path / "recipe.toml"
        path.write_text(toml({"qualities": [8, 32], "timeout": 60} | settings))
        return read_recipe(path)

    return make


def toml(settings: dict[str, Any]) -> str:
    # JSON's texts, lists and numbers are TOML's
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def python(program: str, *arguments: str) -> list[str]:
    # braces of the program are no placeholders
    return [sys.executable, "-c", program.replace("{", "{{").replace("}", "}}"), *arguments]


ENCODE = python(PROGRAM, "encode", "{input}", "{output}", "{quality}")
DECODE = python(PROGRAM, "decode", "{input}", "{output}", "{quality}")
