# SPDX-License-Identifier: Apache-2.0
"""Builds the C++ extension; everything else about the package stands in pyproject.toml.

Environment variables:
    MLIC_FAST_WERROR=1  compiler warnings are errors (development and CI; a user's newer compiler must not fail on one)
"""

from __future__ import annotations

import os
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

# Paths stay relative to this file's folder, where every build front end runs it: setuptools asks for that.
CSRC = Path("csrc")
# A multiplication and an addition fused on one machine and not on another would give different floats.
COMPILE_ARGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]


class BuildExtension(build_ext):
    """Leaves the built extension in the source tree as well, so that a run from the checkout finds it.

    With the package mapped from two folders, an editable install and a checkout import from the tree itself.
    """

    def run(self) -> None:
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()


range_coder = Pybind11Extension(
    "mlic_fast._range_coder",
    sources=[str(CSRC / name) for name in ("bindings.cpp", "decoder.cpp", "encoder.cpp", "parallel.cpp", "tables.cpp")],
    depends=sorted(str(header) for header in CSRC.glob("*.hpp")),
    cxx_std=17,
    extra_compile_args=COMPILE_ARGS + (["-Werror"] if os.environ.get("MLIC_FAST_WERROR") == "1" else []),
    extra_link_args=["-pthread"],
)

setup(ext_modules=[range_coder], cmdclass={"build_ext": BuildExtension})
