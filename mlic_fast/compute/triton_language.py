# SPDX-License-Identifier: Apache-2.0
"""Triton where it is installed, and where it is not a stand-in whose kernels refuse to be launched.

Kernel files write `from mlic_fast.compute.triton_language import tl, triton` and nothing else of Triton, so
that their plain twins can be imported anywhere. They do not write `from __future__ import annotations`:
Triton reads `tl.constexpr` from the annotations themselves.
"""

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

from mlic_fast.errors import BackendError

# Why Triton is not there, or None where it is.
WHY_NOT: str | None = None

triton: Any
tl: Any
try:
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
except (ImportError, OSError) as error:  # OSError: its compiled library does not load
    WHY_NOT = f"Triton is not installed here, or does not load ({error}); there are packages for Linux only"

HAS_TRITON = WHY_NOT is None

# Triton decides when a kernel is defined, once and for all, whether it will be interpreted (on
# the CPU, slowly, for tests) or compiled.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "t", "y")


class _MissingKernel:
    """What a kernel becomes without Triton: it keeps its name, and raises when launched."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.arg_names = list(inspect.signature(function).parameters)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*_: Any, **__: Any) -> Any:
            raise BackendError(f"{self.__name__}: {WHY_NOT}; set MLIC_FAST_BACKEND=torch or leave it unset")

        return launch


class _MissingTriton:
    """The few names of Triton's host side that kernel files use."""

    @staticmethod
    def jit(function: Callable[..., Any] | None = None, **_: Any) -> Any:
        return _MissingTriton.jit if function is None else _MissingKernel(function)

    @staticmethod
    def cdiv(x: int, y: int) -> int:
        return -(-x // y)

    @staticmethod
    def next_power_of_2(n: int) -> int:
        return 1 << max(n - 1, 0).bit_length()


class _MissingLanguage:
    """Answers every name, since kernel signatures mention `tl.constexpr` when they are defined."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _MissingLanguage()

    def __call__(self, *_: Any, **__: Any) -> Any:
        return _MissingLanguage()


if not HAS_TRITON:
    triton = _MissingTriton
    tl = _MissingLanguage()
