# SPDX-License-Identifier: Apache-2.0
"""PSNR, MS-SSIM and bits per pixel of decoded pictures.

Two flavours: of the picture that a user gets, rounded and in its own mode; and as the
official test script computes them, on three channels truncated to integers. Published
numbers are of the second kind, which is 0.05 to 0.15 dB lower at high rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlic_fast.errors import ImageError
from mlic_fast.pictures.image import Picture, Pixels, to_pixels

if TYPE_CHECKING:
    import torch

# MS-SSIM halves a picture four times and slides an 11 x 11 window over the smallest.
MS_SSIM_MIN_SIDE = 161


@dataclass(frozen=True)
class Quality:
    """How close a decoded picture is to the original.

    psnr: decibels, of rounded pixels in the picture's own mode; infinite if they are equal.
    ms_ssim: 0 to 1, likewise; None for pictures smaller than 161 pixels in one direction.
    psnr_official, ms_ssim_official: the same for truncated RGB, as the official test script has it.
    """

    psnr: float
    ms_ssim: float | None
    psnr_official: float
    ms_ssim_official: float | None


def bits_per_pixel(size: int, height: int, width: int) -> float:
    """Bits per pixel of `size` bytes for a picture of height x width."""
    return 8 * size / (height * width)


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in decibels of two uint8 pictures of equal shape; inf if equal.

    The squared error is averaged over all samples, channels included. Raises ImageError.
    """
    _check(a, b)
    difference = np.subtract(a, b, dtype=np.int32)
    # summed as integers: exact, whatever the order
    squares = int(np.square(difference).sum(dtype=np.int64))
    return math.inf if squares == 0 else 10 * math.log10(255**2 * difference.size / squares)


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Multi-scale structural similarity, 0 to 1, of two uint8 pictures of equal shape.

    Computed by pytorch_msssim in float32, as the official test script does: mean over the
    channels. None if a side is shorter than 161 pixels, where it is not defined. Raises ImageError.
    """
    _check(a, b)
    if min(a.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    from pytorch_msssim import ms_ssim as compute

    return float(compute(_planes(a), _planes(b), data_range=255.0).item())


def measure(a: Pixels, b: Pixels) -> tuple[float, float | None]:
    """PSNR and MS-SSIM of two uint8 pictures of equal shape. Raises ImageError."""
    return psnr(a, b), ms_ssim(a, b)


def compare(original: Picture, x_hat: torch.Tensor) -> Quality:
    """Measure the model's output [1, 3, H, W], cropped, against the original, in both flavours.

    Colours are measured, those of transparent pixels too, which a model codes like any other; alpha is without loss.
    """
    rounded = to_pixels(x_hat, original.mode)
    truncated = to_pixels(x_hat, "rgb", rounding="truncate")
    pixels = original.pixels
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return Quality(*measure(pixels, rounded), *measure(rgb, truncated))


def _planes(pixels: Pixels) -> torch.Tensor:
    """uint8 [H, W, 3] or [H, W] to float32 [1, C, H, W], values 0 to 255."""
    import torch

    return torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1)[None].copy()).to(torch.float32)


def _check(a: Pixels, b: Pixels) -> None:
    for pixels in (a, b):
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise ImageError(f"expected uint8 pictures, not {pixels.dtype} {list(pixels.shape)}")
    if a.shape != b.shape:
        raise ImageError(f"pictures of different size or mode: {list(a.shape)} and {list(b.shape)}")
