# SPDX-License-Identifier: Apache-2.0
"""The C++ range coder compiles without warnings, and passes its own tests, with other compilers and processors."""

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
SOURCES = [CSRC / name for name in ("tests/selftest.cpp", "decoder.cpp", "encoder.cpp", "parallel.cpp", "tables.cpp")]
GOLDEN = CSRC / "tests" / "golden_streams.txt"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-pthread", *WARNINGS]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def _without(missing: list[str]) -> None:
    """Skip, or fail where everything is meant to be installed."""
    give_up = pytest.fail if os.environ.get("MLIC_FAST_ALL_TOOLS") == "1" else pytest.skip
    give_up(f"{' and '.join(missing)} not installed")


@pytest.mark.parametrize(
    ("compiler", "flags", "runner"),
    [
        pytest.param("g++", [], [], id="gcc"),
        pytest.param("clang++", SANITIZERS, [], id="clang-sanitizers"),
        # Linked statically: the emulator then needs none of the other processor's libraries at run time.
        pytest.param("aarch64-linux-gnu-g++", ["-static"], ["qemu-aarch64"], id="aarch64"),
    ],
)
def test_self_test(compiler: str, flags: list[str], runner: list[str], tmp_path: Path) -> None:
    missing = [tool for tool in [compiler, *runner] if shutil.which(tool) is None]
    if missing:
        _without(missing)
    program = tmp_path / "selftest"
    subprocess.run([compiler, *FLAGS, *flags, *map(str, SOURCES), "-o", str(program)], check=True)

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
def test_extensions_compile_for_aarch64() -> None:
    """Bindings included: everything that setup.py compiles, with this machine's Python headers."""
    compiler = "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None:
        _without([compiler])
    sources = sorted([*CSRC.glob("*.cpp"), *CSRC.glob("kernels/*.cpp")])
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *includes, *map(str, sources)],
        check=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("openmp", ["0", "1"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_extensions_build_with_any_compiler(compiler: str, openmp: str, tmp_path: Path) -> None:
    """Both extensions, as setup.py builds them, with warnings as errors, and they import."""
    if shutil.which(compiler) is None:
        _without([compiler])
    root = CSRC.parent
    for name in ("csrc", "mlic_fast", "kernels"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "*.safetensors"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path / name)
    switches = {"CC": compiler, "CXX": compiler, "MLIC_FAST_WERROR": "1", "MLIC_FAST_OPENMP": openmp}
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=tmp_path, env=os.environ | switches, check=True)
    program = "import mlic_fast._range_coder, mlic_fast._cpu_kernels as k; print(k.__file__, k.isa())"
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(tmp_path) in found.stdout
