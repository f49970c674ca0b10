# SPDX-License-Identifier: Apache-2.0
"""Triton, imported when the first kernel is launched: importing it takes longer than encoding a small picture does.

Kernel files write `from mlic_fast.compute.triton_language import tl, triton` and nothing else of Triton. What they get
are stand-ins, which `load` replaces in them; where Triton is not installed the stand-ins stay, and their kernels refuse
to be launched. So plain twins can be imported anywhere. Kernel files do not write `from __future__ import
annotations`: Triton reads `tl.constexpr` from the annotations themselves.
"""

import importlib
import inspect
import os
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from mlic_fast.compute.forks import after_fork
from mlic_fast.errors import BackendError

_ADVICE = "there are packages for Linux only"

# Why Triton is not there, as far as is known, or None.
WHY_NOT: str | None = None if find_spec("triton") else f"Triton is not installed here; {_ADVICE}"

HAS_TRITON = WHY_NOT is None

# Triton decides when a kernel is handed to it, once and for all, whether it will be interpreted (on
# the CPU, slowly, for tests) or compiled.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "t", "y")


class Kernel:
    """A function that will be a kernel of Triton's."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self.function, self.options = function, options  # of triton.jit
        self.arg_names = list(inspect.signature(function).parameters)
        self.compiled: Any = None  # what Triton has made of it
        _pending.append(self)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        if load():
            launch: Callable[..., Any] = self.compiled[grid]
            return launch

        def refuse(*_: Any, **__: Any) -> Any:
            raise BackendError(f"{self.__name__}: {WHY_NOT}; set MLIC_FAST_BACKEND=torch or leave it unset")

        return refuse


class triton:  # noqa: N801  # stands for the module
    """The few names of Triton's host side that kernel files use."""

    @staticmethod
    def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        return partial(Kernel, **options) if function is None else Kernel(function)

    @staticmethod
    def cdiv(x: int, y: int) -> int:
        return -(-x // y)

    @staticmethod
    def next_power_of_2(n: int) -> int:
        return 1 << max(n - 1, 0).bit_length()


class _Language:
    """Answers every name of Triton's language, which signatures and constants of kernel files mention."""

    def __init__(self, find: Callable[[Any], Any] = lambda language: language) -> None:
        self._find = find  # triton.language → what this stands for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Language(lambda language: getattr(self._find(language), name))

    def __call__(self, *arguments: Any) -> Any:
        return _Language(lambda language: self._find(language)(*arguments))


tl: Any = _Language()
_pending: list[Kernel] = []
_lock = threading.RLock()


def load() -> bool:
    """Import Triton and hand it the kernels of the files imported so far, unless that is done.

    Returns whether they can be launched.
    """
    global HAS_TRITON, WHY_NOT
    if not HAS_TRITON or not _pending:
        return HAS_TRITON
    with _lock:
        try:
            host = importlib.import_module("triton")
            language = importlib.import_module("triton.language")
        except (ImportError, OSError) as error:  # OSError: its compiled library does not load
            HAS_TRITON, WHY_NOT = False, f"Triton does not load ({error}); {_ADVICE}"
            return False

        def real(value: Any) -> Any:
            if isinstance(value, Kernel):
                return value.compiled
            if isinstance(value, _Language):
                return value._find(language)
            return host if value is triton else value

        kernels = list(_pending)
        for kernel in kernels:
            function = kernel.function
            function.__annotations__ = {name: real(value) for name, value in function.__annotations__.items()}
            kernel.compiled = host.jit(function, **kernel.options)
        # Triton looks up what a kernel mentions among its file's names
        for names in {id(kernel.function.__globals__): kernel.function.__globals__ for kernel in kernels}.values():
            names.update({name: real(value) for name, value in names.items()})
        del _pending[: len(kernels)]
    return True


def _renew() -> None:
    global _lock
    _lock = threading.RLock()


after_fork(_renew)
