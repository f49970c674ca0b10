# SPDX-License-Identifier: Apache-2.0
"""Which part of a folder is this process's, when torchrun or srun has started several."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mlic_fast.cli.common import CommandError

Item = TypeVar("Item")

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shard:
    """One of `count` parts; rank: which one, from 0. local_rank: which of this machine's processes."""

    rank: int = 0
    count: int = 1
    local_rank: int | None = None

    def __str__(self) -> str:
        return f"part {self.rank + 1} of {self.count}"

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """The part that the launcher's variables name; all of it where there are none.

        RANK and WORLD_SIZE (torchrun) go before SLURM's (srun). Raises CommandError for values that make no sense.
        """
        if "RANK" in environment and "WORLD_SIZE" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        elif "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
            names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        elif "SLURM_PROCID" in environment and environment.get("ENVIRONMENT") != "BATCH":
            # A batch script itself has SLURM_NTASKS too, although it is one process whatever that says.
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        else:
            return cls()
        if names[1] not in environment:
            return cls()
        rank, count = (_number(environment, name) for name in names[:2])
        local_rank = _number(environment, names[2]) if names[2] in environment else None
        if rank >= count:
            raise CommandError(
                f"{names[0]} is {rank}, which must be below {names[1]}, {count}: unset both, or mend them"
            )
        return cls(rank, count, local_rank)

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """This part of the items: every count-th, so that large and small ones spread."""
        return items[self.rank :: self.count]

    def device(self, name: str) -> str:
        """The device for --device's value: of several CUDA devices, each process of a machine takes its own."""
        if self.local_rank is None or name not in ("auto", "cuda"):
            return name
        import torch

        # where the launcher lets each process see one device only, that is cuda:0 for all of them
        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else name

    def wait_for_others(self) -> None:
        """Return when all parts are done, where the launcher would otherwise end them with the first that fails.

        torchrun terminates all its processes as soon as one exits with an error. It keeps a store for them to meet at;
        srun and others do without, and there this does nothing. A part that dies never arrives, but then torchrun
        terminates the others anyway.
        """
        if self.count == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        # another attempt of torchrun's counts anew
        key = f"mlic-fast-done-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        try:
            store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
            store.add(key, 1)
            while store.add(key, 0) < self.count:
                time.sleep(_POLL_SECONDS)
        except (KeyError, ValueError, RuntimeError):
            return  # without a store nobody can be waited for


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit()):
        raise CommandError(f"the environment variable {name} is {text!r}, not a number: unset it, or mend it")
    return int(text)
