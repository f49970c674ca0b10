# SPDX-License-Identifier: Apache-2.0
"""Classical codecs: what is installed codes every kind of picture, and settings do what they say."""

from __future__ import annotations

import io
from importlib import resources
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlic_fast.errors import CurveError
from mlic_fast.evaluate import classical
from mlic_fast.evaluate.classical import CODECS, chosen
from mlic_fast.evaluate.metrics import psnr
from mlic_fast.pictures.image import Picture, open_image

HERE = [name for name, codec in CODECS.items() if codec.is_there()]


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        return Image.open(file).convert("RGB").crop((200, 150, 297, 231))


@pytest.fixture(scope="module")
def picture(photograph: Image.Image) -> Picture:
    return open_image(photograph)


def test_pillow_brings_most_of_them() -> None:
    assert {"jpeg", "jpeg2000", "webp", "avif"} <= set(HERE)


@pytest.mark.parametrize("name", HERE)
def test_the_ladder_rises(name: str, picture: Picture) -> None:
    codec = CODECS[name]
    assert len(set(codec.ladder)) == len(codec.ladder) >= 6
    sizes, qualities = [], []
    for quality in (codec.ladder[0], codec.ladder[len(codec.ladder) // 2], codec.ladder[-1]):
        data = codec.encode(picture, quality)
        decoded = codec.decode(data, picture)
        assert decoded.shape == picture.pixels.shape
        assert decoded.dtype == np.uint8
        sizes.append(len(data))
        qualities.append(psnr(picture.pixels, decoded))
    assert sizes[0] < sizes[1] < sizes[2]
    assert 10 < qualities[0] < qualities[1] < qualities[2] < 60


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("size", [(31, 47), (1, 1), (64, 3)], ids=str)
def test_grey_and_odd_sizes(name: str, size: tuple[int, int], photograph: Image.Image) -> None:
    grey = open_image(photograph.convert("L").crop((0, 0, *size)))
    codec = CODECS[name]
    decoded = codec.decode(codec.encode(grey, codec.ladder[-1]), grey)
    assert decoded.shape == grey.pixels.shape
    assert psnr(grey.pixels, decoded) > 25


def test_settings(picture: Picture) -> None:
    with Image.open(io.BytesIO(CODECS["jpeg"].encode(picture, 50))) as jpeg:
        assert jpeg.format == "JPEG"
        layers: Any = jpeg
        assert [layer[1:3] for layer in layers.layer] == [(2, 2), (1, 1), (1, 1)]
        assert "icc_profile" not in jpeg.info
    codestream = CODECS["jpeg2000"].encode(picture, 24)
    assert codestream[:4] == b"\xff\x4f\xff\x51"
    # the ratio is of 24 bits a pixel, so one bit a pixel here
    assert 8 * len(codestream) / (97 * 81) == pytest.approx(1, rel=0.1)


def test_what_a_codec_cannot_code_is_an_error_of_ours() -> None:
    wide = open_image(np.zeros((1, 16_400), np.uint8))
    with pytest.raises(CurveError, match="WebP does not code 16400 x 1 pixels at 50"):
        CODECS["webp"].encode(wide, 50)


def test_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    codecs, remarks = chosen("webp, jpeg,webp")
    assert [codec.name for codec in codecs] == ["webp", "jpeg"]
    assert remarks == []
    with pytest.raises(CurveError, match="no classical codec 'bpg'"):
        chosen("jpeg,bpg")
    with pytest.raises(CurveError, match="no classical codec ''"):
        chosen("")
    monkeypatch.setattr(classical, "_plugin_loaded", lambda: False)
    codecs, remarks = chosen("all")
    assert [codec.name for codec in codecs] == ["jpeg", "jpeg2000", "webp", "avif"]
    assert remarks == ["JPEG XL is left out: it takes the package pillow-jxl-plugin (pip install 'mlic-fast[jpegxl]')"]
    with pytest.raises(CurveError, match="JPEG XL is not installed"):
        chosen("jpegxl")
