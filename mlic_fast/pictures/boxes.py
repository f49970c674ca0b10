# SPDX-License-Identifier: Apache-2.0
"""What files made of chunks or boxes say before their pixels, where Pillow does not tell: PNG, AVIF, JPEG 2000, BMP."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from mlic_fast.pictures.exif import Read

_MAX_PARTS = 4096  # of one file; more are not looked through
_MAX_CONTENT = 16 * 2**20


def png_chunks(read: Read) -> Iterator[tuple[bytes, bytes]]:
    """Kind and first 64 bytes of the chunks before the pixels."""
    offset = 8
    for _ in range(_MAX_PARTS):
        head = read(offset, 72)
        if len(head) < 8 or head[4:8] in (b"IDAT", b"IEND"):
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:8], head[8 : 8 + min(length, 64)]
        offset += 12 + length


def boxes(read: Read, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the contents of the boxes (ISO 14496-12, JPEG 2000) between two offsets."""
    for _ in range(_MAX_PARTS):
        if start + 8 > end:
            return
        head = read(start, 16)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head[:8])
        begin = start + 8
        if length == 1 and len(head) == 16:
            length, begin = int.from_bytes(head[8:], "big"), start + 16
        stop = end if length == 0 else min(start + length, end)
        if stop < begin:
            return
        yield kind, begin, stop
        start = stop


def _within(read: Read, path: tuple[bytes, ...]) -> Iterator[bytes]:
    """Contents of the boxes at the end of this path."""
    places = [(0, 2**63)]
    for kind in path:
        found = [place for start, end in places for place in boxes(read, start, end) if place[0] == kind]
        # meta is a full box: version and flags come before what is in it
        places = [(begin + 4 * (kind == b"meta"), stop) for _, begin, stop in found[:_MAX_PARTS]]
    for start, end in places:
        yield read(start, min(end - start, _MAX_CONTENT))


def avif_bits(read: Read) -> int:
    """Bits a sample of an AVIF file's pictures, 8, 10 or 12, as the codec's configuration says."""
    bits = 8
    for content in _within(read, (b"meta", b"iprp", b"ipco", b"av1C")):
        if len(content) > 2 and content[2] & 0x40:
            bits = max(bits, 12 if content[2] & 0x20 else 10)
    return bits


def avif_coding(read: Read) -> tuple[int, int] | None:
    """The numbers (ITU-T H.273) of an AVIF file's primaries and transfer function."""
    for content in _within(read, (b"meta", b"iprp", b"ipco", b"colr")):
        if content[:4] == b"nclx" and len(content) >= 8:
            primaries, transfer = struct.unpack(">HH", content[4:8])
            return primaries, transfer
    return None


def jpeg_2000_profile(read: Read) -> bytes | None:
    """The colour profile in a JP2 file."""
    for content in _within(read, (b"jp2h", b"colr")):
        if content[:1] in (b"\2", b"\3") and len(content) > 3:
            return content[3:]
    return None


# Identifiers of boxes in JP2 files: that of XMP, and that of EXIF data as ExifTool and others write them.
_JPEG_2000_UUIDS = {
    bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): "xmp",
    b"JpgTiffExif->JP2": "exif",
}


def jpeg_2000_metadata(read: Read) -> dict[str, bytes]:
    """EXIF data ("exif") and XMP ("xmp") in a JP2 file."""
    found: dict[str, bytes] = {}
    for content in _within(read, (b"uuid",)):
        name = _JPEG_2000_UUIDS.get(content[:16])
        if name is not None:
            found.setdefault(name, content[16:])
    return found


def jpeg_2000_pictures(read: Read) -> int:
    """How many codestreams a JPEG 2000 file holds."""
    return sum(kind == b"jp2c" for kind, _, _ in boxes(read, 0, 2**63)) if read(0, 2) != b"\xff\x4f" else 1


def jpeg_2000_bits(read: Read) -> int:
    """Bits a sample of a JPEG 2000 file or codestream: those of the deepest component."""
    start = 0
    if read(0, 2) != b"\xff\x4f":
        start = next((begin for kind, begin, _ in boxes(read, 0, 2**63) if kind == b"jp2c"), 0)
    head = read(start, 4 + 38)
    if len(head) < 42 or head[:4] != b"\xff\x4f\xff\x51":
        return 8
    count = int.from_bytes(head[40:42], "big")
    depths = read(start + 42, 3 * min(count, 16))[::3]
    return max(((depth & 0x7F) + 1 for depth in depths), default=8)


def bmp_profile(read: Read) -> bytes | None:
    """The colour profile in a BMP file of version 5."""
    head = read(14, 124)
    if len(head) < 124 or int.from_bytes(head[:4], "little") < 124 or head[56:60] != b"DEBM":
        return None
    offset, length = struct.unpack("<II", head[112:120])
    return read(14 + offset, min(length, _MAX_CONTENT)) or None


def bmp_calibration(read: Read) -> tuple[list[tuple[float, float]], float] | None:
    """Chromaticities of white, red, green and blue, and gamma (that of green), of a calibrated BMP file."""
    head = read(14, 108)
    if len(head) < 108 or int.from_bytes(head[:4], "little") < 108 or head[56:60] != bytes(4):
        return None
    ends = np.array(struct.unpack("<9i", head[60:96]), np.float64).reshape(3, 3)  # XYZ of red, green and blue
    gamma = int.from_bytes(head[100:104], "little") / 65536
    points = np.vstack((ends.sum(axis=0), ends))
    if not gamma or (points.sum(axis=1) <= 0).any():
        return None
    return [(float(x), float(y)) for x, y in points[:, :2] / points.sum(axis=1, keepdims=True)], gamma
