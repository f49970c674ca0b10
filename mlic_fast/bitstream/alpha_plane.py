# SPDX-License-Identifier: Apache-2.0
"""What the alpha chunk may hold: one value for all pixels, or a PNG of the plainest kind.

Of the many things that a PNG can be, one is allowed: grey, 8 bits, not interlaced, of the
picture's size, with the chunks IHDR, IDAT and IEND alone. So a decoder for PNG meets nothing
here that it was not asked for, and the size of what it unpacks is known before it starts.
Bytes only, no pixels.
"""

from __future__ import annotations

import struct
import zlib

from mlic_fast.errors import BitstreamError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">IIBBBBB")
_GREY_8_BIT = (8, 0, 0, 0, 0)  # bit depth, colour type, compression, filter, interlace


def check(data: bytes, width: int, height: int) -> None:
    """Raise BitstreamError if `data` is no alpha chunk for a picture of this size.

    The compressed pixels are not looked at.
    """
    if len(data) == 1:
        return
    if not data.startswith(_SIGNATURE):
        raise BitstreamError("the alpha chunk is neither one byte nor a PNG: get the file again")
    position = len(_SIGNATURE)
    kinds: list[bytes] = []
    while position < len(data):
        if len(data) - position < 12:
            raise BitstreamError("the PNG in the alpha chunk ends early: get the file again")
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            raise BitstreamError("the PNG in the alpha chunk ends early: get the file again")
        kind, content = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], "big"):
            raise BitstreamError("the PNG in the alpha chunk is damaged (a checksum differs): get the file again")
        if not kinds:
            _check_head(kind, content, width, height)
        kinds.append(kind)
        position = end
    if len(kinds) < 3 or kinds[-1] != b"IEND" or set(kinds[1:-1]) != {b"IDAT"} or length != 0:
        raise BitstreamError("the PNG in the alpha chunk has other parts than IHDR, IDAT and IEND, in this order")


def _check_head(kind: bytes, content: bytes, width: int, height: int) -> None:
    if kind != b"IHDR" or len(content) != _HEAD.size:
        raise BitstreamError("the PNG in the alpha chunk does not begin with a header")
    *size, depth, colour, compression, filtering, interlace = _HEAD.unpack(content)
    if (depth, colour, compression, filtering, interlace) != _GREY_8_BIT:
        raise BitstreamError("the PNG in the alpha chunk is not plain grey with 8 bits a pixel")
    if tuple(size) != (width, height):
        raise BitstreamError(
            f"the alpha chunk is {size[0]} x {size[1]} pixels, the picture {width} x {height}: "
            "they do not belong together"
        )
