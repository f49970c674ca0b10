# SPDX-License-Identifier: Apache-2.0
"""Range coder against CompressAI's, in one run on the same symbols: those of a 768×512 image, 491,520 of them.

    python bench/bench_range_coder.py [--rounds N] [--write]     a table; fails if a ratio misses its target
    pytest --benchmark bench/bench_range_coder.py                the same calls under pytest-benchmark

The symbols are drawn to look like a trained full-size model's: 26 % of the scales lie above the tables' lower bound,
0.6 bits a pixel in all. CompressAI is called as its models call it: Python lists made from the tensors, its streaming
decoder called once for each of the 20 coding passes.

Times are the thread's CPU time. Both coders are single-threaded here and wait for nothing, so on an idle
machine that is the time on the clock; on a busy one the clock would flatter the faster coder, whose short calls fit
between interruptions that the slower one's do not.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
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


def scale_table() -> torch.Tensor:
    """CompressAI's table, [64]."""
    return torch.exp(torch.linspace(math.log(0.11), math.log(256), 64))


@functools.cache
def make_work() -> Work:
    """Symbols with realistic statistics; both coders must make the same stream of them."""
    model = GaussianConditional(None)
    model.update_scale_table(scale_table(), force=True)
    buffers = (model._quantized_cdf, model._cdf_length, model._offset)

    rng = np.random.default_rng(0)
    # Scales vary slowly over the picture: runs of 8 positions are at the lower bound or not. A few of the active ones
    # fall below it, which the factor makes good.
    active = (rng.random(SYMBOLS // 8) < 1.028 * ACTIVE / SYMBOLS).repeat(8)
    level = rng.normal(math.log(0.72), 0.9, SYMBOLS // 8).repeat(8) + rng.normal(0, 0.2, SYMBOLS)
    scales = np.where(active, np.exp(level), 0.0)
    indexes = np.searchsorted(scale_table().numpy(), scales).clip(0, 63).astype(np.uint8)
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


class Case(NamedTuple):
    """One thing to do with the symbols."""

    ours: Callable[[Work], Any]
    theirs: Callable[[Work], Any]
    target: float  # at least how many times as fast ours must be

    def work(self) -> None:
        """There is no floor: nothing else does the same."""


CASES = {
    "encode": Case(encode_ours, encode_compressai, 4),
    "decode, 20 calls": Case(lambda w: decode_ours(w, PASSES), lambda w: decode_compressai(w, PASSES), 15),
    "decode, 1 call": Case(lambda w: decode_ours(w, 1), lambda w: decode_compressai(w, 1), 4),
}
CONTESTANTS = ("mlic_fast", "compressai")


def call_of(case: Case, contestant: str, device: torch.device) -> Callable[[], Any]:
    work = make_work()
    return lambda: (case.ours if contestant == "mlic_fast" else case.theirs)(work)


class RangeCoder(common.Benchmark):
    """Coding on the CPU, of one set of symbols; what it takes besides them is no more than the stream."""

    def peak(self, *_: Any) -> tuple[None, None]:
        return None, None


BENCHMARK = RangeCoder(
    operation="range coder",
    cases=CASES,
    smoke=CASES,
    contestants=CONTESTANTS,
    call_of=call_of,
    script=__file__,
    ours="mlic_fast",
    baseline="compressai",
    rounds=50,
    clock=time.thread_time,
    on=("cpu",),
)


@pytest.mark.benchmark(timer=time.thread_time)
def test_range_coder(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


def main() -> None:
    """Print the table; fail if a ratio misses its target."""
    seconds = {(row.case, row.contestant): row.seconds for row in common.main(BENCHMARK)}
    missed = [
        case
        for case, contestant in seconds
        if contestant == "compressai" and seconds[case, contestant] < CASES[case].target * seconds[case, "mlic_fast"]
    ]
    if missed:
        raise SystemExit(f"below the target: {', '.join(missed)}")


if __name__ == "__main__":
    main()
