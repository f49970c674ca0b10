# SPDX-License-Identifier: Apache-2.0
"""The file layout of the official MLIC++ test script: five numbers and two streams.

All numbers are big-endian uint32: height, width (before padding), height and width of z,
number of strings (2: y, z), then for each its length and its bytes. There is no magic, no
checksum and no word on the weights, so much damage goes unnoticed here; what can be checked
is. Bytes only, no torch. docs/bitstream.md has the table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from mlic_fast.errors import BitstreamError, TruncatedFileError
from mlic_fast.limits import Limits

_HEAD = struct.Struct(">5I")
_LENGTH = struct.Struct(">I")
_STRINGS = 2
_MAX_UINT32 = 2**32 - 1


@dataclass(frozen=True)
class OfficialFile:
    """Contents of a file in the official layout.

    height, width: size of the picture in pixels, before zero-padding on the right and bottom.
    y, z: the streams of a batch of one. Raises BitstreamError for values that do not fit.
    """

    height: int
    width: int
    y: bytes
    z: bytes

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if not 1 <= value <= _MAX_UINT32:
                raise BitstreamError(f"{name} must be 1 to {_MAX_UINT32}, not {value}")
        for name, stream in (("y", self.y), ("z", self.z)):
            if len(stream) > _MAX_UINT32:
                raise BitstreamError(f"the {name} stream has {len(stream)} bytes; the official layout ends at 4 GiB")

    @property
    def z_shape(self) -> tuple[int, int]:
        """Height and width of z: one position for each 64 x 64 pixels, rounded up."""
        return -(-self.height // 64), -(-self.width // 64)


def write(file: OfficialFile) -> bytes:
    """Put the contents together as the official test script does."""
    head = _HEAD.pack(file.height, file.width, *file.z_shape, _STRINGS)
    return head + b"".join(_LENGTH.pack(len(stream)) + stream for stream in (file.y, file.z))


def read(data: bytes | bytearray | memoryview, limits: Limits | None = None) -> OfficialFile:
    """Take a file in the official layout apart, believing nothing.

    limits: what the picture may measure; default: `Limits()`, Pillow's pixel limit.
    Raises TruncatedFileError, LimitError or BitstreamError.
    """
    data = bytes(data)
    if len(data) < _HEAD.size:
        raise TruncatedFileError(
            f"a file in the official layout has a head of {_HEAD.size} bytes, this has {len(data)}"
        )
    height, width, z_height, z_width, strings = _HEAD.unpack_from(data)
    if not has_head(data):
        raise BitstreamError(
            "not a file in the official layout, or a damaged one: its head says "
            f"picture {height} x {width}, z {z_height} x {z_width}, {strings} strings"
        )
    Limits.of(limits).check(width, height, "the picture in the official file")
    streams = []
    position = _HEAD.size
    for name in ("y", "z"):
        start = position + _LENGTH.size
        if start > len(data):
            raise TruncatedFileError(f"the official file ends at {len(data)} bytes, before its {name} stream")
        length = _LENGTH.unpack_from(data, position)[0]
        position = start + length
        if position > len(data):
            raise TruncatedFileError(
                f"the official file ends early: its {name} stream has {length} bytes, {len(data) - start} are there"
            )
        streams.append(data[start:position])
    if position != len(data):
        raise BitstreamError(f"{len(data) - position} bytes follow the end of the official file: not one whole file")
    return OfficialFile(height, width, y=streams[0], z=streams[1])


def has_head(data: bytes | bytearray | memoryview) -> bool:
    """Say whether the data begins as a file in the official layout must.

    Without a magic number, the relation between the five numbers is what tells such a file.
    """
    if len(data) < _HEAD.size:
        return False
    height, width, z_height, z_width, strings = _HEAD.unpack_from(data)
    return (
        height > 0 and width > 0 and (z_height, z_width) == (-(-height // 64), -(-width // 64)) and strings == _STRINGS
    )


def describe(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Say what a file in the official layout holds, as a dictionary that JSON can hold."""
    file = read(data, Limits(pixels=None, side=_MAX_UINT32))
    return {
        "format": "official",
        "file_bytes": len(data),
        "width": file.width,
        "height": file.height,
        "bits_per_pixel": 8 * len(data) / (file.width * file.height),
        "streams": {"z": len(file.z), "y": len(file.y)},
        "overhead_bytes": len(data) - len(file.z) - len(file.y),
    }
