# SPDX-License-Identifier: Apache-2.0
"""Names of devices, and what PyTorch says when one is missing or full, in words of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mlic_fast.errors import CheckpointError, DeviceError


def resolve_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; None or "auto": the first CUDA device, or else the CPU.

    Raises DeviceError where there is no such device.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is not the name of a device: use cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(f"there is no device {device}: PyTorch finds {count} CUDA devices here")
    elif device.type != "cpu":
        raise DeviceError(f"device {device} is not supported: use cpu, cuda or cuda:N")
    return device


def take_own_stream(device: torch.device) -> None:
    """Let this thread work on a CUDA device without waiting for other threads' work; nothing on a CPU.

    What was begun before, on the stream that it leaves, is waited for.
    """
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        torch.cuda.set_stream(stream)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn "out of memory", which comes in three kinds, into DeviceError; `what` says what was being done."""
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(_out_of_memory(what)) from error
    except (RuntimeError, CheckpointError) as error:
        # the CPU's allocator and CUDA's libraries have no class of their own for it
        if is_memory_error(error):
            raise DeviceError(_out_of_memory(what)) from error
        raise


_MEMORY_WORDS = ("not enough memory", "allocate memory", "unable to mmap", "ALLOC_FAILED", "bad_alloc")


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception of PyTorch, or one that it was raised from, is about memory."""
    words = str(error) + str(error.__cause__ or "")
    return isinstance(error, MemoryError) or any(word in words for word in _MEMORY_WORDS)


def _out_of_memory(what: str) -> str:
    return f"out of memory while {what}: use a smaller picture or a device with more memory"
