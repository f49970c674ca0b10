# SPDX-License-Identifier: Apache-2.0
"""Pictures with alpha, transparent colours, and more than 8 bits a sample."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_samples import GREY, RGB, RNG, png, saved
from PIL import Image

from mlic_fast.bitstream import container
from mlic_fast.errors import BitstreamError, ImageError, NotKeptWarning
from mlic_fast.pictures.image import open_image, pack_alpha, unpack_alpha

ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        pytest.param(Image.fromarray(np.dstack((RGB, ALPHA))), "rgb-alpha", id="RGBA"),
        pytest.param(Image.fromarray(np.dstack((GREY, ALPHA))), "grey-alpha", id="LA"),
        pytest.param(np.dstack((RGB, ALPHA)), "rgb-alpha", id="array of 4 channels"),
        pytest.param(torch.from_numpy(np.dstack((GREY, ALPHA))), "grey-alpha", id="tensor of 2 channels"),
        pytest.param(saved(Image.fromarray(np.dstack((RGB, ALPHA)))), "rgb-alpha", id="RGBA PNG"),
        pytest.param(saved(Image.fromarray(np.dstack((RGB, ALPHA))), "TIFF"), "rgb-alpha", id="RGBA TIFF"),
        pytest.param(saved(Image.fromarray(np.dstack((GREY, ALPHA)))), "grey-alpha", id="LA PNG"),
    ],
)
def test_alpha_and_colours_are_kept_as_they_are(image: Any, mode: str) -> None:
    picture = open_image(image)
    assert picture.mode == mode
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, ALPHA)
    assert np.array_equal(picture.pixels, RGB if mode == "rgb-alpha" else GREY)
    assert picture.pixels.flags.c_contiguous
    assert not picture.pixels.flags.writeable
    assert not picture.alpha.flags.writeable


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA"])
def test_rare_modes_with_alpha(mode: str) -> None:
    # premultiplied colours survive where nothing is transparent
    image = Image.fromarray(RGB).convert("RGBA").convert(mode) if mode == "RGBa" else Image.new(mode, (7, 5), 0)
    picture = open_image(image)
    assert picture.mode == ("grey-alpha" if mode == "La" else "rgb-alpha")
    assert picture.alpha is not None
    if mode == "RGBa":
        assert np.array_equal(picture.pixels, RGB)


@pytest.mark.parametrize(
    ("mode", "transparency", "expected"),
    [
        pytest.param("P", 1, [255, 0], id="palette index"),
        pytest.param("P", b"\x00\x80", [0, 128], id="palette of alpha"),
        pytest.param("L", 30, [255, 0], id="grey"),
        pytest.param("RGB", (30, 30, 30), [255, 0], id="colour"),
        pytest.param("1", 255, [255, 0], id="one bit"),
    ],
)
@pytest.mark.parametrize("in_file", [True, False], ids=["file", "object"])
def test_transparent_colours_become_alpha(mode: str, transparency: Any, expected: list[int], in_file: bool) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), {"P": 1, "L": 30, "RGB": (30, 30, 30), "1": 255}[mode])
    if mode == "P":
        image.putpalette(bytes((9, 9, 9, 200, 100, 50)))
    image.info["transparency"] = transparency
    picture = open_image(saved(image, transparency=transparency) if in_file else image)
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [expected]
    assert picture.mode == ("grey-alpha" if mode in "L1" else "rgb-alpha")
    if mode == "P":
        assert picture.pixels.tolist() == [[[9, 9, 9], [200, 100, 50]]]


def test_a_gif_with_a_transparent_colour() -> None:
    image = Image.fromarray(np.dstack((RGB, np.where(ALPHA > 127, 255, 0).astype(np.uint8))))
    picture = open_image(saved(image, "GIF"))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.where(ALPHA > 127, 255, 0))


@pytest.mark.parametrize("constant", [0, 128, 255])
def test_one_alpha_for_all_pixels_is_one_byte(constant: int) -> None:
    packed = pack_alpha(np.full((300, 200), constant, np.uint8))
    assert packed == bytes([constant])
    unpacked = unpack_alpha(file_with(packed, 200, 300))
    assert unpacked is not None
    assert unpacked.shape == (300, 200)
    assert (unpacked == constant).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 256), st.integers(0, 99))
def test_alpha_survives_its_chunk(height: int, width: int, values: int, seed: int) -> None:
    alpha = np.random.default_rng(seed).integers(0, values, (height, width), dtype=np.uint8)
    unpacked = unpack_alpha(file_with(pack_alpha(alpha), width, height))
    assert unpacked is not None
    assert np.array_equal(unpacked, alpha)


def test_a_large_alpha_is_not_pillows_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_with(pack_alpha(ALPHA), 7, 5)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 3)
    assert np.array_equal(unpack_alpha(file), ALPHA)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not deflated", id="rubbish"),
        pytest.param(zlib.compress(bytes(8 * 5 - 1)), id="too little"),
        pytest.param(zlib.compress(bytes(8 * 5))[:-8], id="truncated"),
        pytest.param(zlib.compress(b"\x09" + bytes(8 * 5 - 1)), id="unknown filter"),
    ],
)
def test_an_alpha_chunk_with_damaged_pixels(content: bytes) -> None:
    with pytest.raises(BitstreamError, match="alpha chunk"):
        unpack_alpha(file_with(png(7, 5, 8, 0, b"", content), 7, 5))


def test_an_alpha_chunk_that_unpacks_to_more_than_its_size() -> None:
    """What lies behind the last row, 256 MiB, is not unpacked."""
    packer = zlib.compressobj(9)
    content = packer.compress(bytes(8 * 5)) + b"".join(packer.compress(bytes(2**20)) for _ in range(256))
    content += packer.flush()
    code = (
        "import sys, resource\nfrom mlic_fast.bitstream import container\n"
        "from mlic_fast.pictures.image import unpack_alpha\n"
        "file = container.read(sys.stdin.buffer.read())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert not unpack_alpha(file).any()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    data = container.write(file_with(png(7, 5, 8, 0, b"", content), 7, 5))
    run = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert int(run.stdout) < 30_000  # KiB


def file_with(alpha: bytes, width: int, height: int) -> container.Mlic:
    return container.Mlic(
        width, height, "rgb-alpha", "new", model_name="", fingerprint=bytes(8), z=b"", y=b"", alpha=alpha
    )


GREY_16 = np.array([[0, 128, 129, 257, 32_768, 65_535]], np.uint16)
REDUCED = [[0, 0, 1, 1, 128, 255]]
DEEP = {
    "I;16": Image.fromarray(GREY_16),
    "I": Image.fromarray(GREY_16.astype(np.int32)),
    "array": GREY_16,
    "tensor": torch.from_numpy(GREY_16.astype(np.int32)).to(torch.uint16),
    "16-bit grey PNG": saved(Image.fromarray(GREY_16)),
    "16-bit grey TIFF": saved(Image.fromarray(GREY_16), "TIFF"),
    "big-endian TIFF": saved(Image.frombytes("I;16B", (6, 1), GREY_16.astype(">u2").tobytes()), "TIFF"),
    "16-bit grey PGM": b"P5 6 1 65535\n" + GREY_16.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("source", DEEP.values(), ids=DEEP.keys())
def test_16_bits_are_reduced_only_when_asked_to(source: Any) -> None:
    with pytest.raises(ImageError, match=r"more than 8 bits.*reduce_depth"):
        open_image(source)
    picture = open_image(source, reduce_depth=True)
    assert picture.mode == "grey"
    assert picture.pixels.tolist() == REDUCED


def test_reduction_rounds_to_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    reduced = open_image(values, reduce_depth=True).pixels
    assert np.array_equal(reduced, np.round(values / 257).astype(np.uint8))
    colour = open_image(np.dstack((values, values, values)), reduce_depth=True)
    assert colour.mode == "rgb"
    assert np.array_equal(colour.pixels[..., 1], reduced)


@pytest.mark.parametrize(
    ("source", "mode"),
    [
        pytest.param(png(2, 1, 16, 2, b"\0" + bytes(range(12))), "rgb", id="16-bit RGB PNG"),
        pytest.param(png(2, 1, 16, 6, b"\0" + bytes(range(16))), "rgb-alpha", id="16-bit RGBA PNG"),
        pytest.param(b"P6 2 1 65535\n" + bytes(12), "rgb", id="16-bit RGB PPM"),
        pytest.param(b"P5 2 1 1023\n" + bytes(4), "grey", id="10-bit grey PGM"),
        pytest.param(b"P3 1 1 1023\n1 2 3\n", "rgb", id="10-bit plain PPM"),
    ],
)
def test_deep_colour_is_refused_or_cut(source: Any, mode: str) -> None:
    with pytest.raises(ImageError, match="more than 8 bits"):
        open_image(source)
    picture = open_image(source, reduce_depth=True)
    assert picture.mode == mode
    if mode == "rgb-alpha":
        assert picture.pixels[0, 1].tolist() == [8, 10, 12]
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[6, 14]]


def test_a_transparent_value_among_16_bits() -> None:
    transparent = struct.pack(">H", 129)
    data = png(6, 1, 16, 0, b"\0" + GREY_16.astype(">u2").tobytes(), before=b"tRNS" + transparent)
    picture = open_image(data, reduce_depth=True)
    assert picture.mode == "grey-alpha"
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255, 255, 0, 255, 255, 255]]
    deep_colour = png(2, 1, 16, 2, b"\0" + bytes(range(12)), before=b"tRNS" + bytes(range(6)))
    colours = open_image(deep_colour, reduce_depth=True)
    assert colours.mode == "rgb-alpha"
    assert colours.alpha is not None
    assert colours.alpha.tolist() == [[0, 255]]
    with Image.open(io.BytesIO(deep_colour)) as image:
        image.load()  # of which the lower bytes are gone
        with pytest.warns(NotKeptWarning, match="transparent colour of 16 bits"):
            assert open_image(image, reduce_depth=True).mode == "rgb"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(Image.new("F", (4, 4)), "float samples", id="F"),
        pytest.param(saved(Image.new("F", (4, 4)), "TIFF"), "float samples", id="float TIFF"),
        pytest.param(Image.new("I", (4, 4), 70_000), "outside 0 to 65535", id="20 bits"),
        pytest.param(Image.new("I", (4, 4), -1), "outside 0 to 65535", id="negative"),
    ],
)
def test_samples_that_cannot_be_reduced(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(source, reduce_depth=True)
