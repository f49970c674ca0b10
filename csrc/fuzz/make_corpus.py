# SPDX-License-Identifier: Apache-2.0
"""Writes the fuzzers' first inputs: whole valid streams, which bytes made at random would hardly ever be.

    python csrc/fuzz/make_corpus.py

The layout is the one that input.hpp and the two harnesses read.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from mlic_fast.entropy.range_coder import CodingTables, encode

CORPUS = Path(__file__).with_name("corpus")
COLUMNS = 20


def main() -> None:
    rng = np.random.default_rng(1)
    for name in ("decoder", "encoder"):
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
    for number in range(16):
        rows = 1 + number % 8
        cdfs = np.zeros((rows, COLUMNS), np.int32)
        lengths, offsets, head = [], [], bytes([number % 8, COLUMNS - 3])
        for row in cdfs:
            inner = rng.choice(65535, 1 + rng.integers(COLUMNS - 2), replace=False)
            if number >= 12:
                inner = np.array([0, 65533])  # a favourite between two rare ones
            row[: len(inner) + 2] = [0, *sorted(1 + inner), 65536]
            lengths.append(len(inner) + 2)
            offsets.append(int(rng.integers(-9, 9)))
            head += struct.pack(f"<B{len(inner)}Hb", len(inner) - 1, *inner.tolist(), offsets[-1])
        count, stage, pattern = int(rng.integers(0, 120)), int(rng.integers(256)), int(rng.integers(250))
        indexes = np.arange(count, dtype=np.int32) * pattern // 3 % rows
        # Around each row's ordinary symbols: some escapes on either side.
        spread = rng.integers(-2 if number % 2 else 0, np.array(lengths, np.int32)[indexes] - (0 if number % 2 else 2))
        symbols = (spread + np.array(offsets, np.int32)[indexes]).astype(np.int32)
        tables = CodingTables(cdfs, np.array(lengths, np.int32), np.array(offsets, np.int32))
        head += struct.pack("<HBB", count, stage, pattern)
        (CORPUS / "decoder" / f"{number:02}").write_bytes(head + encode(tables, symbols, indexes))
        pairs = zip(indexes.tolist(), spread.tolist(), strict=True)
        (CORPUS / "encoder" / f"{number:02}").write_bytes(
            head[:-1] + bytes([2]) + b"".join(struct.pack("<Bb", index, value) for index, value in pairs)
        )


if __name__ == "__main__":
    main()
