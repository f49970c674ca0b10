# SPDX-License-Identifier: Apache-2.0
"""Training pictures: what becomes of every kind of source, going on after an end by force, and the command's report."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from mlic_fast.cli.main import main
from mlic_fast.cli.record import PREFIX
from mlic_fast.train.prepare import Settings, half, prepare, prepare_all

RNG = np.random.default_rng(0)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def photo(width: int, height: int) -> Image.Image:
    """Something smooth, so that JPEG keeps it nearly."""
    small = Image.fromarray(noise(6, 5))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def done(tmp_path: Path, name: str, **settings: Any) -> tuple[Any, Image.Image]:
    target = tmp_path / "out.png"
    outcome = prepare(tmp_path / name, target, Settings(min_side=8, **settings))
    assert outcome.status == "made", outcome.error
    image = Image.open(target)
    image.load()
    assert image.mode == "RGB"
    assert image.size == (outcome.width, outcome.height)
    assert target.stat().st_size == outcome.bytes
    return outcome, image


def test_lossless_sources_are_kept_to_the_bit(tmp_path: Path) -> None:
    pixels = noise(21, 13)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True)
    for name in ("a.bmp", "a.webp"):
        outcome, image = done(tmp_path, name)
        assert not outcome.halved
        assert (np.asarray(image) == pixels).all()


def test_lossy_sources_are_halved(tmp_path: Path) -> None:
    picture = photo(65, 47)
    picture.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    picture.save(tmp_path / "a.webp", quality=95)
    (tmp_path / "lies.png").write_bytes((tmp_path / "a.jpg").read_bytes())  # the content tells, not the name
    smaller = np.asarray(half(picture)).astype(int)
    for name in ("a.jpg", "a.webp", "lies.png"):
        outcome, image = done(tmp_path, name)
        assert outcome.halved
        assert image.size == (32, 23)
        assert abs(np.asarray(image).astype(int) - smaller).mean() < 4
    assert done(tmp_path, "a.jpg", halve="none")[1].size == (65, 47)
    picture.save(tmp_path / "b.png")
    assert (np.asarray(done(tmp_path, "b.png", halve="all")[1]) == smaller).all()


def test_halving_takes_away_what_the_new_resolution_cannot_hold() -> None:
    columns = np.arange(128)
    beyond = 128 + 100 * np.cos(2 * np.pi * columns * 0.36)  # would come back as 0.28 cycles a pixel of the result
    below = 128 + 100 * np.cos(2 * np.pi * columns * 0.15)

    def contrast(wave: Any) -> float:
        image = Image.fromarray(np.tile(wave.astype(np.uint8), (32, 1)))
        return float(np.asarray(half(image)).astype(float)[:, 8:-8].std()) / 70.7

    assert contrast(beyond) < 0.1
    assert contrast(below) > 0.9
    # a mean of two pixels in a row is worse at both
    assert abs(np.cos(np.pi * 0.36)) > 0.4
    assert np.cos(np.pi * 0.15) < 0.9


def test_orientation_grey_alpha_palette_and_16_bits(tmp_path: Path) -> None:
    pixels = noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert (np.asarray(done(tmp_path, "turned.png")[1]) == np.rot90(pixels, -1)).all()

    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert (np.asarray(done(tmp_path, "grey.png")[1]) == pixels[..., :1]).all()

    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (np.asarray(done(tmp_path, "deep.png")[1]) == pixels[..., :1]).all()

    Image.fromarray(noise(20, 30, 4)).save(tmp_path / "alpha.png")
    assert done(tmp_path, "alpha.png")[0].notes == ("alpha left out",)

    Image.fromarray(pixels).quantize(16).save(tmp_path / "palette.png")
    wanted = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB"))
    assert (np.asarray(done(tmp_path, "palette.png")[1]) == wanted).all()


def test_colour_profiles(tmp_path: Path) -> None:
    image = photo(20, 30)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image.save(tmp_path / "srgb.png", icc_profile=srgb.tobytes())
    outcome, result = done(tmp_path, "srgb.png")
    assert outcome.notes == ()
    assert (np.asarray(result) == np.asarray(image)).all()

    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image.save(tmp_path / "wrong.png", icc_profile=other)
    image.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    for name in ("wrong.png", "damaged.png"):
        outcome, result = done(tmp_path, name)
        assert outcome.notes[0].startswith("colour profile dropped (")
        assert (np.asarray(result) == np.asarray(image)).all()

    # sRGB with red and blue exchanged, under another name: what is stored as red is meant to be blue
    profile = bytearray(srgb.tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    assert 0 < red < len(profile)
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    name_at = profile.find("sRGB".encode("utf-16-be"))
    profile[name_at : name_at + 8] = "swap".encode("utf-16-be")
    assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(bytes(profile)))).startswith("swap")
    image.save(tmp_path / "swapped.png", icc_profile=bytes(profile))
    outcome, result = done(tmp_path, "swapped.png")
    assert outcome.notes[0].startswith("converted from swap")
    assert abs(np.asarray(result).astype(int) - np.asarray(image)[..., ::-1]).max() <= 2
    assert "icc_profile" not in result.info


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    photo(70, 60).save(root / "a.jpg", quality=90)
    Image.fromarray(noise(40, 30)).save(root / "a.png")
    Image.fromarray(noise(33, 50)).save(root / "deep" / "er" / "b.png")
    photo(50, 50).save(root / "deep" / "small.jpg")  # 25 after halving
    Image.fromarray(noise(29, 300)).save(root / "deep" / "thin.png")
    (root / "deep" / "broken.png").write_bytes((root / "a.png").read_bytes()[:200])
    (root / "empty.jpg").touch()
    (root / "notes.txt").write_text("no picture")
    return root


def report(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 1) -> Any:
    assert main(["prepare-data", *map(str, arguments), "--min-side", "30", "--jobs", "1", "--json"]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(PREFIX)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_folder(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "out"
    facts, error = report(capsys, sources, target)
    assert set(tree(target)) == {"a.jpg.png", "a.png.png", "deep/er/b.png"}
    assert Image.open(target / "a.jpg.png").size == (35, 30)
    counts = {name: facts[name] for name in ("made", "halved", "already_there", "too_small", "others", "renamed")}
    assert counts == {"made": 3, "halved": 1, "already_there": 0, "too_small": 2, "others": 1, "renamed": 2}
    assert facts["pixels"] == 35 * 30 + 40 * 30 + 33 * 50
    assert facts["bytes"] == sum(map(len, tree(target).values()))
    assert {Path(failure["input"]).name for failure in facts["failures"]} == {"broken.png", "empty.jpg"}
    assert "broken.png" in error
    assert "empty.jpg" in error

    before = tree(target)
    (target / "deep" / "er" / "b.png").unlink()
    facts, _ = report(capsys, sources, target)
    assert (facts["made"], facts["already_there"]) == (1, 2)
    assert tree(target) == before
    assert report(capsys, sources, target, "--overwrite")[0]["made"] == 3
    assert tree(target) == before


def test_webp(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(capsys, sources, tmp_path / "out", "--format", "webp")
    pixels = np.asarray(Image.open(tmp_path / "out" / "deep" / "er" / "b.webp"))
    assert (pixels == np.asarray(Image.open(sources / "deep" / "er" / "b.png"))).all()


def test_processes_make_no_difference(sources: Path, tmp_path: Path) -> None:
    names = ["a.png", "empty.jpg", "a.jpg", "deep/er/b.png", "deep/small.jpg"]

    def outcomes(jobs: int) -> tuple[list[Any], dict[str, bytes]]:
        folder = tmp_path / str(jobs)
        tasks = [(sources / name, folder / f"{i}.png") for i, name in enumerate(names)]
        # without the times, of which reading changes one
        found = [replace(outcome, times=None) for outcome in prepare_all(tasks, Settings(min_side=30), jobs)]
        return found, tree(folder)

    assert outcomes(1) == outcomes(2)
    assert [outcome.status for outcome in outcomes(1)[0]] == ["made", "failed", "made", "made", "small"]


def test_the_pixel_limit(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, error = report(capsys, sources, tmp_path / "out", "--max-pixels", 1500)
    assert facts["made"] == 1
    assert "the limit is 1,500" in error


def test_wrong_folders(sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code in (
        ((sources / "missing", tmp_path / "out"), 3),
        ((sources / "a.png", tmp_path / "out"), 3),
        ((sources, sources), 2),
        ((sources, sources / "a.png"), 2),
        ((tmp_path / "empty", tmp_path / "out"), 4),
    ):
        assert main(["prepare-data", *map(str, arguments)]) == code
        assert "Traceback" not in capsys.readouterr().err
    assert len(tree(sources)) == 8


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_killed_half_way_it_goes_on_and_leaves_no_process(tmp_path: Path) -> None:
    source, whole, target = tmp_path / "in", tmp_path / "whole", tmp_path / "out"
    source.mkdir()
    base = noise(700, 500)
    for i in range(40):
        Image.fromarray(np.roll(base, i, axis=1)).save(source / f"{i:02}.bmp")
    command = [sys.executable, "-m", "mlic_fast", "prepare-data", str(source)]
    assert main(["prepare-data", str(source), str(whole), "--jobs", "1"]) == 0

    run = subprocess.Popen([*command, str(target), "--jobs", "2"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(target.glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = _children(run.pid)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(children) >= 2
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(child) for child in children)
    made = {path.name: path.read_bytes() for path in target.glob("[0-9]*.png")}
    assert 3 <= len(made) < 40
    expected = tree(whole)
    assert all(expected[name] == content for name, content in made.items())  # whole, not begun

    assert main(["prepare-data", str(source), str(target), "--jobs", "1"]) == 0
    assert {path.name: path.read_bytes() for path in target.glob("[0-9]*.png")} == expected


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
