# SPDX-License-Identifier: Apache-2.0
"""The range coder gives CompressAI's bytes and the executable specification's, and takes every kind of array."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from compressai import ans
from hypothesis import given, settings
from hypothesis import strategies as st
from range_coder_cases import (
    COMPRESSAI_MINIMUM,
    Case,
    Tables,
    any_case,
    bottleneck_tables,
    compressai_decode,
    compressai_encode,
    gaussian_tables,
    plain_symbols,
    tables_of,
)

from mlic_fast.entropy.range_coder import (
    CodingTables,
    Decoder,
    Encoder,
    decode,
    decode_many,
    encode,
    encode_many,
)
from mlic_fast.entropy.range_coder_ref import decode_ref, encode_ref
from mlic_fast.errors import CodingError

EMPTY_STREAM = bytes([0, 0, 0, 128, 0, 0, 0, 0])


@given(any_case(min_size=COMPRESSAI_MINIMUM))
@settings(max_examples=500, deadline=None)
def test_equals_compressai_and_the_specification(case: Case) -> None:
    stream = encode(case.tables.native(), case.symbols, case.indexes)
    assert stream == compressai_encode(case)
    assert stream == encode_ref(*case.tables.lists(), case.symbols.tolist(), case.indexes.tolist())
    assert decode(case.tables.native(), stream, case.indexes).tolist() == case.symbols.tolist()
    assert decode_ref(*case.tables.lists(), stream, case.indexes.tolist()) == case.symbols.tolist()
    assert compressai_decode(case, stream) == case.symbols.tolist()


@given(any_case(max_size=COMPRESSAI_MINIMUM))
@settings(max_examples=150, deadline=None)
def test_no_and_few_symbols(case: Case) -> None:
    stream = encode(case.tables.native(), case.symbols, case.indexes)
    assert stream == encode_ref(*case.tables.lists(), case.symbols.tolist(), case.indexes.tolist())
    assert decode(case.tables.native(), stream, case.indexes).tolist() == case.symbols.tolist()
    assert compressai_decode(case, stream) == case.symbols.tolist()
    if not len(case.symbols):
        assert stream == EMPTY_STREAM


@pytest.mark.parametrize("tables", [gaussian_tables(), bottleneck_tables()], ids=["gaussian", "bottleneck"])
def test_long_streams_of_real_tables(tables: Tables) -> None:
    case = plain_symbols(tables, 20_000)
    stream = encode(tables.native(), case.symbols, case.indexes)
    assert stream == compressai_encode(case)
    assert np.array_equal(decode(tables.native(), stream, case.indexes), case.symbols)


def test_more_rows_than_look_up_slots() -> None:
    tables = tables_of([[1 + (k * 7919) % 60000, 65000 + k % 500] for k in range(140_000)], [0] * 140_000)
    case = plain_symbols(tables, 5_000)
    stream = encode(tables.native(), case.symbols, case.indexes)
    assert np.array_equal(decode(tables.native(), stream, case.indexes), case.symbols)
    used, indexes = np.unique(case.indexes, return_inverse=True)
    few = Tables(tables.cdfs[used], tables.lengths[used], tables.offsets[used])
    assert stream == compressai_encode(Case(few, case.symbols, indexes.astype(np.int32)))


def test_row_with_an_interval_for_each_count() -> None:
    case = plain_symbols(tables_of([list(range(1, 65536))], [-30_000]), 5_000)
    stream = encode(case.tables.native(), case.symbols, case.indexes)
    assert stream == compressai_encode(case)
    assert np.array_equal(decode(case.tables.native(), stream, case.indexes), case.symbols)


@given(any_case(min_size=COMPRESSAI_MINIMUM), st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=80, deadline=None)
def test_staged_coding(case: Case, cuts: list[int]) -> None:
    parts = list(zip(*(np.split(a, sorted(min(c, len(a)) for c in cuts)) for a in case[1:]), strict=True))
    reference = ans.BufferedRansEncoder()
    encoder = Encoder(case.tables.native())
    for symbols, indexes in parts:
        encoder.push(symbols, indexes)
        reference.encode_with_indexes(symbols.tolist(), indexes.tolist(), *case.tables.lists())
    stream = encoder.finish()
    assert stream == reference.flush()

    decoder = Decoder(case.tables.native(), stream)
    reference_decoder = ans.RansDecoder()
    reference_decoder.set_stream(stream)
    for symbols, indexes in parts:
        assert decoder.decode(indexes).tolist() == symbols.tolist()
        assert reference_decoder.decode_stream(indexes.tolist(), *case.tables.lists()) == symbols.tolist()
    decoder.finish()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("index_dtype", ["uint8", "int32"])
@pytest.mark.parametrize("symbol_dtype", ["int16", "int32"])
def test_dtypes_and_shapes(kind: str, symbol_dtype: str, index_dtype: str) -> None:
    tables = gaussian_tables()
    case = plain_symbols(tables, 2 * 3 * 4 * 5)
    symbols = case.symbols.astype(symbol_dtype).reshape(2, 3, 4, 5)
    indexes = case.indexes.astype(index_dtype).reshape(2, 3, 4, 5)
    expected = compressai_encode(case)
    make: Any = torch.from_numpy if kind == "torch" else np.asarray
    native = CodingTables(*(make(a) for a in tables))

    assert encode(native, make(symbols), make(indexes)) == expected
    # Held in another order in memory: the row-major order counts.
    assert encode(native, make(symbols.T.copy().T), make(indexes.T.copy().T)) == expected
    swapped = Case(tables, symbols.swapaxes(1, 3).ravel(), indexes.swapaxes(1, 3).ravel())
    assert encode(native, make(symbols).swapaxes(1, 3), make(indexes).swapaxes(1, 3)) == compressai_encode(swapped)

    result = decode(native, expected, make(indexes), dtype=np.dtype(symbol_dtype))
    assert isinstance(result, np.ndarray)
    assert result.dtype == symbol_dtype
    assert np.array_equal(result, symbols)
    # An impossible value in every place shows any that is not written.
    out = make(np.full_like(symbols, -9999))
    assert decode(native, memoryview(expected), make(indexes), out=out) is out
    assert np.array_equal(np.asarray(out), symbols)


def test_unaligned_and_read_only_inputs() -> None:
    case = plain_symbols(gaussian_tables(), 500)
    raw = b"x" + case.symbols.tobytes()
    unaligned = np.frombuffer(raw, np.int32, offset=1)
    assert not unaligned.flags.aligned
    indexes = case.indexes.copy()
    indexes.flags.writeable = False
    tables = case.tables.native()
    assert encode(tables, unaligned, indexes) == compressai_encode(case)
    with pytest.raises(CodingError, match="writeable"):
        decode(tables, compressai_encode(case), case.indexes, out=indexes)


def test_nothing_is_shared_with_the_callers_arrays() -> None:
    case = plain_symbols(gaussian_tables(), 500)
    expected = compressai_encode(case)
    copies = Tables(*(a.copy() for a in case.tables))
    tables = copies.native()
    symbols, indexes, data = case.symbols.copy(), case.indexes.copy(), bytearray(expected)
    encoder, decoder = Encoder(tables), Decoder(tables, data)
    encoder.push(symbols, indexes)
    for array in (*copies, symbols, indexes):
        array[...] = 77
    data[:] = bytes(len(data))
    assert encoder.finish() == expected
    assert np.array_equal(decoder.decode(case.indexes), case.symbols)


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_many_streams(threads: int) -> None:
    tables = bottleneck_tables()
    cases = [plain_symbols(tables, 50 + 400 * (k % 5), seed=k) for k in range(40)]
    streams = encode_many(tables.native(), [(case.symbols, case.indexes) for case in cases], threads)
    assert streams == [compressai_encode(case) for case in cases]
    jobs = [(stream, case.indexes) for stream, case in zip(streams, cases, strict=True)]
    decoded = decode_many(tables.native(), jobs, threads, dtype=np.int16)
    assert all(np.array_equal(d, c.symbols) and d.dtype == np.int16 for d, c in zip(decoded, cases, strict=True))
    assert encode_many(tables.native(), [], threads) == []
    assert decode_many(tables.native(), [], threads) == []


def test_threads_share_tables() -> None:
    tables = gaussian_tables().native()
    cases = [plain_symbols(gaussian_tables(), 30_000, seed=k) for k in range(4)]
    expected = [compressai_encode(case) for case in cases]
    failures: list[str] = []

    def work(case: Case, stream: bytes) -> None:
        for _ in range(20):
            if encode(tables, case.symbols, case.indexes) != stream:
                failures.append("encode")
            if not np.array_equal(decode(tables, stream, case.indexes), case.symbols):
                failures.append("decode")

    workers = [threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_python_runs_while_the_coder_does() -> None:
    """Another thread gets on in the middle of one long call: the GIL is released."""
    tables = gaussian_tables().native()
    indexes = np.full(12_000_000, 40, np.uint8)
    symbols = np.zeros(12_000_000, np.int16)
    stream = encode(tables, symbols, indexes)
    span: list[float] = []

    def work() -> None:
        span.append(time.perf_counter())
        decode(tables, stream, indexes, dtype=np.int16)
        span.append(time.perf_counter())

    worker = threading.Thread(target=work)
    worker.start()
    seen = []
    while len(span) < 2:
        seen.append(time.perf_counter())
        time.sleep(0.0005)
    worker.join()
    quarter = (span[1] - span[0]) / 4
    assert any(span[0] + quarter < moment < span[1] - quarter for moment in seen)


def test_works_without_torch() -> None:
    code = (
        "import sys, numpy as np, mlic_fast.entropy.range_coder as r;"
        "t = r.CodingTables(*(np.array(a, np.int32) for a in ([[0, 9, 65536]], [3], [0])));"
        "s = r.encode(t, np.array([0, 5], np.int32), np.array([0, 0], np.uint8));"
        "assert r.decode(t, s, np.array([0, 0], np.uint8)).tolist() == [0, 5];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
