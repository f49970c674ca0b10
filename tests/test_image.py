# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out: every Pillow mode, orientation, depth, alpha, limits, arrays, rounding."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_samples import GREY, RGB, RNG, png, saved
from PIL import Image, ImageOps

from mlic_fast.errors import ImageError, LimitError, NonFiniteError
from mlic_fast.limits import Limits
from mlic_fast.pictures.image import (
    Picture,
    crop,
    open_image,
    pad_to_64,
    to_pillow,
    to_pixels,
    to_tensor,
)


@pytest.mark.parametrize("pixels", [RGB, GREY, RGB[:1, :1], GREY[:1, :1]], ids=["rgb", "grey", "rgb 1x1", "grey 1x1"])
def test_every_kind_of_source(tmp_path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    path = tmp_path / "picture.png"
    path.write_bytes(saved(image))
    sources = [path, str(path), saved(image), bytearray(saved(image)), memoryview(saved(image)), image]
    sources += [io.BytesIO(saved(image)), pixels, torch.from_numpy(pixels), pixels[::-1][::-1]]
    with path.open("rb") as file:
        for source in [*sources, file]:
            picture = open_image(source)
            assert np.array_equal(picture.pixels, pixels)
            assert picture.mode == ("rgb" if pixels.ndim == 3 else "grey")
            assert (picture.height, picture.width) == pixels.shape[:2]
            assert not picture.pixels.flags.writeable
            assert open_image(picture) is picture


def test_stdin_need_not_be_seekable() -> None:
    code = "import sys; from mlic_fast.pictures.image import open_image; print(open_image(sys.stdin.buffer).width)"
    run = subprocess.run(
        [sys.executable, "-c", code], input=saved(Image.fromarray(RGB)), capture_output=True, check=True
    )
    assert run.stdout.strip() == b"7"


def test_torch_is_not_imported_for_reading() -> None:
    code = (
        "import sys, numpy as np; from mlic_fast.pictures.image import open_image; "
        "open_image(np.zeros((3, 3), np.uint8)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_picture_does_not_change_with_its_source() -> None:
    source = RGB.copy()
    picture = open_image(source)
    source[:] = 0
    assert np.array_equal(picture.pixels, RGB)


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV", "RGBX"])
@pytest.mark.parametrize("in_file", [False, True], ids=["object", "file"])
def test_converted_modes(mode: str, in_file: bool) -> None:
    image = Image.fromarray(RGB).convert(mode)
    if in_file and mode in ("P", "CMYK"):
        image = Image.open(io.BytesIO(saved(image, "PNG" if mode == "P" else "TIFF")))
        assert image.mode == mode
    picture = open_image(image)
    assert picture.mode == "rgb"
    assert np.array_equal(picture.pixels, np.array(image.convert("RGB")))


def test_one_bit_becomes_grey() -> None:
    picture = open_image(saved(Image.fromarray(GREY).convert("1")))
    assert picture.mode == "grey"
    assert set(np.unique(picture.pixels)) == {0, 255}


def test_grey_palette_in_a_gif() -> None:
    picture = open_image(saved(Image.fromarray(GREY), "GIF"))
    assert np.array_equal(picture.pixels if picture.mode == "grey" else picture.pixels[..., 0], GREY)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "object"])
def test_orientation_is_applied(orientation: int, kind: str) -> None:
    blocks = np.kron(np.array([[0, 60, 120], [180, 240, 30]], np.uint8), np.ones((16, 16), np.uint8))
    upright = Image.fromarray(np.stack([blocks] * 3, axis=2))
    # how a camera that was turned would have stored it
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = undo
    stored = upright.copy()
    stored.info["exif"] = exif.tobytes()
    stored = ImageOps.exif_transpose(stored)
    exif[0x0112] = orientation
    if kind == "object":
        stored.getexif()[0x0112] = orientation
        picture = open_image(stored)
    else:
        options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        picture = open_image(saved(stored, kind, exif=exif, **options))
    assert picture.pixels.shape == (32, 48, 3)
    assert np.abs(picture.pixels.astype(int) - np.array(upright)).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_hide_the_picture() -> None:
    data = saved(Image.fromarray(RGB), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert np.array_equal(open_image(data).pixels, RGB)


def test_the_colour_profile_is_kept_where_it_applies() -> None:
    image = Image.fromarray(RGB)
    assert open_image(saved(image, icc_profile=b"a profile")).icc_profile == b"a profile"
    assert open_image(saved(image)).icc_profile is None
    assert open_image(saved(image.convert("CMYK"), "TIFF", icc_profile=b"inks")).icc_profile is None


def test_the_first_picture_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(b"", "not a picture", id="empty"),
        pytest.param(b"hello, world", "not a picture", id="text"),
        pytest.param(b"\x8dMLIC\x01" + bytes(50), "not a picture", id="mlic"),
        pytest.param(saved(Image.fromarray(RGB))[:60], "cannot be read|damaged|not a picture", id="truncated PNG"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "not a picture", id="EPS"),
        pytest.param(Image.new("LAB", (4, 4)), "mode LAB", id="LAB"),
        pytest.param(Image.new("RGB", (0, 4)), "is empty", id="empty PIL image"),
        pytest.param(np.zeros((4, 4, 3), np.float32), "array of float32", id="float array"),
        pytest.param(np.zeros((4, 4), bool), "array of bool", id="bool array"),
        pytest.param(torch.zeros(4, 4, dtype=torch.bfloat16), "array of bfloat16", id="bfloat16 tensor"),
        pytest.param(torch.zeros(3, 8, 8, dtype=torch.uint8), "channels last", id="channels first"),
        pytest.param(np.zeros((3, 4, 4), np.uint8), "first or last", id="which channels"),
        pytest.param(np.zeros((4, 4, 5), np.uint8), "channels last", id="five channels"),
        pytest.param(np.zeros((4, 4, 1), np.uint8), r"\[H, W\]", id="one channel"),
        pytest.param(np.zeros((1, 4, 4, 3), np.uint8), "no batch", id="batch"),
        pytest.param(np.zeros(4, np.uint8), "no picture", id="vector"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), "empty picture", id="empty array"),
        pytest.param(17, "from int", id="number"),
        pytest.param(None, "from NoneType", id="None"),
        pytest.param(io.StringIO("text"), "binary mode", id="text file"),
    ],
)
def test_refusals_say_why(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageError, match=r"text\.png is not a picture"):
        open_image(tmp_path / "text.png")


def test_a_closed_image() -> None:
    image = Image.open(io.BytesIO(saved(Image.fromarray(RGB))))
    image.close()
    with pytest.raises(ImageError):
        open_image(image)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about half of them before it gives up
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_damaged_files_give_our_errors(kind: str) -> None:
    data = saved(Image.fromarray(RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)), kind)
    for length in range(0, len(data), 1 + len(data) // 150):
        with_try(data[:length])
    for position in range(0, len(data), 1 + len(data) // 150):
        with_try(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])


def with_try(data: bytes) -> None:
    try:
        picture = open_image(data)
    except (ImageError, LimitError):
        return
    assert picture.pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\xff\xd8\xff", b"RIFF"]), st.binary())
def test_random_bytes(start: bytes, data: bytes) -> None:
    with_try(start + data)


@pytest.mark.filterwarnings("ignore")
def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for side in (9460, 13500, 60000):  # in Pillow's warning range, and in its error range
        with pytest.raises(LimitError, match=r"limit|exceeds"):
            open_image(png(side, side, 8, 2, b""))
    with pytest.raises(LimitError, match="65,536"):
        open_image(png(65537, 1, 8, 2, b""))


@pytest.mark.filterwarnings("error")
def test_bombs_with_warnings_as_errors() -> None:
    with pytest.raises(LimitError):
        open_image(png(9460, 9460, 8, 2, b""))


def test_limits_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (RGB, Image.fromarray(RGB), saved(Image.fromarray(RGB))):
        with pytest.raises(LimitError, match="35 pixels; the limit is 34"):
            open_image(source, Limits(pixels=34))
        assert open_image(source, Limits(pixels=35)).width == 7
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    with pytest.raises(LimitError, match="limit is 10"):
        open_image(RGB)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    assert open_image(RGB).width == 7


def test_to_tensor_is_what_the_official_loader_gives() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = to_tensor(open_image(np.stack([values, values.T, 255 - values], axis=2)))
    expected = (
        torch.stack([torch.from_numpy(v.copy()) for v in (values, values.T, 255 - values)])[None].float().div(255)
    )
    assert torch.equal(x, expected)
    assert x.is_contiguous()
    grey = to_tensor(open_image(values))
    assert grey.shape == (1, 3, 16, 16)
    assert all(torch.equal(grey[0, channel], expected[0, 0]) for channel in range(3))


@pytest.mark.parametrize("size", [(1, 1), (63, 65), (64, 128), (129, 1)], ids=str)
def test_padding_and_cropping(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size) + 0.1
    height, width = size
    for padding in ("zero", "fade"):
        padded = pad_to_64(x, padding)  # type: ignore[arg-type]
        assert padded.shape == (2, 3, -(-height // 64) * 64, -(-width // 64) * 64)
        assert torch.equal(crop(padded, height, width), x)
    outside = pad_to_64(torch.ones(1, 1, *size))
    assert outside.sum() == height * width


def test_fading_padding_goes_from_the_edge_to_the_mean() -> None:
    x = torch.full((1, 1, 40, 10), 0.25)
    x[..., -1] = 0.75
    mean = x.mean().item()
    padded = pad_to_64(x, "fade")
    assert torch.allclose(padded[0, 0, 5, 9:26], torch.linspace(0.75, mean, 17))
    assert torch.allclose(padded[0, 0, 40:, 30:], torch.tensor(mean))
    assert torch.allclose(padded[0, 0, 56:, 0], torch.tensor(mean))
    whole = torch.rand(1, 3, 64, 128)
    assert torch.equal(pad_to_64(whole, "fade"), whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_a_picture_survives_the_way_to_the_model_and_back(height: int, width: int, grey: bool, seed: int) -> None:
    shape = (height, width) if grey else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    picture = open_image(pixels)
    x = crop(pad_to_64(to_tensor(picture)), height, width)
    assert np.array_equal(to_pixels(x, picture.mode), pixels)
    image = to_pillow(to_pixels(x, picture.mode))
    assert image.mode == ("L" if grey else "RGB")
    assert np.array_equal(np.array(image), pixels)


def test_rounding_and_clamping() -> None:
    values = torch.tensor([-1.0, 0.0, 0.4, 0.6, 254.4, 254.6, 255.0, 900.0]) / 255
    x = values.expand(1, 3, 1, -1)
    assert to_pixels(x)[0, :, 0].tolist() == [0, 0, 0, 1, 254, 255, 255, 255]
    assert to_pixels(x, rounding="truncate")[0, :, 0].tolist() == [0, 0, 0, 0, 254, 254, 255, 255]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert to_pixels(x.to(dtype)).dtype == np.uint8


def test_grey_is_the_mean_of_the_clamped_channels() -> None:
    x = torch.tensor([[-5.0, 100.0], [0.0, 101.0], [255.0 * 9, 102.4]]).reshape(1, 3, 1, 2) / 255
    assert to_pixels(x, "grey").tolist() == [[85, 101]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(value: float) -> None:
    x = torch.zeros(1, 3, 4, 4)
    x[0, 1, 2, 3] = value
    with pytest.raises(NonFiniteError):
        to_pixels(x)


def test_one_picture_at_a_time() -> None:
    with pytest.raises(ImageError, match=r"\[2, 3, 4, 4\]"):
        to_pixels(torch.zeros(2, 3, 4, 4))


def test_a_picture_knows_its_size() -> None:
    assert (Picture(RGB, "rgb").height, Picture(RGB, "rgb").width) == (5, 7)
