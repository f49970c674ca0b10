# SPDX-License-Identifier: Apache-2.0
"""torch.set_default_dtype and torch.set_default_device: what is loaded, built and coded does not depend on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from mlic_fast.compute import forks
from mlic_fast.compute.forks import after_fork

if TYPE_CHECKING:
    import torch

Method = TypeVar("Method", bound=Callable[..., Any])

_lock = threading.Lock()
_inside = 0  # threads in `float32_on_cpu`
_theirs: torch.dtype | None = None  # the caller's default, while it is another one


@contextmanager
def float32_on_cpu() -> Iterator[None]:
    """Within the block, new tensors are float32 and on the CPU unless told otherwise.

    For loading and building, where code that is not ours makes tensors. The default dtype is one for all threads: it
    is the caller's again when the last thread has left its block.
    """
    global _inside, _theirs
    import torch

    with _lock:
        if not _inside and torch.get_default_dtype() != torch.float32:
            _theirs = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _inside += 1
    try:
        with cpu_by_default():
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _theirs is not None:
                torch.set_default_dtype(_theirs)
                _theirs = None


def cpu_by_default() -> AbstractContextManager[Any]:
    """Context in which this thread's new tensors are on the CPU unless told otherwise."""
    import torch

    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def fit_to_code(method: Method) -> Method:
    """For a model's methods: `cpu_by_default`, in a thread that `forks.settle` has made fit."""

    @wraps(method)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        if torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        forks.settle(next(self.parameters()).device)
        with cpu_by_default():
            return method(self, *args, **kwargs)

    return fit  # type: ignore[return-value]


def _renew() -> None:
    global _lock, _inside
    _lock, _inside = threading.Lock(), 0


after_fork(_renew)
