# SPDX-License-Identifier: Apache-2.0
"""Alpha, and the transparent colours that files without alpha name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlic_fast.pictures.exif import Read
from mlic_fast.pictures.picture import Pixels

_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has alpha, or names a transparent colour."""
    palette = image.palette.mode if image.palette is not None else ""
    return (
        image.mode in _ALPHA_MODES
        or (image.mode in {"1", "L", "RGB", "P"} and "transparency" in image.info)
        or (image.mode == "P" and palette.endswith("A"))
    )


def png_value(image: Image.Image, read: Read | None) -> Any:
    """The transparent value of a PNG file's image in the image's own samples, or what `info` says.

    Grey of 2 and 4 bits comes from Pillow as 8 bits; the value that the file names does not.
    """
    value: Any = image.info.get("transparency")
    if value is None or image.format != "PNG" or read is None or isinstance(value, bytes):
        return value
    depth = read(24, 1)[0]
    if isinstance(value, int) and image.mode == "L" and depth in (2, 4) and value < 2**16:
        largest = 2**depth - 1
        return value if value > largest else value * (255 // largest)
    if depth == 8 and image.mode in {"L", "RGB"}:  # the lower bits alone count
        return value & 255 if isinstance(value, int) else tuple(part & 255 for part in value)
    return value


def deep_colours(source: Path | io.BytesIO | None, image: Image.Image) -> Pixels | None:
    """Of a PNG file with 16-bit colours and a transparent one: 0 where a pixel has it, 255 elsewhere, [H, W].

    None for an image whose file is not at hand. Pillow decodes the higher bytes; read as if they were stored the other
    way round, the same pixels give the lower ones.
    """
    wanted = image.info.get("transparency")
    if source is None or image.format != "PNG" or not isinstance(wanted, tuple):
        return None
    equal: Any = True
    for rawmode, shift in (("RGB;16B", 8), ("RGB;16L", 0)):
        again = Image.open(source if isinstance(source, Path) else io.BytesIO(source.getbuffer()), formats=("PNG",))
        with again:
            again.tile = [tile._replace(args=rawmode) for tile in again.tile]
            again.info.pop("transparency")
            bytes_of = np.asarray(again)  # [H, W, 3]
        equal = equal & (bytes_of == np.array([part >> shift & 255 for part in wanted])).all(axis=2)
    return np.where(equal, 0, 255).astype(np.uint8)
