# SPDX-License-Identifier: Apache-2.0
"""The guard's bytes: what a file carries so that every decoder finds the encoder's indexes.

docs/portability.md says how it works, docs/bitstream.md what every bit means. In short: boundaries of the
scale table are moved, block by block, until no scale lies next to one; the moves are sent, and a checksum of each
pass's indexes. This module knows bits only (no torch); `mlic_fast.entropy.moved_boundaries` does the arithmetic.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

from mlic_fast.errors import GuardError

# δ where a model has not been calibrated, in log-scale at the table's first boundary.
DEFAULT_DELTA = 5e-5
# δ is sent as a multiple of this in two bytes.
DELTA_UNIT = 1e-7
# Below the least one, what float32 itself rounds would count.
MIN_DELTA, MAX_DELTA = 2e-5, 2e-3

# Scales are kept this much farther away from boundaries than δ, so that decoders may also disagree a little
# about where a moved boundary is.
SLACK = 1.1

# Positions of a pass that share one move, as long as they need not be split.
BLOCK = 8192

# Codes are Exp-Golomb of this order. Code 1 says that a block is split in two halves; 0 is move number 0, 2 and more
# are number + 1.
ORDER = 1
_SPLIT = 1
SPLIT_BITS = 2

_HEADER_BYTES = 2


def delta_code(delta: float) -> int:
    """δ as it is sent. Raises GuardError outside MIN_DELTA to MAX_DELTA."""
    if not (math.isfinite(delta) and MIN_DELTA <= delta <= MAX_DELTA):
        raise GuardError(f"the guard's δ must be {MIN_DELTA:g} to {MAX_DELTA:g}, not {delta!r}")
    return math.ceil(delta / DELTA_UNIT - 1e-6)


def describe(data: bytes) -> dict[str, Any]:
    """What the guard's chunk says, for `mlic-fast info`. Raises GuardError for one that is too short."""
    reader = MoveReader(data)
    return {"kind": "moved-boundaries", "delta": reader.delta, "bytes": len(data)}


def checksum(indexes: bytes | memoryview) -> int:
    """Of the indexes of a pass, one byte each in coding order: the lowest byte of their CRC-32."""
    return zlib.crc32(indexes) & 0xFF


class MoveWriter:
    """Collects checksums and moves, bit by bit, highest first."""

    def __init__(self, delta: float) -> None:
        """delta: the largest δ of the passes and channels; moves are measured in it."""
        self._delta = delta_code(delta)
        self.delta = self._delta * DELTA_UNIT
        self._bits: list[str] = []

    def checksum(self, value: int) -> None:
        """Of the pass whose blocks come next."""
        self._bits.append(f"{value:08b}")

    def move(self, number: int) -> None:
        """Of the next block that is not split; numbers 0, 1, 2, 3, 4, … stand for moves 0, 1, -1, 2, -2, …"""
        self._code(0 if number == 0 else number + _SPLIT)

    def split(self) -> None:
        """The next block is split: its halves follow."""
        self._code(_SPLIT)

    def finish(self) -> bytes:
        """The chunk's content; the last byte is filled up with zeros."""
        bits = "".join(self._bits)
        count = -(-len(bits) // 8)
        body = int(bits.ljust(8 * count, "0"), 2).to_bytes(count, "big") if count else b""
        return self._delta.to_bytes(_HEADER_BYTES, "little") + body

    def _code(self, value: int) -> None:
        text = f"{value + (1 << ORDER):b}"
        self._bits.append("0" * (len(text) - 1 - ORDER) + text)


class MoveReader:
    """Reads what MoveWriter wrote, believing nothing.

    Raises GuardError if δ is none that the format allows, and when the data ends early or late.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER_BYTES:
            raise GuardError(f"the guard has {len(data)} bytes, too few to say its δ: the file is damaged")
        code = int.from_bytes(data[:_HEADER_BYTES], "little")
        self.delta = code * DELTA_UNIT
        if not delta_code(MIN_DELTA) <= code <= delta_code(MAX_DELTA):
            raise GuardError(
                f"the guard's δ is {self.delta:g}, and {MIN_DELTA:g} to {MAX_DELTA:g} are possible: the file is damaged"
            )
        self._data = data
        self._position = 8 * _HEADER_BYTES
        self._end = 8 * len(data)

    def checksum(self) -> int:
        """Of the next pass."""
        return self._take(8)

    def move(self) -> int | None:
        """The number of the next block's move, or None if the block is split."""
        zeros = 0
        while not self._take(1):
            zeros += 1
            if zeros > 16:
                raise GuardError("the guard has a move that is too large: the file is damaged")
        bits = zeros + ORDER
        value = (1 << bits | self._take(bits)) - (1 << ORDER)
        if value == _SPLIT:
            return None
        return 0 if value == 0 else value - _SPLIT

    def finish(self) -> None:
        """Raises GuardError unless all was read, up to zeros that fill the last byte."""
        left = self._end - self._position
        if left > 7 or self._take(left):
            raise GuardError("the guard goes on after the last pass: the file is damaged, or the weights are others")

    def _take(self, count: int) -> int:
        end = self._position + count
        if end > self._end:
            raise GuardError("the guard ends early: the file is damaged, or the weights are others")
        first, last = self._position >> 3, (end + 7) >> 3
        self._position = end
        window = int.from_bytes(self._data[first:last], "big") >> (8 * last - end)
        return window & ((1 << count) - 1)
