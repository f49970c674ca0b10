# SPDX-License-Identifier: Apache-2.0
"""Builds the C++ extensions; everything else about the package stands in pyproject.toml.

Environment variables:
    MLIC_FAST_WERROR=1  compiler warnings are errors (development and CI; a user's newer compiler must not fail on one)
    MLIC_FAST_OPENMP=0  build without OpenMP even where the compiler has it
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# Paths stay relative to this file's folder, where every build front end runs it: setuptools asks for that.
CSRC = Path("csrc")
KERNELS = CSRC / "kernels"
# A multiplication and an addition fused on one machine and not on another would give different floats.
COMPILE_ARGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
if os.environ.get("MLIC_FAST_WERROR") == "1":
    COMPILE_ARGS.append("-Werror")
OPENMP = "-fopenmp"


class BuildExtension(build_ext):
    """Adds OpenMP where there is one, and leaves the built extensions in the source tree as well.

    With the package mapped from two folders, an editable install and a run from the checkout import from the tree.
    """

    def run(self) -> None:
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()

    def build_extensions(self) -> None:
        if os.environ.get("MLIC_FAST_OPENMP") != "0" and self._has_openmp():
            cpu_kernels.extra_compile_args.append(OPENMP)
            cpu_kernels.extra_link_args.append(OPENMP)
        super().build_extensions()

    def _has_openmp(self) -> bool:
        """Whether a program with OpenMP compiles and links: some compilers know the flag but have no library."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[OPENMP])
                self.compiler.link_executable(objects, str(Path(folder) / "probe"), extra_postargs=[OPENMP])
            except (CompileError, LinkError):
                return False
        return True


range_coder = Pybind11Extension(
    "mlic_fast._range_coder",
    sources=[str(CSRC / name) for name in ("bindings.cpp", "decoder.cpp", "encoder.cpp", "parallel.cpp", "tables.cpp")],
    depends=sorted(str(header) for header in CSRC.glob("*.hpp")),
    cxx_std=17,
    extra_compile_args=list(COMPILE_ARGS),
    extra_link_args=["-pthread"],
)

cpu_kernels = Pybind11Extension(
    "mlic_fast._cpu_kernels",
    sources=sorted(str(source) for source in KERNELS.glob("*.cpp")),
    depends=sorted(str(header) for pattern in ("*.hpp", "*.inc") for header in KERNELS.glob(pattern)),
    cxx_std=17,
    extra_compile_args=list(COMPILE_ARGS),
    extra_link_args=["-pthread"],
)

setup(ext_modules=[range_coder, cpu_kernels], cmdclass={"build_ext": BuildExtension})
