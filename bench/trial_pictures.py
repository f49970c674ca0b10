# SPDX-License-Identifier: Apache-2.0
"""Pictures to try files with, from seeds: crops of photographs, and made-up ones that are hard on the arithmetic."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlic_fast.config import PADDING_UNIT
from mlic_fast.pictures.image import open_image, pad_to_64, to_tensor

Pixels = npt.NDArray[np.uint8]

# Every second picture is cut from a photograph.
CONTENTS = (
    *("photograph",) * 6,
    "grey photograph",
    "inverted photograph",
    "flat",
    "halves",
    "ramps",
    "noise",
    "faint noise",
    "black and white noise",
    "checks",
    "text-like",
)
LARGE = 512, 768  # height, width
HEIGHTS = (1, 33, 63, 64, 65, 100, 111, 127, 128)  # of small pictures
WIDTHS = (5, 61, 64, 67, 96, 128, 129, 150, 191, 192)


@dataclass(frozen=True)
class Trial:
    """A picture and how many make a batch: itself, its mirror image, itself upside down."""

    seed: int
    content: str
    height: int
    width: int
    batch: int
    large: bool

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.content} {self.seed}, {self.width}×{self.height}" + (f" ×{self.batch}" * (self.batch > 1))

    def padded(self) -> tuple[int, int]:
        """Height and width that the model gets."""
        return -self.height % PADDING_UNIT + self.height, -self.width % PADDING_UNIT + self.width


def trials(large: int, small: int, large_size: tuple[int, int] = LARGE) -> list[Trial]:
    """So many pictures; a tenth of the large ones and half of the small ones in batches of 2 or 3.

    Small ones of the same padded size and batch follow one another, so that recorded calls are replayed.
    """
    generator = np.random.Generator(np.random.PCG64(500))
    contents = [CONTENTS[i % len(CONTENTS)] for i in range(large + small)]
    generator.shuffle(contents)
    chosen = []
    for seed, content in enumerate(contents):
        if seed < large:
            chosen.append(Trial(seed, content, *large_size, batch=2 if seed % 10 == 9 else 1, large=True))
        else:
            height, width = int(generator.choice(HEIGHTS)), int(generator.choice(WIDTHS))
            chosen.append(Trial(seed, content, height, width, batch=(1, 2, 1, 3)[seed % 4], large=False))
    return sorted(chosen, key=lambda one: (one.large, *one.padded(), one.batch))


def photographs(folders: Sequence[Path]) -> list[Path]:
    """The photographs in these folders that are as large as LARGE. Exits with a message where there are none."""
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}
    ]
    large = [path for path in found if all(map(operator.ge, sorted(_pixels(path).shape[:2]), LARGE))]
    if not large:
        sys.exit(f"no PNG or JPEG file of at least 768×512 pixels lies in {', '.join(map(str, folders))}")
    return large


def picture(trial: Trial, paths: Sequence[Path]) -> Pixels:
    """The picture itself, [H, W, 3]."""
    generator = np.random.Generator(np.random.PCG64([500, trial.seed]))
    shape = trial.height, trial.width, 3
    if trial.content.endswith("photograph"):
        pixels = _crop(paths[int(generator.integers(len(paths)))], trial, generator)
        if trial.content.startswith("grey"):
            pixels = np.broadcast_to(pixels[..., 1:2], shape)
        return ~pixels if trial.content.startswith("inverted") else pixels
    colours = generator.choice([0, 1, 127, 128, 254, 255], (2, 3)).astype(np.uint8)
    rows, columns = np.mgrid[: trial.height, : trial.width]
    if trial.content == "flat":
        return np.broadcast_to(colours[0], shape)
    if trial.content == "ramps":
        down, across = rows * 255 // max(trial.height - 1, 1), columns * 255 // max(trial.width - 1, 1)
        ramps = np.stack([down, across, (rows + columns) % 256], axis=-1).astype(np.uint8)
        return ramps[..., generator.permutation(3)]
    if trial.content == "noise":
        return generator.integers(0, 256, shape, dtype=np.uint8)
    if trial.content == "faint noise":
        return generator.integers(0, 3, shape, dtype=np.uint8) + np.clip(colours[0], 0, 253)
    if trial.content == "black and white noise":
        return generator.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255)
    # two colours, and where the first one is
    if trial.content == "halves":
        first = columns * trial.height > rows * trial.width
    elif trial.content == "checks":
        first = (rows // 8 + columns // 8) % 2 == 0
    elif trial.content == "text-like":
        glyphs = generator.random((trial.height // 12 + 1, trial.width // 6 + 1)) < 0.4
        letters = np.kron(glyphs, np.ones((12, 6), bool))[: trial.height, : trial.width]
        first = letters & (rows % 12 > 3) & (columns % 6 > 0)
    else:
        raise ValueError(f"there is no content {trial.content!r}")
    return np.where(first[..., None], colours[0], ~colours[0])


def batch(trial: Trial, paths: Sequence[Path]) -> Tensor:
    """What the model gets: float32 [batch, 3, H, W], sides padded to multiples of 64 as for files."""
    pixels = picture(trial, paths)
    members = [pixels, pixels[:, ::-1], pixels[::-1]][: trial.batch]
    return torch.cat([pad_to_64(to_tensor(open_image(np.ascontiguousarray(one))), "fade") for one in members])


def _crop(path: Path, trial: Trial, generator: np.random.Generator) -> Pixels:
    pixels = _pixels(path)
    height, width = trial.height, trial.width
    if height > pixels.shape[0] or width > pixels.shape[1]:
        pixels = pixels.swapaxes(0, 1)
    top = int(generator.integers(pixels.shape[0] - height + 1))
    left = int(generator.integers(pixels.shape[1] - width + 1))
    return pixels[top : top + height, left : left + width]


@lru_cache(maxsize=32)
def _pixels(path: Path) -> Pixels:
    pixels = open_image(path).pixels
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels
