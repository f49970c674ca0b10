# SPDX-License-Identifier: Apache-2.0
"""Planar Y'CbCr 4:4:4 as raw files hold it, and RGB: ITU-R BT.709 or BT.601, full or limited range, 8 or 10 bits.

With R', G', B' in [0, 1], K_R and K_B of the matrix, and n bits a sample (ITU-T H.273, 8.3):

    Y' = K_R R' + (1 - K_R - K_B) G' + K_B B'      Cb = (B' - Y') / (2 - 2 K_B)      Cr = (R' - Y') / (2 - 2 K_R)
    full:     round((2^n - 1) Y')                   round((2^n - 1) C + 2^(n-1))
    limited:  round(2^(n-8) (219 Y' + 16))          round(2^(n-8) (224 C + 128))

clipped to n bits; halves are rounded to even. Back, the same is solved for R', G', B', clipped and rounded to 8 bits.
10-bit samples have two bytes, the lower one first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlic_fast.errors import CodecRunError
from mlic_fast.pictures.picture import Pixels

Matrix = Literal["bt709", "bt601"]
Range = Literal["full", "limited"]

# K_R and K_B
_WEIGHTS: dict[Matrix, tuple[float, float]] = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}


@dataclass(frozen=True)
class YuvFormat:
    """depth: bits a sample, 8 or 10. matrix, range: what samples mean."""

    depth: int = 8
    matrix: Matrix = "bt709"
    range: Range = "full"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a sample in a file."""
        return np.dtype("u1" if self.depth == 8 else "<u2")

    def size(self, width: int, height: int) -> int:
        """Bytes of a picture."""
        return 3 * width * height * self.dtype.itemsize


def to_yuv(pixels: Pixels, form: YuvFormat) -> bytes:
    """The three planes of uint8 [H, W, 3], or of [H, W], whose chroma is that of grey."""
    rgb = np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3)) / 255.0
    k_r, k_b = _WEIGHTS[form.matrix]
    red, green, blue = (rgb[..., channel] for channel in range(3))
    luma = k_r * red + (1 - k_r - k_b) * green + k_b * blue
    planes = (luma, (blue - luma) / (2 - 2 * k_b), (red - luma) / (2 - 2 * k_r))
    largest = 2**form.depth - 1
    return b"".join(
        np.rint(plane * scale + offset).clip(0, largest).astype(form.dtype).tobytes()
        for plane, (scale, offset) in zip(planes, _codes(form), strict=True)
    )


def from_yuv(data: bytes, width: int, height: int, form: YuvFormat) -> Pixels:
    """uint8 [height, width, 3]. Raises CodecRunError for data of another size or with samples of more bits."""
    if len(data) != form.size(width, height):
        raise CodecRunError(
            f"{len(data):,} bytes are no picture of {width} x {height} in 4:4:4 with {form.depth} bits a sample, which "
            f"takes {form.size(width, height):,}"
        )
    samples = np.frombuffer(data, form.dtype).reshape(3, height, width)
    if int(samples.max()) >= 2**form.depth:
        raise CodecRunError(f"samples go up to {samples.max()}, which is more than {form.depth} bits: wrong depth?")
    luma, cb, cr = (
        (plane - offset) / scale
        for plane, (scale, offset) in zip(samples.astype(np.float64), _codes(form), strict=True)
    )
    k_r, k_b = _WEIGHTS[form.matrix]
    red, blue = luma + (2 - 2 * k_r) * cr, luma + (2 - 2 * k_b) * cb
    green = (luma - k_r * red - k_b * blue) / (1 - k_r - k_b)
    rgb: npt.NDArray[np.float64] = np.stack((red, green, blue), axis=-1)
    return np.rint(rgb * 255).clip(0, 255).astype(np.uint8)


def _codes(form: YuvFormat) -> tuple[tuple[float, float], ...]:
    """Scale and offset of each plane's codes."""
    if form.range == "full":
        chroma = (2.0**form.depth - 1, 2.0 ** (form.depth - 1))
        return (chroma[0], 0.0), chroma, chroma
    unit = 2.0 ** (form.depth - 8)
    chroma = (224 * unit, 128 * unit)
    return (219 * unit, 16 * unit), chroma, chroma
