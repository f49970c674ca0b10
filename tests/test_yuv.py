# SPDX-License-Identifier: Apache-2.0
"""Raw planes Y', Cb, Cr: H.273's codes, other implementations' numbers, and back."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlic_fast.errors import CodecRunError
from mlic_fast.evaluate.yuv import YuvFormat, from_yuv, to_yuv

FORMATS = [
    YuvFormat(depth, matrix, value_range)  # type: ignore[arg-type]
    for depth, matrix, value_range in itertools.product((8, 10), ("bt709", "bt601"), ("full", "limited"))
]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def planes(data: bytes, height: int, width: int, form: YuvFormat) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, "u1" if form.depth == 8 else "<u2").reshape(3, height, width)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_back_again(form: YuvFormat) -> None:
    pixels = noise(13, 7)
    data = to_yuv(pixels, form)
    assert len(data) == form.size(7, 13) == 3 * 7 * 13 * (1 if form.depth == 8 else 2)
    found = from_yuv(data, 7, 13, form)
    assert (found.dtype, found.shape) == (np.uint8, pixels.shape)
    difference = np.abs(found.astype(int) - pixels).max()
    # 10 bits hold every colour of 8; 8 bits of limited range have 219 steps for 255
    assert difference == 0 if form.depth == 10 else 0 < difference <= 3


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_codes_of_plain_colours(form: YuvFormat) -> None:
    """ITU-T H.273: black, white and grey have neutral chroma; blue and red reach its end."""
    colours = np.array([[[0, 0, 0], [255, 255, 255], [0, 0, 255], [255, 0, 0]]], np.uint8)
    y, cb, cr = planes(to_yuv(colours, form), 1, 4, form)[:, 0]
    unit = 2 ** (form.depth - 8)
    full = form.range == "full"
    low, high = (0, 2**form.depth - 1) if full else (16 * unit, 235 * unit)
    middle, end = 128 * unit, 2**form.depth - 1 if full else 240 * unit
    assert (y[0], y[1]) == (low, high)
    assert list(cb[:2]) == list(cr[:2]) == [middle, middle]
    assert (cb[2], cr[3]) == (end, end)
    k_b, k_r = (0.0722, 0.2126) if form.matrix == "bt709" else (0.114, 0.299)
    assert abs(int(y[2]) - (low + k_b * (high - low))) <= 0.5
    assert abs(int(y[3]) - (low + k_r * (high - low))) <= 0.5


def test_bt601_as_pillow_has_it() -> None:
    pixels = noise(31, 17)
    theirs = np.asarray(Image.fromarray(pixels).convert("YCbCr")).transpose(2, 0, 1).astype(int)
    form = YuvFormat(8, "bt601", "full")
    ours = planes(to_yuv(pixels, form), 31, 17, form)
    # Pillow rounds down
    assert set((ours - theirs).ravel()) == {0, 1}
    red, green, blue = pixels.transpose(2, 0, 1).astype(float)
    # as JFIF has it
    jfif = (
        0.299 * red + 0.587 * green + 0.114 * blue,
        -0.168736 * red - 0.331264 * green + 0.5 * blue + 128,
        0.5 * red - 0.418688 * green - 0.081312 * blue + 128,
    )
    assert np.abs(ours - np.stack(jfif).clip(0, 255)).max() < 0.501


@pytest.mark.filterwarnings("ignore")
def test_bt709_as_compressai_has_it() -> None:
    from compressai.transforms.functional import rgb2ycbcr

    pixels = noise(31, 17)
    theirs = rgb2ycbcr(torch.from_numpy(pixels).permute(2, 0, 1) / 255).numpy().astype(np.float64)
    form = YuvFormat(10, "bt709", "full")
    ours = planes(to_yuv(pixels, form), 31, 17, form) / 1023
    # theirs has chroma 0 at 1/2, which is no code; H.273 has it at 512
    offset = np.array([0, 0.5 / 1023, 0.5 / 1023])[:, None, None]
    assert np.abs(ours - offset - theirs.clip(0, 1)).max() <= 1.01 / 1023


def test_grey() -> None:
    grey = noise(5, 6)[..., 0]
    for form in FORMATS:
        data = to_yuv(grey, form)
        assert data == to_yuv(np.repeat(grey[..., None], 3, axis=2), form)
        assert set(planes(data, 5, 6, form)[1:].ravel()) == {128 * 2 ** (form.depth - 8)}
        if form.range == "full":
            assert np.array_equal(from_yuv(data, 6, 5, form)[..., 0], grey)


def test_what_is_no_picture() -> None:
    form = YuvFormat(10)
    with pytest.raises(CodecRunError, match="11 bytes are no picture of 2 x 1 in 4:4:4 with 10 bits a sample"):
        from_yuv(bytes(11), 2, 1, form)
    with pytest.raises(CodecRunError, match="samples go up to 1024"):
        from_yuv(np.full(6, 1024, "<u2").tobytes(), 2, 1, form)
    assert from_yuv(np.full(6, 1023, "<u2").tobytes(), 2, 1, form).shape == (1, 2, 3)
