# SPDX-License-Identifier: Apache-2.0
"""Inputs made to do harm: pictures and compressed files that ask for far more than they are.

Run as a program (on Linux) it feeds them all to the package, with 128 MiB of memory to spare, and prints as JSON
what each came to: the error and the seconds.
"""

from __future__ import annotations

import json
import resource
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

Bytes = Callable[[], bytes]

SPARE = 128 * 2**20


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@cache
def png(width: int, height: int, colour: int = 0, extra: bytes = b"", rows: int | None = None) -> bytes:
    """A black PNG, 8 bits; colour: 0 grey, 6 with alpha; extra: chunks; rows: there really are, None: all."""
    packer = zlib.compressobj(1)
    row = bytes(1 + width * (4 if colour == 6 else 1))
    pixels = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = (_png_chunk(b"IHDR", head), extra, _png_chunk(b"IDAT", pixels), _png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def icon(picture: bytes) -> bytes:
    """An ICO file that says it is 16 × 16, with this picture in it."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def gif(width: int, height: int, frames: int) -> bytes:
    """A GIF of this size with frames of one pixel."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame * frames + b";"


def tiff(tags: list[tuple[int, int, int, int]], tail: bytes = bytes(400)) -> bytes:
    """A TIFF file with these tags (number, type, count, value) and something after them."""
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + directory + bytes(4) + tail


def tiff_strip(rows: int, length: int, width: int = 64) -> bytes:
    """A TIFF file whose one LZW strip says it has this many rows and bytes."""
    tags = [(256, width), (257, width), (258, 8), (259, 5), (262, 1), (273, 200), (277, 1), (278, rows), (279, length)]
    return tiff([(tag, 4, 1, value) for tag, value in tags])


def tiff_overlapping() -> bytes:
    """A TIFF file of 1 MB with 3,000 tags, each of which is all of the file."""
    size = [(tag, 3, 1, value) for tag, value in ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1))]
    return tiff([*size, *((30_000 + tag, 1, 2**20, 40_000) for tag in range(3000))], bytes(2**20 + 8000))


def _text_bomb(kind: bytes) -> bytes:
    return png(8, 8, extra=_png_chunk(kind, b"k\0\0" + zlib.compress(bytes(2**28), 1)))


def _xmp(packet: bytes) -> bytes:
    return png(8, 8, extra=_png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet))


PICTURES: dict[str, Bytes] = {
    "png of 10^10 pixels": partial(png, 100_000, 100_000, rows=1),
    "png of 13,000 x 13,000, all there": partial(png, 13_000, 13_000),
    "png longer than a side may be": partial(png, 70_000, 1),
    "icon of 13,000 x 13,000": lambda: icon(png(13_000, 13_000)),
    "gif of 65,000 x 65,000": partial(gif, 65_000, 65_000, 1),
    "truncated gif": lambda: gif(8, 8, 1)[:-12],
    "tiff with a strip of 4 GiB": partial(tiff_strip, 64, 0xFFFFFFF0),
    "tiff with 2^32 rows": partial(tiff_strip, 0xFFFFFFFF, 200),
    "tiff of 10^10 pixels": partial(tiff_strip, 64, 100, 100_000),
    "tiff of overlapping tags": tiff_overlapping,
    "compressed text of 256 MiB": partial(_text_bomb, b"zTXt"),
    "colour profile of 256 MiB": partial(_text_bomb, b"iCCP"),
    "ppm with a long number": lambda: b"P5\n" + b"9" * 10**6 + b" 1\n255\n",
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "truncated png": lambda: png(100, 100)[:-30],
    "nothing": bytes,
}
"""Pictures that must be refused."""

SLOW_PICTURES: dict[str, Bytes] = {
    "gif of 300,000 frames": partial(gif, 8, 8, 300_000),
    "XMP of spaces": lambda: _xmp(b" " * 500_000),
    "EXIF of overlapping tags": lambda: png(8, 8, extra=_png_chunk(b"eXIf", tiff_overlapping())),
}
"""Pictures that may be taken, but at no such cost as they invite to."""


@cache
def files() -> dict[str, bytes]:
    """Files, with right checksums, that must be refused before anything is decoded."""
    from mlic_fast.bitstream import container, official
    from mlic_fast.bitstream.container import Metadata, Mlic

    plain = Mlic(
        width=64,
        height=64,
        mode="rgb",
        variant="new",
        model_name="mlicpp-small",
        fingerprint=bytes(8),
        z=bytes(64),
        y=bytes(64),
    )

    def with_body(body: bytes) -> bytes:
        head = container.write(plain)[: -len(b"\x01\x40" + bytes(64)) * 2 - 8]
        number = _varint(len(body))
        header = head[:6] + number + head[8:]
        return header + zlib.crc32(header).to_bytes(4, "little") + body + zlib.crc32(body).to_bytes(4, "little")

    alpha = png(60_000, 60_000, rows=1)
    picture = png(64, 64)
    streams = b"\x01\x01z\x02\x01y"
    assert container.read(with_body(streams)).z == b"z"
    return {
        "picture of 2^64 pixels": container.write(replace(plain, width=2**32 - 1, height=2**32 - 1)),
        "picture just over the limit": container.write(replace(plain, width=9460, height=9460)),
        "picture longer than a side may be": container.write(replace(plain, width=70_000, height=1)),
        "16 million empty chunks": with_body(b"\xfe\x00" * 2**24 + streams),
        "metadata of 32 MiB": container.write(replace(plain, metadata=(Metadata(0xFE, bytes(2**25)),))),
        "alpha of another size": with_body(b"\x04" + _varint(len(alpha)) + alpha + streams),
        "alpha that the mode lacks": with_body(b"\x04" + _varint(len(picture)) + picture + streams),
        "other weights": container.write(plain),
        "official, picture of 2^64 pixels": official.write(
            official.OfficialFile(2**32 - 64, 2**32 - 64, y=bytes(64), z=bytes(64))
        ),
    }


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def main() -> None:
    """Feed everything to the package."""
    import mlic_fast
    from mlic_fast.pictures.image import open_image
    from mlic_fast.pictures.thumbnail import open_thumbnail

    network = mlic_fast.load("mlicpp-s-0.0067")
    mlic_fast.decode(mlic_fast.encode(Image.new("RGB", (64, 64)), network), network)  # what is loaded once is loaded
    prepared: list[tuple[str, Callable[[bytes], Any], bytes]] = []
    for name, make in {**PICTURES, **SLOW_PICTURES}.items():
        prepared.append((name, open_image, make()))
    for name, data in files().items():
        prepared.append((name, partial(mlic_fast.decode, model=network), data))
    prepared.append(("thumbnail of 13,000 x 13,000", open_thumbnail, png(13_000, 13_000)))
    prepared.append(("thumbnail of another format", open_thumbnail, gif(65_000, 65_000, 1)))
    prepared.append(("control", lambda data: bytearray(2 * SPARE), b""))
    # Address space, not what is touched: a large block is refused even where nobody would write to it.
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, resource.RLIM_INFINITY))
    results = {}
    for name, call, data in prepared:
        start = time.perf_counter()
        try:
            call(data)
            outcome = "taken"
        except mlic_fast.MlicError as error:
            outcome = type(error).__name__
        except Exception as error:
            outcome = f"not ours: {type(error).__name__}: {error}"
        results[name] = {"outcome": outcome, "seconds": time.perf_counter() - start}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
