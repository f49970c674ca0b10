# SPDX-License-Identifier: Apache-2.0
"""What the tests of training share: a few small pictures, a tiny model, and settings that take a second."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

TINY = {"N": 8, "M": 64, "slice_num": 2}

# Six steps in two epochs, coding one picture after each.
SHORT: dict[str, Any] = {
    "model": TINY,
    "steps": 6,
    "batch": 2,
    "epoch_patches": 6,
    "patches": [[0, 64]],
    "lr": 1e-3,
    "warmup_steps": 2,
    "validation_images": 1,
    "log_steps": 1,
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Such small maps are computed in one thread in less time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(folder: Path, count: int = 3, side: int = 96) -> Path:
    """A folder with `count` coloured pictures of some structure, side × (side + 32) pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        random = np.random.default_rng(index)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side + 32, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{index}.png")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def losses(run: Path) -> list[float]:
    """The loss of each line of a run's log."""
    return [float(row["loss"]) for row in rows(run / "steps.csv")]


def contents(run: Path, name: str = "last.pth.tar") -> dict[str, Any]:
    """A run's checkpoint, without what the clock has a say in."""
    checkpoint = torch.load(run / name, weights_only=True)
    del checkpoint["mlic_fast"]["progress"]["seconds"]
    return checkpoint


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Nested containers are equal, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def program(*arguments: object, start: str = "-m mlic_fast.train", **options: Any) -> subprocess.Popen[str]:
    """The trainer in a process of its own, or another program that Python starts so."""
    command = [sys.executable, *start.split(), *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
