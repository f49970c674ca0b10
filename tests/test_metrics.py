# SPDX-License-Identifier: Apache-2.0
"""PSNR, MS-SSIM and bits per pixel, in our flavour and the official test script's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlic_fast.errors import ImageError
from mlic_fast.evaluate.metrics import bits_per_pixel, compare, measure, ms_ssim, psnr
from mlic_fast.pictures.image import open_image, to_tensor

RNG = np.random.default_rng(0)


def photo(height: int, width: int) -> np.ndarray:
    """Something smooth with detail: MS-SSIM of pure noise says little."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + k) * np.cos(columns / (5 + k)) for k in range(3)]
    return (127 + 100 * np.stack(waves, axis=2)).astype(np.uint8)


@pytest.mark.parametrize(("difference", "expected"), [(1, 48.1308), (2, 42.1102), (255, 0.0)])
def test_psnr_of_a_constant_difference(difference: int, expected: float) -> None:
    a = np.zeros((9, 11, 3), np.uint8)
    assert psnr(a, a + np.uint8(difference)) == pytest.approx(expected, abs=1e-4)


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_psnr_is_its_formula(height: int, width: int, grey: bool) -> None:
    shape = (height, width) if grey else (height, width, 3)
    a, b = (RNG.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    b[0, 0] = a[0, 0] ^ 1
    mse = np.mean((a.astype(np.float64) - b) ** 2)
    assert psnr(a, b) == psnr(b, a) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-9)


def test_psnr_of_equal_pictures_is_infinite() -> None:
    a = photo(8, 8)
    assert psnr(a, a) == math.inf


def test_psnr_of_a_large_picture_does_not_overflow() -> None:
    a = np.zeros((3000, 3000), np.uint8)
    assert psnr(a, a + np.uint8(255)) == 0


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "RGB", "RGBA", "P", "P with transparency", "CMYK", "YCbCr", "HSV", "I;16"]
)
@pytest.mark.filterwarnings("ignore::mlic_fast.errors.NotKeptWarning")
def test_every_mode_is_measured(mode: str) -> None:
    """The colours alone, in both flavours: grey as grey, all else as RGB."""
    pixels = np.dstack((photo(170, 180), np.arange(180, dtype=np.uint8)[None].repeat(170, axis=0)))
    base = Image.fromarray(pixels if "A" in mode else pixels[..., :3].copy())
    image = base.convert("L" if mode == "I;16" else mode.split()[0])
    if "transparency" in mode:
        image.info["transparency"] = 3
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    original = open_image(image, reduce_depth=True)
    assert (original.alpha is not None) == (mode in {"LA", "RGBA", "P with transparency"})
    quality = compare(original, to_tensor(original))
    assert (quality.psnr, quality.psnr_official) == (math.inf, math.inf)
    off = to_tensor(original).mul(254 / 255)
    wanted = psnr(original.pixels, np.round(original.pixels * (254 / 255)).astype(np.uint8))
    assert compare(original, off).psnr == pytest.approx(wanted, abs=0.2)
    assert compare(original, off).ms_ssim_official is not None


def test_ms_ssim() -> None:
    a = photo(170, 180)
    noisy = np.clip(a + RNG.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    noisier = np.clip(a + RNG.normal(0, 60, a.shape), 0, 255).astype(np.uint8)
    same, near, far = (ms_ssim(a, b) for b in (a, noisy, noisier))
    assert measure(a, noisy) == (psnr(a, noisy), near)
    assert same is not None
    assert near is not None
    assert far is not None
    assert same == pytest.approx(1, abs=1e-6)
    assert far < near < 1
    grey = ms_ssim(a[..., 0], noisy[..., 0])
    assert grey is not None
    assert 0 < grey < 1


@pytest.mark.parametrize(("height", "width", "defined"), [(160, 300, False), (300, 160, False), (161, 161, True)])
def test_ms_ssim_needs_161_pixels_a_side(height: int, width: int, defined: bool) -> None:
    a = photo(height, width)
    assert (ms_ssim(a, a) is not None) is defined


def test_bits_per_pixel() -> None:
    assert bits_per_pixel(49152, 512, 768) == 1.0


def test_both_flavours() -> None:
    pixels = photo(170, 170)
    x_hat = (to_tensor(open_image(pixels)) * 255 + 0.4).clamp(0, 255) / 255
    quality = compare(open_image(pixels), x_hat)
    assert quality.psnr == quality.psnr_official == math.inf
    worse = compare(open_image(pixels), x_hat - 0.8 / 255)
    assert worse.psnr == math.inf
    assert worse.psnr_official == pytest.approx(48.13, abs=0.01)
    assert worse.ms_ssim_official is not None
    assert worse.ms_ssim is not None
    assert worse.ms_ssim_official < worse.ms_ssim


def test_grey_is_measured_as_grey_and_officially_as_rgb() -> None:
    pixels = photo(20, 30)[..., 0]
    x_hat = to_tensor(open_image(pixels))
    x_hat[:, 0] = (x_hat[:, 0] + 3.1 / 255).clamp(0, 1)
    quality = compare(open_image(pixels), x_hat)
    assert quality.psnr == pytest.approx(psnr(pixels, np.minimum(pixels + 1, 255)), abs=0.01)
    assert quality.psnr_official < quality.psnr
    assert quality.ms_ssim is None
    assert quality.ms_ssim_official is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8), id="sizes"),
        pytest.param(np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), id="modes"),
        pytest.param(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8), id="types"),
    ],
)
def test_pictures_that_do_not_compare(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ImageError):
        psnr(a, b)
    with pytest.raises(ImageError):
        ms_ssim(a, b)


def test_a_tensor_of_another_size_does_not_compare() -> None:
    with pytest.raises(ImageError, match="different size"):
        compare(open_image(photo(20, 30)), torch.zeros(1, 3, 64, 64))
