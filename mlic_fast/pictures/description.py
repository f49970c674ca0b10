# SPDX-License-Identifier: Apache-2.0
"""What the metadata chunks of an .mlic file hold, in words. No torch, and no NumPy, which take long to import."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import ExifTags, Image

from mlic_fast.bitstream.container import ChunkKind
from mlic_fast.pictures import resolution
from mlic_fast.pictures.thumbnail import thumbnail_head

_LONGEST = 200  # characters of a line


def describe(kind: int, data: bytes) -> dict[str, Any]:
    """Say what a metadata chunk holds, in words that JSON can hold and a terminal can show."""
    readers: dict[int, Callable[[bytes], dict[str, Any]]] = {
        int(ChunkKind.ICC_PROFILE): _describe_profile,
        int(ChunkKind.EXIF): _describe_exif,
        int(ChunkKind.COMMENT): lambda content: {"text": printable(content.decode(errors="replace"))},
        int(ChunkKind.THUMBNAIL): _describe_thumbnail,
        int(ChunkKind.RESOLUTION): lambda content: {"text": str(resolution.unpack(content))},
    }
    about = readers.get(kind)
    if about is None:
        return {}
    try:
        return about(data)
    except Exception as error:  # damaged metadata is no reason not to describe the rest
        return {"problem": printable(f"cannot be read: {type(error).__name__}: {error}")}


def _describe_profile(data: bytes) -> dict[str, Any]:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    return {"description": printable(ImageCms.getProfileDescription(profile))}


def _describe_exif(data: bytes) -> dict[str, Any]:
    loaded = Image.Exif()
    loaded.load(data)
    tags = {**loaded, **loaded.get_ifd(ExifTags.IFD.Exif)}
    names: tuple[str, ...] = ("Make", "Model", "Software", "Artist", "Copyright", "DateTimeOriginal", "DateTime")
    names += ("ExposureTime", "FNumber", "ISOSpeedRatings", "FocalLength", "LensModel")
    found = {name: printable(str(tags[tag])) for name in names if (tag := ExifTags.Base[name]) in tags}
    return {"tags": len(tags), **found, "GPS": "yes" if loaded.get_ifd(ExifTags.IFD.GPSInfo) else "no"}


def _describe_thumbnail(data: bytes) -> dict[str, Any]:
    image = thumbnail_head(data)
    return {"format": image.format, "width": image.width, "height": image.height}


def printable(text: str) -> str:
    """One short line without what would garble a terminal."""
    line = "".join(char if char.isprintable() else " " for char in text).strip()
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
