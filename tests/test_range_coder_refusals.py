# SPDX-License-Identifier: Apache-2.0
"""What the range coder refuses, and that it refuses it with the right error and before any harm is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from range_coder_cases import Case, any_case, gaussian_tables, plain_symbols, tables_of

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
from mlic_fast.errors import BitstreamError, CodingError

SIMPLE = tables_of([[9], [1000]], [0, -5])
FAR = 2**27
INITIAL_STATE = bytes([0, 0, 0, 128, 0, 0, 0, 0])


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("cdf", "length", "offset", "message"),
    [
        pytest.param([0, 65536, 0], 2, 0, "length 2", id="no-ordinary-interval"),
        pytest.param([0, 5, 65536], 4, 0, "length 4", id="length-beyond-columns"),
        pytest.param([0, 5, 65536], -1, 0, "length -1", id="negative-length"),
        pytest.param([1, 5, 65536], 3, 0, "begins at 1", id="start"),
        pytest.param([0, 5, 65535], 3, 0, "ends at 65535", id="end-below"),
        pytest.param([0, 5, 65537], 3, 0, "ends at 65537", id="end-above"),
        pytest.param([0, 0, 65536], 3, 0, "does not increase at column 1", id="empty-interval"),
        pytest.param([0, 65536, 65536], 3, 0, "does not increase at column 2", id="empty-escape"),
        pytest.param([0, -3, 65536], 3, 0, "does not increase", id="decreasing"),
        pytest.param([0, 5, 65536], 3, 2**30 + 1, "offset", id="offset-above"),
        pytest.param([0, 5, 65536], 3, -(2**31), "offset", id="offset-below"),
    ],
)
def test_bad_tables(cdf: list[int], length: int, offset: int, message: str) -> None:
    with pytest.raises(CodingError, match=f"row 1: .*{message}"):
        CodingTables(np.array([[0, 5, 65536], cdf], np.int32), ints(3, length), ints(0, offset))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((np.zeros((0, 3), np.int32), ints(), ints()), "no rows", id="no-rows"),
        pytest.param((np.zeros((0,), np.int32), ints(), ints()), r"\[n, L\]", id="never-computed"),
        pytest.param((SIMPLE.cdfs, ints(3), ints(0, 0)), "1 lengths", id="missing-length"),
        pytest.param((SIMPLE.cdfs, ints(3, 3), ints(0, 0, 0)), "3 offsets", id="extra-offset"),
        pytest.param((SIMPLE.cdfs.astype(np.int64), ints(3, 3), ints(0, 0)), "dtype int64", id="dtype"),
        pytest.param((SIMPLE.cdfs.tolist(), ints(3, 3), ints(0, 0)), "list", id="list"),
    ],
)
def test_bad_table_arrays(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(CodingError, match=message):
        CodingTables(*arguments)


@pytest.mark.parametrize(
    ("symbol", "index"),
    [(-FAR - 1, 0), (FAR + 1, 0), (-FAR - 6, 1), (FAR - 4, 1), (2**31 - 1, 1), (-(2**31), 0), (0, 2), (0, -1)],
)
def test_uncodable_symbols_leave_no_trace(symbol: int, index: int) -> None:
    tables = SIMPLE.native()
    encoder = Encoder(tables)
    encoder.push(ints(0, 3), ints(0, 1))
    with pytest.raises(CodingError, match="at position 2 "):
        encoder.push(ints(0, 77, symbol), ints(0, 1, index))
    encoder.push(ints(1), ints(1))
    assert encoder.finish() == encode(tables, ints(0, 3, 1), ints(0, 1, 1))
    with pytest.raises(CodingError, match="at position 1 "):
        encode_ref(*SIMPLE.lists(), [0, symbol], [0, index])


@pytest.mark.parametrize(("symbol", "index"), [(-FAR, 0), (FAR, 0), (-FAR - 5, 1), (FAR - 5, 1)])
def test_farthest_symbols(symbol: int, index: int) -> None:
    stream = encode(SIMPLE.native(), ints(symbol), ints(index))
    assert decode(SIMPLE.native(), stream, ints(index)).tolist() == [symbol]


def test_index_outside_while_decoding_changes_nothing() -> None:
    case = plain_symbols(gaussian_tables(), 300)
    stream = encode(case.tables.native(), case.symbols, case.indexes)
    for bad, dtype in ((64, np.uint8), (255, np.uint8), (64, np.int32), (-1, np.int32), (-(2**31), np.int32)):
        decoder = Decoder(case.tables.native(), stream)
        indexes = case.indexes.astype(dtype)
        indexes[299] = bad
        with pytest.raises(CodingError, match=f"index {bad} at position 299"):
            decoder.decode(indexes)
        assert np.array_equal(decoder.decode(case.indexes), case.symbols)
        decoder.finish()


def check_like_the_specification(case: Case, data: bytes) -> None:
    """Refused by both, or the same symbols from both, which then encode to these bytes."""
    try:
        expected = decode_ref(*case.tables.lists(), data, case.indexes.tolist())
    except BitstreamError:
        with pytest.raises(BitstreamError):
            decode(case.tables.native(), data, case.indexes)
        return
    assert decode(case.tables.native(), data, case.indexes).tolist() == expected
    assert encode(case.tables.native(), ints(*expected), case.indexes) == data


@given(any_case(), st.data())
@settings(max_examples=200, deadline=None)
def test_altered_streams(case: Case, data: st.DataObject) -> None:
    stream = bytearray(encode(case.tables.native(), case.symbols, case.indexes))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    check_like_the_specification(case, bytes(stream))


@given(any_case(), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_streams(case: Case, data: bytes) -> None:
    check_like_the_specification(case, data)
    check_like_the_specification(case, data[: len(data) // 4 * 4 - 1] + b"\x01")


@given(any_case(min_size=1))
@settings(max_examples=60, deadline=None)
def test_truncated_and_over_long_streams(case: Case) -> None:
    tables = case.tables.native()
    stream = encode(tables, case.symbols, case.indexes)
    wrong = [stream[:size] for size in range(len(stream))]
    wrong += [stream + bytes(extra) for extra in (1, 2, 3, 4, 400)]
    for data in wrong:
        with pytest.raises(BitstreamError):
            decode(tables, data, case.indexes)


def test_too_many_symbols_asked_for() -> None:
    case = plain_symbols(gaussian_tables(), 100)
    tables = case.tables.native()
    stream = encode(tables, case.symbols, case.indexes)
    with pytest.raises(BitstreamError, match="the stream ends"):
        decode(tables, stream, np.full(1_000_000, 40, np.uint8))
    with pytest.raises(BitstreamError, match="left over"):
        decode(tables, stream, case.indexes[:10])


@pytest.mark.parametrize("digits", [[8, *[1] * 8], [15, 1], [2, 3, 0], [1, 0]], ids=str)
def test_escapes_that_no_encoder_writes(digits: list[int]) -> None:
    """Too many digits, or a leading zero: CompressAI's decoder would read numbers from them."""
    x = 1 << 31
    words = []
    for digit in reversed(digits):
        if x >= 1 << 59:
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        x = x << 4 | digit
    frequency = 65536 - 9
    if x >= frequency << 47:
        words.append(x & 0xFFFFFFFF)
        x >>= 32
    x = (x // frequency << 16) + x % frequency + 9
    words += [x >> 32, x & 0xFFFFFFFF]
    stream = np.array(words[::-1], "<u4").tobytes()
    for refused in (lambda: decode(SIMPLE.native(), stream, ints(0)), lambda: decode_ref(*SIMPLE.lists(), stream, [0])):
        with pytest.raises(BitstreamError, match="escape"):
            refused()


def test_symbols_beyond_int16() -> None:
    tables = SIMPLE.native()
    for symbol, fits in ((32767, True), (32768, False), (-32768, True), (-32769, False)):
        stream = encode(tables, ints(0, symbol), ints(0, 0))
        decoder = Decoder(tables, stream)
        if fits:
            assert decoder.decode(ints(0, 0), dtype=np.int16).tolist() == [0, symbol]
            continue
        with pytest.raises(BitstreamError, match=f"symbol {symbol} does not fit .* position 1"):
            decoder.decode(ints(0, 0), dtype=np.int16)
        with pytest.raises(BitstreamError, match="earlier call"):
            decoder.decode(ints(0))
        with pytest.raises(BitstreamError, match="earlier call"):
            decoder.finish()


def test_finished_coders() -> None:
    tables = SIMPLE.native()
    encoder = Encoder(tables)
    decoder = Decoder(tables, encoder.finish())
    decoder.finish()
    for call in (encoder.finish, lambda: encoder.push(ints(), ints()), decoder.finish, lambda: decoder.decode(ints())):
        with pytest.raises(CodingError, match="finished"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda t: encode(t, [1], [0]), "list", id="lists"),
        pytest.param(lambda t: encode(t, ints(1), np.array([0])), "dtype int64", id="int64-indexes"),
        pytest.param(lambda t: encode(t, ints(1), np.array([0], np.int16)), "dtype int16", id="int16-indexes"),
        pytest.param(lambda t: encode(t, np.array([1.0]), ints(0)), "dtype float64", id="float-symbols"),
        pytest.param(lambda t: encode(t, ints(1).astype(">i4"), ints(0)), "native byte order", id="big-endian"),
        pytest.param(lambda t: encode(t, ints(1, 2), ints(0)), "shape", id="shapes"),
        pytest.param(lambda t: encode(t, torch.zeros(1, dtype=torch.int32, device="meta"), ints(0)), "CPU", id="meta"),
        pytest.param(lambda t: encode(t, object(), ints(0)), "dtype object", id="object"),
        pytest.param(lambda t: decode(t, INITIAL_STATE, ints(0), dtype=np.int64), "int16 or int32", id="int64-out"),
        pytest.param(lambda t: Decoder(t, "text"), "bytes-like", id="text-data"),  # type: ignore[arg-type]
        pytest.param(lambda t: encode_many(t, [], threads=-1), "threads", id="threads"),
    ],
)
def test_bad_arguments(call: Callable[[CodingTables], Any], message: str) -> None:
    with pytest.raises(CodingError, match=message):
        call(SIMPLE.native())


@pytest.mark.parametrize(
    ("out", "message"),
    [
        pytest.param(np.zeros(4, np.int32)[::2], "contiguous", id="strided"),
        pytest.param(np.zeros(3, np.int32), "shape", id="shape"),
        pytest.param(np.zeros(2, np.uint8), "dtype uint8", id="dtype"),
        pytest.param(np.frombuffer(bytes(9), np.int16, 2, 1), "aligned", id="unaligned"),
    ],
)
def test_bad_outputs(out: np.ndarray[Any, Any], message: str) -> None:
    decoder = Decoder(SIMPLE.native(), encode(SIMPLE.native(), ints(1, 2), ints(0, 0)))
    with pytest.raises(CodingError, match=message):
        decoder.decode(ints(0, 0), out=out)
    shared = ints(0, 0)
    with pytest.raises(CodingError, match="share memory"):
        decoder.decode(shared, out=shared)
    assert decoder.decode(ints(0, 0)).tolist() == [1, 2]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_many_name_the_first_bad_stream(threads: int) -> None:
    tables = SIMPLE.native()
    good = (ints(0, 1), ints(0, 0))
    with pytest.raises(CodingError, match=r"^stream 3: symbol .* at position 1 "):
        encode_many(tables, [good, good, good, (ints(0, FAR + 1), ints(0, 0)), good, (ints(0), ints(9))], threads)
    with pytest.raises(CodingError, match=r"^stream 1: .*shape"):
        encode_many(tables, [good, (ints(0), ints(0, 0))], threads)
    stream = encode(tables, *good)
    jobs = [(stream, ints(0, 0)), (stream, ints(0, 0)), (stream[:-1], ints(0, 0)), (b"", ints(0))]
    with pytest.raises(BitstreamError, match=r"^stream 2: .*multiple of 4"):
        decode_many(tables, jobs, threads)


def test_two_threads_in_one_coder() -> None:
    """They are told, or they take turns; nothing crashes and the decoder stays usable by one."""
    tables = gaussian_tables().native()
    indexes = np.full(200_000, 30, np.uint8)
    symbols = np.zeros(200_000, np.int16)
    for _ in range(5):
        encoder = Encoder(tables)
        outcomes: list[str] = []

        def work(encoder: Encoder = encoder, outcomes: list[str] = outcomes) -> None:
            for _ in range(10):
                try:
                    encoder.push(symbols, indexes)
                    outcomes.append("pushed")
                except CodingError as error:
                    outcomes.append("refused" if "another thread" in str(error) else str(error))

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert outcomes.count("pushed") + outcomes.count("refused") == 30
        assert outcomes.count("pushed") >= 1

        stream = encoder.finish()
        decoder = Decoder(tables, stream)
        total = []

        def read(decoder: Decoder = decoder, total: list[int] = total) -> None:
            for _ in range(40):
                try:
                    total.append(int(np.count_nonzero(decoder.decode(indexes[:50_000], dtype=np.int16))))
                except (CodingError, BitstreamError):
                    continue

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        # Whoever read, read zeros, and no more than there were.
        assert set(total) == {0}
        assert len(total) <= 4 * outcomes.count("pushed")


def test_indexes_changed_during_decoding_are_harmless() -> None:
    tables = gaussian_tables().native()
    symbols, indexes = np.zeros(400_000, np.int16), np.full(400_000, 20, np.int32)
    stream = encode(tables, symbols, indexes)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            indexes[200_000:] = 2**31 - 1
            indexes[200_000:] = 20

    disturber = threading.Thread(target=disturb)
    disturber.start()
    outcomes = set()
    for _ in range(60):
        try:
            decode(tables, stream, indexes, dtype=np.int16)
            outcomes.add("decoded")
        except (CodingError, BitstreamError) as error:
            outcomes.add(type(error).__name__)
    stop.set()
    disturber.join()
    assert outcomes <= {"decoded", "CodingError"}
