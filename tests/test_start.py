# SPDX-License-Identifier: Apache-2.0
"""What a process imports before it has coded a picture: nothing that it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

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


def test_info(files: tuple[str, str, set[str]]) -> None:
    assert not found(modules_of("info", files[1]), (*_NEVER, "torch"))
