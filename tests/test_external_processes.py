# SPDX-License-Identifier: Apache-2.0
"""What external codecs start is ended: when time is up, when they end, with Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from external_samples import (
    DECODE,
    ENCODE,
    PROGRAM,
    Recipe,
    photograph,
    picture,
    python,
    recipe,
    temporaries,
)
from PIL import Image

from mlic_fast.errors import CodecRunError
from mlic_fast.evaluate import programs
from mlic_fast.evaluate.external import code
from mlic_fast.pictures.image import Picture

__all__ = ["photograph", "picture", "recipe", "temporaries"]

BACKGROUND = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(os.environ["PIDS"], "a").write(f"{os.getpid()} {child.pid} ")
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file where programs write their processes' numbers, which must be gone at the end."""
    path = tmp_path / "pids"
    monkeypatch.setenv("PIDS", str(path))
    yield path
    numbers = [int(number) for number in path.read_text().split()]
    assert len(numbers) >= 2
    limit = time.monotonic() + 10
    while any(map(alive, numbers)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert [number for number in numbers if alive(number)] == []


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc tells which processes run")


@linux
@pytest.mark.parametrize("after", ["time.sleep(60)", "sys.exit(1)", ""], ids=["time is up", "error", "ends well"])
def test_nothing_that_it_started_is_left(
    after: str, recipe: Recipe, picture: Picture, pids: Path, temporaries: Path
) -> None:
    program = f"{PROGRAM}\n{BACKGROUND}\n{after}"
    codec = recipe(encode=python(program, *ENCODE[3:]), decode=DECODE, timeout=10 if not after else 3)
    if after:
        with pytest.raises(CodecRunError):
            code(codec, picture, "8")
    else:
        assert code(codec, picture, "8").encode_seconds < 10
    assert list(temporaries.iterdir()) == []


@linux
def test_interrupted_while_a_program_runs(
    recipe: Recipe, picture: Picture, pids: Path, temporaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = recipe(encode=python(f"{BACKGROUND}\ntime.sleep(60)", *ENCODE[3:]), decode=DECODE)

    def interrupt(*_: Any) -> None:
        if pids.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(programs, "_check_size", interrupt)
    with pytest.raises(KeyboardInterrupt):
        code(codec, picture, "8")
    assert list(temporaries.iterdir()) == []


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_a_signal_ends_the_programs(
    number: int, recipe: Recipe, photograph: Image.Image, pids: Path, tmp_path: Path
) -> None:
    """A whole `mlic-fast eval`, as a terminal's Ctrl-C or a batch system's end finds it."""
    recipe(encode=python(f"{BACKGROUND}\ntime.sleep(60)", *ENCODE[3:]), decode=DECODE)
    (tmp_path / "pictures").mkdir()
    photograph.save(tmp_path / "pictures" / "a.png")
    folder = tmp_path / "temporaries"
    folder.mkdir()
    command = [sys.executable, "-m", "mlic_fast", "eval", "pictures", "--external", "recipe.toml", "--no-model"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 60
    while not (pids.exists() and len(pids.read_text().split()) >= 2):
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert list(folder.iterdir()) == []
