# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operation runs: the only place that looks at the machine.

torch   plain PyTorch, the twins: the official operators in the official order.
triton  Triton kernels, for CUDA tensors (and for CPU tensors in Triton's interpreter).
cpu     the C++ kernels of mlic_fast._cpu_kernels, for CPU tensors.

The environment variable MLIC_FAST_BACKEND names one of them, or `auto` (the default). A backend that
is asked for by name and cannot run raises BackendError; nothing falls back in silence.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlic_fast.compute import triton_language as language
from mlic_fast.compute.private_torch import constant_when_compiled
from mlic_fast.errors import BackendError

if TYPE_CHECKING:
    from torch import Tensor

Backend = Literal["torch", "triton", "cpu"]
VARIABLE = "MLIC_FAST_BACKEND"

cpu_kernels: Any = None
_no_cpu_kernels: str | None = None
try:
    cpu_kernels = importlib.import_module("mlic_fast._cpu_kernels")
except ImportError as error:
    _no_cpu_kernels = f"the extension mlic_fast._cpu_kernels is not built, or does not load ({error})"

# What `use_backend` has set for the whole process. A plain variable, so that torch.compile can
# guard on it and the threads of autograd see it.
_forced: str | None = None

_can_launch = constant_when_compiled(language.load)

# Whether this thread is inside `plain_path`.
_thread = threading.local()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, operations of the whole process run on `name` (torch, triton, cpu or auto).

    Goes before MLIC_FAST_BACKEND. For tests and measurements: it reaches other threads too.
    Raises BackendError for an unknown name.
    """
    global _forced
    before = _forced
    _forced = _known(name)
    try:
        yield
    finally:
        _forced = before


@contextmanager
def plain_path() -> Iterator[None]:
    """Within the block, operations of this thread run on `torch`, whatever is set; other threads do not notice."""
    before = getattr(_thread, "plain", False)
    _thread.plain = True
    try:
        yield
    finally:
        _thread.plain = before


def choose(x: Tensor) -> Backend:
    """The backend for an operation on `x`, decided anew at every call.

    Raises BackendError if a backend was asked for by name that cannot run here, or not on x's device.
    """
    if getattr(_thread, "plain", False):
        return "torch"
    wanted = _wanted()
    on_cpu, on_cuda = x.device.type == "cpu", x.device.type == "cuda"
    if wanted == "torch":
        return "torch"
    if wanted == "cpu":
        if _no_cpu_kernels is not None:
            raise BackendError(f"backend cpu: {_no_cpu_kernels}; install from source, or set {VARIABLE}=torch")
        if not on_cpu:
            raise BackendError(f"backend cpu: a tensor lies on {x.device}; move it to the CPU, or unset {VARIABLE}")
        return "cpu"
    if wanted == "triton":
        if not _can_launch():
            raise BackendError(f"backend triton: {language.WHY_NOT}; set {VARIABLE}=torch")
        if not on_cuda and not (on_cpu and language.INTERPRETED):
            raise BackendError(
                f"backend triton: a tensor lies on {x.device}, and kernels need a CUDA device; unset {VARIABLE}, "
                "or set TRITON_INTERPRET=1 before Python starts to interpret them on the CPU, slowly"
            )
        return "triton"
    # auto; kernels have no float64
    if x.dtype.itemsize > 4:
        return "torch"
    if on_cuda and not language.INTERPRETED and _can_launch():
        return "triton"
    if on_cpu and _no_cpu_kernels is None:
        return "cpu"
    return "torch"


def is_named() -> bool:
    """Whether `use_backend` or MLIC_FAST_BACKEND names a backend, so that none is to be preferred to it."""
    return _wanted() != "auto"


def report() -> dict[Backend, str | None]:
    """Backend → None if it can run here, or why it cannot."""
    import torch

    no_triton = None if _can_launch() else language.WHY_NOT
    if no_triton is None and not torch.cuda.is_available() and not language.INTERPRETED:
        no_triton = "PyTorch finds no CUDA device"
    no_cpu = _no_cpu_kernels
    if no_cpu is None:
        try:
            cpu_kernels.isa()
        except BackendError as error:  # MLIC_FAST_ISA names something that is not there
            no_cpu = str(error)
    return {"torch": None, "triton": no_triton, "cpu": no_cpu}


def _wanted() -> str:
    return _forced or _known(os.environ.get(VARIABLE) or "auto")


def _known(name: str) -> str:
    if name not in (*get_args(Backend), "auto"):
        raise BackendError(f"no backend is called {name!r}; {VARIABLE} is one of torch, triton, cpu, auto")
    return name
