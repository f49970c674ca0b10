# SPDX-License-Identifier: Apache-2.0
"""Bits a sample: how many the file has, whether 0 is white, and samples of more than 8 bits reduced to 8.

The file's own head is asked, since Pillow gives the higher byte of much that is deeper and calls it 8 bits.
"""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlic_fast.errors import ImageError
from mlic_fast.pictures import boxes
from mlic_fast.pictures.exif import Read
from mlic_fast.pictures.picture import Pixels

DEEP_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_MAX_16_BIT = 65_535
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES = 258, 262, 284  # TIFF's tags


@dataclass(frozen=True)
class Depth:
    """bits: of a sample in the file, 8 for all that have fewer. cut: Pillow reduces them to 8 without being asked.

    white_is_zero: Pillow's samples are to be turned round.
    """

    bits: int
    cut: bool = False
    white_is_zero: bool = False


def depth_of(image: Image.Image, read: Read | None) -> Depth:
    """The depth of a PIL image's file; read: reads the file, None where it is not at hand."""
    if read is None:
        return Depth(16 if image.mode in DEEP_MODES else 8)
    bits, cut = 8, False
    kind = image.format
    if kind == "PNG":
        bits = read(24, 1)[0]
    elif kind == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        own = tags.get(_BITS_PER_SAMPLE, (1,))
        bits = max(own) if isinstance(own, tuple) and own else 8
        inverted = bits > 8 and tags.get(_PHOTOMETRIC) == 0 and not _pillow_turns_round()
        return Depth(max(bits, 8), white_is_zero=inverted)
    elif kind == "PPM":
        bits = _ppm_bits(image)
    elif kind == "SGI":
        bits, cut = 8 * read(3, 1)[0], True
    elif kind == "DDS":
        bits, cut = _dds_bits(image), True
    elif kind == "JPEG2000":
        bits, cut = boxes.jpeg_2000_bits(read), image.mode not in DEEP_MODES
        bits = 16 if bits > 8 and not cut else bits  # Pillow scales grey
    elif kind == "AVIF":
        bits, cut = boxes.avif_bits(read), True
    elif kind not in _EIGHT_BITS and image.mode in DEEP_MODES:
        bits = 16
    return Depth(max(bits, 8), cut and bits > 8)


def mend_planes(image: Image.Image) -> None:
    """Have Pillow take whole samples of an uncompressed 16-bit TIFF file whose channels lie apart.

    It takes each byte for a sample there, so that pixels make no sense, and says nothing.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if image.format != "TIFF" or tags.get(_PLANES) != 2 or max(tags.get(_BITS_PER_SAMPLE, (1,))) != 16:
        return
    order = "L" if tags.prefix == b"II" else "B"
    tiles: Any = getattr(image, "tile", None) or []
    for number, (codec, extents, offset, args) in enumerate(tiles):
        if codec == "raw" and isinstance(args, tuple) and len(args[0]) == 1:
            tiles[number] = type(tiles[number])(codec, extents, offset, (f"{args[0]};16{order}", *args[1:]))


# Of these no sample has more; rows of 5, 6 and 5 bits are pixels of 16 bits.
_EIGHT_BITS = {"BMP", "CUR", "DCX", "DIB", "FLI", "GIF", "JPEG", "MPO", "PCX", "PSD", "QOI", "SUN", "TGA", "WEBP"}


def _ppm_bits(image: Image.Image) -> int:
    """From the largest value that the file's head names."""
    bits = 16 if image.mode in DEEP_MODES else 8
    for tile in getattr(image, "tile", None) or []:
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        largest = [arg for arg in args if isinstance(arg, int) and not isinstance(arg, bool)]
        if tile[0] in {"ppm", "ppm_plain"} and largest and largest[0] > 255:
            bits = 16
    return bits


def _dds_bits(image: Image.Image) -> int:
    """Of block compression of half floats (BC6H), and of masks with more than 8 bits."""
    bits = 8
    for tile in getattr(image, "tile", None) or []:
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if tile[0] == "bcn" and args and args[0] == 6:
            return 16
        if tile[0] == "dds_rgb" and len(args) == 2:
            bits = max(bits, *(int(mask).bit_count() for mask in args[1]))
    return bits


@functools.cache
def _pillow_turns_round() -> bool:
    """Whether this Pillow gives 16-bit TIFF files whose 0 is white as grey whose 0 is black."""
    tags = [(256, 3, 1), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 0), (273, 4, 122), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, 2))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)).ljust(122, b"\0") + b"\0\0"
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as probe:
            return bool(np.asarray(probe)[0, 0] != 0)
    except Exception:  # a Pillow that reads no such file
        return True


def reduced_grey(image: Image.Image, depth: Depth, name: str) -> Pixels:
    """8-bit samples of a grey image with more: [H, W], or [H, W, 2] where one value is transparent."""
    deep = np.asarray(image).astype(np.int64)
    largest = 2**depth.bits - 1 if depth.bits in (10, 12, 14) else _MAX_16_BIT
    if deep.min() < 0 or deep.max() > largest:
        raise ImageError(f"{name} has samples outside 0 to {largest}: bring them into that range first")
    transparent = image.info.get("transparency")
    samples = reduced(largest - deep if depth.white_is_zero else deep, largest)
    if not isinstance(transparent, int):
        return samples
    return np.dstack((samples, np.where(deep == transparent, 0, 255).astype(np.uint8)))


def reduced(deep: npt.NDArray[Any], largest: int = _MAX_16_BIT) -> Pixels:
    """Samples from 0 to `largest`, an odd number, as 8-bit ones: round(x * 255 / largest), which has no ties."""
    wide = deep.astype(np.uint32)
    return ((wide * 255 + largest // 2) // largest).astype(np.uint8)
