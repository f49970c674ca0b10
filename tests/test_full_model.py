# SPDX-License-Identifier: Apache-2.0
"""The published model's full size, with weights that give realistic latents and rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mlic_fast
from mlic_fast.engine import Options
from mlic_fast.pictures.image import pad_to_64, to_pixels


def test_full_size_picture_through_strings(full_model: Any, test_image: Callable[..., torch.Tensor]) -> None:
    assert sum(parameter.numel() for parameter in full_model.parameters()) == 83_501_408
    x = test_image(256, 256, 30)
    coded = full_model.compress(x, exact=True)
    decoded = full_model.decompress(coded["strings"], coded["shape"], exact=True)["x_hat"]
    with torch.no_grad():
        estimated = full_model(x)
    assert (decoded - estimated["x_hat"]).abs().max() < 1e-4
    written = 8 * sum(len(string) for part in coded["strings"] for string in part)
    bits = sum(-torch.log2(p).sum().item() for p in estimated["likelihoods"].values())
    # The estimate charges 30 bits (its floor is 1e-9) for an outlier that an escape codes in fewer.
    assert 0.9 * bits < written < 1.02 * bits
    assert 0.1 < written / (256 * 256) < 3  # of the order that trained weights give


def test_full_size_picture_through_a_file(
    full_model: Any, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # bfloat16 makes other symbols now and then, and these weights make other pictures of them
    monkeypatch.setattr(full_model, "engine_options", Options(transform_dtype="float32"))
    pixels = to_pixels(test_image(250, 200, 31))
    data = mlic_fast.encode(pixels, full_model)
    decoded = np.asarray(mlic_fast.decode(data, full_model))
    assert decoded.shape == pixels.shape
    with torch.no_grad():
        padded = pad_to_64(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255, "fade")
        expected = to_pixels(full_model(padded)["x_hat"][..., :250, :200])
    assert np.abs(decoded.astype(int) - expected).max() <= 1
