# SPDX-License-Identifier: Apache-2.0
"""EXIF data as bytes: entries are taken out in place, so that all others stay what they were, maker notes too.

EXIF data are a TIFF file without pixels: a directory (IFD0), the Exif, GPS and interoperability directories that it
points to, and a second one (IFD1) for a thumbnail. Nothing is decoded and written again, since types, texts that are
not ASCII, and the offsets in maker notes would not survive that. Of TIFF files, whose metadata lie among the tags that
say how pixels are stored, the others are copied, value for value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PREFIX = b"Exif\0\0"  # in front of EXIF data in JPEG files, and in Pillow's info

Read = Callable[[int, int], bytes]  # (offset, count) → bytes; fewer at the end

ORIENTATION = 0x0112
_EXIF_IFD, _GPS_IFD, _INTEROPERABILITY_IFD = 0x8769, 0x8825, 0xA005
_POINTERS = (_EXIF_IFD, _GPS_IFD, _INTEROPERABILITY_IFD)
_THUMBNAIL_PLACES = ((0x0201, 0x0202), (0x0111, 0x0117))  # offset and length of a JPEG, of strips

# Tags that say how a TIFF file stores its pixels. With another file's pixels they would be wrong.
STORAGE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292}
    | {293, 297, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 338, 339, 340, 341, 342, 347, 700}
    | {*range(512, 522), 529, 530, 531, 532, 33723, 34377, 34675}
)
_UNWANTED = STORAGE | {ORIENTATION}

# Bytes of one value of each type of TIFF.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {3: "H", 4: "I", 8: "h", 9: "i", 11: "f", 12: "d"}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

_MAX_ENTRIES = 4096
_MAX_BYTES = 64 * 2**20  # of what is copied of a TIFF file; what is kept has a limit of its own


@dataclass(frozen=True)
class Entry:
    """One entry of a directory. value: in the file's byte order. offset: where the value is."""

    tag: int
    type: int
    count: int
    value: bytes
    offset: int


class Tiff:
    """The directories of a TIFF file. Raises ValueError for what is none, and where it is damaged."""

    def __init__(self, read: Read) -> None:
        head = read(0, 16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        magic = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
        if order is None or magic not in (42, 43) or (magic == 43 and len(head) < 16):
            raise ValueError("no TIFF header")
        self.order, self.big = order, magic == 43
        self._read = read
        self._left = _MAX_BYTES
        self.first: int = self._number("Q", head[8:16]) if self.big else self._number("I", head[4:8])

    def _number(self, kind: str, data: bytes) -> int:
        if len(data) != struct.calcsize(f"={kind}"):
            raise ValueError("a directory ends early")
        return int(struct.unpack(f"{self.order}{kind}", data)[0])

    def directory(self, offset: int, *, values: bool = True) -> tuple[list[Entry], int]:
        """Entries of the directory at the offset, and where the next one is (0: there is none).

        values: False leaves them empty. A value that goes beyond the end of the file is cut there.
        """
        count_size, step, inline = (8, 20, 8) if self.big else (2, 12, 4)
        count = self._number("Q" if self.big else "H", self._read(offset, count_size))
        if offset < 8 or count > _MAX_ENTRIES:
            raise ValueError("no directory where one should be")
        table = self._read(offset + count_size, count * step)
        if len(table) < count * step:
            raise ValueError("a directory ends early")
        entries = []
        word = "Q" if self.big else "I"
        for start in range(0, len(table), step):
            tag, kind = struct.unpack_from(f"{self.order}HH", table, start)
            number = self._number(word, table[start + 4 : start + step - inline])
            size = _SIZES.get(kind, 0) * number
            place = offset + count_size + start + step - inline
            if size > inline:
                place = self._number(word, table[start + step - inline : start + step])
            value = b""
            if values:
                value = self._read(place, min(size, self._left + 1))
                self._left -= len(value)
                if self._left < 0:
                    raise ValueError("values of more bytes than EXIF data have")
            entries.append(Entry(tag, kind, number, value, place))
        after = self._read(offset + count_size + len(table), 8 if self.big else 4)
        return entries, self._number(word, after) if len(after) == struct.calcsize(f"={word}") else 0

    def number(self, entry: Entry) -> int | None:
        """The first value of an entry of whole numbers."""
        kind = _INTEGERS.get(entry.type)
        size = _SIZES.get(entry.type, 0)
        return self._number(kind, entry.value[:size]) if kind and len(entry.value) >= size else None

    def find(self, *tags: int) -> Entry | None:
        """The entry of the last tag, in the directory that the tags before it point to, from the first one on."""
        offset = self.first
        *pointers, last = tags
        for pointer in pointers:
            entry = next((entry for entry in self.directory(offset)[0] if entry.tag == pointer), None)
            target = None if entry is None else self.number(entry)
            if target is None:
                return None
            offset = target
        return next((entry for entry in self.directory(offset)[0] if entry.tag == last), None)

    def fractions(self, entry: Entry | None) -> list[float]:
        """The values of an entry of numbers, as floats; a fraction with a denominator of 0 ends the list."""
        if entry is None:
            return []
        if entry.type in _NUMBERS:
            kind = f"{self.order}{_NUMBERS[entry.type]}"
            whole = len(entry.value) // struct.calcsize(kind) * struct.calcsize(kind)
            return [float(value) for (value,) in struct.iter_unpack(kind, entry.value[:whole])]
        if entry.type not in (5, 10):
            return []
        found = []
        kind = "II" if entry.type == 5 else "ii"
        for above, below in struct.iter_unpack(f"{self.order}{kind}", entry.value[: len(entry.value) // 8 * 8]):
            if below == 0:
                break
            found.append(above / below)
        return found


def tiff_of(data: bytes) -> Tiff:
    """The directories of EXIF data, with or without their prefix. Raises ValueError."""
    raw = data.removeprefix(PREFIX)
    return Tiff(lambda offset, count: raw[offset : offset + count])


def stripped(data: bytes) -> bytes | None:
    """EXIF data, without prefix, orientation, storage tags and thumbnail; all other bytes as they were.

    None: nothing is left. Raises ValueError where the first directory is damaged.
    """
    raw = data.removeprefix(PREFIX)
    tiff = tiff_of(raw)
    entries, second = tiff.directory(tiff.first, values=False)
    if tiff.big:
        raise ValueError("EXIF data in the form of BigTIFF")
    kept = [number for number, entry in enumerate(entries) if entry.tag not in _UNWANTED]
    if not kept:
        return None
    if len(kept) == len(entries) and not second:
        return raw
    out = bytearray(raw)
    start = tiff.first + 2
    table = b"".join(raw[start + 12 * number : start + 12 * number + 12] for number in kept)
    struct.pack_into(f"{tiff.order}H", out, tiff.first, len(kept))
    old_end = min(start + 12 * len(entries) + 4, len(out))
    out[start:old_end] = table.ljust(old_end - start, b"\0")  # the next directory's place, 0, among the zeros
    if second:
        _cut_thumbnail(out, raw, tiff, second)
    return bytes(out)


def _cut_thumbnail(out: bytearray, raw: bytes, tiff: Tiff, second: int) -> None:
    """Take the second directory and its thumbnail out: cut them off at the end, or else overwrite them with zeros."""
    try:
        own = list(_extents(tiff, second, follow=False))
        used = list(_extents(tiff, tiff.first, follow=True))
    except ValueError:  # unlinked all the same
        return
    begin = min(start for start, _ in own)
    rest = bytearray(raw[begin:])
    for start, end in own:
        rest[start - begin : end - begin] = bytes(len(rest[start - begin : end - begin]))
    if not any(rest) and all(end <= begin for _, end in used):
        del out[begin:]
        return
    for start, end in own:
        if all(end <= other or start >= last for other, last in used):
            out[start:end] = bytes(len(out[start:end]))


def _extents(tiff: Tiff, offset: int, follow: bool, depth: int = 0) -> Iterator[tuple[int, int]]:
    """From where to where a directory and its values lie; follow: also those of directories that it points to."""
    entries, _ = tiff.directory(offset, values=True)
    yield offset, offset + 2 + 12 * len(entries) + 4
    numbers = {entry.tag: tiff.number(entry) for entry in entries}
    for entry in entries:
        size = _SIZES.get(entry.type, 0) * entry.count
        if size > 4:
            yield entry.offset, entry.offset + size
        target = numbers[entry.tag]
        if follow and entry.tag in _POINTERS and target is not None and depth < 2:
            yield from _extents(tiff, target, follow, depth + 1)
    for place, length in _THUMBNAIL_PLACES:
        first, size_of = numbers.get(place), numbers.get(length)
        if not follow and first is not None and size_of is not None:
            yield first, first + size_of


def of_tiff_file(read: Read, offset: int | None = None) -> bytes | None:
    """The metadata among a TIFF file's tags as EXIF data of their own; None: there are none.

    offset: of the picture's directory; None: the first. Values keep their bytes and types, in the file's byte order.
    Offsets inside of maker notes go on meaning the TIFF file. Raises ValueError for a damaged file.
    """
    tiff = Tiff(read)
    entries, _ = tiff.directory(tiff.first if offset is None else offset, values=False)
    wanted = {entry.tag for entry in entries} - _UNWANTED
    if not wanted:
        return None
    block = _written(tiff, tiff.first if offset is None else offset, 8, wanted)
    return (b"II" if tiff.order == "<" else b"MM") + struct.pack(f"{tiff.order}HI", 42, 8) + block


def _written(tiff: Tiff, offset: int, start: int, wanted: set[int] | None = None, depth: int = 0) -> bytes:
    """A directory with its values, and those that it points to, as they are to stand at `start`."""
    entries = _copied(tiff, offset, wanted)
    table = b""
    values = b""
    begin = start + 2 + 12 * len(entries) + 4
    for entry in entries:
        kind, value, count = entry.type, entry.value, entry.count
        if entry.tag in _POINTERS and depth < 2:
            target = tiff.number(entry)
            values += bytes(len(values) % 2)
            place = begin + len(values)
            values += _written(tiff, target or 0, place, depth=depth + 1)
            kind, count, value = 4, 1, struct.pack(f"{tiff.order}I", place)
        elif kind in (16, 17, 18):  # of BigTIFF alone; too large numbers are an error, struct.error
            wide, narrow = ("q", "i") if kind == 17 else ("Q", "I")
            numbers = struct.unpack(f"{tiff.order}{len(value) // 8}{wide}", value)
            kind, value = {16: 4, 17: 9, 18: 13}[kind], struct.pack(f"{tiff.order}{len(numbers)}{narrow}", *numbers)
        if len(value) > 4:
            values += bytes(len(values) % 2)
            place = begin + len(values)
            values += value
            value = struct.pack(f"{tiff.order}I", place)
        table += struct.pack(f"{tiff.order}HHI", entry.tag, kind, count) + value.ljust(4, b"\0")
    return struct.pack(f"{tiff.order}H", len(entries)) + table + bytes(4) + values


def _copied(tiff: Tiff, offset: int, wanted: set[int] | None) -> list[Entry]:
    heads, _ = tiff.directory(offset, values=False)
    tags = {entry.tag for entry in heads} if wanted is None else wanted
    if not tags:
        return []
    entries, _ = tiff.directory(offset)
    return sorted((entry for entry in entries if entry.tag in tags), key=lambda entry: entry.tag)
