# SPDX-License-Identifier: Apache-2.0
"""What it would pay to leave symbols out: those below a scale index are neither written nor read, and are their means.

    python bench/skipped_symbols.py FOLDER [--model NAME|FILE]... [--below 1 2 4 8]

No file is written so. Without --model: the bundled models. "below 1": symbols whose scale is at most the table's first,
0.11. Loss: bits per pixel + λ·255²·MSE, with the model's own λ; what lowers it pays. Bytes are those of the y string;
"as zeros": if the same symbols were written as zeros, which any decoder reads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from mlic_fast.kernels.coding_steps import build_indexes_ref
from torch import Tensor

from mlic_fast import registry
from mlic_fast.codec import open_model
from mlic_fast.engine import engine_for
from mlic_fast.entropy.coders import code
from mlic_fast.entropy.factorized import encode_hyper_latent
from mlic_fast.entropy.range_coder import decode, encode
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.nn.network import Network
from mlic_fast.passes import passes
from mlic_fast.pictures.folder import find_pictures
from mlic_fast.pictures.image import open_image, pad_to_64, to_tensor

ROUNDS = 5

_WIDTHS = 6, 7, 8, 9, 9, 9, 9, 9, 8  # of columns


class Result(NamedTuple):
    """Of one picture."""

    skipped: float  # share of all symbols
    wrong: float  # share of the skipped ones that are not 0
    size: int  # bytes of the y string
    zeroed: int  # the same, were the symbols written as zeros and not left out, which no decoder needs to know of
    mse: float
    loss: float
    coder: float  # seconds that coding and decoding the symbols takes, leaving out included


class Skipping:
    """Codes the passes of a walk, and leaves out what has an index below `first`."""

    def __init__(self, model: Network, y: Tensor, first: int) -> None:
        self.symbols: list[Tensor] = []  # of all passes
        self.indexes: list[Tensor] = []
        self._gaussian, self._y, self._first = model.entropy.gaussian, passes(y, model.slice_num), first
        self.wrong = 0

    def begin(self, scales: Tensor) -> None:
        indexes = build_indexes_ref(scales, self._gaussian.scale_table, self._gaussian.scale_bound)
        self.indexes.append(indexes.to(torch.uint8))

    def finish(self, means: Tensor) -> Tensor:
        symbols = torch.round(next(self._y) - means)
        left_out = self.indexes[-1] < self._first
        self.wrong += int((symbols[left_out] != 0).sum())
        symbols = symbols.masked_fill(left_out, 0)
        self.symbols.append(symbols.to(torch.int16))
        return symbols + means


@torch.no_grad()
def measure(model: Network, x: Tensor, height: int, width: int, lmbda: float, first: int) -> Result:
    """x: [1, 3, H, W], padded; height, width: before."""
    engine: Any = engine_for(model)
    y, z = engine.analyse(x)
    z_strings, z_hat = encode_hyper_latent(model.entropy, z)
    coder = Skipping(model, y, first)
    x_hat = engine.synthesise(code(engine.walk(z_hat), coder))[..., :height, :width].clamp(0, 1)
    symbols, indexes = (torch.cat([one.flatten() for one in all_]).numpy() for all_ in (coder.symbols, coder.indexes))
    tables = coding_tables(model.entropy.gaussian)
    times = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        coded = indexes >= first if first else None
        own = (symbols, indexes) if coded is None else (symbols[coded], indexes[coded])
        stream = encode(tables, *own)
        found = decode(tables, stream, own[1])
        if coded is not None:
            whole = np.zeros(symbols.shape, np.int32)
            whole[coded] = found
            found = whole
        times.append(time.thread_time() - start)
        assert np.array_equal(found, symbols)
    mse = (x_hat - x[..., :height, :width]).square().mean().item()
    bits = 8 * (len(stream) + sum(map(len, z_strings))) / (height * width)
    count = int((indexes < first).sum())
    loss = bits + lmbda * 255**2 * mse
    zeroed = len(encode(tables, symbols, indexes))
    return Result(count / len(indexes), coder.wrong / max(count, 1), len(stream), zeroed, mse, loss, median(times))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print, for each model and threshold, what leaving out does on average over the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="append", help="name or file (default: the bundled models)")
    parser.add_argument("--below", type=int, nargs="+", default=[1, 2, 4, 8], help="scale indexes (default: 1 2 4 8)")
    options = parser.parse_args(arguments)
    paths = find_pictures(options.folder)
    if not paths:
        parser.error(f"{options.folder} holds no pictures")
    bundled = [model.path for model in registry.available().models if model.origin == "bundled"]
    for name in options.model or bundled:
        known, model = registry.find(name), open_model(name, "cpu")
        if known.lmbda is None:
            parser.error(f"{name} does not say for which λ it was trained")
        found: dict[int, list[Result]] = {first: [] for first in (0, *options.below)}
        for path in paths:
            picture = open_image(path)
            x = pad_to_64(to_tensor(picture))
            for first, results in found.items():
                results.append(measure(model, x, picture.height, picture.width, known.lmbda, first))
        print(f"{known.name}, λ = {known.lmbda:g}, {len(paths)} pictures")
        heads = ("below", "scale", "skipped", "not 0", "bytes", "as zeros", "PSNR, dB", "loss", "coder")
        print(" ".join(f"{head:>{width}}" for head, width in zip(heads, _WIDTHS, strict=True)))
        for first in options.below:
            _show(first, model.entropy.gaussian.scale_table[first - 1].item(), found[0], found[first])


def _show(first: int, scale: float, whole: list[Result], less: list[Result]) -> None:
    pairs = list(zip(less, whole, strict=True))
    size, loss, coder = (
        mean(getattr(a, name) / getattr(b, name) for a, b in pairs) - 1 for name in ("size", "loss", "coder")
    )
    decibels = mean(-10 * np.log10(a.mse / b.mse) for a, b in pairs)
    zeroed = mean(a.zeroed / b.size for a, b in pairs) - 1
    skipped, wrong = mean(a.skipped for a in less), mean(a.wrong for a in less)
    shares = f"{skipped:8.1%} {wrong:9.4%} {size:+9.3%} {zeroed:+9.3%} {decibels:+9.4f} {loss:+9.3%} {coder:+8.1%}"
    print(f"{first:6} {scale:7.3f} {shares}", flush=True)


if __name__ == "__main__":
    main()
