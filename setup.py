# SPDX-License-Identifier: Apache-2.0
"""Builds the C++ extensions with CMake and Ninja, as csrc/CMakeLists.txt says; all else about the package stands in
pyproject.toml.

Objects stay in build/, so that a second build compiles what changed, in a folder of their own for every interpreter,
compiler and place of the checkout. build/compile_commands.json has the last build's commands; clangd finds it there.

Environment variables:
    MLIC_FAST_WERROR=1  compiler warnings are errors (development and CI; a user's newer compiler must not fail on one)
    MLIC_FAST_OPENMP=0  build without OpenMP even where the compiler has it
    CXX, CXXFLAGS, LDFLAGS, CMAKE_TOOLCHAIN_FILE  as CMake reads them
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
NEEDED = """the C++ extensions were not built; the reason stands above. Building them needs
  a C++17 compiler, GCC 9 or newer or clang (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++;
    macOS: xcode-select --install); the variable CXX names another than the system's
  Python's headers (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)
  CMake 3.18 or newer and Ninja (pip install cmake ninja)"""


def program(name: str) -> str:
    """The path of cmake or ninja: on PATH, or beside this interpreter when its environment is not activated."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise CompileError(f"{name} was not found: {NEEDED}")
    return found


def build_folder() -> Path:
    """One for all that a CMake cache, once written, does not look at again."""
    tag = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    environment = [os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_TOOLCHAIN_FILE")]
    key = hashlib.sha256("\0".join([str(ROOT), sys.executable, *environment]).encode(errors="surrogateescape"))
    return ROOT / "build" / f"cmake-{tag}-{key.hexdigest()[:8]}"


class BuildExtension(build_ext):
    """Runs CMake, and leaves the built extensions in the source tree as well.

    With the package mapped from two folders, an editable install and a run from the checkout import from the tree.
    """

    def run(self) -> None:
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()

    def build_extensions(self) -> None:
        folder, cmake = build_folder(), program("cmake")
        options = {
            "CMAKE_MAKE_PROGRAM": program("ninja"),
            "MLIC_FAST_OPENMP": "OFF" if os.environ.get("MLIC_FAST_OPENMP") == "0" else "ON",
            "MLIC_FAST_WERROR": "ON" if os.environ.get("MLIC_FAST_WERROR") == "1" else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        try:
            subprocess.run([cmake, "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja", *definitions], check=True)
            subprocess.run([cmake, "--build", folder, "--parallel", str(self.parallel or jobs or 1)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{error}: {NEEDED}") from error
        shutil.copyfile(folder / "compile_commands.json", ROOT / "build" / "compile_commands.json")
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Not with the older times of a build that had nothing to do: the copy into the tree goes by them.
            shutil.copyfile(folder / target.name, target)
            shutil.copymode(folder / target.name, target)


setup(
    ext_modules=[Extension(f"mlic_fast.{name}", sources=[]) for name in ("_range_coder", "_cpu_kernels")],
    cmdclass={"build_ext": BuildExtension},
)
