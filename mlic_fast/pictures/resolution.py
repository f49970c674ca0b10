# SPDX-License-Identifier: Apache-2.0
"""How large a picture is meant to be: pixels an inch, or the shape of a pixel, as files of pictures have them."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mlic_fast.pictures import exif

_CHUNK = struct.Struct("<BII")
_STEP = 10_000  # parts of a pixel an inch in the chunk
_MAX = (2**32 - 1) / _STEP
_CENTIMETRES = 2.54  # an inch
_X, _Y, _UNIT = 282, 283, 296  # TIFF's tags


@dataclass(frozen=True)
class Resolution:
    """x, y: pixels an inch, across and down; where `absolute` is False, only their ratio means something."""

    x: float
    y: float
    absolute: bool = True

    @property
    def turned(self) -> Resolution:
        """That of the picture turned by a quarter."""
        return Resolution(self.y, self.x, self.absolute)

    def pack(self) -> bytes:
        """The resolution chunk."""
        return _CHUNK.pack(self.absolute, round(self.x * _STEP), round(self.y * _STEP))

    def __str__(self) -> str:
        if self.absolute:
            return f"{self.x:g} x {self.y:g} pixels an inch"
        return f"pixels of {self.y:g} to {self.x:g}, width to height"


def unpack(data: bytes) -> Resolution:
    """What a resolution chunk says. Raises ValueError for one that says nothing."""
    if len(data) != _CHUNK.size:
        raise ValueError(f"a resolution has {_CHUNK.size} bytes, not {len(data)}")
    absolute, x, y = _CHUNK.unpack(data)
    found = _made(x / _STEP, y / _STEP, absolute == 1) if absolute < 2 else None
    if found is None:
        raise ValueError("a resolution of 0, or of an unknown unit")
    return found


def of_pair(dpi: Any) -> Resolution | None:
    """Pixels an inch, across and down, as Pillow's users give them; None for what is none."""
    return _made(*_pair(dpi))


def of_image(image: Image.Image, exif_data: bytes | None) -> Resolution | None:
    """What the file of a PIL image says, before orientation; exif_data: as it carries them."""
    info = image.info
    if "jfif_density" in info:  # Pillow's own "dpi" may be a guess here
        x, y = _pair(info["jfif_density"])
        unit = info.get("jfif_unit")
        if unit in (1, 2):
            return _made(x, y) if unit == 1 else _made(x * _CENTIMETRES, y * _CENTIMETRES)
        found = _of_exif(exif_data)
        return found or (_made(x, y, absolute=False) if x != y else None)
    if image.format in {"JPEG", "MPO"}:
        return _of_exif(exif_data)
    if "dpi" in info:
        x, y = _pair(info["dpi"])
        if (x, y) != (1, 1):  # what Pillow gives for a TIFF file without any
            return _made(x, y)
    for name in ("aspect", "resolution"):
        if name in info:
            x, y = _pair(info[name])
            if x != y:
                return _made(x, y, absolute=False)
    return _of_exif(exif_data)


def _of_exif(data: bytes | None) -> Resolution | None:
    if not data:
        return None
    try:
        tiff = exif.tiff_of(data)
        x, y = (tiff.fractions(tiff.find(tag)) for tag in (_X, _Y))
        unit = tiff.find(_UNIT)
        unit_code = 2 if unit is None else tiff.number(unit)
    except ValueError:
        return None
    if not x or not y:
        return None
    if unit_code == 3:
        return _made(x[0] * _CENTIMETRES, y[0] * _CENTIMETRES)
    if unit_code == 1:
        return _made(x[0], y[0], absolute=False) if x[0] != y[0] else None
    return _made(x[0], y[0]) if unit_code == 2 else None


def _pair(value: Any) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0, 0.0
    return x, y


def _made(x: float, y: float, absolute: bool = True) -> Resolution | None:
    """A resolution, if the numbers can be one."""
    if not all(math.isfinite(value) and 1 / _STEP <= value <= _MAX for value in (x, y)):
        return None
    return Resolution(x, y, absolute)
