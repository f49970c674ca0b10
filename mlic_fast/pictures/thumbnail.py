# SPDX-License-Identifier: Apache-2.0
"""The small copy of a picture that a file may carry."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from mlic_fast.bitstream.container import MAX_THUMBNAIL_BYTES
from mlic_fast.errors import BitstreamError, ImageError

if TYPE_CHECKING:
    from mlic_fast.pictures.picture import Picture

MAX_THUMBNAIL_SIDE = 512

_JPEG_QUALITIES = (85, 70, 50, 30)


def make_thumbnail(picture: Picture, side: int) -> bytes:
    """A small copy of the picture as JPEG, or as PNG if it has alpha; colours as the picture's profile says.

    side: of the longer side in pixels, 1 to 512; no picture is enlarged, and one whose file
    would be larger than 64 KiB becomes smaller. Raises ImageError for another side.
    """
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= MAX_THUMBNAIL_SIDE:
        raise ImageError(f"a thumbnail's longer side has 1 to {MAX_THUMBNAIL_SIDE} pixels, not {side!r}")
    from mlic_fast.pictures.picture import to_pillow  # and NumPy with it

    image = to_pillow(picture.pixels, picture.alpha)
    while True:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in _JPEG_QUALITIES if picture.alpha is None else (None,):
            buffer = io.BytesIO()
            if quality is None:
                image.save(buffer, "PNG", optimize=True)
            else:
                image.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= MAX_THUMBNAIL_BYTES:
                return buffer.getvalue()
        side = side * 3 // 4


def open_thumbnail(data: bytes) -> Image.Image:
    """Decode a thumbnail chunk. Raises BitstreamError if it is none: another format, damaged, too large."""
    try:
        image = thumbnail_head(data)
        image.load()
    except BitstreamError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise BitstreamError(f"the thumbnail in the .mlic file is damaged: {type(error).__name__}: {error}") from error
    return image


def thumbnail_head(data: bytes) -> Image.Image:
    """The thumbnail with its head read alone. Raises BitstreamError for one that is too large."""
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    if max(image.size) > MAX_THUMBNAIL_SIDE:
        width, height = image.size
        raise BitstreamError(
            f"the thumbnail in the .mlic file is {width} x {height}; a side may have {MAX_THUMBNAIL_SIDE} pixels"
        )
    return image
