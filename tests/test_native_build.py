# SPDX-License-Identifier: Apache-2.0
"""The C++ code builds without warnings, and passes its own tests, with other compilers and processors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
GOLDEN = CSRC / "tests" / "golden_streams.txt"
# CMake and Ninja lie beside the interpreter when its environment is not activated.
TOOLS = os.environ | {"PATH": os.environ["PATH"] + os.pathsep + sysconfig.get_path("scripts")}
AARCH64 = {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64"}


def _without(missing: list[str]) -> None:
    """Skip, or fail where everything is meant to be installed."""
    give_up = pytest.fail if os.environ.get("MLIC_FAST_ALL_TOOLS") == "1" else pytest.skip
    give_up(f"{' and '.join(missing)} not installed")


def _build(folder: Path, target: str, compiler: str, options: dict[str, str]) -> None:
    options = {"CMAKE_CXX_COMPILER": compiler, "MLIC_FAST_WERROR": "ON"} | options
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    subprocess.run(["cmake", "-S", CSRC, "-B", folder, "-G", "Ninja", *definitions], env=TOOLS, check=True)
    subprocess.run(["cmake", "--build", folder, "--target", target], env=TOOLS, check=True)


@pytest.mark.parametrize(
    ("compiler", "options", "runner"),
    [
        pytest.param("g++", {}, [], id="gcc"),
        pytest.param("clang++", {"MLIC_FAST_SANITIZE": "ON"}, [], id="clang-sanitizers"),
        # Linked statically: the emulator then needs none of the other processor's libraries at run time.
        pytest.param(
            "aarch64-linux-gnu-g++", AARCH64 | {"CMAKE_EXE_LINKER_FLAGS": "-static"}, ["qemu-aarch64"], id="aarch64"
        ),
    ],
)
def test_self_test(compiler: str, options: dict[str, str], runner: list[str], tmp_path: Path) -> None:
    missing = [tool for tool in [compiler, *runner] if shutil.which(tool) is None]
    if missing:
        _without(missing)
    # Without Python: the coder knows nothing of it.
    _build(tmp_path / "build", "selftest", compiler, {"MLIC_FAST_EXTENSIONS": "OFF"} | options)
    program = tmp_path / "build" / "selftest"

    def run(golden: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*runner, str(program), str(golden)], capture_output=True, text=True, timeout=300)

    result = run(GOLDEN)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 failures" in result.stdout

    # It can fail: with one digit of one golden stream changed, it does.
    text = GOLDEN.read_text()
    place = text.index("stream ") + len("stream ") + 40
    altered = tmp_path / "golden_streams.txt"
    altered.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    result = run(altered)
    assert result.returncode == 1
    assert "FAILED: gaussian: encode" in result.stdout


@pytest.mark.slow
def test_extensions_build_for_aarch64(tmp_path: Path) -> None:
    """Bindings included, with this machine's Python headers."""
    compiler = "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None:
        _without([compiler])
    python = {
        "Python_EXECUTABLE": sys.executable,
        "Python_INCLUDE_DIR": sysconfig.get_path("include"),
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    _build(tmp_path, "all", compiler, AARCH64 | python)


def _copy(root: Path) -> None:
    """What setup.py needs to build in `root`."""
    for name in ("csrc", "mlic_fast", "kernels"):
        shutil.copytree(CSRC.parent / name, root / name, ignore=shutil.ignore_patterns("*.so", "*.safetensors"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CSRC.parent / name, root / name)


def _run_setup(root: Path, **switches: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=root, env=os.environ | switches, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("openmp", ["0", "1"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_extensions_build_with_any_compiler(compiler: str, openmp: str, tmp_path: Path) -> None:
    """Both extensions, as setup.py builds them, with warnings as errors, in a folder with any name; they import."""
    if shutil.which(compiler) is None:
        _without([compiler])
    root = tmp_path / "mit Leerzeichen, ü und 画"
    root.mkdir()
    _copy(root)
    switches = {"CXX": compiler, "MLIC_FAST_WERROR": "1", "MLIC_FAST_OPENMP": openmp}
    first = _run_setup(root, **switches)
    assert first.returncode == 0, first.stdout + first.stderr
    program = "import mlic_fast._range_coder, mlic_fast._cpu_kernels as k; print(k.__file__, k.isa())"
    environment = os.environ | {"PYTHONUTF8": "1"}
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert str(root) in found.stdout
    assert (root / "build" / "compile_commands.json").is_file()

    # A second build has nothing to do, and a third compiles the one file that changed.
    assert "Building CXX" not in _run_setup(root, **switches).stdout
    (root / "csrc" / "kernels" / "isa.cpp").touch()
    assert _run_setup(root, **switches).stdout.count("Building CXX") == 1


def _says_what_is_needed(finished: subprocess.CompletedProcess[str]) -> bool:
    return finished.returncode == 1 and "Building them needs" in finished.stderr and "Traceback" not in finished.stderr


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    _copy(tmp_path)
    finished = _run_setup(tmp_path, CXX="no-such-compiler")
    assert _says_what_is_needed(finished), finished.stderr
    assert "no-such-compiler" in finished.stderr


def test_a_missing_cmake_is_named(tmp_path: Path) -> None:
    _copy(tmp_path)
    program = (
        "import runpy, shutil, sys; shutil.which = lambda *_, **__: None; sys.argv = ['setup.py', 'build_ext']\n"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert _says_what_is_needed(finished), finished.stderr
    assert "cmake was not found" in finished.stderr
