# SPDX-License-Identifier: Apache-2.0
"""EXIF data in a TIFF file, byte for byte: Pillow would decode them and write them anew.

EXIF data are a TIFF file without pixels, so they can be the beginning of one with pixels: all that they point to, and
that maker notes point to, stays where it was. Only the first directory is made anew, with the tags of the pixels.
"""

from __future__ import annotations

import struct

from mlic_fast.pictures.exif import PREFIX, STORAGE, Entry, Tiff, tiff_of

_STRIPS, _STRIP_BYTES = 273, 279
_WIDTHS = {3: 2, 8: 2, 4: 4, 5: 4, 9: 4, 10: 4, 11: 4, 13: 4, 12: 8}  # bytes that belong together, of each type
_MOST = 2**32 - 1


def with_exif(tiff: bytes, data: bytes) -> bytes:
    """A TIFF file with strips and without EXIF data, and these: their tags beside its own, which go first.

    data: with or without prefix. Raises ValueError where either is damaged or a BigTIFF file, or both are too large.
    """
    blob = data.removeprefix(PREFIX)
    pixels, theirs = Tiff(lambda offset, count: tiff[offset : offset + count]), tiff_of(blob)
    if pixels.big or theirs.big or len(tiff) + len(blob) > _MOST - 2**20:
        raise ValueError("EXIF data cannot be in BigTIFF files")
    kept, _ = theirs.directory(theirs.first, values=False)
    start = theirs.first + 2
    table = {entry.tag: blob[start + 12 * i : start + 12 * i + 12] for i, entry in enumerate(kept)}
    table = {tag: entry for tag, entry in table.items() if tag not in STORAGE}

    own = {entry.tag: entry for entry in pixels.directory(pixels.first)[0]}
    if _STRIPS not in own or _STRIP_BYTES not in own:
        raise ValueError("a TIFF file without strips")
    out = bytearray(blob) + bytes(len(blob) % 2)
    places = []
    for place, size in zip(*(_numbers(pixels, own[tag]) for tag in (_STRIPS, _STRIP_BYTES)), strict=True):
        places.append(len(out))
        out += tiff[place : place + size] + bytes(size % 2)
    order = theirs.order
    for tag, entry in own.items():
        kind, value = entry.type, _turned(entry, pixels.order, order)
        if tag == _STRIPS:
            kind, value = 4, struct.pack(f"{order}{len(places)}I", *places)
        if len(value) > 4:
            place = len(out)
            out += value + bytes(len(value) % 2)
            value = struct.pack(f"{order}I", place)
        table[tag] = struct.pack(f"{order}HHI", tag, kind, entry.count) + value.ljust(4, b"\0")
    struct.pack_into(f"{order}I", out, 4, len(out))
    return bytes(out) + struct.pack(f"{order}H", len(table)) + b"".join(table[tag] for tag in sorted(table)) + bytes(4)


def _numbers(tiff: Tiff, entry: Entry) -> list[int]:
    kind = {3: "H", 4: "I"}.get(entry.type)
    if kind is None or len(entry.value) != struct.calcsize(f"={kind}") * entry.count:
        raise ValueError("strips without places")
    return list(struct.unpack(f"{tiff.order}{entry.count}{kind}", entry.value))


def _turned(entry: Entry, order: str, wanted: str) -> bytes:
    """The value in the other byte order, if that is wanted."""
    width = _WIDTHS.get(entry.type)
    if order == wanted or width is None:
        return entry.value
    return b"".join(entry.value[at : at + width][::-1] for at in range(0, len(entry.value), width))
