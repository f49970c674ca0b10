# SPDX-License-Identifier: Apache-2.0
"""What a process imports before it has coded a picture: nothing that it does not need."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from mlic_fast.cli.streams import WAITING

ROOT = Path(__file__).parent.parent

# What takes long to import and is needed by none of these commands.
_NEVER = ("compressai", "torch._dynamo", "scipy", "torchvision", "matplotlib", "pytorch_msssim", "triton")

_RUN = """
import json, sys
from mlic_fast.cli.main import main
code = main(sys.argv[1:])
print("\\n" + json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


def modules_of(*arguments: str) -> set[str]:
    """Modules that a fresh process has imported when the command is done."""
    run = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def found(modules: set[str], names: tuple[str, ...]) -> list[str]:
    return sorted(m for m in modules if any(m == name or m.startswith(f"{name}.") for name in names))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, set[str]]:
    """A picture, what `mlic-fast encode` makes of it, and the modules that it imported."""
    folder = tmp_path_factory.mktemp("start")
    picture, coded = str(folder / "picture.png"), str(folder / "picture.mlic")
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        Image.open(file).convert("RGB").crop((0, 0, 128, 64)).save(picture)
    return picture, coded, modules_of("encode", picture, "-o", coded, "--device", "cpu")


def test_encode(files: tuple[str, str, set[str]]) -> None:
    assert "torch" in files[2]
    assert not found(files[2], _NEVER)


def test_decode(files: tuple[str, str, set[str]], tmp_path: Path) -> None:
    modules = modules_of("decode", files[1], "-o", str(tmp_path / "decoded.png"), "--device", "cpu")
    assert "torch" in modules
    assert not found(modules, _NEVER)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "9"}, None)],
    ids=["by itself", "settled", "settled otherwise"],
)
def test_threads_sleep_while_they_wait(given: dict[str, str], expected: str | None) -> None:
    """As the runtime itself says when PyTorch loads it, unless the caller settled it."""
    asked = {name: value for name, value in os.environ.items() if name not in WAITING}
    run = subprocess.run(
        [sys.executable, "-m", "mlic_fast", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**asked, **given, "OMP_DISPLAY_ENV": "true"},
        check=True,
    )
    if expected is not None and "OMP_WAIT_POLICY" in run.stderr:
        assert re.search(rf"OMP_WAIT_POLICY ?= ?'{expected}'", run.stderr, re.IGNORECASE)
    told = json.loads(run.stdout)["threads"]
    assert told["waiting"] == ", ".join(f"{name}={value}" for name, value in (given or WITHOUT).items())
    assert "OMP_WAIT_POLICY=passive" in told["in Python"]


WITHOUT = {"OMP_WAIT_POLICY": "passive"}


def test_info(files: tuple[str, str, set[str]]) -> None:
    assert not found(modules_of("info", files[1]), (*_NEVER, "torch", "numpy"))
