# SPDX-License-Identifier: Apache-2.0
"""What comes with a picture beside its pixels: colour profile, EXIF, XMP, comment.

Between three forms: `Image.info` as Pillow's plugins fill it, the fields of a
`mlic_fast.pictures.picture.Picture`, and the chunks of an .mlic file. No torch.
"""

from __future__ import annotations

import io
import re
from typing import Any

from PIL import ExifTags, Image

from mlic_fast.bitstream.container import ChunkKind, Metadata, Mlic
from mlic_fast.errors import LimitError
from mlic_fast.limits import Limits
from mlic_fast.pictures.picture import Picture
from mlic_fast.pictures.thumbnail import make_thumbnail, thumbnail_head

EXIF_PREFIX = b"Exif\0\0"  # in front of EXIF data in JPEG files, and in Pillow's info

_ORIENTATION = int(ExifTags.Base.Orientation)
# Tags that say how a TIFF file stores its pixels. Pillow gives them together with the EXIF
# data, of which they are none; with another file's pixels they would be wrong.
_STORAGE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292}
    | {293, 297, 301, 317, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 338, 339, 340, 341, 342, 347, 700}
    | {*range(512, 522), 529, 530, 531, 532, 33723, 34377, 34675}
)
# one space at most: `\s*` would take quadratic time in a packet of spaces
_XMP_ORIENTATION = (rb'\s?tiff:Orientation="[0-9]"', rb"\s?<tiff:Orientation>[0-9]</tiff:Orientation>")


def from_pillow(image: Image.Image) -> dict[str, Any]:
    """The fields of a Picture that hold metadata, from a PIL image as it was opened.

    The orientation is taken out, since a Picture is upright, and so is a thumbnail inside the
    EXIF data. Damaged EXIF data and XMP that is not UTF-8 are left out.
    """
    info = image.info
    profile = info.get("icc_profile")
    # a CMYK profile describes inks, not the RGB values that are coded
    keep_profile = isinstance(profile, bytes) and profile and image.mode != "CMYK"
    comment = info.get("comment", info.get("Comment"))
    if isinstance(comment, bytes):
        comment = comment.decode(errors="replace")
    return {
        "icc_profile": profile if keep_profile else None,
        "exif": _exif_of(image),
        "xmp": _xmp_of(info.get("xmp", info.get("XML:com.adobe.xmp"))),
        "comment": str(comment) if comment else None,
    }


def to_chunks(picture: Picture, metadata: bool, thumbnail: int, limits: Limits) -> tuple[Metadata, ...]:
    """The metadata chunks of a file with this picture.

    metadata: False leaves EXIF, XMP and the comment out; the colour profile stays, because
        without it the colours are others.
    thumbnail: pixels that the longer side of a thumbnail may have, at most 512; 0: no thumbnail.
    Raises LimitError for metadata that would not be read again, ImageError for such a thumbnail.
    """
    contents = [(ChunkKind.ICC_PROFILE, picture.icc_profile)]
    if metadata:
        comment = None if picture.comment is None else picture.comment.encode(errors="replace")
        contents += [(ChunkKind.EXIF, picture.exif), (ChunkKind.XMP, picture.xmp), (ChunkKind.COMMENT, comment)]
    for kind, data in contents:
        if data is not None and len(data) > limits.metadata_bytes:
            raise LimitError(
                f"the picture's {kind.name} has {len(data):,} bytes; the limit for metadata is "
                f"{limits.metadata_bytes:,}: raise Limits.metadata_bytes, or take it out of the picture"
            )
    if thumbnail:
        contents.append((ChunkKind.THUMBNAIL, make_thumbnail(picture, thumbnail)))
    return tuple(Metadata(int(kind), data) for kind, data in contents if data is not None)


def info_of(mlic: Mlic) -> dict[str, bytes]:
    """What Pillow's plugins put into `Image.info`: icc_profile, exif (with its prefix), xmp, comment."""
    found = {
        "icc_profile": mlic.find(ChunkKind.ICC_PROFILE),
        "exif": mlic.find(ChunkKind.EXIF),
        "xmp": mlic.find(ChunkKind.XMP),
        "comment": mlic.find(ChunkKind.COMMENT),
    }
    info = {name: data for name, data in found.items() if data}
    if "exif" in info:
        info["exif"] = EXIF_PREFIX + info["exif"]
    return info


def describe(kind: int, data: bytes) -> dict[str, Any]:
    """Say what a metadata chunk holds, in words that JSON can hold and a terminal can show."""
    about = {
        int(ChunkKind.ICC_PROFILE): _describe_profile,
        int(ChunkKind.EXIF): _describe_exif,
        int(ChunkKind.COMMENT): lambda content: {"text": _printable(content.decode(errors="replace"))},
        int(ChunkKind.THUMBNAIL): _describe_thumbnail,
    }.get(kind)
    if about is None:
        return {}
    try:
        return about(data)
    except Exception as error:  # damaged metadata is no reason not to describe the rest
        return {"problem": _printable(f"cannot be read: {type(error).__name__}: {error}")}


def _exif_of(image: Image.Image) -> bytes | None:
    try:
        raw = image.info.get("exif")
        if not isinstance(raw, bytes):
            found = image.getexif()
            raw = found.tobytes() if len(found) else b""
        exif = Image.Exif()  # another one than image.getexif(), which is the caller's
        exif.load(raw)
        if not raw.removeprefix(EXIF_PREFIX).startswith((b"II*\0", b"MM\0*")):
            return None
        unwanted = [tag for tag in exif if tag == _ORIENTATION or tag in _STORAGE]
        # A thumbnail in there would outweigh the coded picture, and lie where it was not turned.
        # Asked of an object of its own: before Pillow 13 one that was asked cannot be written again.
        probe = Image.Exif()
        probe.load(raw)
        has_thumbnail = bool(probe.get_ifd(ExifTags.IFD.IFD1))
        if not unwanted and not has_thumbnail:
            return raw.removeprefix(EXIF_PREFIX) if len(exif) else None
        for tag in unwanted:
            del exif[tag]
        return exif.tobytes().removeprefix(EXIF_PREFIX) if len(exif) else None
    except Exception:  # what Pillow raises on damaged data is nearly anything
        return None


def _xmp_of(value: Any) -> bytes | None:
    packet = value.encode(errors="replace") if isinstance(value, str) else value
    if not isinstance(packet, bytes) or not packet:
        return None
    try:
        packet.decode()
    except UnicodeDecodeError:
        return None
    for pattern in _XMP_ORIENTATION:
        packet = re.sub(pattern, b"", packet)
    return packet


def _describe_profile(data: bytes) -> dict[str, Any]:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    return {"description": _printable(ImageCms.getProfileDescription(profile))}


def _describe_exif(data: bytes) -> dict[str, Any]:
    exif = Image.Exif()
    exif.load(data)
    tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    names: tuple[str, ...] = ("Make", "Model", "Software", "Artist", "Copyright", "DateTimeOriginal", "DateTime")
    names += ("ExposureTime", "FNumber", "ISOSpeedRatings", "FocalLength", "LensModel")
    found = {name: _printable(str(tags[tag])) for name in names if (tag := ExifTags.Base[name]) in tags}
    return {"tags": len(tags), **found, "GPS": "yes" if exif.get_ifd(ExifTags.IFD.GPSInfo) else "no"}


def _describe_thumbnail(data: bytes) -> dict[str, Any]:
    image = thumbnail_head(data)
    return {"format": image.format, "width": image.width, "height": image.height}


def _printable(text: str) -> str:
    """One short line without what would garble a terminal."""
    line = "".join(char if char.isprintable() else " " for char in text).strip()
    return line if len(line) <= 200 else line[:199] + "…"
