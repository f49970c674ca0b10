# SPDX-License-Identifier: Apache-2.0
"""A second reader of .mlic files, written from docs/bitstream.md alone: structure, no pictures.

Nothing of the package is imported, so what the two readers agree on is what the page says.
"""

from __future__ import annotations

import zlib
from typing import Any

MODES = {1: "grey", 2: "grey-alpha", 3: "rgb", 4: "rgb-alpha"}
MODELS = {
    0: ("mlicpp", "new"),
    1: ("mlicpp", "old"),
    2: ("mlic", "new"),
    3: ("mlic+", "new"),
    4: ("mlicv2", "new"),
    5: ("mlicv2", "guided"),
}
NEEDED = {1: "z_stream", 2: "y_stream", 3: "guard", 4: "alpha"}
SKIPPED = {0x81: "icc_profile", 0x82: "exif", 0x83: "xmp", 0x84: "comment", 0x85: "thumbnail", 0x86: "resolution"}


def demand(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Bytes:
    """What is left of the data, taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        demand(self.position + count <= len(self.data), f"{count} bytes are missing at {self.position}")
        self.position += count
        return self.data[self.position - count : self.position]

    def u8(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = 0
        for place in range(5):
            byte = self.u8()
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                demand(value < 2**32 and (byte > 0 or place == 0), "a number that is too large or too long")
                return value
        raise ValueError("a number of more than five bytes")

    def checksum(self, start: int) -> None:
        content = self.data[start : self.position]
        demand(zlib.crc32(content) == int.from_bytes(self.take(4), "little"), "a crc differs")


def read(data: bytes) -> dict[str, Any]:
    """Take a file apart. Raises ValueError where it is not as the page says."""
    file = Bytes(data)
    demand(file.take(5) == b"\x8dMLIC", "no magic")
    demand(file.u8() == 1, "version")
    body_length, width, height = file.varint(), file.varint(), file.varint()
    mode, model, padding, layout, guard = file.take(5)
    fingerprint = file.take(8)
    name = file.take(file.u8())
    file.checksum(0)
    demand(mode in MODES and model in MODELS and padding in (0, 1) and layout == 1 and guard in (0, 1), "codes")
    demand(width > 0 and height > 0, "an empty picture")
    demand(len(name) <= 64 and name.decode().isprintable(), "name")

    start = file.position
    chunks = []
    while file.position < start + body_length:
        kind = file.u8()
        chunks.append((kind, file.take(file.varint())))
    demand(file.position == start + body_length, "a chunk that goes beyond the body")
    file.checksum(start)
    demand(file.position == len(data), "something after the end")

    needed = {kind: content for kind, content in chunks if kind < 0x80}
    known = [kind for kind, _ in chunks if kind < 0x80 or kind in SKIPPED]
    demand(set(needed) <= set(NEEDED) and len(known) == len(set(known)), "an unknown chunk, or one that is there twice")
    demand({1, 2} <= set(needed), "a stream is missing")
    demand((3 in needed) == (guard == 1), "guard")
    demand((4 in needed) == (mode in (2, 4)), "alpha")
    skipped = [(kind, content) for kind, content in chunks if kind >= 0x80]
    demand(len(skipped) <= 64, "too many chunks")
    demand(len(dict(skipped).get(0x85, b"")) <= 65536, "a large thumbnail")
    return {
        "width": width,
        "height": height,
        "mode": MODES[mode],
        "architecture": MODELS[model][0],
        "variant": MODELS[model][1],
        "padding": ("zero", "fade")[padding],
        "name": name.decode(),
        "fingerprint": fingerprint.hex(),
        "chunks": {NEEDED[kind]: content for kind, content in needed.items()},
        "alpha": alpha(needed[4], width, height) if 4 in needed else None,
        "resolution": resolution(dict(skipped)[0x86]) if 0x86 in dict(skipped) else None,
        "metadata": [(SKIPPED.get(kind, f"{kind:#04x}"), content) for kind, content in skipped],
    }


def resolution(content: bytes) -> tuple[float, float, bool] | None:
    """Across, down, and whether they are pixels an inch; None where the chunk says nothing."""
    if len(content) != 9 or content[0] > 1:
        return None
    x, y = (int.from_bytes(content[start : start + 4], "little") / 10_000 for start in (1, 5))
    return (x, y, content[0] == 1) if x and y else None


def alpha(content: bytes, width: int, height: int) -> bytes:
    """The filtered rows of the alpha chunk's PNG, or the one byte."""
    if len(content) == 1:
        return content
    file = Bytes(content)
    demand(file.take(8) == b"\x89PNG\r\n\x1a\n", "no PNG")
    parts: list[tuple[bytes, bytes]] = []
    while file.position < len(content):
        length = int.from_bytes(file.take(4), "big")
        kind, part = file.take(4), file.take(length)
        demand(zlib.crc32(kind + part) == int.from_bytes(file.take(4), "big"), "a crc in the PNG differs")
        parts.append((kind, part))
    kinds = [kind for kind, _ in parts]
    demand(len(kinds) >= 3 and kinds == [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"], "chunks of the PNG")
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    demand(parts[0][1] == head and parts[-1][1] == b"", "head or end of the PNG")
    size = height * (width + 1)
    rows = zlib.decompressobj().decompress(b"".join(part for _, part in parts[1:-1]), size + 1)
    demand(len(rows) == size, "the PNG's pixels")
    return rows
