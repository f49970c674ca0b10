# SPDX-License-Identifier: Apache-2.0
"""Forked processes: OpenMP's threads do not survive a fork, and a parallel region that waits for them never ends.

PyTorch's and our own parallel regions share those threads. The thread that a fork leaves remembers them and so must
compute alone; threads that the child starts get new ones. A CUDA device cannot be used at all after a fork.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlic_fast.errors import ForkError

if TYPE_CHECKING:
    import torch

_ADVICE = (
    "start workers with multiprocessing's start method 'spawn' (DataLoader: multiprocessing_context='spawn') and load "
    "the model in each"
)

_survivor: int | None = None  # the thread that a fork has left in this process
_afterwards: list[Callable[[], None]] = []


def after_fork(renew: Callable[[], None]) -> None:
    """Call `renew` in every forked child: for locks, which another thread of the parent may have held for ever."""
    _afterwards.append(renew)


def settle(device: torch.device) -> None:
    """Make this thread fit to compute on `device`; nothing unless it was left by a fork.

    On a CPU it takes one thread from then on, with a warning if it had more. Raises ForkError for a CUDA device that
    the parent has used.
    """
    if _survivor is None or _survivor != threading.get_ident():
        return
    import torch

    from mlic_fast.compute.private_torch import is_cuda_lost

    if device.type == "cuda" and is_cuda_lost():
        raise ForkError(f"this process was forked from one that had used CUDA, so it cannot use {device}: {_ADVICE}")
    count = torch.get_num_threads()
    if count > 1:
        warnings.warn(
            f"this process was forked, and OpenMP's threads do not survive that: computing in one thread, not in "
            f"{count}. For more, {_ADVICE}",
            RuntimeWarning,
            stacklevel=3,
        )
        torch.set_num_threads(1)


def _in_child() -> None:
    global _survivor
    _survivor = threading.get_ident()
    for renew in _afterwards:
        renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
