# SPDX-License-Identifier: Apache-2.0
"""Colour profiles made of primaries and a transfer function, for files that say how colours are meant in another way.

The profiles are of ICC.1 version 4: a matrix and a parametric curve, or for grey a curve alone, in some 400 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_LEAST_Y = 1e-4


@dataclass(frozen=True)
class Primaries:
    """Chromaticities x, y of white, red, green and blue."""

    white: tuple[float, float]
    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]

    def is_near(self, other: Primaries, tolerance: float = 0.01) -> bool:
        """Whether no coordinate differs by more than the tolerance."""
        mine, theirs = (np.array([p.white, p.red, p.green, p.blue]) for p in (self, other))
        return bool(np.abs(mine - theirs).max() <= tolerance)


D65 = (0.3127, 0.3290)
SRGB = Primaries(D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE_RGB = Primaries(D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3 = Primaries(D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
BT_2020 = Primaries(D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
BT_601_625 = Primaries(D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06))
BT_601_525 = Primaries(D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))


@dataclass(frozen=True)
class Curve:
    """From stored values to light, by ICC's parametric curves: type 0 is x^g, type 3 that of sRGB and BT.709."""

    type: int
    parameters: tuple[float, ...]

    @classmethod
    def power(cls, gamma: float) -> Curve:
        """x^gamma."""
        return cls(0, (gamma,))


SRGB_CURVE = Curve(3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
BT_709_CURVE = Curve(3, (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081))
ADOBE_RGB_CURVE = Curve.power(563 / 256)

# ITU-T H.273: primaries and transfer functions that have a number there and fit into such a profile.
CODED_PRIMARIES = {1: SRGB, 5: BT_601_625, 6: BT_601_525, 7: BT_601_525, 9: BT_2020, 12: DISPLAY_P3}
CODED_CURVES = {
    **dict.fromkeys((1, 6, 14, 15), BT_709_CURVE),
    4: Curve.power(2.2),
    5: Curve.power(2.8),
    8: Curve.power(1.0),
    13: SRGB_CURVE,
}


def rgb_profile(name: str, primaries: Primaries, curve: Curve) -> bytes:
    """A profile of RGB colours. Raises ValueError for primaries that span no colours."""
    columns = _to_d50(primaries)
    colorants = {tag: _xyz(columns[:, index]) for index, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(curve))
    return _profile(b"RGB ", name, {**colorants, **curves, b"chad": _matrix(_adaptation(primaries.white))})


def grey_profile(name: str, curve: Curve) -> bytes:
    """A profile of grey."""
    return _profile(b"GRAY", name, {b"kTRC": _curve(curve)})


def _xyz_of(point: tuple[float, float]) -> Matrix:
    x, y = point
    if not (_LEAST_Y <= y <= 1 and 0 <= x <= 1):
        raise ValueError(f"no chromaticity: {x}, {y}")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _adaptation(white: tuple[float, float]) -> Matrix:
    """From colours under this white to those under D50, [3, 3], by Bradford's method."""
    scale = (_BRADFORD @ np.array(_D50)) / (_BRADFORD @ _xyz_of(white))
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD)


def _to_d50(primaries: Primaries) -> Matrix:
    """XYZ of red, green and blue under D50 in columns, [3, 3]."""
    unscaled = np.stack([_xyz_of(point) for point in (primaries.red, primaries.green, primaries.blue)], axis=1)
    try:
        weights = np.linalg.solve(unscaled, _xyz_of(primaries.white))
    except np.linalg.LinAlgError as error:
        raise ValueError("primaries that span no colours") from error
    columns = np.asarray(_adaptation(primaries.white) @ (unscaled * weights))
    if not np.isfinite(columns).all() or np.abs(columns).max() > 100:
        raise ValueError("primaries that span no colours")
    return columns


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(values: Matrix) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values.tolist())


def _matrix(values: Matrix) -> bytes:
    return b"sf32\0\0\0\0" + _fixed(*values.reshape(-1).tolist())


def _curve(curve: Curve) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", curve.type, 0) + _fixed(*curve.parameters)


def _text(text: str) -> bytes:
    content = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(content), 28) + content


def _profile(space: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    # in the public domain: nothing in it is anybody's work
    tags = {b"desc": _text(name), b"cprt": _text("CC0"), b"wtpt": _xyz(np.array(_D50)), **tags}
    start = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    data = b""
    places: dict[bytes, int] = {}
    for tag, content in tags.items():
        if content not in places:  # the three curves are one
            places[content] = start + len(data)
            data += content + bytes(-len(content) % 4)
        table += struct.pack(">4sII", tag, places[content], len(content))
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04300000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp").ljust(68 - len(head), b"\0") + _fixed(*_D50)
    return head.ljust(128, b"\0") + table + data
