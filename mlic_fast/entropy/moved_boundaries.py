# SPDX-License-Identifier: Apache-2.0
"""Moved boundaries: the guard's arithmetic on the scales of one pass.

The indexes of a block of positions are found with all boundaries of the scale table multiplied by exp(2wk), k
being a small whole number of either sign and w = SLACK · δ. The encoder takes a k for which no scale s of the block
lies within SLACK · δ' · share(s) of a boundary, in log-scale, where δ' ≤ δ is that of the scale's pass and channel.
So a decoder whose scales differ by less than δ' · share(s) finds the same indexes, and need not know δ'. In place of
the boundaries the scales are moved, by exp(-2wk), and then looked up as always. Scales further down the walk depend
on decoded values alone, so what holds for one pass holds for all.
"""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity
from mlic_fast.entropy.guard import (
    BLOCK,
    DELTA_UNIT,
    ORDER,
    SLACK,
    SPLIT_BITS,
    MoveReader,
    MoveWriter,
    checksum,
    delta_code,
)
from mlic_fast.errors import GuardError

# What is left of δ where scales are large, see `share`.
LEAST_SHARE = 1 / 8

# Splitting goes down to this many positions, or to fewer where δ leaves few moves to choose from.
_SMALLEST = 256


def share(log_scales: Tensor, log_first: float) -> Tensor:
    """The part of δ that counts at these scales: 1 up to the first boundary, then falling as 1/s to LEAST_SHARE.

    Rounding errors come from sums whose terms are as large where the scale is small as where it is large: they are
    about the same in the scale itself, not in its logarithm. log_scales: float64 of any shape.
    """
    return (log_first - log_scales).clamp(math.log(LEAST_SHARE), 0).exp()


def largest(deltas: float | Tensor) -> float:
    """The largest δ."""
    return float(deltas.max()) if isinstance(deltas, Tensor) else deltas


class _Boundaries(NamedTuple):
    """Of one scale table and δ: log of the boundaries float64 [n], w, the number of moves, the smallest block.

    Moves are numbered 0, 1, -1, 2, -2 and so on; `moves` is odd.
    """

    log: npt.NDArray[np.float64]
    half_width: float
    moves: int
    smallest: int


class _Tree(NamedTuple):
    """One pass's blocks, their halves and so on, level by level: the best move of each, and whether to split it."""

    move: list[Tensor]
    split: list[Tensor]


class MovePlanner:
    """Finds the moves of passes. Keeps nothing of them, and waits for no device: its work can be recorded.

    scale_table: float32 [rows], increasing. deltas: δ in log-scale, or δ of each pass and channel [passes, C]. device:
    that of the scales; None: the table's. Raises GuardError for a δ too large for the table, or out of range.
    """

    def __init__(self, scale_table: Tensor, deltas: float | Tensor, device: torch.device | None = None) -> None:
        device = device or scale_table.device
        if isinstance(deltas, Tensor):
            delta_code(float(deltas.min()))  # below the least one, rounding of moved scales would count
        self.delta = largest(deltas)
        self._boundaries = _boundaries(_key(scale_table), delta_code(self.delta) * DELTA_UNIT)
        log = torch.from_numpy(self._boundaries.log).to(device)
        self._first = float(self._boundaries.log[0])
        self._log, self._middles = log, (log[1:] + log[:-1]) / 2
        shares = deltas.double() / (delta_code(self.delta) * DELTA_UNIT) if isinstance(deltas, Tensor) else None
        self._shares = None if shares is None else shares.to(device)

    def plan(self, number: int, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of a pass → scales to be looked up in the table, and what is to be sent, int32 [plan_size(n)].

        number: of the pass. scales: packed [B, C, h, w/2], contiguous, n positions; any shape if there is one δ.
        """
        flat = scales.reshape(-1)
        smallest = self._boundaries.smallest
        part: Tensor | None = None
        if self._shares is not None:
            part = self._shares[number][:, None, None].expand(scales.shape).reshape(-1)
        tree = _plan(self._forbidden(flat, part), smallest)
        moves = _signed(_leaf_moves(tree, smallest)[: len(flat)])
        moved = flat * _factors(moves, self._boundaries.half_width)
        return moved.view(scales.shape), torch.cat([level.int() for level in (*tree.move, *tree.split)])

    def plan_size(self, positions: int) -> int:
        """Numbers in the plan of a pass of so many positions."""
        moves = sum(_level_sizes(positions, self._boundaries.smallest))
        return 2 * moves - _level_sizes(positions, self._boundaries.smallest)[-1]

    def unpack(self, plan: list[int], positions: int) -> tuple[list[list[int]], list[list[int]]]:
        """A plan's moves and splits, level by level."""
        sizes = _level_sizes(positions, self._boundaries.smallest)
        ends = list(accumulate([*sizes, *sizes[:-1]]))
        levels = [plan[end - size : end] for end, size in zip(ends, [*sizes, *sizes[:-1]], strict=True)]
        return levels[: len(sizes)], levels[len(sizes) :]

    def _forbidden(self, flat: Tensor, part: Tensor | None) -> Tensor:
        """Moves that bring a boundary too close to a scale: bool [blocks of the smallest size, moves].

        part: of each scale, what its δ is of the largest one; None: all are the largest.
        """
        _, width, moves, smallest = self._boundaries
        count = -(-len(flat) // BLOCK) * (BLOCK // smallest)
        # each scale excludes one move at most, that which takes the nearest boundary to it
        logs = flat.double().clamp_min(1e-300).log()
        nearest = self._log[torch.searchsorted(self._middles, logs)]
        distance = ((logs - nearest) / (2 * width)).nan_to_num(moves, moves, -moves).clamp(-moves, moves)
        k = distance.round()
        counts = share(logs, self._first) if part is None else share(logs, self._first) * part
        excluded = (distance - k).abs() <= counts / 2
        # the column behind the last is for those that exclude none
        move = _number(k.long()).clamp_max(moves).masked_fill(~excluded, moves)
        block = torch.arange(len(flat), device=flat.device) // smallest
        table = torch.zeros(count, moves + 1, dtype=torch.bool, device=flat.device)
        table.view(-1)[block * (moves + 1) + move] = True
        return table[:, :moves]


class GuardWriter:
    """Moves the scales of each pass and notes how, or notes what was moved elsewhere.

    scale_table, deltas: as for MovePlanner, and raises as it does.
    """

    def __init__(self, scale_table: Tensor, deltas: float | Tensor) -> None:
        self._planner = MovePlanner(scale_table, deltas)
        self._writer = MoveWriter(self._planner.delta)
        self._plans: list[Tensor] = []
        self._checksums: list[int] = []
        self._sizes: list[int] = []

    def move(self, scales: Tensor) -> Tensor:
        """Scales of the next pass → scales to be looked up in the table.

        scales: packed [B, C, h, w/2], contiguous, on the scale table's device. Waits for no device.
        """
        moved, plan = self._planner.plan(len(self._plans), scales)
        self.note(plan, scales.numel())
        return moved

    def note(self, plan: Tensor, positions: int) -> None:
        """The next pass's plan, of so many positions, as `MovePlanner.plan` found it."""
        self._plans.append(plan)
        self._sizes.append(positions)

    def record(self, indexes: Tensor) -> None:
        """Note the checksum of the pass's indexes: uint8, in coding order, on the CPU."""
        self._checksums.append(checksum(indexes.contiguous().numpy().data))

    def finish(self) -> bytes:
        """The chunk's content for all passes."""
        for plan, value, size in zip(self._plans, self._checksums, self._sizes, strict=True):
            self._writer.checksum(value)
            moves, splits = self._planner.unpack(plan.tolist(), size)
            for block in range(-(-size // BLOCK)):
                self._write(moves, splits, 0, block, size)
        return self._writer.finish()

    def _write(self, moves: list[list[int]], splits: list[list[int]], level: int, node: int, size: int) -> None:
        if (BLOCK >> level) * node >= size:
            return  # a half that lies wholly behind the last position is not sent
        if level < len(splits) and splits[level][node]:
            self._writer.split()
            self._write(moves, splits, level + 1, 2 * node, size)
            self._write(moves, splits, level + 1, 2 * node + 1, size)
        else:
            self._writer.move(moves[level][node])


class GuardReader:
    """Moves the scales of each pass as the encoder did, and checks the indexes found.

    data: the chunk's content. Raises GuardError if it is damaged.
    """

    def __init__(self, scale_table: Tensor, data: bytes) -> None:
        self._reader = MoveReader(data)
        self._boundaries = _boundaries(_key(scale_table), self._reader.delta)
        self._expected: deque[int] = deque()  # of passes that were moved and not yet checked
        self._checked = 0

    def move(self, scales: Tensor) -> Tensor:
        """As GuardWriter.move. Raises GuardError."""
        factors = torch.from_numpy(self.factors(scales.numel())).to(scales.device)
        return (scales.reshape(-1) * factors).view(scales.shape)

    def factors(self, positions: int) -> npt.NDArray[np.float32]:
        """What the scales of the next pass, of so many positions, are multiplied by; passes may be asked for early.

        Raises GuardError.
        """
        self._expected.append(self._reader.checksum())
        moves = np.zeros(positions, np.int32)
        for start in range(0, positions, BLOCK):
            self._read(moves, start, BLOCK)
        most = self._boundaries.moves // 2
        table: npt.NDArray[np.float32] = _factors(torch.arange(-most, most + 1), self._boundaries.half_width).numpy()
        return table[moves + most]

    def check(self, indexes: Tensor) -> None:
        """Raises GuardError, naming the pass, unless its indexes (as for `GuardWriter.record`) are the encoder's."""
        slice_number, parity = divmod(self._checked, 2)
        self._checked += 1
        if checksum(indexes.contiguous().numpy().data) != self._expected.popleft():
            raise GuardError(
                f"slice {slice_number}, {(Parity.ANCHOR, Parity.NONANCHOR)[parity].name.lower()} positions: the scales "
                f"computed here differ from the encoder's by more than the file allows for (δ = "
                f"{self._reader.delta:g}), or the file is damaged; the picture cannot be decoded here. Try another "
                "device (--device cpu) or machine; if the file is whole, encode it again with a larger "
                "δ (mlic-fast calibrate measures it)"
            )

    def finish(self) -> None:
        """Raises GuardError unless all of the chunk was read."""
        self._reader.finish()

    def _read(self, moves: npt.NDArray[np.int32], start: int, size: int) -> None:
        if start >= len(moves):
            return
        k = self._reader.move()
        if k is None:
            if size == 1:
                raise GuardError("the guard splits a single position: the file is damaged")
            self._read(moves, start, size // 2)
            self._read(moves, start + size // 2, size // 2)
        elif k >= self._boundaries.moves:
            raise GuardError(f"the guard has a move of {k}, and {self._boundaries.moves} are possible: it is damaged")
        else:
            moves[start : start + size] = _signed(k)


def _plan(forbidden: Tensor, smallest: int) -> _Tree:
    """The cheapest way to split blocks and to move their parts.

    forbidden: bool [blocks of the smallest size, moves]; there is always a move that is not forbidden.
    """
    move: list[Tensor] = []
    split: list[Tensor] = []
    below: Tensor | None = None
    size = smallest
    while True:
        # argmin finds the first that is not forbidden
        first = forbidden.to(torch.uint8).argmin(dim=1)
        full = forbidden.all(dim=1)
        cost = _bits_of(first).masked_fill(full, 1 << 30)
        move.append(first)
        if below is not None:
            halves = below.view(-1, 2).sum(dim=1) + SPLIT_BITS
            split.append(halves < cost)
            cost = torch.minimum(cost, halves)
        if size == BLOCK:
            break
        below, size = cost, 2 * size
        forbidden = forbidden[0::2] | forbidden[1::2]
    return _Tree(move[::-1], split[::-1])


def _level_sizes(positions: int, smallest: int) -> list[int]:
    """Blocks of each level of a tree, the largest blocks first."""
    blocks, size, sizes = -(-positions // BLOCK), BLOCK, []
    while size >= smallest:
        sizes.append(blocks * (BLOCK // size))
        size //= 2
    return sizes


def _leaf_moves(tree: _Tree, smallest: int) -> Tensor:
    """The move of every position."""
    moves = tree.move[0]
    sent = torch.ones_like(moves, dtype=torch.bool)  # whether a part of this size occurs at all
    for split, finer in zip(tree.split, tree.move[1:], strict=True):
        sent = (sent & split).repeat_interleave(2)
        moves = torch.where(sent, finer, moves.repeat_interleave(2))
    return moves.repeat_interleave(smallest)


def _bits_of(number: Tensor) -> Tensor:
    """Bits that the number of a move takes: those of MoveWriter."""
    value = (number + 1).masked_fill(number == 0, 0) + (1 << ORDER)
    return 2 * value.double().log2().floor().long() + 1 - ORDER


def _factors(moves: Tensor, half_width: float) -> Tensor:
    return torch.exp(moves.double() * (-2 * half_width)).float()


def _number(k: Tensor) -> Tensor:
    """Signed moves → their numbers."""
    return torch.where(k > 0, 2 * k - 1, -2 * k)


@overload
def _signed(number: int) -> int: ...
@overload
def _signed(number: Tensor) -> Tensor: ...
def _signed(number: int | Tensor) -> int | Tensor:
    """Numbers → signed moves: odd ones are positive."""
    return (number + 1) // 2 * (2 * (number % 2) - 1)


def _key(scale_table: Tensor) -> tuple[float, ...]:
    return tuple(scale_table.tolist())


def forget_boundaries() -> None:
    """Compute the boundaries of every scale table and δ anew at their next use."""
    _boundaries.cache_clear()


@lru_cache(maxsize=8)
def _boundaries(scale_table: tuple[float, ...], delta: float) -> _Boundaries:
    # The last entry is no boundary: whatever is above the last but one has the last index.
    log_boundaries = np.log(np.array(scale_table[:-1], dtype=np.float64))
    half_width = SLACK * delta
    step = float(np.diff(log_boundaries).min()) if len(log_boundaries) > 1 else 0.1
    # a boundary moves by less than half a step, so that the nearest one stays the only one near
    moves = 2 * int((step / 2 - half_width) / (2 * half_width)) + 1
    smallest = min(_SMALLEST, 1 << max(0, (moves - 1).bit_length() - 1))
    if moves < 3 or not np.isfinite(log_boundaries).all():
        raise GuardError(f"δ = {delta:g} is too large for a scale table whose entries are {step:g} apart in log-scale")
    return _Boundaries(log_boundaries, half_width, moves, smallest)
