# SPDX-License-Identifier: Apache-2.0
"""What a picture loses on the way in is said: further pictures, depth, polarity, transparent values, resolution."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_samples import GREY, RGB, png, saved
from PIL import Image

from mlic_fast.errors import ImageError, NotKeptWarning
from mlic_fast.pictures import resolution
from mlic_fast.pictures.image import Picture, open_image, read_picture

COLOURS = ("red", "lime", "blue", "white", "black")


def several(kind: str, count: int = 5) -> bytes:
    frames = [Image.new("RGB", (8, 6), colour) for colour in COLOURS[:count]]
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """So that a warning where nothing is lost fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotKeptWarning)
        yield


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_further_pictures_are_named_or_chosen(kind: str) -> None:
    data = several(kind)
    with pytest.warns(NotKeptWarning, match="5 pictures in the file: the first is taken, 4 left out"):
        first = open_image(data)
    assert len(first.notes) == 1
    for number, colour in enumerate(COLOURS, start=1):
        if kind == "MPO" and number > 3:
            break  # Pillow writes these where it does not find them again
        picture = open_image(data, frame=number)
        wanted = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0].astype(int)
        assert np.abs(picture.pixels.reshape(6, 8, -1)[3, 4].astype(int) - wanted).max() <= 3
        assert picture.notes == ()
    with pytest.raises(ImageError, match=r"4 left out.*|strict"):
        open_image(data, strict=True)
    assert open_image(data, frame=2, strict=True).notes == ()
    for number in (6, 0, -1, 1.0, True):
        with pytest.raises(ImageError, match="none with number"):
            open_image(data, frame=number)  # type: ignore[arg-type]
    assert open_image(several(kind, 1), strict=True).notes == ()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG"])
def test_an_opened_image_stays_where_it_is(kind: str) -> None:
    with Image.open(io.BytesIO(several(kind))) as image:
        assert np.array_equal(open_image(image, frame=3).pixels[0, 0], [0, 0, 255])
        assert image.tell() == 0
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
        if kind == "PNG":  # Pillow cannot go forth again after it went back
            return
        image.seek(1)
        picture = read_picture(image)
        assert picture.pixels[0, 0].tolist() == [0, 255, 0]


def test_counting_does_not_undo_what_was_drawn() -> None:
    with Image.open(io.BytesIO(several("GIF"))) as image:
        image.load()
        image.putpixel((0, 0), image.getpixel((0, 0)) ^ 1)  # type: ignore[operator]
        before = image.convert("RGB").tobytes()
        read_picture(image)
        assert image.convert("RGB").tobytes() == before


def sgi(bits: int) -> bytes:
    head = struct.pack(">HBBHHHHII", 474, 0, bits // 8, 3, 7, 5, 3, 0, 255).ljust(512, b"\0")
    samples = RGB[::-1].transpose(2, 0, 1).astype(f">u{bits // 8}") * (257 if bits == 16 else 1)
    return head + samples.astype(f">u{bits // 8}").tobytes()


def dds_half_floats() -> bytes:
    pixels = struct.pack("<II4s5I", 32, 4, b"DX10", 0, 0, 0, 0, 0)
    head = (
        b"DDS " + struct.pack("<7I44x", 124, 0x1007, 4, 4, 16, 0, 0) + pixels + struct.pack("<5I", 0x1000, 0, 0, 0, 0)
    )
    return head + struct.pack("<5I", 95, 3, 0, 1, 0) + bytes([3]) + bytes(15)


def bmp_565(mask: bool = True) -> bytes:
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F) if mask else b""
    size = 14 + 40 + len(masks) + 8
    info = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3 if mask else 0, 8, 0, 0, 0, 0)
    return (
        b"BM" + struct.pack("<IHHI", size, 0, 0, size - 8) + info + masks + struct.pack("<4H", 0xFFFF, 0, 0x1F, 0x7FFF)
    )


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        pytest.param(sgi(16), 16, id="16-bit SGI"),
        pytest.param(dds_half_floats(), 16, id="half-float DDS"),
    ],
)
def test_depth_that_pillow_reduces_is_named(data: bytes, bits: int) -> None:
    with pytest.warns(NotKeptWarning, match=f"{bits} bits a sample became 8"):
        picture = open_image(data)
    assert picture.mode == "rgb"
    assert open_image(data, reduce_depth=True).notes == ()
    with pytest.raises(ImageError, match="bits a sample"):
        open_image(data, strict=True)


def test_16_bit_sgi_pixels() -> None:
    assert np.array_equal(read_picture(sgi(16)).pixels, RGB)
    assert np.array_equal(open_image(sgi(8)).pixels, RGB)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_avif_says_its_depth_itself(bits: int) -> None:
    data = bytearray(saved(Image.fromarray(RGB), "AVIF"))
    place = data.index(b"av1C") + 6
    data[place] = data[place] & ~0x60 | {8: 0, 10: 0x40, 12: 0x60}[bits]
    channels = data.index(b"pixi") + 8
    data[channels + 1 : channels + 1 + data[channels]] = bytes([bits]) * data[channels]
    notes = read_picture(bytes(data)).notes  # the codec goes by the stream
    assert notes == (() if bits == 8 else (f"{bits} bits a sample became 8",))


def test_jpeg_2000_says_its_depth_itself() -> None:
    data = bytearray(saved(Image.fromarray(RGB), "JPEG2000"))
    assert open_image(bytes(data)).notes == ()
    place = data.index(b"\xff\x4f\xff\x51") + 42
    assert data[place : place + 9 : 3] == bytes([7, 7, 7])
    data[place : place + 9 : 3] = bytes([11, 11, 11])
    assert read_picture(bytes(data)).notes == ("12 bits a sample became 8",)
    deep = saved(Image.fromarray(np.full((5, 7), 30_000, np.uint16)), "JPEG2000")
    with pytest.raises(ImageError, match="more than 8 bits"):
        open_image(deep)
    assert np.array_equal(open_image(deep, reduce_depth=True).pixels, np.full((5, 7), 117))


@pytest.mark.parametrize("data", [bmp_565(), bmp_565(mask=False)], ids=["5-6-5", "5-5-5"])
def test_pixels_of_16_bits_are_not_samples_of_16_bits(data: bytes) -> None:
    picture = open_image(data)
    assert picture.notes == ()
    assert picture.pixels[1, 0].tolist() == [255, 255, 255]


def test_tga_pixels_of_16_bits() -> None:
    data = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 16, 0x20) + struct.pack("<2H", 0x7C00, 0x1F)
    assert open_image(data).pixels.tolist() == [[[255, 0, 0], [0, 0, 255]]]


def tiff(samples: np.ndarray[Any, Any], bits: int, white_is_zero: bool, packed: bytes | None = None) -> bytes:
    """A little-endian TIFF file of grey samples, made by hand."""
    content = samples.astype("<u2" if bits > 8 else np.uint8).tobytes() if packed is None else packed
    height, width = samples.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1)]
    tags += [(273, 4, 8 + 2 + 9 * 12 + 4), (277, 3, 1), (278, 3, height), (279, 4, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + content


@pytest.mark.parametrize("white_is_zero", [False, True], ids=["black is 0", "white is 0"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_tiff_of_either_polarity(bits: int, white_is_zero: bool) -> None:
    largest = 2**bits - 1
    samples = np.array([[0, 1, largest // 3, largest - 1, largest, 0, 0, 0]])
    packed = None
    if bits not in (8, 16):
        text = "".join(f"{value:0{bits}b}" for value in samples[0])
        packed = int(text, 2).to_bytes(len(text) // 8, "big")
    if bits == 12 and white_is_zero:
        pytest.skip("Pillow reads no such file")
    data = tiff(samples, bits, white_is_zero, packed)
    if bits > 8:
        with pytest.raises(ImageError, match="more than 8 bits"):
            open_image(data)
    wanted = np.round((largest - samples if white_is_zero else samples) * 255 / largest)
    assert open_image(data, reduce_depth=True).pixels.tolist() == wanted.tolist()


def planes_apart(samples: np.ndarray[Any, Any], order: str, rows: int) -> bytes:
    """A TIFF file of 16-bit samples [H, W, 3 or 4], a plane for each channel, in strips of so many rows."""
    height, width, channels = samples.shape
    strips = [
        samples[top : top + rows, :, channel].astype(f"{order}u2").tobytes()
        for channel in range(channels)
        for top in range(0, height, rows)
    ]
    start = 8 + sum(map(len, strips))
    places = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    tags = [
        (256, [width]),
        (257, [height]),
        (258, [16] * channels),
        (259, [1]),
        (262, [2]),
        (273, places),
        (277, [channels]),
    ]
    tags += [(278, [rows]), (279, [len(strip) for strip in strips]), (284, [2])] + [(338, [2])] * (channels == 4)
    table, values = b"", b""
    for tag, numbers in tags:
        value = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(value) > 4:
            values, value = values + value, struct.pack(f"{order}I", start + 2 + 12 * len(tags) + 4 + len(values))
        table += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + value.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + table + bytes(4) + values


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("rows", [4, 9])
def test_tiff_whose_16_bit_channels_lie_apart(order: str, channels: int, rows: int) -> None:
    samples = np.random.default_rng(2).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    data = planes_apart(samples, order, rows)
    with pytest.raises(ImageError, match="more than 8 bits"):
        open_image(data)
    with Image.open(io.BytesIO(data)) as image:
        for source in (data, image):
            picture = open_image(source, reduce_depth=True)
            assert np.array_equal(picture.pixels, samples[..., :3] >> 8)
            if channels == 4:
                assert np.array_equal(picture.alpha, samples[..., 3] >> 8)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour", [0, 2, 3], ids=["grey", "RGB", "palette"])
@pytest.mark.parametrize("in_file", [True, False], ids=["file", "object"])
def test_every_transparent_value_of_png(depth: int, colour: int, in_file: bool) -> None:
    if (colour == 2 and depth < 8) or (colour == 3 and depth == 16):
        pytest.skip("there is no such PNG")
    count = 8
    values = [number * (2**depth - 1) // (count - 1) for number in range(count)] if depth > 2 else [0, 1] * 4
    if depth == 2:
        values = [0, 1, 2, 3] * 2
    channels = 3 if colour == 2 else 1
    text = "".join(f"{value:0{depth}b}" * channels for value in values)
    row = b"\0" + int(text, 2).to_bytes(-(-len(text) // 8), "big")
    for value in sorted(set(values)):
        if colour == 3:
            alphas = bytearray(b"\xff" * 2**depth)
            alphas[value] = 0
            data = with_palette(png(count, 1, depth, 3, row, before=b"tRNS" + bytes(alphas)), depth)
        else:
            data = png(count, 1, depth, colour, row, before=b"tRNS" + struct.pack(">H", value) * channels)
        source: Any = data
        if not in_file:
            source = Image.open(io.BytesIO(data))
            if colour == 2 and depth == 16:
                continue
        picture = open_image(source, reduce_depth=True)
        assert picture.alpha is not None
        assert picture.alpha.tolist() == [[0 if other == value else 255 for other in values]], value


def with_palette(data: bytes, depth: int) -> bytes:
    """The PNG with a palette in front of its transparency."""
    import zlib

    body = b"PLTE" + bytes(range(256))[: 2**depth].ljust(2**depth, b"\0") * 3
    place = data.index(b"tRNS") - 4
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:place] + chunk + data[place:]


def test_16_bit_colours_of_which_only_the_lower_bytes_differ() -> None:
    samples = struct.pack(">9H", 0x1234, 0x5678, 0x9ABC, 0x1234, 0x5678, 0x9ABD, 0x1235, 0x5678, 0x9ABC)
    for orientation, wanted in ((1, [[0, 255, 255]]), (6, [[0], [255], [255]])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = png(3, 1, 16, 2, b"\0" + samples, before=b"tRNS" + samples[:6])
        body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        import zlib

        place = data.index(b"tRNS") - 4
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        picture = open_image(data[:place] + chunk + data[place:], reduce_depth=True)
        assert picture.alpha is not None
        assert picture.alpha.tolist() == wanted


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_resolution_is_found(kind: str) -> None:
    picture = open_image(saved(Image.fromarray(RGB), kind, dpi=(300, 150)))
    assert picture.resolution is not None
    found = picture.resolution
    assert (round(found.x), round(found.y), found.absolute) == (300, 150, True)
    plain = {"BMP": {"dpi": (0, 0)}}.get(kind, {})
    assert open_image(saved(Image.fromarray(RGB), kind, **plain)).resolution is None
    assert resolution.unpack(found.pack()).x == pytest.approx(found.x, abs=1e-4)


def test_resolution_of_exif_data_and_turned_pictures() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[282], exif[283], exif[296] = 6, 118.0, 59.0, 3
    for kind, extra in (("JPEG", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        picture = open_image(saved(Image.fromarray(RGB), kind, exif=exif.tobytes(), **extra))
        assert picture.pixels.shape[:2] == (7, 5)
        assert picture.resolution is not None
        assert (picture.resolution.x, picture.resolution.y) == (pytest.approx(59 * 2.54), pytest.approx(118 * 2.54))
    tiff_file = saved(Image.fromarray(RGB), "TIFF", dpi=(100, 50), tiffinfo={0x0112: 8})
    turned = open_image(tiff_file)
    assert turned.pixels.shape[:2] == (7, 5)
    assert turned.resolution is not None
    assert (turned.resolution.x, turned.resolution.y) == (50, 100)
    # Pillow makes 72 up for a JPEG file with EXIF data and no resolution
    only_maker = Image.Exif()
    only_maker[271] = "a maker"
    data = saved(Image.fromarray(RGB), "JPEG", exif=only_maker.tobytes())
    assert Image.open(io.BytesIO(data)).info.get("dpi") == (72, 72)
    assert open_image(data).resolution is None


def test_the_shape_of_a_pixel() -> None:
    body = struct.pack(">IIB", 2, 1, 0)
    picture = open_image(png(7, 5, 8, 0, b"".join(b"\0" + row.tobytes() for row in GREY), before=b"pHYs" + body))
    assert picture.resolution == resolution.Resolution(2, 1, absolute=False)
    assert resolution.unpack(picture.resolution.pack()) == picture.resolution


@pytest.mark.parametrize("data", [b"", bytes(9), b"\1" + bytes(8), b"\2" + b"\1" * 8, b"\1" * 10], ids=repr)
def test_resolutions_that_are_none(data: bytes) -> None:
    with pytest.raises(ValueError, match="resolution"):
        resolution.unpack(data)


def test_texts_that_have_no_place_are_named() -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("Title", "a title")
    texts.add_text("Comment", "kept")
    picture = read_picture(saved(Image.fromarray(RGB), pnginfo=texts))
    assert picture.notes == ("texts left out: Title",)
    assert picture.comment == "kept"


def test_a_pipe_with_a_name_is_read(tmp_path: Path) -> None:
    import os
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(saved(Image.fromarray(RGB)),))
    writer.start()
    assert np.array_equal(open_image(pipe).pixels, RGB)
    writer.join()


def test_a_picture_keeps_its_notes() -> None:
    picture = Picture(RGB, "rgb", notes=("something",))
    assert open_image(picture) is picture
