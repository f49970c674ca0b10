# SPDX-License-Identifier: Apache-2.0
"""Metadata from Pillow's images into chunks and back, and what `info` says of it."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

from mlic_fast.bitstream.container import ChunkKind, Mlic
from mlic_fast.errors import BitstreamError, ImageError, LimitError
from mlic_fast.limits import Limits
from mlic_fast.pictures import description, metadata
from mlic_fast.pictures.image import Picture, open_image
from mlic_fast.pictures.thumbnail import make_thumbnail, open_thumbnail

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:title="T"/></x:xmpmeta>'
LITTLE = b"II*\0\x08\0\0\0"  # a TIFF file's first bytes
FULL = Picture(PIXELS, "rgb", icc_profile=PROFILE, exif=b"II*\0exif", xmp=XMP, comment="ein Grüß")


def saved(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(**tags: Any) -> Image.Exif:
    """EXIF data with camera, exposure and place, and these tags."""
    data = Image.Exif()
    data[ExifTags.Base.Make] = "a maker"
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"a maker's own \0 notes"
    data.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    for name, value in tags.items():
        data[ExifTags.Base[name]] = value
    return data


def loaded(raw: bytes | None) -> Image.Exif:
    assert raw is not None
    data = Image.Exif()
    data.load(raw)
    return data


def file_of(picture: Picture, **options: Any) -> Mlic:
    values = {"metadata": True, "thumbnail": 0, "limits": Limits()} | options
    chunks = metadata.to_chunks(picture, **values)
    height, width = picture.pixels.shape[:2]
    return Mlic(width, height, "rgb", "new", model_name="", fingerprint=bytes(8), z=b"", y=b"", metadata=chunks)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_what_a_file_carries_is_found(kind: str) -> None:
    more = {} if kind in "PNG TIFF" else {"xmp": XMP}
    picture = open_image(saved(kind, exif=exif().tobytes(), icc_profile=PROFILE, **more))
    assert picture.icc_profile == PROFILE
    assert picture.xmp == (None if kind in "PNG TIFF" else XMP)
    found = loaded(picture.exif)
    assert found[ExifTags.Base.Make] == "a maker"
    assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
    assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] == b"a maker's own \0 notes"
    assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert ExifTags.Base.ImageWidth not in found  # which TIFF files keep among the same tags
    assert open_image(saved(kind)).exif is None


def test_exif_data_without_orientation_are_kept_byte_for_byte() -> None:
    raw = exif().tobytes()
    assert open_image(saved("JPEG", exif=raw)).exif == raw.removeprefix(b"Exif\0\0")
    image = Image.fromarray(PIXELS)
    image.info["exif"] = raw.removeprefix(b"Exif\0\0")
    assert open_image(image).exif == raw.removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "object"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_is_taken_out(kind: str, orientation: int) -> None:
    data = exif(Orientation=orientation)
    if kind == "object":
        image = Image.fromarray(PIXELS)
        image.info["exif"] = data.tobytes()
        before = dict(image.getexif())
        picture = open_image(image)
        assert dict(image.getexif()) == before  # the caller's image is left alone
    else:
        picture = open_image(saved(kind, exif=data.tobytes()))
    found = loaded(picture.exif)
    assert ExifTags.Base.Orientation not in found
    assert found[ExifTags.Base.Make] == "a maker"
    assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
    assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert picture.pixels.shape[:2] == ((40, 60) if orientation == 1 else (60, 40))


def test_orientation_alone_leaves_nothing() -> None:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = 3
    assert open_image(saved("JPEG", exif=data)).exif is None


def test_a_thumbnail_inside_the_exif_data_is_left_out() -> None:
    # Pillow does not write a second directory, so it is put behind the first by hand
    small = saved("JPEG")
    first = b"\x01\x00" + b"\x0f\x01\x02\x00\x04\x00\x00\x00abc\0"  # Make
    start = 8 + len(first) + 4
    second = b"\x02\x00" + b"\x01\x02\x04\x00\x01\x00\x00\x00" + (start + 30).to_bytes(4, "little")
    second += b"\x02\x02\x04\x00\x01\x00\x00\x00" + len(small).to_bytes(4, "little") + bytes(4)
    raw = b"II*\0\x08\0\0\0" + first + start.to_bytes(4, "little") + second + small
    image = Image.fromarray(PIXELS)
    image.info["exif"] = b"Exif\0\0" + raw
    found = open_image(image).exif
    assert found is not None
    assert len(found) < 60
    assert loaded(found)[ExifTags.Base.Make] == "abc"
    assert not loaded(found).get_ifd(ExifTags.IFD.IFD1)


@pytest.mark.parametrize(
    ("packet", "kept"),
    [
        (b'<rdf:Description tiff:Orientation="6" a="b"/>', b'<rdf:Description a="b"/>'),
        (b"<a/><tiff:Orientation>6</tiff:Orientation><b/>", b"<a/><b/>"),
        ("<a>Grüße</a>", "<a>Grüße</a>".encode()),
        ("<a/>".encode("utf-16"), None),
        (b"", None),
        (17, None),
    ],
)
def test_xmp(packet: Any, kept: bytes | None) -> None:
    image = Image.fromarray(PIXELS)
    image.info["xmp"] = packet
    assert open_image(image).xmp == kept


def test_comments() -> None:
    assert open_image(saved("JPEG", comment="Grüße".encode())).comment == "Grüße"
    assert open_image(saved("JPEG", comment=b"caf\xe9")).comment == "caf\ufffd"
    assert open_image(saved("GIF", comment=b"of a GIF")).comment == "of a GIF"
    assert open_image(saved("JPEG")).comment is None


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0\x08\0\0\0"])
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns about most of them
def test_damaged_metadata_do_no_harm(data: bytes, start: bytes) -> None:
    image = Image.fromarray(PIXELS)
    image.info.update(exif=start + data, xmp=data, icc_profile=data, comment=data)
    file = file_of(open_image(image))
    json.dumps([description.describe(chunk.kind, chunk.data) for chunk in file.metadata])
    for kind in ChunkKind:
        json.dumps(description.describe(kind, start + data))


def test_chunks_and_back() -> None:
    file = file_of(FULL)
    kinds = [ChunkKind.ICC_PROFILE, ChunkKind.EXIF, ChunkKind.XMP, ChunkKind.COMMENT]
    assert [chunk.kind for chunk in file.metadata] == kinds
    info = metadata.info_of(file)
    assert info == {
        "icc_profile": PROFILE,
        "exif": b"Exif\0\0II*\0exif",
        "xmp": XMP,
        "comment": "ein Grüß".encode(),
    }
    assert metadata.info_of(file_of(Picture(PIXELS, "rgb"))) == {}


def test_without_metadata_the_colour_profile_stays() -> None:
    assert list(metadata.info_of(file_of(FULL, metadata=False))) == ["icc_profile"]


def test_what_would_not_be_read_again_is_not_written() -> None:
    with pytest.raises(LimitError, match=r"EXIF has 8 bytes.*7"):
        file_of(dataclasses.replace(FULL, icc_profile=None), limits=Limits(metadata_bytes=7))


@pytest.mark.parametrize("side", [1, 31, 60, 512])
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
def test_thumbnails(side: int, alpha: bool) -> None:
    picture = Picture(PIXELS, "rgb")
    if alpha:
        picture = Picture(PIXELS, "rgb-alpha", alpha=np.full((40, 60), 77, np.uint8))
    data = make_thumbnail(picture, side)
    small = open_thumbnail(data)
    assert (small.format, small.mode) == (("PNG", "RGBA") if alpha else ("JPEG", "RGB"))
    assert max(small.size) == min(side, 60)
    if side > 1:
        assert abs(small.width / small.height - 1.5) < 0.1
        assert np.abs(np.asarray(small.convert("RGB")).mean((0, 1)) - PIXELS.mean((0, 1))).max() < 10


def test_no_thumbnail_has_more_than_64_kib() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (700, 700, 4), dtype=np.uint8)
    opaque = make_thumbnail(Picture(noise[..., :3].copy(), "rgb"), 512)
    assert max(open_thumbnail(opaque).size) == 512
    alpha = make_thumbnail(Picture(noise[..., :3].copy(), "rgb-alpha", alpha=noise[..., 3].copy()), 512)
    assert max(len(opaque), len(alpha)) <= 65536


@pytest.mark.parametrize("side", [-1, 513, 1.5, "64", True])
def test_thumbnails_of_no_size(side: Any) -> None:
    with pytest.raises(ImageError, match="1 to 512"):
        make_thumbnail(FULL, side)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"rubbish", id="rubbish"),
        pytest.param(saved("GIF"), id="GIF"),
        pytest.param(saved("JPEG")[:200], id="truncated"),
    ],
)
def test_thumbnails_that_are_none(data: bytes) -> None:
    with pytest.raises(BitstreamError, match="thumbnail"):
        open_thumbnail(data)
    assert "problem" in description.describe(ChunkKind.THUMBNAIL, data) or data.startswith(b"\xff\xd8")


def test_large_thumbnails_are_refused_before_they_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("L", (513, 2)).save(buffer, "PNG")
    with pytest.raises(BitstreamError, match="513 x 2"):
        open_thumbnail(buffer.getvalue())


def test_descriptions() -> None:
    raw = exif(Software="\x1b[2Jevil\n" + "x" * 300).tobytes().removeprefix(b"Exif\0\0")
    said = description.describe(ChunkKind.EXIF, raw)
    assert (said["Make"], said["ISOSpeedRatings"], said["GPS"]) == ("a maker", "400", "yes")
    assert said["Software"].isprintable()
    assert len(said["Software"]) == 200
    assert description.describe(ChunkKind.ICC_PROFILE, PROFILE) == {"description": "sRGB built-in"}
    assert description.describe(ChunkKind.COMMENT, "Grüß".encode()) == {"text": "Grüß"}
    thumbnail = description.describe(ChunkKind.THUMBNAIL, make_thumbnail(FULL, 30))
    assert thumbnail == {"format": "JPEG", "width": 30, "height": 20}
    assert description.describe(0xFE, b"anything") == description.describe(ChunkKind.XMP, XMP) == {}
    assert "problem" in description.describe(ChunkKind.ICC_PROFILE, b"no profile")
