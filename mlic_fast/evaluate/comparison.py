# SPDX-License-Identifier: Apache-2.0
"""Comparing files: how large they are and how far their pictures are from a reference picture.

A file is an .mlic file, one in the layout of the official test script, or a picture in any format that Pillow reads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlic_fast.bitstream import sniff
from mlic_fast.errors import ImageError
from mlic_fast.evaluate.metrics import bits_per_pixel, measure
from mlic_fast.limits import Limits
from mlic_fast.pictures.image import Picture, Pixels, open_image, read_picture


@dataclass(frozen=True, eq=False)
class Entry:
    """One file of a comparison.

    name: as it was given. bytes, bpp: of the whole file. picture: what it decodes to.
    psnr: decibels against the reference, infinite for equal pixels. ms_ssim: 0 to 1; None for pictures smaller than
    161 pixels in one direction. Both are None for the reference itself. notes: what a reader of the numbers must know.
    """

    name: str
    picture: Picture
    bytes: int
    bpp: float
    psnr: float | None = None
    ms_ssim: float | None = None
    notes: tuple[str, ...] = ()


def compare_files(
    reference: str | os.PathLike[str],
    others: Sequence[str | os.PathLike[str]],
    *,
    model: Any = None,
    device: Any = None,
    limits: Limits | None = None,
    reduce_depth: bool = False,
) -> tuple[Entry, ...]:
    """Read the files, decode what is compressed, and measure; the reference comes first.

    Colours are compared as 8-bit samples: grey is repeated where the other picture is RGB, alpha is left out,
    colour profiles are not applied. Decoded pictures are rounded, as users get them.

    reference, others: paths. model: weights for compressed files; None: found by their fingerprints.
    device, limits: as for `decode`. reduce_depth: as for `open_image`.

    Raises ImageError for what is no picture or has another size than the reference, OSError, and what `decode` raises.
    """

    def read(path: str | os.PathLike[str]) -> Entry:
        return _read(path, model, device, limits, reduce_depth)

    first = read(reference)
    return first, *(_measured(first, read(other)) for other in others)


def _read(path: str | os.PathLike[str], model: Any, device: Any, limits: Limits | None, reduce_depth: bool) -> Entry:
    name = os.fspath(path)
    file = Path(path)
    if file.is_dir():
        raise ImageError(f"{name} is a folder: give the names of pictures in it")
    source: Any = file
    with file.open("rb") as opened:
        head = opened.read(64)
        compressed = sniff(head) != "unknown"
        if compressed or file.is_fifo():  # a pipe gives its contents once
            source = head + opened.read()
    if compressed:
        from mlic_fast.codec import decode

        picture = open_image(decode(source, model, device=device, limits=limits), limits)
    else:
        picture = read_picture(source, limits, reduce_depth)
    size = file.stat().st_size if source is file else len(source)
    return Entry(name, picture, size, bits_per_pixel(size, picture.height, picture.width), notes=picture.notes)


def _measured(reference: Entry, entry: Entry) -> Entry:
    a, b = reference.picture, entry.picture
    if (a.width, a.height) != (b.width, b.height):
        raise ImageError(
            f"{entry.name} is {b.width} x {b.height}, the reference {reference.name} {a.width} x {a.height}: "
            "pictures of one size can be compared; crop or scale one of them first"
        )
    notes = list(entry.notes)
    if (a.icc_profile or b.icc_profile) and a.icc_profile != b.icc_profile:
        notes.append("another colour profile than the reference: samples are compared, not the colours seen")
    if not _same_alpha(a, b):
        notes.append("another alpha channel than the reference: colours alone are compared")
    quality, similarity = measure(*alike(a, b))
    return Entry(entry.name, b, entry.bytes, entry.bpp, quality, similarity, tuple(notes))


def alike(a: Picture, b: Picture) -> tuple[Pixels, Pixels]:
    """Pixels of two pictures in one shape: [H, W] if both are grey, else [H, W, 3]."""
    if a.pixels.ndim == b.pixels.ndim:
        return a.pixels, b.pixels
    return _rgb(a.pixels), _rgb(b.pixels)


def _rgb(pixels: Pixels) -> Pixels:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _same_alpha(a: Picture, b: Picture) -> bool:
    if a.alpha is None or b.alpha is None:
        return all(picture.alpha is None or bool((picture.alpha == 255).all()) for picture in (a, b))
    return np.array_equal(a.alpha, b.alpha)
