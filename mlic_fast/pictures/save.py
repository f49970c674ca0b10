# SPDX-License-Identifier: Apache-2.0
"""Saving a decoded picture in another format, with its metadata where that format has a place for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mlic_fast.errors import ImageError
from mlic_fast.pictures.metadata import EXIF_PREFIX

# Formats whose files hold alpha; several others of Pillow's drop it without a word.
_WITH_ALPHA = {"AVIF", "JPEG2000", "PNG", "TGA", "TIFF", "WEBP"}
_WITH_PROFILE = {"AVIF", "JPEG", "PNG", "TIFF", "WEBP"}
_WITH_EXIF = _WITH_PROFILE
_WITH_XMP = _WITH_PROFILE
_WITH_COMMENT = {"GIF", "JPEG", "JPEG2000", "PNG"}
_XMP_TAG = 700

# What one JPEG marker holds, less the name that stands before the data.
_JPEG_SEGMENT = 65_533
_JPEG_ROOM = {
    "exif": _JPEG_SEGMENT,
    "xmp": _JPEG_SEGMENT - len("http://ns.adobe.com/xap/1.0/\0"),
    "comment": _JPEG_SEGMENT,
}


def save_picture(
    image: Image.Image, target: str | os.PathLike[str] | BinaryIO, format: str | None = None, **options: Any
) -> tuple[str, ...]:
    """Save a PIL image with the metadata that its `info` holds.

    target: path, or binary file object, which needs `format`.
    format: Pillow's name ("PNG", "JPEG", …); None: from the path's ending.
    options: as Pillow's plugin for the format takes them (quality, compress_level, …).

    Returns the names of what the format could not hold ("exif", "xmp", "comment", "icc_profile").
    Raises ImageError for an unknown ending, for alpha in a format that has none, and for what Pillow cannot
    write; OSError for a target that cannot be written to.
    """
    kind = _kind_of(target, format)
    if image.mode in {"LA", "RGBA"} and kind not in _WITH_ALPHA:
        raise ImageError(
            f"{kind} files hold no transparency: choose .png, .webp or .tif, or put the picture on a background first "
            "(Image.alpha_composite)"
        )
    own = {name: image.info[name] for name in ("icc_profile", "exif", "xmp", "comment") if image.info.get(name)}
    fitting = {name: data for name, data in own.items() if _fits(kind, name, data)}
    # a copy, because Pillow's plugins look into `info` as well as at the options
    plain = image.copy()
    plain.info = {}
    try:
        plain.save(target, kind, **{**_arguments(kind, fitting), **options})
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged metadata
        if isinstance(error, OSError) and error.errno is not None:  # the file system's word
            raise
        raise ImageError(f"Pillow cannot write this picture as {kind}: {type(error).__name__}: {error}") from error
    return tuple(name for name in own if name not in fitting)


def _kind_of(target: str | os.PathLike[str] | BinaryIO, format: str | None) -> str:
    Image.init()
    if format is not None:
        kind = format.upper()
    elif isinstance(target, (str, os.PathLike)):
        ending = Path(target).suffix.lower()
        kind = Image.EXTENSION.get(ending, f"a file that ends in {ending!r}")
    else:
        raise ImageError("a file object has no ending: say which format it is to have")
    if kind not in Image.SAVE:
        raise ImageError(f"Pillow does not write {kind}: use .png, .ppm, .tif, .webp, …")
    return kind


def _fits(kind: str, name: str, data: Any) -> bool:
    formats = {"icc_profile": _WITH_PROFILE, "exif": _WITH_EXIF, "xmp": _WITH_XMP, "comment": _WITH_COMMENT}
    return kind in formats[name] and (kind != "JPEG" or len(data) <= _JPEG_ROOM.get(name, len(data)))


def _arguments(kind: str, info: dict[str, Any]) -> dict[str, Any]:
    """The metadata as Pillow's plugin for this format takes it."""
    given = dict(info)
    if kind == "PNG":
        chunks = PngInfo()
        if "xmp" in given:
            chunks.add_itxt("XML:com.adobe.xmp", _text(given.pop("xmp")))
        if "comment" in given:
            chunks.add_itxt("Comment", _text(given.pop("comment")))
        given["pnginfo"] = chunks
    elif kind == "TIFF" and {"exif", "xmp"} & given.keys():
        exif = Image.Exif()
        exif.load(given.pop("exif", EXIF_PREFIX))
        if "xmp" in given:
            exif[_XMP_TAG] = given.pop("xmp")
        given["exif"] = exif
    return given


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
