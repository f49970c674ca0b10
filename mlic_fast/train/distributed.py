# SPDX-License-Identifier: Apache-2.0
"""The processes of a training: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mlic_fast.compute.device import resolve_device
from mlic_fast.errors import RecipeError

# Longer than any validation of one process that others wait for.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def summed(self, values: list[float]) -> list[float]:
        """The sums over all processes, computed in float64."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def part(self, batch: int) -> range:
        """Numbers of this process's samples in a batch."""
        each = batch // self.world
        return range(self.rank * each, (self.rank + 1) * each)


@contextmanager
def processes(device: str | None, batch: int) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one; leave them at the end.

    device: a name, or None or "auto": CUDA where there is any, each process its own. batch: must divide among them.
    Raises DeviceError, RecipeError.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if "MASTER_ADDR" not in os.environ:
        world, rank = 1, 0
    if batch % world:
        raise RecipeError(f"a batch of {batch} does not divide among {world} processes: choose a multiple")
    place = resolve_device(device)
    if world == 1:
        yield Processes(0, 1, place)
        return
    if place.type == "cuda":
        if place.index is None:
            place = resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(rank, world, place)
    finally:
        dist.destroy_process_group()
