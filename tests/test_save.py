# SPDX-License-Identifier: Apache-2.0
"""Saving decoded pictures: metadata and alpha in each format that has a place for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from mlic_fast.errors import ImageError
from mlic_fast.pictures.image import open_image
from mlic_fast.pictures.save import save_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


def decoded(mode: str = "RGB") -> Image.Image:
    """A picture with everything that `decode` puts into info."""
    image = Image.fromarray(PIXELS).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a maker"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    image.info = {"icc_profile": b"profile", "exif": exif.tobytes(), "xmp": b"<x/>", "comment": "Grüß".encode()}
    return image


@pytest.mark.parametrize(
    ("ending", "lost"),
    [
        (".png", ()),
        (".jpg", ()),
        (".tif", ("comment",)),
        (".webp", ("comment",)),
        (".avif", ("comment",)),
        (".gif", ("icc_profile", "exif", "xmp")),
        (".bmp", ("icc_profile", "exif", "xmp", "comment")),
        (".ppm", ("icc_profile", "exif", "xmp", "comment")),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_metadata_are_kept_where_the_format_has_a_place(
    tmp_path: Path, ending: str, lost: tuple[str, ...], mode: str
) -> None:
    path = tmp_path / f"picture{ending}"
    image = decoded(mode)
    if ending == ".gif":  # which holds 256 colours
        info = image.info
        image = image.quantize(100).convert(mode)
        image.info = info
    before = dict(image.info)
    assert save_picture(image, path) == lost
    assert image.info == before
    picture = open_image(path)
    found = {"icc_profile": picture.icc_profile, "xmp": picture.xmp, "comment": picture.comment}
    wanted = {"icc_profile": b"profile", "xmp": b"<x/>", "comment": "Grüß"}
    assert found == {name: None if name in lost else value for name, value in wanted.items()}
    if "exif" in lost:
        assert picture.exif is None
        return
    exif = Image.Exif()
    assert picture.exif is not None
    exif.load(picture.exif)
    assert exif[ExifTags.Base.Make] == "a maker"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(
    "ending", [".png", ".tif", ".webp", ".tga", ".jp2", ".avif", ".sgi", ".qoi", ".dds", ".im", ".ico"]
)
def test_alpha_is_kept(tmp_path: Path, ending: str, mode: str) -> None:
    options: dict[str, Any] = {".webp": {"lossless": True}, ".avif": {"quality": 100}}.get(ending, {})
    path = tmp_path / f"picture{ending}"
    save_picture(decoded(mode), path, **options)
    if ending == ".ico":  # which is not read
        alpha = np.asarray(Image.open(path).convert("RGBA"))[..., 3]
    else:
        found = open_image(path).alpha
        assert found is not None
        alpha = found
    assert np.abs(alpha.astype(int) - PIXELS[..., 3]).max() <= (3 if ending == ".avif" else 0)


@pytest.mark.parametrize("ending", [".jpg", ".bmp", ".ppm", ".gif", ".pcx"])
def test_formats_without_alpha_refuse_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"picture{ending}"
    with pytest.raises(ImageError, match=r"no transparency.*\.png"):
        save_picture(decoded("RGBA"), path)
    assert not path.exists()


def test_what_is_too_long_for_a_jpeg_is_left_out() -> None:
    image = decoded()
    image.info.update(xmp=b"<x/>" * 20_000, icc_profile=bytes(200_000))
    buffer = io.BytesIO()
    assert save_picture(image, buffer, "jpeg") == ("xmp",)
    assert open_image(buffer.getvalue()).icc_profile == bytes(200_000)
    for length in (65_504, 65_505):
        image.info.update(xmp=b"x" * length, exif=b"Exif\0\0II*\0" + bytes(length + 19), comment=b"c" * (length + 29))
        lost = save_picture(image, io.BytesIO(), "JPEG")
        assert lost == (() if length == 65_504 else ("exif", "xmp", "comment"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("picture.xyz", r"'\.xyz'"), ("picture", "''"), ("picture.psd", "PSD"), ("picture.mlic2", "mlic2")],
)
def test_endings_that_pillow_does_not_write(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        save_picture(decoded(), tmp_path / name)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_every_format_holds_the_picture_or_says_that_it_does_not(tmp_path: Path, mode: str) -> None:
    """Size and pixels, for each ending that Pillow writes."""
    Image.init()
    gradient = (
        np.linspace(0, 255, 480)[None, :, None] * np.array([1, 0.5, 0.9, 1]) + np.linspace(0, 90, 320)[:, None, None]
    )
    images = [Image.fromarray(gradient.clip(0, 255).astype(np.uint8)).convert(mode), decoded(mode)]
    held: set[str] = set()
    for ending, kind in Image.EXTENSION.items():
        if kind not in Image.SAVE or kind in {"EPS", "MLIC", "PDF"}:  # these are not read again
            continue
        for image in images:
            path = tmp_path / f"picture{ending}"
            try:
                save_picture(image, path)
            except ImageError:
                continue
            held.add(kind)
            with Image.open(path) as again:
                assert again.size == image.size, ending
                pixels = np.asarray(again.convert(mode)).astype(int)
            loss = np.abs(pixels - np.asarray(image))
            if kind in {"JPEG", "MPO"}:
                assert image is not images[0] or np.sqrt(np.square(loss).mean()) < 2, ending
            else:
                assert loss.max() <= (4 if kind == "AVIF" else 0), ending
    assert held >= {"PNG", "TIFF", "WEBP", "JPEG2000", "AVIF", "TGA"}
    assert ("JPEG" in held) == (mode in {"RGB", "L"})


@pytest.mark.parametrize(
    ("ending", "size", "words"),
    [
        (".ico", (480, 320), "256 x 256"),
        (".icns", (480, 320), "1024 x 1024"),
        (".icns", (256, 256), "1024 x 1024"),
        (".gif", (40, 40), "256 colours"),
        (".spi", (40, 40), None),
    ],
)
def test_formats_that_cannot_hold_the_picture(
    tmp_path: Path, ending: str, size: tuple[int, int], words: str | None
) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    path = tmp_path / f"picture{ending}"
    with pytest.raises(ImageError, match=words):
        save_picture(image, path)
    assert not path.exists()
    if ending == ".ico":
        save_picture(image.resize((48, 30)), path)
        assert Image.open(path).size == (48, 30)


def test_a_quality_is_taken() -> None:
    sizes = {}
    for kind in ("JPEG", "WEBP", "AVIF"):
        for quality in (30, 90, None):
            buffer = io.BytesIO()
            save_picture(decoded(), buffer, kind, **({} if quality is None else {"quality": quality}))
            sizes[quality] = buffer.tell()
        assert sizes[30] < sizes[90] < sizes[None], kind


@pytest.mark.parametrize(
    ("ending", "kept"), [(".png", 1), (".jpg", 1), (".tif", 1), (".bmp", 1), (".webp", 0), (".ppm", 0)]
)
def test_resolution_is_written(tmp_path: Path, ending: str, kept: bool) -> None:
    path = tmp_path / f"picture{ending}"
    image = decoded()
    image.info = {"dpi": (300.0, 150.0)}
    assert save_picture(image, path) == (() if kept else ("dpi",))
    found = open_image(path).resolution
    assert (found is not None) == kept
    if found is not None:
        assert (round(found.x), round(found.y)) == (300, 150)
    image.info = {}
    save_picture(image, path)
    assert open_image(path).resolution is None


def test_texts_of_exif_data_in_tiff_files(tmp_path: Path) -> None:
    text = "© Jörg".encode()
    entry = b"\x01\x00\x98\x82\x02\x00" + (len(text) + 1).to_bytes(4, "little") + (26).to_bytes(4, "little") + bytes(4)
    image = decoded()
    image.info = {"exif": b"Exif\0\0II*\0\x08\0\0\0" + entry + text + b"\0"}
    for ending in (".tif", ".png", ".jpg", ".webp"):
        save_picture(image, tmp_path / f"picture{ending}")
        exif = open_image(tmp_path / f"picture{ending}").exif
        assert exif is not None
        assert text + b"\0" in exif


def test_a_file_object_needs_a_format() -> None:
    with pytest.raises(ImageError, match="no ending"):
        save_picture(decoded(), io.BytesIO())


def test_missing_folders_are_the_file_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_picture(decoded(), tmp_path / "missing" / "picture.png")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_data_raise_nothing_but_ours(kind: str) -> None:
    image = decoded()
    for raw in (b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        image.info["exif"] = raw
        try:
            save_picture(image, io.BytesIO(), kind)
        except ImageError:
            continue


def test_what_pillow_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(ImageError, match="cannot write this picture as JPEG"):
        save_picture(decoded(), io.BytesIO(), "JPEG", quality="nonsense")
