# SPDX-License-Identifier: Apache-2.0
"""The loop of the official test script, with nothing changed but where the model is imported from."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.bitstream import official

Images = Callable[..., torch.Tensor]


def write(path: Path, shape: tuple[int, int], out: dict[str, Any]) -> None:
    """The official layout: big-endian sizes of picture and z, then each list's first string with its length."""
    strings = out["strings"]
    with path.open("wb") as file:
        file.write(struct.pack(">4I", *shape, *out["shape"]))
        file.write(struct.pack(">I", len(strings)))
        for string in strings:
            file.write(struct.pack(">I", len(string[0])) + string[0])


def read(path: Path) -> tuple[tuple[int, int], list[list[bytes]], tuple[int, int]]:
    """Size of the picture, strings, z's height and width."""
    with path.open("rb") as file:
        height, width, z_height, z_width, count = struct.unpack(">5I", file.read(20))
        strings = [[file.read(struct.unpack(">I", file.read(4))[0])] for _ in range(count)]
    return (height, width), strings, (z_height, z_width)


@torch.no_grad()
def code_image(model: Any, x: torch.Tensor, path: Path) -> dict[str, Any]:
    """One picture [1, 3, H, W] through a file."""
    height, width = x.shape[2:]
    padding = (0, -width % 64, 0, -height % 64)
    start = time.time()
    out = model.compress(F.pad(x, padding, mode="constant", value=0))
    encoding = time.time() - start
    write(path, (height, width), out)
    (height, width), strings, shape = read(path)
    start = time.time()
    decoded = model.decompress(strings, shape)
    decoding = time.time() - start
    x_hat = decoded["x_hat"][..., :height, :width].clamp(0, 1)
    times = (encoding, out["cost_time"]), (decoding, decoded["cost_time"])
    return {"x_hat": x_hat, "bpp": path.stat().st_size * 8 / (height * width), "times": times}


@pytest.mark.parametrize(("height", "width"), [(64, 128), (97, 70)])
def test_the_official_loop(small_model: Any, test_image: Images, tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 1, "state_dict": small_model.state_dict(), "loss": 1.0}, path)

    checkpoint = torch.load(path)
    model = MLICPlusPlus(config=ModelConfig(N=64, M=96, slice_num=3))
    model.load_state_dict(checkpoint["state_dict"])
    model.update(force=True)
    model.eval()
    model.update_resolutions(16, 16)
    x = test_image(height, width, 9, 1)
    found = code_image(model, x, tmp_path / "picture.bin")

    # what is lost between picture and decoded picture is what forward says is lost
    padded = F.pad(x, (0, -width % 64, 0, -height % 64))
    with torch.no_grad():
        forward = model(padded)
    assert (found["x_hat"] - forward["x_hat"][..., :height, :width].clamp(0, 1)).abs().max() < 1e-3
    estimated = sum(-part.log2().sum() for part in forward["likelihoods"].values()) / (height * width)
    # besides: 28 bytes of sizes, and the last state of two coders
    assert found["bpp"] == pytest.approx(float(estimated) + 8 * (28 + 2 * 8) / (height * width), rel=0.05)
    for outside, reported in found["times"]:
        assert 0 < reported <= outside

    # and the file is one that this package reads as such
    file = official.read((tmp_path / "picture.bin").read_bytes())
    assert (file.height, file.width) == (height, width)
