# SPDX-License-Identifier: Apache-2.0
"""What a file holds beside what Pillow gives of it: further pictures and channels, and metadata in other places.

Each format is asked in its own way. What can be carried is handed on (EXIF, XMP, resolution of Photoshop and JPEG 2000
files); the rest is named.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mlic_fast.pictures import boxes, exif
from mlic_fast.pictures.exif import Read
from mlic_fast.pictures.resolution import Resolution, of_pair

IPTC = "IPTC and Photoshop data left out"

_MPF_COUNT = 45057  # pictures, in a JPEG file's index of several
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/"
_SUB_IFDS, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 330, 277, 338, 339  # TIFF's tags
_TIFF_IPTC = (33723, 34377)  # the second with Photoshop's own data around it
_PSD_RESOLUTION, _PSD_IPTC, _PSD_EXIF, _PSD_XMP = 1005, 1028, 1058, 1060
_GIF_XMP, _GIF_PROFILE = b"XMP Data", b"ICCRGBG1"
_MAX_BLOCKS = 2**20  # of a GIF file that are looked at
_MAX_HEAD = 2880 * 100  # of a FITS file
_TEXT = 64


@dataclass(frozen=True)
class Unread:
    """exif, xmp, resolution: to be carried. notes: what cannot be."""

    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: Resolution | None = None
    notes: tuple[str, ...] = ()


def look(image: Image.Image, read: Read) -> Unread:
    """Look into the file of an image that is not decoded yet; read: reads it."""
    looker = _LOOKERS.get(image.format or "")
    try:
        return Unread() if looker is None else looker(image, read)
    except (ValueError, struct.error, IndexError):  # damaged there; Pillow judges the rest
        return Unread()


def _several(count: int, kind: str = "pictures") -> tuple[str, ...]:
    return (f"{count:,} {kind} in the file: one is taken, {count - 1:,} left out",) if count > 1 else ()


def _further(count: int) -> tuple[str, ...]:
    return (f"{count} further channel{'s' * (count > 1)} left out",) if count > 0 else ()


def _jpeg(image: Image.Image, read: Read) -> Unread:
    notes: tuple[str, ...] = ()
    parts: list[tuple[str, bytes]] = getattr(image, "applist", [])
    index = getattr(image, "info", {}).get("mp")
    if image.format == "JPEG" and isinstance(index, bytes):  # as an MPO file it would be counted
        count = exif.tiff_of(index)
        entry = count.find(_MPF_COUNT)
        notes += _several(0 if entry is None else count.number(entry) or 0, "pictures (a gain map is one)")
    if any(name == "APP1" and data.startswith(_EXTENDED_XMP) for name, data in parts):
        notes += ("extended XMP left out",)
    if any(name == "APP11" and data.startswith(b"JP") for name, data in parts):
        notes += ("JUMBF data (content credentials and others) left out",)
    comments = sum(name == "COM" for name, _ in parts)
    if comments > 1:
        notes += (f"{comments} comments in the file: the last is kept",)
    return Unread(notes=notes)


def _tiff(image: Image.Image, read: Read) -> Unread:
    tags: Any = getattr(image, "tag_v2", {})
    notes: tuple[str, ...] = ()
    below = tags.get(_SUB_IFDS, ())
    below = len(below) if isinstance(below, tuple) else 1
    if below:
        what = f"{below} picture{'s' * (below > 1)}"
        notes += (f"{what} below the first left out: raw data, other sizes or masks",)
    samples = tags.get(_SAMPLES, 1)
    extra = tags.get(_EXTRA_SAMPLES, ())
    alpha = image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}
    if isinstance(samples, int) and isinstance(extra, tuple):
        notes += _further(min(len(extra), samples) - alpha)
    signed = tags.get(_SAMPLE_FORMAT, ())
    if isinstance(signed, tuple) and 2 in signed and image.mode in {"L", "RGB", "RGBA"}:
        notes += ("signed samples taken as if they were unsigned",)
    if any(tag in tags for tag in _TIFF_IPTC):
        notes += (IPTC,)
    return Unread(notes=notes)


def _psd(image: Image.Image, read: Read) -> Unread:
    resources: dict[int, bytes] = {number: data for number, _, data in getattr(image, "resources", [])}
    notes = _further(int.from_bytes(read(12, 2), "big") - Image.getmodebands(image.mode))
    if resources.get(_PSD_IPTC):
        notes += (IPTC,)
    size = resources.get(_PSD_RESOLUTION, b"")
    pixels = of_pair([part / 65536 for part in struct.unpack(">I4xI", size[:12])]) if len(size) >= 12 else None
    return Unread(resources.get(_PSD_EXIF) or None, resources.get(_PSD_XMP) or None, pixels, notes)


def _jpeg_2000(image: Image.Image, read: Read) -> Unread:
    found = boxes.jpeg_2000_metadata(read)
    notes = _several(boxes.jpeg_2000_pictures(read))
    return Unread(found.get("exif"), found.get("xmp"), notes=notes)


def _dds(image: Image.Image, read: Read) -> Unread:
    head = read(0, 148)
    if len(head) < 128:
        return Unread()
    depth, more = (int.from_bytes(head[place : place + 4], "little") for place in (24, 112))
    faces = (more >> 10 & 0x3F).bit_count() if more & 0x200 else 1
    count = faces * (depth if more & 0x200000 else 1)
    if head[84:88] == b"DX10" and len(head) == 148:
        kind, flags, size = (int.from_bytes(head[place : place + 4], "little") for place in (132, 136, 140))
        count = max(1, size) * (6 if flags & 4 else 1) * (depth if kind == 4 else 1)
    return Unread(notes=_several(count))


def _cursor(image: Image.Image, read: Read) -> Unread:
    return Unread(notes=_several(int.from_bytes(read(4, 2), "little"), "cursors"))


def _fits(image: Image.Image, read: Read) -> Unread:
    head = read(0, _MAX_HEAD)
    cards: dict[bytes, bytes] = {}
    heads = 0
    for place in range(0, len(head) - 79, 80):
        key, value = head[place : place + 8].strip(), head[place + 10 : place + 80].split(b"/")[0].strip()
        if head[place + 8 : place + 10] == b"= ":
            heads += key in (b"SIMPLE", b"XTENSION")
            cards.setdefault(key, value) if heads < 2 else None
    notes: tuple[str, ...] = ()
    planes = 1
    for axis in range(3, 1 + int(cards.get(b"NAXIS", b"0"))):
        planes *= max(1, int(cards.get(b"NAXIS%d" % axis, b"1")))
    notes += _several(planes, "planes (colours may be some)")
    scaled = [name for name, plain in ((b"BZERO", 0), (b"BSCALE", 1)) if float(cards.get(name, plain)) != plain]
    if scaled:
        notes += (
            f"{' and '.join(name.decode() for name in scaled)} not applied: samples are taken as they are stored",
        )
    return Unread(notes=notes)


def _photo_cd(image: Image.Image, read: Read) -> Unread:
    return Unread(notes=("larger versions in the file left out: 768 x 512 pixels are taken",))


def _targa(image: Image.Image, read: Read) -> Unread:
    text = image.info.get("id_section", b"")
    shown = bytes(text[:_TEXT]).decode("latin-1").strip("\0 ")
    return Unread(notes=(f"identification field left out: {shown}",) if shown else ())


def _bmp(image: Image.Image, read: Read) -> Unread:
    head = read(14, 124)
    linked = len(head) == 124 and int.from_bytes(head[:4], "little") >= 124 and head[56:60] == b"KNIL"
    return Unread(notes=("colour profile in another file left out",) if linked else ())


def _png(image: Image.Image, read: Read) -> Unread:
    signed = any(kind == b"caBX" for kind, _ in boxes.png_chunks(read))
    return Unread(notes=("JUMBF data (content credentials and others) left out",) if signed else ())


def _gif(image: Image.Image, read: Read) -> Unread:
    names = set(_gif_applications(read))
    notes = tuple(
        text for name, text in ((_GIF_XMP, "XMP left out"), (_GIF_PROFILE, "colour profile left out")) if name in names
    )
    return Unread(notes=notes)


def _gif_applications(read: Read) -> Iterator[bytes]:
    """Names, of 8 bytes, of the application extensions in a GIF file."""
    flags = read(10, 1)[0]
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(_MAX_BLOCKS):
        head = read(place, 19)
        if head[:1] == b"!" and len(head) > 10:
            if head[1] == 0xFF:
                yield head[3:11]
            place = _after_blocks(read, place + 2)
        elif head[:1] == b"," and len(head) > 10:
            flags = head[9]
            place = _after_blocks(read, place + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
        else:
            return


def _after_blocks(read: Read, place: int) -> int:
    """Where the blocks end that begin at this place."""
    for _ in range(_MAX_BLOCKS):
        size = read(place, 1)
        place += 1 + (size[0] if size else 0)
        if not size or not size[0]:
            return place
    raise ValueError("blocks without an end")


_LOOKERS: dict[str, Callable[[Image.Image, Read], Unread]] = {
    "BMP": _bmp,
    "CUR": _cursor,
    "DDS": _dds,
    "FITS": _fits,
    "GIF": _gif,
    "JPEG": _jpeg,
    "JPEG2000": _jpeg_2000,
    "MPO": _jpeg,
    "PCD": _photo_cd,
    "PNG": _png,
    "PSD": _psd,
    "TGA": _targa,
    "TIFF": _tiff,
}
