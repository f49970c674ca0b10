# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out, under one name: what `mlic_fast.image` offers."""

from __future__ import annotations

from mlic_fast.pictures.alpha import pack_alpha, unpack_alpha
from mlic_fast.pictures.picture import PILLOW_MODES, Mode, Picture, Pixels, to_pillow
from mlic_fast.pictures.reading import open_image, read_head, read_picture
from mlic_fast.pictures.tensors import FADE, Padding, Rounding, crop, pad_to_64, to_pixels, to_tensor

__all__ = [
    "FADE",
    "PILLOW_MODES",
    "Mode",
    "Padding",
    "Picture",
    "Pixels",
    "Rounding",
    "crop",
    "open_image",
    "pack_alpha",
    "pad_to_64",
    "read_head",
    "read_picture",
    "to_pillow",
    "to_pixels",
    "to_tensor",
    "unpack_alpha",
]
