# SPDX-License-Identifier: Apache-2.0
"""What `pip install` gets: wheel and sdist hold what they must and nothing else, and an installed copy works."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mlic_fast

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would check out, with nothing built in it."""
    target = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(source.read_bytes())
            (target / name).chmod(source.stat().st_mode)
    return target


def build(checkout: Path, kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(checkout)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    (result,) = folder.iterdir()
    return result


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_what_it_must(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    for extension in ("_range_coder", "_cpu_kernels"):
        assert any(name.startswith(f"mlic_fast/{extension}.") and name.endswith((".so", ".pyd")) for name in names)
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "mlic_fast").rglob("*.py")}
    sources |= {f"mlic_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert sources <= set(names)
    for name in (
        "py.typed",
        *(f"weights/mlicpp-s-{lmbda}.safetensors" for lmbda in ("0.0018", "0.0067", "0.0483")),
        "weights/LICENSES.md",
        "data/coffee.png",
        "data/compare.html",
        "data/published_rd.json",
    ):
        assert f"mlic_fast/{name}" in names
    assert {name.split("/")[0] for name in names} == {"mlic_fast", wheel.name.split("-cp")[0] + ".dist-info"}
    assert not [name for name in names if "test" in name or name.endswith((".cpp", ".hpp", ".pyc"))]
    assert "mlic-fast = mlic_fast.cli.main:main" in entry_points
    assert f"\nVersion: {mlic_fast.__version__}\n" in metadata
    for requirement in ("torch>=2.6", "compressai>=1.2.8", "numpy", "pillow", "safetensors", "tqdm", "triton"):
        assert f"Requires-Dist: {requirement}" in metadata


def test_sdist_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build(checkout, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "csrc" / "CMakeLists.txt").is_file()
    rebuilt = build(unpacked, "wheel", tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(rebuilt) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_an_installed_copy_works(wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    program = (
        "import mlic_fast, sys; from importlib import resources; from pathlib import Path; from PIL import Image\n"
        "assert Path(mlic_fast.__file__).is_relative_to(sys.argv[1]), mlic_fast.__file__\n"
        "import mlic_fast.kernels; from mlic_fast.compute import backend; assert backend.cpu_kernels is not None\n"
        "image = Image.new('RGB', (70, 50), (200, 120, 40))\n"
        "assert mlic_fast.decode(mlic_fast.encode(image)).size == (70, 50)"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "site")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
