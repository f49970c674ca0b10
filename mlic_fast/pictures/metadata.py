# SPDX-License-Identifier: Apache-2.0
"""What comes with a picture beside its pixels: colour profile, EXIF, XMP, comment, resolution.

Between three forms: `Image.info` as Pillow's plugins fill it, the fields of a
`mlic_fast.pictures.picture.Picture`, and the chunks of an .mlic file. No torch.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import ExifTags, Image

from mlic_fast.bitstream.container import ChunkKind, Metadata, Mlic
from mlic_fast.errors import LimitError
from mlic_fast.limits import Limits
from mlic_fast.pictures import colour, exif, resolution, unread, xmp
from mlic_fast.pictures.description import printable
from mlic_fast.pictures.exif import Read
from mlic_fast.pictures.picture import Picture
from mlic_fast.pictures.thumbnail import make_thumbnail

_TEXTS_ELSEWHERE = {"comment", "XML:com.adobe.xmp", "Raw profile type exif"}
_NAMED = 5  # of the texts that are left out
_MAKER_NOTE = 0x927C
_MOVED = ("maker notes are at another place: what they point to may not be found",)
_ELSEWHERE = {"JPEG2000", "PSD"}  # whose EXIF data Pillow does not read


@dataclass(frozen=True)
class Before:
    """What only the open file tells, before pixels are decoded.

    exif: EXIF data of a TIFF or AVIF file. orientation: of a TIFF file, which Pillow applies. colours: what is said
    about them elsewhere than in `info`. notes: what cannot be kept.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: resolution.Resolution | None = None
    orientation: int | None = None
    orientation_in_tag: bool = False
    colours: colour.Meaning = field(default_factory=colour.Meaning)
    notes: tuple[str, ...] = ()


def before_decoding(image: Image.Image, read: Read | None) -> Before:
    """Look into the file of an image that is not decoded yet; read: reads it, None if it is not at hand."""
    colours = colour.before_decoding(image, read)
    if read is None:
        return Before(colours=colours)
    beside = unread.look(image, read)
    found = Before(beside.exif, beside.xmp, beside.resolution, colours=colours, notes=beside.notes)
    if image.format == "AVIF":
        return replace(found, exif=_exif_of_avif(image))
    tags: Any = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return found
    try:
        data = exif.of_tiff_file(read, getattr(tags, "_offset", None))
    except Exception as error:
        data = None
        found = replace(found, notes=(*found.notes, f"EXIF data left out: damaged ({error})"))
    own = tags.get(exif.ORIENTATION)
    turned = own if own is not None else xmp.orientation(_packet(image) or b"")
    return replace(found, exif=data, orientation=turned, orientation_in_tag=own is not None)


def orientation_of(image: Image.Image, before: Before) -> int:
    """The orientation, 1 to 8, that a decoded image's pixels are still to be brought into."""
    if before.orientation_in_tag:  # Pillow did
        return 1
    try:
        value = _orientation_in(before.exif) if image.format in _ELSEWHERE else image.getexif().get(exif.ORIENTATION)
    except Exception:  # viewers show a picture with damaged EXIF data as it is stored; so do we
        value = None
    if value is None:
        value = xmp.orientation(_packet(image) or before.xmp or b"")
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orientation_in(data: bytes | None) -> int | None:
    if data is None:
        return None
    tiff = exif.tiff_of(data)
    entry = tiff.find(exif.ORIENTATION)
    return None if entry is None else tiff.number(entry)


def from_pillow(image: Image.Image, before: Before | None = None) -> dict[str, Any]:
    """The fields of a Picture that hold metadata, and notes, from a PIL image as it was opened.

    before: what `before_decoding` found. The orientation is taken out, since a Picture is upright, and so is a
    thumbnail inside the EXIF data. Damaged EXIF data and XMP that is not UTF-8 are left out.
    """
    before = before or Before()
    info = image.info
    raw, exif_note = _exif_of(image, before)
    packet = _packet(image) or before.xmp
    readable = packet is not None and _is_utf_8(packet)
    comment = info.get("comment", info.get("Comment"))
    colours = colour.of_image(image, before.colours, raw)
    notes = [*before.notes, *colours.notes, *exif_note]
    if packet is not None and not readable:
        notes.append("XMP left out: it is not UTF-8")
    if isinstance(comment, bytes):
        if not _is_utf_8(comment):
            notes.append("comment is not UTF-8: its other bytes are replaced")
        comment = comment.decode(errors="replace")
    if info.get("photoshop"):
        notes.append(unread.IPTC)
    texts = sorted(_texts_of(image))
    if texts:
        names = ", ".join(printable(name) for name in texts[:_NAMED])
        notes.append(f"texts left out: {names}{', …' if len(texts) > _NAMED else ''}")
    return {
        "icc_profile": colours.profile,
        "exif": _stripped(raw),
        "xmp": xmp.without_orientation(packet) if packet is not None and readable else None,
        "comment": str(comment) if comment else None,
        "resolution": before.resolution or resolution.of_image(image, raw),
        "notes": tuple(notes),
    }


def to_chunks(picture: Picture, metadata: bool, thumbnail: int, limits: Limits) -> tuple[Metadata, ...]:
    """The metadata chunks of a file with this picture.

    metadata: False leaves EXIF, XMP, the comment and the resolution out; the colour profile stays, because
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
    if metadata and picture.resolution is not None:
        contents.append((ChunkKind.RESOLUTION, picture.resolution.pack()))
    return tuple(Metadata(int(kind), data) for kind, data in contents if data is not None)


def info_of(mlic: Mlic) -> dict[str, Any]:
    """What Pillow's plugins put into `Image.info`: icc_profile, exif (with its prefix), xmp, comment, dpi or aspect."""
    found = {
        "icc_profile": mlic.find(ChunkKind.ICC_PROFILE),
        "exif": mlic.find(ChunkKind.EXIF),
        "xmp": mlic.find(ChunkKind.XMP),
        "comment": mlic.find(ChunkKind.COMMENT),
    }
    info: dict[str, Any] = {name: data for name, data in found.items() if data}
    if "exif" in info:
        info["exif"] = exif.PREFIX + info["exif"]
    packed = mlic.find(ChunkKind.RESOLUTION)
    if packed is not None:
        with contextlib.suppress(ValueError):  # what makes no sense is left out
            size = resolution.unpack(packed)
            info["dpi" if size.absolute else "aspect"] = (size.x, size.y)
    return info


def _exif_of(image: Image.Image, before: Before) -> tuple[bytes | None, tuple[str, ...]]:
    """EXIF data as the file has them, and a note if they are damaged."""
    info = image.info
    raw = before.exif or info.get("exif")
    notes: tuple[str, ...] = _MOVED if before.exif is not None and image.format == "TIFF" and _has_notes(raw) else ()
    try:
        if not isinstance(raw, bytes) and isinstance(info.get("Raw profile type exif"), str):
            raw = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
        if not isinstance(raw, bytes):
            found = image.getexif()  # of an image that was made, or of a TIFF file that is closed
            notes = _texts_kept(found)
            raw = found.tobytes() if len(found) else b""
    except Exception:  # what Pillow raises on damaged data is nearly anything
        return None, ()
    if not raw.removeprefix(exif.PREFIX):
        return None, ()
    try:
        exif.stripped(raw)
    except ValueError as error:
        return None, (f"EXIF data left out: damaged ({error})",)
    return raw, notes


def _texts_kept(found: Image.Exif) -> tuple[str, ...]:
    """Make texts that are not ASCII the bytes that they were, where Pillow would write question marks."""
    inner = {tag: found.get_ifd(tag) for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) if tag in found}
    directories: tuple[MutableMapping[int, Any], ...] = (found, *inner.values())
    for directory in directories:
        for tag, value in list(directory.items()):
            if isinstance(value, str) and not value.isascii():
                directory[tag] = value.encode("latin-1", "replace")  # as Pillow decoded them
    return _MOVED if _MAKER_NOTE in inner.get(ExifTags.IFD.Exif, {}) else ()


def _has_notes(data: Any) -> bool:
    try:
        return exif.tiff_of(data).find(ExifTags.IFD.Exif, _MAKER_NOTE) is not None
    except (ValueError, struct.error):
        return False


def _stripped(raw: bytes | None) -> bytes | None:
    return None if raw is None else exif.stripped(raw)


def _exif_of_avif(image: Image.Image) -> bytes | None:
    """As the file has them: Pillow writes them anew where the file itself turns the picture."""
    try:
        found = image._decoder.get_info()[4]  # type: ignore[attr-defined]
    except Exception:  # another Pillow
        return None
    return found if isinstance(found, bytes) and found else None


def _packet(image: Image.Image) -> bytes | None:
    value = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
    packet = value.encode(errors="replace") if isinstance(value, str) else value
    return packet if isinstance(packet, bytes) and packet else None


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _texts_of(image: Image.Image) -> list[str]:
    """Keys of a PNG file's texts that have no place; those of file times are none of the picture's."""
    texts = getattr(image, "text", None) if image.format == "PNG" else None
    if not isinstance(texts, dict):
        return []
    return [key for key in texts if key.lower() not in {k.lower() for k in _TEXTS_ELSEWHERE} and "date:" not in key]
