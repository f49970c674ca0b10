# SPDX-License-Identifier: Apache-2.0
"""Batches of patches for each step, made ahead in threads while the model computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mlic_fast.limits import Limits
from mlic_fast.train.distributed import Processes
from mlic_fast.train.patches import CACHE_BYTES, Patches
from mlic_fast.train.recipe import Recipe

# Batches made ahead of the one that is computed on.
_AHEAD = 4

# Threads, not processes: decoding and cropping release the interpreter, and decoded pictures are shared.
_MOST_THREADS = 8


class Feed:
    """This process's batches, in order. What is in them depends on the seed and the step only."""

    def __init__(self, folder: Path, recipe: Recipe, group: Processes, steps_per_epoch: int, limits: Limits) -> None:
        self._folder, self._recipe, self._group, self._steps_per_epoch = folder, recipe, group, steps_per_epoch
        self._limits = limits
        self._patches: Patches | None = None
        self._side = 0

    def batches(self, first: int) -> Generator[Tensor, None, None]:
        """uint8 [batch / processes, 3, side, side] for step `first` and all that follow, without end."""
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, thread_name_prefix="patches") as pool:
            ahead: deque[Future[Tensor]] = deque()
            step = first
            while True:
                while len(ahead) < _AHEAD:
                    if (
                        step == first
                        or step % self._steps_per_epoch == 0
                        or self._recipe.patch_side(step) != self._side
                    ):
                        # the data set is about to change under the threads' hands
                        for future in ahead:
                            future.exception()
                        self._prepare(step)
                    ahead.append(pool.submit(self._batch, step))
                    step += 1
                yield ahead.popleft().result()

    def _prepare(self, step: int) -> None:
        side = self._recipe.patch_side(step)
        if self._patches is None or side != self._side:
            count = self._steps_per_epoch * self._recipe.batch
            # the processes of a machine share its memory
            cache = CACHE_BYTES // self._group.world
            self._patches = Patches(
                self._folder, side, count=count, seed=self._recipe.seed, cache_bytes=cache, limits=self._limits
            )
            self._side = side
        self._patches.set_epoch(step // self._steps_per_epoch)

    def _batch(self, step: int) -> Tensor:
        assert self._patches is not None
        start = step % self._steps_per_epoch * self._recipe.batch
        return torch.stack([self._patches[start + sample] for sample in self._group.part(self._recipe.batch)])
