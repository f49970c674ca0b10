# SPDX-License-Identifier: Apache-2.0
"""Saving a decoded picture in another format, as it is, with its metadata where that format has a place for them.

Without loss where the format can; else with little (JPEG, AVIF); and formats that cannot hold the picture are refused.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from mlic_fast.errors import ImageError
from mlic_fast.pictures.tiff_exif import with_exif

# Formats whose files hold alpha; several others of Pillow's drop it without a word.
_WITH_ALPHA = {"AVIF", "DDS", "ICNS", "ICO", "IM", "JPEG2000", "PNG", "QOI", "SGI", "TGA", "TIFF", "WEBP"}
# Pillow's modes that a format has none of its own for, and those that hold the same.
_AS = {("QOI", "L"): "RGB", ("QOI", "LA"): "RGBA", ("SGI", "LA"): "RGBA"}
_WITH_PROFILE = {"AVIF", "JPEG", "PNG", "TIFF", "WEBP"}
_WITH_EXIF = _WITH_PROFILE
_WITH_XMP = _WITH_PROFILE
_WITH_COMMENT = {"GIF", "JPEG", "JPEG2000", "PNG"}
_WITH_RESOLUTION = {"BMP", "DIB", "JPEG", "MPO", "PDF", "PNG", "TIFF"}
_XMP_TAG = 700

# As it is, or next to it; Pillow's own choices are for small files.
_FAITHFUL: dict[str, dict[str, Any]] = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"quality": 95, "subsampling": 0},
    "PDF": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}
WITH_QUALITY = frozenset(_FAITHFUL)

_ICON_SIDE = 256
_LARGEST_ICNS = (1024, 1024)
_PALETTE = 256

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
    options: as Pillow's plugin for the format takes them (quality, compress_level, …). Without any, WebP is written
        without loss, AVIF with quality 100, JPEG with quality 95, both without subsampling colours.

    Returns the names of what the format could not hold ("exif", "xmp", "comment", "icc_profile", "dpi").
    Raises ImageError for an unknown ending, for alpha in a format that has none, for a format that cannot hold the
    picture (more than 256 colours in a GIF, another size in an icon), and for what Pillow cannot write; OSError for a
    target that cannot be written to.
    """
    kind = _kind_of(target, format)
    if image.mode in {"LA", "RGBA"} and kind not in _WITH_ALPHA:
        raise ImageError(
            f"{kind} files are written with no transparency: choose .png, .webp or .tif, or put the picture on a "
            "background first (Image.alpha_composite)"
        )
    names = ("icc_profile", "exif", "xmp", "comment", "dpi", "aspect")
    own = {name: image.info[name] for name in names if image.info.get(name)}
    fitting = {name: data for name, data in own.items() if _fits(kind, name, data)}
    # a copy, because Pillow's plugins look into `info` as well as at the options
    plain, more = _held(image, kind)
    plain.info = {}
    faithful = _FAITHFUL.get(kind, {})
    if kind == "WEBP" and "quality" in options:
        faithful = {"exact": True}
    apart = fitting.pop("exif", None) if kind == "TIFF" and "exif" not in options else None
    try:
        given = {**faithful, **more, **_arguments(kind, fitting), **options}
        if apart is None or not _save_tiff(plain, target, given, apart):
            plain.save(target, kind, **given)
        else:
            fitting["exif"] = apart
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


def _held(image: Image.Image, kind: str) -> tuple[Image.Image, dict[str, Any]]:
    """A copy of the image as the format holds it, and options for that. Raises ImageError if it cannot."""
    size = f"{image.width} x {image.height}"
    if kind == "ICO":
        if max(image.size) > _ICON_SIDE:
            raise ImageError(f"ICO files hold at most {_ICON_SIDE} x {_ICON_SIDE} pixels, not {size}: choose .png")
        return image.copy(), {"sizes": [image.size]}
    if kind == "ICNS" and image.size != _LARGEST_ICNS:
        raise ImageError(f"ICNS files are written with 1024 x 1024 pixels, not {size}: choose .png")
    if kind == "SPIDER" and image.mode != "L":
        raise ImageError("SPIDER files hold grey pictures, and this one is in colour: choose .png or .tif")
    if kind == "GIF" and image.mode == "RGB":
        return _with_palette(image), {}
    mode = _AS.get((kind, image.mode))
    return image.copy() if mode is None else image.convert(mode), {}


def _with_palette(image: Image.Image) -> Image.Image:
    """The same pixels with a palette. Raises ImageError if it would have to have too many colours."""
    pixels = np.asarray(image).astype(np.uint32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    colours, indexes = np.unique(packed, return_inverse=True)
    if len(colours) > _PALETTE:
        raise ImageError(
            f"GIF files hold {_PALETTE} colours, this picture has {len(colours):,}: choose .png, or reduce its colours "
            "first (Image.quantize)"
        )
    made = Image.fromarray(indexes.reshape(packed.shape).astype(np.uint8), "L")
    made.putpalette(
        bytes(part for colour in colours.tolist() for part in (colour >> 16, colour >> 8 & 255, colour & 255))
    )
    return made


def _fits(kind: str, name: str, data: Any) -> bool:
    formats = {"icc_profile": _WITH_PROFILE, "exif": _WITH_EXIF, "xmp": _WITH_XMP, "comment": _WITH_COMMENT}
    formats |= {"dpi": _WITH_RESOLUTION, "aspect": {"TIFF"}}
    return kind in formats[name] and (kind != "JPEG" or name not in _JPEG_ROOM or len(data) <= _JPEG_ROOM[name])


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
    elif kind in {"BMP", "DIB"}:
        given.setdefault("dpi", (0, 0))  # or Pillow makes 96 of it
    elif kind == "TIFF":
        if "xmp" in given:
            exif = Image.Exif()
            exif[_XMP_TAG] = given.pop("xmp")
            given["exif"] = exif
        if "aspect" in given:
            x, y = given.pop("aspect")
            given |= {"resolution_unit": 1, "x_resolution": x, "y_resolution": y}
    return given


def _save_tiff(
    image: Image.Image, target: str | os.PathLike[str] | BinaryIO, options: dict[str, Any], exif: bytes
) -> bool:
    """Save with these EXIF data as they are; False, and nothing is written, where a TIFF file cannot have them."""
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    try:
        content = with_exif(buffer.getvalue(), exif)
        with Image.open(io.BytesIO(content), formats=("TIFF",)) as again:
            # sides change places where the data say that the picture is turned
            if (sorted(again.size), again.mode) != (sorted(image.size), image.mode):
                return False
    except (ValueError, struct.error, UnidentifiedImageError):
        return False
    if isinstance(target, (str, os.PathLike)):
        Path(target).write_bytes(content)
    else:
        target.write(content)
    return True


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
