# SPDX-License-Identifier: Apache-2.0
"""EXIF data keep their bytes, and orientation goes from XMP in every form: what is taken out, and what stays."""

from __future__ import annotations

import io
import struct
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlic_fast.pictures import exif, xmp
from mlic_fast.pictures.image import open_image, read_picture
from mlic_fast.pictures.save import save_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
COPYRIGHT = "© Jörg 2024\0".encode()
NOTE = b"MAKER\0\0\x01" + bytes(range(40))  # opaque, and of an odd kind


def block(order: str, entries: list[tuple[int, int, int, bytes]], start: int, following: int = 0) -> bytes:
    """A directory that begins at `start`, with the values behind it."""
    table, values = b"", b""
    behind = start + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) > 4:
            place = behind + len(values)
            values += value + bytes(len(value) % 2)
            value = struct.pack(f"{order}I", place)
        table += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return struct.pack(f"{order}H", len(entries)) + table + struct.pack(f"{order}I", following) + values


def camera(order: str, orientation: int | None = 6, thumbnail: bytes = b"", tail: bytes = b"") -> bytes:
    """EXIF data as a camera writes them: types that Pillow would change, a text that is not ASCII, maker notes."""
    short = f"{order}H"
    first = [
        (0x010F, 2, 8, b"a maker\0"),
        (0x0112, 3, 1, struct.pack(short, orientation or 1)),
        (0x011A, 5, 1, struct.pack(f"{order}II", 720, 10)),
        (0x0213, 3, 1, struct.pack(short, 2)),  # YCbCrPositioning
        (0x8298, 2, len(COPYRIGHT), COPYRIGHT),
        (0x8769, 4, 1, b""),
    ]
    if orientation is None:
        del first[1]
    size = 8 + len(block(order, first, 8))
    inner = [
        (0x9000, 7, 4, b"0232"),
        (0x927C, 7, len(NOTE), NOTE),
        (0x9286, 7, 11, b"UNICODE\0\xe9\0\0"),
        (0xA432, 5, 2, struct.pack(f"{order}4I", 24, 1, 240, 10)),
    ]
    second_at = size + len(block(order, inner, size))
    first[-1] = (0x8769, 4, 1, struct.pack(f"{order}I", size))
    second = b""
    if thumbnail:
        at = second_at + 2 + 12 * 2 + 4
        places = [
            (0x0201, 4, 1, struct.pack(f"{order}I", at)),
            (0x0202, 4, 1, struct.pack(f"{order}I", len(thumbnail))),
        ]
        second = block(order, places, second_at) + thumbnail
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + block(order, first, 8, second_at if thumbnail else 0) + block(order, inner, size) + second + tail


def found(data: bytes | None, *path: int) -> exif.Entry | None:
    assert data is not None
    return exif.tiff_of(data).find(*path)


def check_kept(data: bytes | None) -> None:
    for path, kind, value in (
        ((0x010F,), 2, b"a maker\0"),
        ((0x8298,), 2, COPYRIGHT),
        ((0x8769, 0x9000), 7, b"0232"),
        ((0x8769, 0x927C), 7, NOTE),
        ((0x8769, 0x9286), 7, b"UNICODE\0\xe9\0\0"),
    ):
        entry = found(data, *path)
        assert entry is not None, path
        assert (entry.type, entry.value) == (kind, value)
    for tag in (0x0112, 0x0213):
        assert found(data, tag) is None


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
@pytest.mark.parametrize("thumbnail", [b"", b"\xff\xd8 a thumbnail \xff\xd9"], ids=["", "thumbnail"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "object"])
def test_bytes_and_their_places_stay(order: str, orientation: int | None, thumbnail: bytes, kind: str) -> None:
    raw = camera(order, orientation, thumbnail)
    image = Image.fromarray(PIXELS)
    if kind == "object":
        image.info["exif"] = b"Exif\0\0" + raw
        picture = open_image(image)
    else:
        buffer = io.BytesIO()
        image.save(buffer, kind, exif=b"Exif\0\0" + raw)
        picture = open_image(buffer.getvalue())
    check_kept(picture.exif)
    assert picture.exif is not None
    assert picture.exif.index(NOTE) == raw.index(NOTE)  # what maker notes point to is where it was
    assert b"thumbnail" not in picture.exif
    assert len(picture.exif) == len(camera(order, orientation))
    assert picture.pixels.shape[:2] == ((8, 6) if orientation == 6 else (6, 8))


def test_nothing_is_touched_without_need() -> None:
    raw = b"II*\0\x08\0\0\0" + block("<", [(0x010F, 2, 8, b"a maker\0")], 8) + b"anything behind"
    assert exif.stripped(b"Exif\0\0" + raw) == raw


def test_a_thumbnail_that_is_not_the_end_is_overwritten() -> None:
    small = b"\xff\xd8 a thumbnail \xff\xd9"
    raw = camera("<", 6, small, tail=b"the maker's own")
    kept = exif.stripped(raw)
    assert kept is not None
    assert len(kept) == len(raw)
    assert kept.endswith(bytes(len(small)) + b"the maker's own")
    check_kept(kept)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
def test_of_tiff_files_the_values_keep_their_bytes(order: str, big: bool) -> None:
    data = big_tiff(order) if big else camera(order)
    kept = exif.of_tiff_file(lambda offset, count: data[offset : offset + count])
    check_kept(kept)
    assert kept is not None
    assert exif.stripped(kept) == kept


def big_tiff(order: str) -> bytes:
    """The camera's data as a BigTIFF file."""
    inner = [(0x9000, 7, b"0232"), (0x927C, 7, NOTE), (0x9286, 7, b"UNICODE\0\xe9\0\0")]
    first = [(0x010F, 2, b"a maker\0"), (0x0112, 3, struct.pack(f"{order}H", 6)), (0x8298, 2, COPYRIGHT)]
    first.append((0x8769, 18, b""))

    def directory(entries: list[tuple[int, int, bytes]], start: int) -> bytes:
        table, values = b"", b""
        behind = start + 8 + 20 * len(entries) + 8
        for tag, kind, value in entries:
            count = len(value) if kind in (2, 7) else 1
            if len(value) > 8:
                values, value = values + value, struct.pack(f"{order}Q", behind + len(values))
            table += struct.pack(f"{order}HHQ", tag, kind, count) + value.ljust(8, b"\0")
        return struct.pack(f"{order}Q", len(entries)) + table + bytes(8) + values

    size = 16 + len(directory(first, 16))
    first[-1] = (0x8769, 18, struct.pack(f"{order}Q", size))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
    return head + directory(first, 16) + directory(inner, size)


def test_a_tiff_picture_keeps_its_copyright() -> None:
    buffer = io.BytesIO()
    own = Image.Exif()
    own[0x8298] = COPYRIGHT[:-1]  # bytes, which Pillow writes as they are
    own[0x0112] = 6
    Image.fromarray(PIXELS).save(buffer, "TIFF", exif=own)
    picture = open_image(buffer.getvalue())
    entry = found(picture.exif, 0x8298)
    assert entry is not None
    assert entry.value == COPYRIGHT
    assert picture.pixels.shape[:2] == (8, 6)
    assert found(picture.exif, 0x0112) is None


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_files_are_written_with_the_bytes(order: str, mode: str, compression: str | None) -> None:
    raw = camera(order, None)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 41, 4), dtype=np.uint8)).convert(mode)
    image.info = {"exif": b"Exif\0\0" + raw, "xmp": b"<x/>", "icc_profile": b"a profile", "dpi": (300.0, 150.0)}
    buffer = io.BytesIO()
    options = {} if compression is None else {"compression": compression}
    assert save_picture(image, buffer, "TIFF", **options) == ()
    data = buffer.getvalue()
    assert data.index(NOTE) == raw.index(NOTE)  # what maker notes point to is where it was
    for path in ((0x010F,), (0x8298,), (0x8769, 0x9000), (0x8769, 0x927C), (0x8769, 0x9286), (0x8769, 0xA432)):
        assert exif.Tiff(lambda offset, count: data[offset : offset + count]).find(*path) == found(raw, *path)
    with Image.open(io.BytesIO(data)) as again:
        assert again.mode == mode
        assert np.array_equal(np.asarray(again), np.asarray(image))
    picture = read_picture(data)
    assert (picture.xmp, picture.icc_profile) == (b"<x/>", b"a profile")
    assert picture.resolution is not None
    assert (picture.resolution.x, picture.resolution.y) == (300, 150)
    check_kept(picture.exif)
    assert picture.notes == ("maker notes are at another place: what they point to may not be found",)


@pytest.mark.parametrize("raw", [b"II+\0\x08\0\0\0" + bytes(40), b"rubbish", b"MM\0*\xff\xff\xff\xff"], ids=repr)
def test_damaged_data_are_not_written_to_tiff_files(raw: bytes) -> None:
    image = Image.fromarray(PIXELS)
    image.info["exif"] = b"Exif\0\0" + raw
    buffer = io.BytesIO()
    assert save_picture(image, buffer, "TIFF") == ("exif",)
    assert np.array_equal(np.asarray(Image.open(buffer)), PIXELS)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from("<>"), st.lists(st.tuples(st.integers(0, 420), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_exif_data_hold_the_tiff_file_can_be_read(order: str, damages: list[tuple[int, int]]) -> None:
    raw = bytearray(camera(order, None))
    for place, value in damages:
        raw[place % len(raw)] = value
    image = Image.fromarray(PIXELS)
    image.info["exif"] = b"Exif\0\0" + bytes(raw)
    buffer = io.BytesIO()
    assert save_picture(image, buffer, "TIFF") in ((), ("exif",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        with Image.open(buffer) as again:
            assert sorted(again.size) == sorted(image.size)
            again.load()


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_a_loaded_tiff_image_keeps_texts_or_says_what_moved(order: str) -> None:
    image = Image.fromarray(PIXELS)
    image.info = {"exif": b"Exif\0\0" + camera(order, None)}
    buffer = io.BytesIO()
    save_picture(image, buffer, "TIFF")
    with Image.open(buffer) as opened:
        opened.load()
        picture = read_picture(opened)
    for path, value in (((0x010F,), b"a maker\0"), ((0x8298,), COPYRIGHT), ((0x8769, 0x927C), NOTE)):
        entry = found(picture.exif, *path)
        assert entry is not None
        assert entry.value == value
    assert picture.notes == ("maker notes are at another place: what they point to may not be found",)


@pytest.mark.parametrize("raw", [b"rubbish", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"], ids=repr)
def test_damaged_data_are_named(raw: bytes) -> None:
    image = Image.fromarray(PIXELS)
    image.info["exif"] = b"Exif\0\0" + raw
    picture = read_picture(image)
    assert picture.exif is None
    assert [note.split(":")[0] for note in picture.notes] == ["EXIF data left out"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 400), st.booleans())
def test_any_bytes_are_data_or_damaged(noise: bytes, place: int, behind_head: bool) -> None:
    raw = camera("<", 6, b"\xff\xd8 a thumbnail \xff\xd9")
    data = b"II*\0\x08\0\0\0" + noise if behind_head else raw[:place] + noise + raw[place + len(noise) :]
    for function in (exif.stripped, lambda raw: exif.of_tiff_file(lambda offset, count: raw[offset : offset + count])):
        try:
            kept = function(data)
        except (ValueError, struct.error):
            continue
        if kept is not None:
            assert exif.tiff_of(kept).find(0x0112) is None


FORMS = {
    "double quotes": '<r tiff:Orientation="{}" b="c"/>',
    "single quotes": "<r tiff:Orientation='{}' b='c'/>",
    "spaces": '<r tiff:Orientation = "{}" b="c"/>',
    "lines": "<r\n  tiff:Orientation\n=\n' {} ' b='c'/>",
    "element": "<r><tiff:Orientation>{}</tiff:Orientation><b/></r>",
    "element with spaces": "<r><tiff:Orientation >\n {}\n </tiff:Orientation\n><b/></r>",
    "element with a type": '<r><tiff:Orientation rdf:datatype="integer">{}</tiff:Orientation><b/></r>',
    "another prefix": '<r xmlns:t="http://ns.adobe.com/tiff/1.0/" t:Orientation="{}" b="c"/>',
    "another prefix's element": "<r xmlns:t = 'http://ns.adobe.com/tiff/1.0/'><t:Orientation>{}</t:Orientation><b/></r>",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_orientation_in_every_form(form: str, orientation: int, kind: str) -> None:
    packet = form.format(orientation).encode()
    assert xmp.orientation(packet) == orientation
    image = Image.fromarray(PIXELS)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"xmp": packet}
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
        options = {"pnginfo": info}
    elif kind == "TIFF":
        options = {"tiffinfo": {700: packet}}
    elif kind == "WEBP":
        options["lossless"] = True
    image.save(buffer, kind, **options)
    picture = open_image(buffer.getvalue())
    assert picture.pixels.shape[:2] == ((8, 6) if orientation > 4 else (6, 8))
    if kind != "JPEG":
        turned = Image.fromarray(PIXELS)
        turned.info["exif"] = exif_with(orientation)
        assert np.array_equal(picture.pixels, open_image(turned).pixels)
    assert picture.xmp is not None
    assert b"Orientation" not in picture.xmp
    assert (b"<b/>" in picture.xmp) == ("<b/>" in form)
    assert xmp.orientation(picture.xmp) is None


def exif_with(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def test_exif_data_go_before_xmp() -> None:
    for form in FORMS.values():
        for kind in ("JPEG", "TIFF"):
            buffer = io.BytesIO()
            more: dict[str, Any] = {"xmp": form.format(6).encode(), "exif": exif_with(3)}
            if kind == "TIFF":
                more = {"tiffinfo": {700: form.format(6).encode(), 0x0112: 3}}
            Image.fromarray(PIXELS).save(buffer, kind, **more)
            picture = open_image(buffer.getvalue())
            assert picture.pixels.shape[:2] == (6, 8)
            assert picture.xmp is not None
            assert b"Orientation" not in picture.xmp


@pytest.mark.parametrize(
    "packet",
    [b" " * 1_000_000, b"<tiff:Orientation" + b" " * 1_000_000, b"<tiff:Orientation " * 60_000, b' xmlns:a="' * 90_000],
    ids=["spaces", "one begun", "many begun", "prefixes"],
)
def test_packets_that_are_made_to_take_long(packet: bytes) -> None:
    start = time.perf_counter()
    assert xmp.orientation(packet) is None
    xmp.without_orientation(packet)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("value", ["0", "9", "66", "x", ""])
def test_values_that_are_no_orientation(value: str) -> None:
    for form in FORMS.values():
        packet = form.format(value).encode()
        assert xmp.orientation(packet) is None
        assert b"Orientation" not in xmp.without_orientation(packet)
