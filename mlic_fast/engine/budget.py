# SPDX-License-Identifier: Apache-2.0
"""How large the maps of a call may be: those of a strip, and what is computed for several slices at once."""

from __future__ import annotations

import torch

# Maps of the widest layer that are alive at once: inputs, results, skip connections and rows joined to the next.
_MAPS = 8
# A map of a strip is no larger than this: the allocator keeps such blocks, and parts of them stay in the cache.
PREFERRED_MAP = 8 * 2**20


def default_budget(device: torch.device) -> int:
    """What an engine allows itself unless it is told otherwise, in bytes."""
    return (2048 if device.type == "cuda" else 512) * 2**20


def largest_map(memory_budget: int, on_gpu: bool) -> int:
    """Bytes that a map of a strip should take at most.

    memory_budget: bytes that all maps of the strip may take together. on_gpu: strips as high as the budget allows,
    since low ones leave most of a GPU idle.
    """
    largest = memory_budget // _MAPS
    return largest if on_gpu else min(largest, PREFERRED_MAP)


def slices_ahead(slices: int, of_a_slice: int, memory_budget: int, on_gpu: bool) -> int:
    """For how many slices at once contributions are computed that are known early; at least 1, at most `slices`.

    of_a_slice: bytes of one slice's contributions. memory_budget: as for `largest_map`; an eighth of it may be taken.
    On a CPU one slice at a time: larger products are no faster there, and their results would not stay in the cache.
    """
    if not on_gpu:
        return 1
    return max(1, min(slices, memory_budget // 8 // of_a_slice))
