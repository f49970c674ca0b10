# SPDX-License-Identifier: Apache-2.0
"""Range coder against CompressAI's, in one run on the same symbols: those of a 768×512 image, 491,520 of them.

    python bench/bench_range_coder.py [--rounds N] [--json FILE]     a table of medians and ratios
    pytest --benchmark bench/bench_range_coder.py                    the same operations under pytest-benchmark

The symbols are drawn to look like a trained full-size model's: 26 % of the scales lie above the tables' lower bound,
0.6 bits a pixel in all. CompressAI is called as its models call it: Python lists made from the tensors, its streaming
decoder called once for each of the 20 coding passes.

Times of the table are the thread's CPU time. Both coders are single-threaded here and wait for nothing, so on an idle
machine that is the time on the clock; on a busy one the clock would flatter the faster coder, whose short calls fit
between interruptions that the slower one's do not.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import common
import numpy as np
import pytest
import torch
from compressai import ans
from compressai.entropy_models import GaussianConditional

from mlic_fast.entropy.range_coder import CodingTables, Decoder, Encoder

SYMBOLS = 320 * 32 * 48
PASSES = 20
ACTIVE = 130_142  # scales above the lower bound


class Work(NamedTuple):
    """One image's symbols with the tables that code them, ready for both coders."""

    tables: CodingTables
    lists: tuple[list[list[int]], list[int], list[int]]
    symbols: torch.Tensor  # [SYMBOLS] int16
    indexes: torch.Tensor  # [SYMBOLS] uint8
    stream: bytes


@functools.cache
def make_work() -> Work:
    """Symbols with realistic statistics; both coders must make the same stream of them."""
    model = GaussianConditional(None)
    scale_table = torch.exp(torch.linspace(math.log(0.11), math.log(256), 64))
    model.update_scale_table(scale_table, force=True)
    buffers = (model._quantized_cdf, model._cdf_length, model._offset)

    rng = np.random.default_rng(0)
    # Scales vary slowly over the picture: runs of 8 positions are at the lower bound or not. A few of the active ones
    # fall below it, which the factor makes good.
    active = (rng.random(SYMBOLS // 8) < 1.028 * ACTIVE / SYMBOLS).repeat(8)
    level = rng.normal(math.log(0.72), 0.9, SYMBOLS // 8).repeat(8) + rng.normal(0, 0.2, SYMBOLS)
    scales = np.where(active, np.exp(level), 0.0)
    indexes = np.searchsorted(scale_table.numpy(), scales).clip(0, 63).astype(np.uint8)
    symbols = np.round(rng.normal(0, 1, SYMBOLS) * np.where(active, scales, 0.08)).astype(np.int16)

    lists = tuple(buffer.tolist() for buffer in buffers)
    work = Work(CodingTables(*buffers), lists, torch.from_numpy(symbols), torch.from_numpy(indexes), b"")
    work = work._replace(stream=encode_ours(work))
    if encode_compressai(work) != work.stream or not torch.equal(decode_compressai(work, PASSES), work.symbols):
        raise RuntimeError("the two coders disagree: nothing to compare")
    if not torch.equal(decode_ours(work, PASSES), work.symbols):
        raise RuntimeError("the decoder does not give the symbols back: nothing to measure")
    return work


def encode_ours(work: Work) -> bytes:
    encoder = Encoder(work.tables)
    for symbols, indexes in zip(work.symbols.chunk(PASSES), work.indexes.chunk(PASSES), strict=True):
        encoder.push(symbols, indexes)
    return encoder.finish()


def encode_compressai(work: Work) -> bytes:
    encoder = ans.BufferedRansEncoder()
    symbols: list[int] = []
    indexes: list[int] = []
    for part, rows in zip(work.symbols.chunk(PASSES), work.indexes.chunk(PASSES), strict=True):
        symbols.extend(part.tolist())
        indexes.extend(rows.tolist())
    encoder.encode_with_indexes(symbols, indexes, *work.lists)
    stream: bytes = encoder.flush()
    return stream


def decode_ours(work: Work, calls: int) -> torch.Tensor:
    decoder = Decoder(work.tables, work.stream)
    out = torch.empty_like(work.symbols)
    for part, indexes in zip(out.chunk(calls), work.indexes.chunk(calls), strict=True):
        decoder.decode(indexes, out=part)
    decoder.finish()
    return out


def decode_compressai(work: Work, calls: int) -> torch.Tensor:
    decoder = ans.RansDecoder()
    decoder.set_stream(work.stream)
    parts = [decoder.decode_stream(indexes.tolist(), *work.lists) for indexes in work.indexes.chunk(calls)]
    return torch.cat([torch.tensor(part, dtype=torch.int16) for part in parts])


OPERATIONS: dict[str, tuple[Callable[[Work], Any], Callable[[Work], Any], float]] = {
    # name: ours, CompressAI's, at least how many times as fast
    "encode": (encode_ours, encode_compressai, 4),
    "decode, 20 calls": (lambda w: decode_ours(w, PASSES), lambda w: decode_compressai(w, PASSES), 15),
    "decode, 1 call": (lambda w: decode_ours(w, 1), lambda w: decode_compressai(w, 1), 4),
}


@pytest.mark.parametrize("coder", ["mlic_fast", "compressai"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_range_coder(benchmark: Any, operation: str, coder: str) -> None:
    """A row of pytest-benchmark's table; grouped, so that the two coders stand together."""
    benchmark.group = operation
    ours, theirs, _ = OPERATIONS[operation]
    benchmark(ours if coder == "mlic_fast" else theirs, make_work())


def _milliseconds(call: Callable[[Work], Any], work: Work, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds + 2):  # two to warm up
        start = time.thread_time()
        call(work)
        times.append((time.thread_time() - start) * 1e3)
    return times[2:]


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row an operation; the coders take turns, so that a busy machine troubles both alike."""
    work = make_work()
    machine = {
        "processor": common.machine(torch.device("cpu")),
        "python": platform.python_version(),
        "commit": common.commit(),
    }
    rows = []
    for name, (ours, theirs, target) in OPERATIONS.items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(5):
            times[0].extend(_milliseconds(ours, work, rounds))
            times[1].extend(_milliseconds(theirs, work, max(2, rounds // 4)))
        row: dict[str, Any] = {
            "operation": name,
            "symbols": SYMBOLS,
            "bytes": len(work.stream),
            "clock": "thread CPU time",
        }
        for coder, series in zip(("mlic_fast", "compressai"), times, strict=True):
            low, _, high = quantiles(series, n=4)
            row |= {f"{coder}_ms": round(median(series), 3), f"{coder}_quartiles_ms": [round(low, 3), round(high, 3)]}
        row |= {"ratio": round(median(times[1]) / median(times[0]), 1), "target": target}
        rows.append(row | machine)
    return rows


def main() -> None:
    """Print the table; write the rows where asked to; fail if a ratio misses its target."""
    parser = argparse.ArgumentParser(description="Range coder against CompressAI's.")
    parser.add_argument("--rounds", type=int, default=20, help="repetitions of each of five turns (default 20)")
    parser.add_argument("--json", type=Path, help="write the rows to this file, a line each")
    options = parser.parse_args()
    rows = measure(options.rounds)
    print(f"{rows[0]['processor']}, Python {rows[0]['python']}, commit {rows[0]['commit']}")
    print(f"{SYMBOLS} symbols, {rows[0]['bytes']} bytes; medians and quartiles of CPU time in ms")
    for row in rows:
        cells = [
            "{:7.2f} ({:.2f} to {:.2f})".format(row[f"{coder}_ms"], *row[f"{coder}_quartiles_ms"])
            for coder in ("mlic_fast", "compressai")
        ]
        print(f"{row['operation']:18} mlic_fast {cells[0]:26} compressai {cells[1]:26} {row['ratio']:5.1f} times")
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if missed := [row["operation"] for row in rows if row["ratio"] < row["target"]]:
        raise SystemExit(f"below the target: {', '.join(missed)}")


if __name__ == "__main__":
    main()
