# SPDX-License-Identifier: Apache-2.0
"""Patches for training: the same for a seed whatever loads them, drawn fairly, from folders with anything in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mlic_fast.errors import ConfigError, NoPicturesError
from mlic_fast.train.patches import Patches

SIZE = 16


def positions(width: int, height: int, red: int = 0) -> Image.Image:
    """Every pixel says where it is: its row in green, its column in blue."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = red
    pixels[..., 1] = np.arange(height)[:, None]
    pixels[..., 2] = np.arange(width)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    positions(40, 30, red=1).save(tmp_path / "deep" / "er" / "a.png")
    positions(80, 60, red=2).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def items(data: Patches) -> list[torch.Tensor]:
    return [data[i] for i in range(len(data))]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_patch_is_a_crop_mirrored_or_not(folder: Path) -> None:
    mirrored = Counter()
    tops: set[int] = set()
    for patch in items(Patches(folder, SIZE, count=1000, seed=0)):
        assert patch.dtype == torch.uint8
        assert patch.shape == (3, SIZE, SIZE)
        assert patch.is_contiguous()
        red, rows, columns = patch.int()
        assert len(red.unique()) == 1
        assert (rows.diff(dim=0) == 1).all()
        assert (rows.diff(dim=1) == 0).all()
        step = int(columns[0, 1] - columns[0, 0])
        assert (columns.diff(dim=1) == step).all()
        mirrored[step] += 1
        if red[0, 0] == 1:
            tops.add(int(rows[0, 0]))
    assert set(mirrored) == {1, -1}
    assert 400 < mirrored[1] < 600
    assert tops == set(range(30 - SIZE + 1))  # every position, the first and the last included


def test_pictures_are_drawn_by_area_or_evenly(folder: Path) -> None:
    def large(weighting: str) -> float:
        data = Patches(folder, SIZE, count=1000, seed=0, weighting=weighting)  # type: ignore[arg-type]
        return sum(int(patch[0, 0, 0]) == 2 for patch in items(data)) / 1000

    assert large("area") == pytest.approx(0.8, abs=0.04)
    assert large("even") == pytest.approx(0.5, abs=0.04)


def test_seed_epoch_and_index_alone_decide(folder: Path) -> None:
    data = Patches(folder, SIZE, count=20, seed=5)
    first = items(data)
    assert same(first, items(Patches(str(folder), SIZE, count=20, seed=5)))
    assert same(first, items(Patches(folder, SIZE, count=40, seed=5))[:20])
    assert not same(first, items(Patches(folder, SIZE, count=20, seed=6)))
    data.set_epoch(1)
    assert not same(first, items(data))
    data.set_epoch(0)
    assert same(first, items(data)[:20])


def test_what_is_in_memory_makes_no_difference(folder: Path) -> None:
    whole = items(Patches(folder, SIZE, count=20, seed=5))
    for room in (0, 40 * 30 * 3, 80 * 60 * 3):
        assert same(whole, items(Patches(folder, SIZE, count=20, seed=5, cache_bytes=room)))


def test_where_the_folder_lies_makes_no_difference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "moved"
    other.symlink_to(folder, target_is_directory=True)
    assert same(items(Patches(folder, SIZE, count=9, seed=1)), items(Patches(other, SIZE, count=9, seed=1)))


@pytest.mark.parametrize("room", [0, 10**6], ids=["decoded", "kept"])
def test_persistent_spawned_workers_see_the_epoch(folder: Path, room: int) -> None:
    data = Patches(folder, SIZE, count=6, seed=5, cache_bytes=room)
    loader = DataLoader(
        data, batch_size=3, num_workers=1, persistent_workers=True, multiprocessing_context="spawn", timeout=60
    )
    for epoch in (0, 1):
        data.set_epoch(epoch)
        assert torch.equal(torch.cat(list(loader)), torch.stack(items(data)))


def test_orientation_grey_alpha_and_16_bits(tmp_path: Path) -> None:
    turned = positions(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    turned.save(tmp_path / "turned.png", exif=exif)
    patch = Patches(tmp_path, 20, count=1, seed=0)[0].int()
    assert (patch[1].diff(dim=1).abs() == 1).all()  # rows lie side by side now
    (tmp_path / "turned.png").unlink()

    deep = np.full((20, 20), 0x8080, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (Patches(tmp_path, 20, count=1, seed=0)[0] == 0x80).all()
    (tmp_path / "deep.png").unlink()

    Image.new("RGBA", (20, 20), (1, 2, 3, 0)).save(tmp_path / "alpha.png")
    assert Patches(tmp_path, 20, count=1, seed=0)[0][:, 0, 0].tolist() == [1, 2, 3]


def test_small_pictures_are_left_out_with_a_warning(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 pictures smaller than a patch of 31 pixels.*a\.png"):
        data = Patches(folder, 31, count=10, seed=0)
    assert [path.name for path in data.too_small] == ["a.png"]
    assert all(int(patch[0, 0, 0]) == 2 for patch in items(data))


def damaged(folder: Path) -> Path:
    """A JPEG whose head is good and whose pixels end early."""
    target = folder / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(target, quality=95)
    target.write_bytes(target.read_bytes()[:3000])
    return target


def test_broken_pictures_are_skipped_and_named(folder: Path) -> None:
    (folder / "empty.png").touch()
    cut = damaged(folder)
    with pytest.warns(UserWarning, match=r"2 pictures cannot be read.*cut\.jpg"):
        kept = Patches(folder, SIZE, count=50, seed=0)
    assert set(kept.broken) == {cut, folder / "empty.png"}
    with pytest.warns(UserWarning, match=r"1 pictures cannot be read.*empty\.png"):
        decoded = Patches(folder, SIZE, count=50, seed=0, cache_bytes=0)
    assert set(decoded.broken) == {folder / "empty.png"}
    with pytest.warns(UserWarning, match=r"left out: .*cut\.jpg"):
        patches = items(decoded)
    assert set(decoded.broken) == set(kept.broken)
    assert same(patches, items(kept))  # whenever it is noticed


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(NoPicturesError, match="no picture to take patches"):
        Patches(tmp_path, SIZE, count=1, seed=0)
    positions(8, 8).save(tmp_path / "small.png")
    with pytest.warns(UserWarning, match="smaller"), pytest.raises(NoPicturesError, match="1 are smaller, 0 cannot"):
        Patches(tmp_path, SIZE, count=1, seed=0)
    (tmp_path / "small.png").unlink()
    damaged(tmp_path)
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(NoPicturesError, match="0 are smaller, 1 cannot"),
    ):
        Patches(tmp_path, SIZE, count=1, seed=0)
    late = Patches(tmp_path, SIZE, count=1, seed=0, cache_bytes=0)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(NoPicturesError, match="broken pictures only"):
        late[0]


def test_wrong_arguments(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Patches(folder / "missing", SIZE, count=1, seed=0)
    with pytest.raises(NotADirectoryError):
        Patches(folder / "b.png", SIZE, count=1, seed=0)
    for wrong in ({"size": 0}, {"count": 0}, {"cache_bytes": -1}, {"weighting": "colour"}):
        with pytest.raises(ConfigError):
            Patches(folder, **{"size": SIZE, "count": 1, "seed": 0, **wrong})  # type: ignore[arg-type]
    data = Patches(folder, SIZE, count=3, seed=0)
    for index in (3, -1):
        with pytest.raises(IndexError):
            data[index]
