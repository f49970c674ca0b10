# SPDX-License-Identifier: Apache-2.0
"""Alpha in and out of its chunk: one byte, or a PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mlic_fast.bitstream.container import Mlic
from mlic_fast.errors import BitstreamError
from mlic_fast.pictures.picture import Pixels


def pack_alpha(alpha: Pixels) -> bytes:
    """The alpha chunk for this alpha [H, W]: one byte if all pixels have the same, otherwise a PNG."""
    if (alpha == alpha.flat[0]).all():
        return bytes([alpha.flat[0]])
    buffer = io.BytesIO()
    Image.fromarray(alpha).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def unpack_alpha(file: Mlic) -> Pixels | None:
    """The file's alpha [H, W], or None. Raises BitstreamError if the chunk's PNG is damaged."""
    if file.alpha is None:
        return None
    if len(file.alpha) == 1:
        return np.full((file.height, file.width), file.alpha[0], np.uint8)
    # What the PNG measures was checked when the file was taken apart, so Pillow's own limit, which
    # `Image.open` asks for and this class does not, has no say.
    try:
        with PngImageFile(io.BytesIO(file.alpha)) as image:
            return np.array(image)
    except MemoryError:
        raise
    except Exception as error:
        raise BitstreamError(
            f"the alpha chunk of the .mlic file is damaged ({type(error).__name__}: {error}): get the file again"
        ) from error
