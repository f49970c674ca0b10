# SPDX-License-Identifier: Apache-2.0
"""The picture as it is coded: its type, its planes, and the PIL image of them. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlic_fast.bitstream.container import Mode as Mode
from mlic_fast.pictures.resolution import Resolution

Pixels = npt.NDArray[np.uint8]

# PIL's mode of the decoded picture.
PILLOW_MODES: dict[Mode, str] = {"grey": "L", "grey-alpha": "LA", "rgb": "RGB", "rgb-alpha": "RGBA"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it is coded: upright, 8 bits a sample, and what came with it.

    pixels: uint8 [H, W, 3] for "rgb" and "rgb-alpha", [H, W] for "grey" and "grey-alpha"; read-only.
    alpha: uint8 [H, W], 0 transparent to 255 opaque, colours not multiplied by it; read-only.
        There if and only if the mode has alpha.
    icc_profile: colour profile, if it applies to the pixels.
    exif: EXIF data as a TIFF file, without the "Exif\\0\\0" in front and without orientation.
    xmp: XMP packet, UTF-8, without orientation.
    comment: as JPEG and GIF files have them.
    resolution: pixels an inch, or the shape of a pixel, of the upright picture.
    notes: what of the source could not be kept, in words.
    """

    pixels: Pixels
    mode: Mode
    alpha: Pixels | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    comment: str | None = None
    resolution: Resolution | None = None
    notes: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


def to_pillow(pixels: Pixels, alpha: Pixels | None = None) -> Image.Image:
    """Pixels [H, W, 3] or [H, W] and alpha [H, W] as a PIL image: mode "L", "LA", "RGB" or "RGBA"."""
    return Image.fromarray(pixels if alpha is None else np.dstack((pixels, alpha)))


def planes(samples: Pixels) -> tuple[Pixels, Mode, Pixels | None]:
    """Split [H, W], [H, W, 2], [H, W, 3] or [H, W, 4] into pixels, their mode and alpha."""
    if samples.ndim == 2:
        return _frozen(samples), "grey", None
    channels = samples.shape[2]
    if channels == 3:
        return _frozen(samples), "rgb", None
    alpha = _frozen(np.ascontiguousarray(samples[..., -1]))
    if channels == 2:
        return _frozen(np.ascontiguousarray(samples[..., 0])), "grey-alpha", alpha
    return _frozen(np.ascontiguousarray(samples[..., :3])), "rgb-alpha", alpha


def _frozen(pixels: Pixels) -> Pixels:
    pixels.flags.writeable = False
    return pixels
