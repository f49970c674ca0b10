# SPDX-License-Identifier: Apache-2.0
"""Training in processes of its own: interrupted and killed from outside, and shared by two processes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from training_samples import SHORT, assert_same, contents, losses, one_thread, pictures, program, rows

import mlic_fast
from mlic_fast.train.loop import train

__all__ = ["one_thread"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

_STEPS = 24

# Writes half of a checkpoint over a whole one, then is killed.
_KILLED_WHILE_WRITING = """
import io, os, signal, sys
from pathlib import Path
import torch
from mlic_fast.train import state
path = Path(sys.argv[1])
checkpoint = torch.load(path, weights_only=True)
whole = torch.save
def half(value, file):
    data = io.BytesIO()
    whole(value, data)
    file.write(data.getvalue()[: data.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
checkpoint["epoch"] = 100
state.save(checkpoint, path)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    settings = SHORT | {"steps": _STEPS, "epoch_patches": 16, "warmup_steps": 0}
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def uninterrupted(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    train(data, run, json.loads(recipe.read_text()), device="cpu")
    return run


def test_interrupted_from_outside(data: Path, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--recipe", recipe, "--device", "cpu", "--threads", "1"]
    process = program(data, "-o", run, *options)
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "steps.csv").is_file() and len(rows(run / "steps.csv")) >= 4:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "--resume goes on" in errors
    assert 4 <= len(losses(run)) < _STEPS
    train(data, run, device="cpu", resume=True)
    for name in ("last.pth.tar", "best.pth.tar"):
        assert_same(contents(run, name), contents(uninterrupted, name))
    assert losses(run) == losses(uninterrupted)


def test_killed_while_writing(uninterrupted: Path) -> None:
    before = (uninterrupted / "last.pth.tar").read_bytes()
    process = program(_KILLED_WHILE_WRITING, uninterrupted / "last.pth.tar", start="-c")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL, errors
    assert (uninterrupted / "last.pth.tar").read_bytes() == before
    assert any(path.name.endswith(".mlic-tmp") for path in uninterrupted.iterdir())
    mlic_fast.load(uninterrupted / "last.pth.tar")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_two_processes(data: Path, recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Two processes with half of each batch have the losses of one with the whole of it."""
    run = tmp_path / "run"
    started = ["--standalone", "--nproc-per-node", "2", "-m", "mlic_fast.train"]
    options = ["--recipe", recipe, "--device", "cpu", "--threads", "1", "--steps", "8"]
    options += ["--validation-images", "2", "--json"]
    process = program(*started, data, "-o", run, *options, start="-m torch.distributed.run")
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(output)["steps"] == 8  # one process speaks
    # rounding alone differs, which grows with the steps
    assert losses(run)[:5] == pytest.approx(losses(uninterrupted)[:5], rel=1e-5)
    assert losses(run) == pytest.approx(losses(uninterrupted)[:8], rel=0.02)
    # at the end of the epoch each process has coded one picture
    assert [row["images"] for row in rows(run / "validation.csv")] == ["2"]
    mlic_fast.load(run / "best.pth.tar")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_two_processes_over_a_range(data: Path, tmp_path: Path) -> None:
    """Samples have the λ and steps that they would have in one process; each validates its part at five rates."""
    settings = SHORT | {"lambda": [0.0018, 0.0483], "steps": 3, "validation_images": 2}
    train(data, tmp_path / "one", settings, device="cpu")
    (tmp_path / "recipe.json").write_text(json.dumps(settings))
    started = ["--standalone", "--nproc-per-node", "2", "-m", "mlic_fast.train"]
    options = ["--recipe", tmp_path / "recipe.json", "--device", "cpu", "--threads", "1"]
    process = program(*started, data, "-o", tmp_path / "two", *options, start="-m torch.distributed.run")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    found, alone = (rows(tmp_path / run / "validation.csv") for run in ("two", "one"))
    assert [row["images"] for row in found] == ["2"] * 5
    assert [float(row["bpp"]) for row in found] == pytest.approx([float(row["bpp"]) for row in alone], rel=0.01)


def test_help() -> None:
    process = program("--help")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    for words in ("mlic-fast train", "--lambda", "torchrun", "--resume"):
        assert words in output
