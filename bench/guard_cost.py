# SPDX-License-Identifier: Apache-2.0
"""What the guard costs: sizes of files with it and without it, over a folder of pictures.

    python bench/guard_cost.py FOLDER [--model NAME|FILE]

Without --model: full-size weights (the seeded filling of tests/golden), whose δ bench/full_size_deltas.json has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from full_size import full_size_model

from mlic_fast.bitstream import container
from mlic_fast.codec import encode, open_model
from mlic_fast.pictures.folder import find_pictures


def main() -> None:
    """Print bytes of each file, of its guard's chunk, and what the whole file grows by."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="name or file (default: full-size weights)")
    options = parser.parse_args()
    model = full_size_model() if options.model is None else open_model(options.model, "cpu")
    paths = find_pictures(options.folder)
    if not paths:
        parser.error(f"{options.folder} holds no pictures")

    print(f"{'':24} {'without':>9} {'with':>9} {'guard':>6} {'growth':>8}")
    sums = [0, 0, 0]
    for path in paths:
        data = encode(path, model)
        row = [len(encode(path, model, guard=False)), len(data), len(container.read(data).guard or b"")]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        _show(path.name, row)
    _show("all", sums)


def _show(name: str, row: list[int]) -> None:
    print(f"{name:24} {row[0]:9} {row[1]:9} {row[2]:6} {row[1] / row[0] - 1:8.3%}", flush=True)


if __name__ == "__main__":
    main()
