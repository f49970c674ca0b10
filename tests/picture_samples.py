# SPDX-License-Identifier: Apache-2.0
"""Small pictures and files of them that the tests of pictures share."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = np.ascontiguousarray(RGB[..., 0])


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    width: int, height: int, depth: int, colour: int, data: bytes, packed: bytes | None = None, before: bytes = b""
) -> bytes:
    """A PNG made by hand, for what Pillow does not write; before: kind and content of one more chunk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    content = chunk(b"IHDR", head) + (chunk(before[:4], before[4:]) if before else b"")
    content += chunk(b"IDAT", zlib.compress(data) if packed is None else packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content
