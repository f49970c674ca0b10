# SPDX-License-Identifier: Apache-2.0
"""Writes golden_streams.txt: tables, symbols and the streams that CompressAI's own coder makes of them.

    python csrc/tests/make_golden_streams.py

The file is committed and never changes: it is what "byte-identical" means for machines that CompressAI is not on.
"""

from __future__ import annotations

import math
from pathlib import Path

import compressai
import numpy as np
import torch
from compressai import ans
from compressai.entropy_models import GaussianConditional

TARGET = Path(__file__).with_name("golden_streams.txt")
Rows = list[tuple[int, list[int]]]


def gaussian_rows(count: int) -> Rows:
    model = GaussianConditional(None)
    model.update_scale_table(torch.exp(torch.linspace(math.log(0.11), math.log(256), 64)), force=True)
    columns = zip(model._offset.tolist(), model._cdf_length.tolist(), model._quantized_cdf.tolist(), strict=True)
    return [(offset, cdf[:length]) for offset, length, cdf in columns][:count]


def random_rows(rng: np.random.Generator, count: int, longest: int) -> Rows:
    rows = []
    for _ in range(count):
        inner = rng.choice(np.arange(1, 65536), size=int(rng.integers(1, longest)), replace=False)
        rows.append((int(rng.integers(-40, 40)), [0, *sorted(inner.tolist()), 65536]))
    return rows


def draw(rng: np.random.Generator, rows: Rows, indexes: np.ndarray, escapes: float) -> list[int]:
    symbols = []
    for index in indexes:
        offset, cdf = rows[index]
        interval = int(np.searchsorted(cdf, rng.integers(65536), side="right")) - 1
        if rng.random() < escapes:
            symbols.append(offset + int(rng.integers(-(2 ** rng.integers(1, 28)), 2 ** rng.integers(1, 27))))
        else:
            symbols.append(offset + min(interval, len(cdf) - 3))
    return symbols


def main() -> None:
    rng = np.random.default_rng(20240427)
    gaussian = gaussian_rows(28)
    extreme: Rows = [(0, [0, 65535, 65536]), (0, [0, 1, 65536]), (-1, [0, 1, 2, 65535, 65536]), (7, [0, 32768, 65536])]
    mixed = random_rows(rng, 12, 60)
    cases = {
        "gaussian": (gaussian, rng.choice(28, 3000, p=np.r_[0.6, np.full(27, 0.4 / 27)]), 0.0),
        "gaussian_escapes": (gaussian, rng.integers(0, 28, 600), 0.2),
        "extreme_frequencies": (extreme, rng.integers(0, 4, 800), 0.0),
        "all_escapes": (extreme, rng.integers(0, 4, 300), 1.0),
        "random_tables": (mixed, rng.integers(0, 12, 1500), 0.05),
    }
    lines = [f"# made with CompressAI {compressai.__version__} by make_golden_streams.py"]
    for name, (rows, indexes, escapes) in cases.items():
        symbols = draw(rng, rows, indexes, escapes)
        if name == "all_escapes":
            # The farthest symbols that can be coded, on either side.
            offset, cdf = rows[indexes[0]]
            symbols[0] = offset - 2**27
            offset, cdf = rows[indexes[1]]
            symbols[1] = offset + len(cdf) - 2 + 2**27 - 1
        width = max(len(cdf) for _, cdf in rows)
        stream = ans.RansEncoder().encode_with_indexes(
            symbols,
            indexes.tolist(),
            [cdf + [0] * (width - len(cdf)) for _, cdf in rows],
            [len(cdf) for _, cdf in rows],
            [offset for offset, _ in rows],
        )
        lines.append(f"case {name} {len(rows)} {len(symbols)}")
        lines += [f"row {offset} {len(cdf)} {' '.join(map(str, cdf))}" for offset, cdf in rows]
        lines.append("symbols " + " ".join(map(str, symbols)))
        lines.append("indexes " + " ".join(map(str, indexes.tolist())))
        lines.append("stream " + stream.hex())
    TARGET.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
