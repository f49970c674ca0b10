# SPDX-License-Identifier: Apache-2.0
"""What Pillow does not give of a file is named or carried: pictures, channels and metadata in other places."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from picture_samples import RGB, png, saved
from PIL import Image

from mlic_fast.pictures.image import open_image, read_picture
from mlic_fast.pictures.resolution import Resolution

IMAGE = Image.fromarray(RGB)
XMP = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/>'
EXIF = b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x08\0\0\0\x1a\0\0\0\0\0\0\0a maker\0"


def jpeg(*segments: tuple[int, bytes], data: bytes | None = None) -> bytes:
    """A JPEG file with these segments (marker, content) in front."""
    data = saved(IMAGE, "JPEG") if data is None else data
    made = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(c) + 2) + c for marker, c in segments)
    return data[:2] + made + data[2:]


def ultra_hdr() -> bytes:
    """Two pictures, of which the second is a gain map, as the first one's XMP says."""
    data = saved(IMAGE, "MPO", save_all=True, append_images=[Image.new("L", (4, 3))])
    return jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b'<x hdrgm:Version="1.0"/>'), data=data)


def tiff(channels: int, *entries: tuple[int, int, list[int]], photometric: int = 2) -> bytes:
    """A little-endian TIFF file of 2 x 1 pixels with so many 8-bit channels."""
    tags = [(256, 3, [2]), (257, 3, [1]), (258, 3, [8] * channels), (259, 3, [1]), (262, 3, [photometric])]
    tags += [(273, 4, [8]), (277, 3, [channels]), (278, 3, [1]), (279, 4, [2 * channels]), *entries]
    pixels = bytes(range(2 * channels)).ljust(32, b"\0")
    start = 8 + len(pixels)
    values, table = b"", b""
    for tag, kind, numbers in sorted(tags):
        value = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(value) > 4:
            values, value = values + value, struct.pack("<I", start + 2 + 12 * len(tags) + 4 + len(values))
        table += struct.pack("<HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<H", len(tags)) + table + bytes(4) + values


def psd(channels: int, mode: int = 3, *resources: tuple[int, bytes]) -> bytes:
    """A Photoshop file of 7 x 5 pixels; mode: 3 for RGB, 1 for grey."""
    made = b"".join(
        b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + bytes(len(data) % 2) for number, data in resources
    )
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", channels, 5, 7, 8, mode) + bytes(4)
    return head + struct.pack(">I", len(made)) + made + bytes(4) + bytes(2) + bytes(range(35)) * channels


def jpeg_2000(*boxes: bytes) -> bytes:
    made = b"".join(struct.pack(">I", len(box) + 4) + box for box in boxes)
    return saved(IMAGE, "JPEG2000") + made


def dds(place: int, value: int, size: int = 4) -> bytes:
    data = bytearray(saved(IMAGE, "DDS"))
    data[place : place + size] = value.to_bytes(size, "little")
    return bytes(data)


def dds_10(flags: int, count: int) -> bytes:
    data = saved(Image.new("RGBA", (8, 8)), "DDS", pixel_format="BC3")
    head = bytearray(data[:128])
    head[84:88] = b"DX10"
    return bytes(head) + struct.pack("<5I", 77, 3, flags, count, 0) + data[128:]


def cursors(count: int) -> bytes:
    body = struct.pack("<IiiHHIIiiII", 40, 2, 4, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(16) + bytes(8)
    entry = struct.pack("<BBBBHHII", 2, 2, 0, 0, 0, 0, len(body), 6 + 16 * count)
    return struct.pack("<HHH", 0, 2, count) + entry * count + body


def fits(*cards: str) -> bytes:
    head = ["SIMPLE  =                    T", "BITPIX  =                    8", *cards, "END"]
    text = "".join(card.ljust(80) for card in head).encode()
    return text.ljust(2880, b" ") + bytes(2880)


def axes(*sizes: int) -> list[str]:
    return [f"NAXIS   = {len(sizes):20}", *(f"NAXIS{i}  = {size:20}" for i, size in enumerate(sizes, 1))]


def gif(*extensions: bytes, at_end: bool = False) -> bytes:
    data = saved(IMAGE.quantize(16), "GIF")
    made = b"".join(b"!\xff\x0b" + name + b"\x03abc\0" for name in extensions)
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:-1] + made + b";" if at_end else data[:start] + made + data[start:]


def bmp_linked() -> bytes:
    head = struct.pack("<IiiHHIIiiII", 124, 7, 5, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(16) + b"KNIL"
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + head.ljust(124, b"\0") + bytes(24 * 5)


def qoi(linear: bool) -> bytes:
    return b"qoif" + struct.pack(">IIBB", 1, 1, 3, linear) + b"\xfe\x10\x20\x30" + bytes(7) + b"\1"


NAMED: dict[str, tuple[bytes, str]] = {
    "gain map": (ultra_hdr(), "2 pictures (a gain map is one) in the file: one is taken, 1 left out"),
    "extended XMP": (jpeg((0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40))), "extended XMP left out"),
    "content credentials": (jpeg((0xEB, b"JP" + bytes(30))), "JUMBF data (content credentials and others) left out"),
    "content credentials of PNG": (
        png(1, 1, 8, 0, b"\0\0", before=b"caBX" + bytes(30)),
        "JUMBF data (content credentials and others) left out",
    ),
    "comments": (jpeg((0xFE, b"one"), (0xFE, b"two")), "2 comments in the file: the last is kept"),
    "TIFF's fourth channel": (tiff(4, (338, 3, [0])), "1 further channel left out"),
    "TIFF's fifth channel": (tiff(6, (338, 3, [0, 0, 0])), "3 further channels left out"),
    "CMYK's fifth channel": (tiff(5, (338, 3, [0]), photometric=5), "1 further channel left out"),
    "TIFF's pictures below": (tiff(3, (330, 4, [8, 8])), "2 pictures below the first left out: raw data, other sizes"),
    "TIFF's signed samples": (tiff(1, (339, 3, [2]), photometric=1), "signed samples taken as if they were unsigned"),
    "Photoshop's fifth channel": (psd(5), "2 further channels left out"),
    "Photoshop's grey and alpha": (psd(2, 1), "1 further channel left out"),
    "Photoshop's IPTC": (psd(3, 3, (1028, b"\x1c\x02")), "IPTC and Photoshop data left out"),
    "JPEG 2000's pictures": (jpeg_2000(b"jp2c" + bytes(9)), "2 pictures in the file: one is taken, 1 left out"),
    "DDS cube": (dds(112, 0xFE00), "6 pictures in the file: one is taken, 5 left out"),
    "DDS volume": (dds(24, 3)[:112] + struct.pack("<I", 0x200000) + dds(24, 3)[116:], "3 pictures in the file"),
    "DDS array": (dds_10(0, 4), "4 pictures in the file"),
    "DDS array of cubes": (dds_10(4, 2), "12 pictures in the file"),
    "cursors": (cursors(3), "3 cursors in the file: one is taken, 2 left out"),
    "FITS planes": (fits(*axes(4, 4, 3)), "3 planes (colours may be some) in the file: one is taken, 2 left out"),
    "FITS scale": (fits(*axes(4, 4), "BZERO   =                128.0"), "BZERO not applied"),
    "TGA's field": (saved(IMAGE, "TGA", id_section=b"a field"), "identification field left out: a field"),
    "BMP's linked profile": (bmp_linked(), "colour profile in another file left out"),
    "GIF's XMP": (gif(b"XMP DataXMP"), "XMP left out"),
    "GIF's XMP at the end": (gif(b"XMP DataXMP", at_end=True), "XMP left out"),
    "GIF's profile": (gif(b"ICCRGBG1012"), "colour profile left out"),
}

PLAIN: dict[str, bytes] = {
    "JPEG": jpeg(),
    "JPEG with XMP": jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), (0xFE, b"one")),
    "RGB TIFF": tiff(3),
    "RGBA TIFF": tiff(4, (338, 3, [2])),
    "PSD": psd(3),
    "PSD with alpha": psd(4),
    "JPEG 2000": jpeg_2000(),
    "DDS": saved(IMAGE, "DDS"),
    "DDS array of one": dds_10(0, 1),
    "a cursor": cursors(1),
    "FITS": fits(*axes(4, 4), "BZERO   =                  0.0", "BSCALE  =                    1"),
    "TGA": saved(IMAGE, "TGA"),
    "GIF": gif(b"NETSCAPE2.0"),
    "QOI": qoi(linear=False),
}


@pytest.mark.parametrize(("data", "note"), NAMED.values(), ids=NAMED)
def test_what_is_left_out_is_named(data: bytes, note: str) -> None:
    notes = read_picture(data).notes
    assert any(one.startswith(note) for one in notes), notes


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_nothing_is_named_where_nothing_is_left_out(data: bytes) -> None:
    assert read_picture(data).notes == ()
    assert open_image(data, strict=True).icc_profile is None


def test_metadata_of_photoshop_files() -> None:
    size = struct.pack(">IHHIHH", 300 << 16, 1, 1, 150 << 16, 1, 1)
    picture = read_picture(psd(3, 3, (1005, size), (1058, EXIF), (1060, XMP)))
    assert (picture.exif, picture.xmp, picture.resolution) == (EXIF, XMP, Resolution(300, 150))
    turned = EXIF.replace(b"\x0f\x01\x02\0\x08\0\0\0\x1a\0\0\0", b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
    picture = read_picture(psd(3, 3, (1005, size), (1058, turned)))
    assert (picture.width, picture.height, picture.exif) == (5, 7, None)
    assert picture.resolution == Resolution(150, 300)


def test_metadata_of_jpeg_2000_files() -> None:
    xmp_box = b"uuid" + bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + XMP
    picture = read_picture(jpeg_2000(xmp_box, b"uuidJpgTiffExif->JP2" + EXIF))
    assert (picture.exif, picture.xmp, picture.notes) == (EXIF, XMP, ())


def test_linear_colours_of_qoi() -> None:
    profile = read_picture(qoi(linear=True)).icc_profile
    assert profile is not None
    assert "Gamma 1 of the QOI file".encode("utf-16-be") in profile


@pytest.mark.parametrize(("kind", "code"), [(3, "H"), (4, "I"), (5, "II"), (11, "f")])
@pytest.mark.parametrize("unit", [1, 2, 3])
def test_resolution_of_exif_data_in_every_type(kind: int, code: str, unit: int) -> None:
    x, y = ((118, 1), (59, 1)) if code == "II" else ((118,), (59,))
    values = [struct.pack(f"<{code}", *number) for number in (x, y)]
    table = b""
    for tag, value, place in ((282, values[0], 50), (283, values[1], 58)):
        inside = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", place)
        table += struct.pack("<HHI", tag, kind, 1) + inside
    table += struct.pack("<HHIHH", 296, 3, 1, unit, 0)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + table + bytes(4) + b"".join(values)
    image = Image.fromarray(RGB)
    image.info["exif"] = b"Exif\0\0" + data
    scale = 2.54 if unit == 3 else 1
    assert open_image(image).resolution == Resolution(118 * scale, 59 * scale, absolute=unit != 1)


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize("name", NAMED)
def test_cut_files_raise_nothing_but_ours(name: str) -> None:
    from mlic_fast.errors import MlicError

    data = NAMED[name][0]
    for end in range(0, len(data), max(1, len(data) // 40)):
        try:
            read_picture(data[:end])
        except MlicError:
            continue


def test_an_image_that_is_open_is_asked_too() -> None:
    with Image.open(io.BytesIO(psd(5))) as image:
        picture = read_picture(image)
    assert picture.notes == ("2 further channels left out",)
    assert np.array_equal(picture.pixels[..., 0], np.arange(35, dtype=np.uint8).reshape(5, 7))
