# SPDX-License-Identifier: Apache-2.0
"""The range coder's Python face: arrays in, bytes out, and the other way round.

Streams are byte-identical with those of `compressai.ans`; mlic_fast/entropy/range_coder_ref.py is the format's
executable specification. Coding itself is C++ (csrc/range_coder/), runs without the GIL and reads and writes arrays in
place.

Wherever an array is taken it is a numpy array, or anything that shares CPU memory with numpy: a torch tensor on the
CPU, or another object with `__dlpack__` or the buffer protocol. Python lists are refused. Arrays that are not
contiguous are copied on the way in.

Errors: CodingError for symbols, indexes or tables that cannot be coded, BitstreamError for damaged streams.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mlic_fast import _range_coder
from mlic_fast.errors import BitstreamError, CodingError

ArrayLike = Any
"""A numpy array, a CPU tensor, or another object that shares its memory with numpy."""

Buffer = bytes | bytearray | memoryview
IntArray = npt.NDArray[np.integer[Any]]

_TABLE_DTYPES = (np.dtype(np.int32),)
_SYMBOL_DTYPES = (np.dtype(np.int16), np.dtype(np.int32))
_INDEX_DTYPES = (np.dtype(np.uint8), np.dtype(np.int32))


def _view(array: ArrayLike, what: str, dtypes: tuple[np.dtype[Any], ...]) -> IntArray:
    """`array` as numpy sees it, without a copy."""
    view: Any
    if isinstance(array, np.ndarray):
        view = array
    elif isinstance(array, list | tuple | int | float):
        raise CodingError(f"{what} is a {type(array).__name__}; pass a numpy array or a CPU tensor")
    else:
        try:
            # Tensors' own method comes first: some numpy versions mark what DLPack gives them read-only.
            view = array.numpy() if hasattr(array, "numpy") else np.asarray(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CodingError(f"{what} cannot be seen as a numpy array ({error}); move it to the CPU first") from error
    if view.dtype not in dtypes:
        allowed = " or ".join(dtype.name for dtype in dtypes)
        raise CodingError(f"{what} has dtype {view.dtype}; it must be {allowed} in native byte order")
    return view


def _input(array: ArrayLike, what: str, dtypes: tuple[np.dtype[Any], ...]) -> IntArray:
    return np.require(_view(array, what, dtypes), requirements=["C", "A"])


def _pair(symbols: ArrayLike, indexes: ArrayLike) -> tuple[IntArray, IntArray]:
    symbols = _input(symbols, "symbols", _SYMBOL_DTYPES)
    indexes = _input(indexes, "indexes", _INDEX_DTYPES)
    if symbols.shape != indexes.shape:
        raise CodingError(f"symbols have shape {symbols.shape} but indexes {indexes.shape}")
    return symbols, indexes


def _output(out: ArrayLike | None, indexes: IntArray, dtype: npt.DTypeLike) -> IntArray:
    if out is None:
        wanted = np.dtype(dtype)
        if wanted not in _SYMBOL_DTYPES:
            raise CodingError(f"symbols decode to int16 or int32, not {wanted}")
        return np.empty(indexes.shape, wanted)
    view = _view(out, "out", _SYMBOL_DTYPES)
    if not (view.flags.c_contiguous and view.flags.aligned and view.flags.writeable):
        raise CodingError("out must be contiguous, aligned and writeable")
    if view.shape != indexes.shape:
        raise CodingError(f"out has shape {view.shape} but indexes {indexes.shape}")
    if np.may_share_memory(view, indexes):
        raise CodingError("out and indexes share memory")
    return view


def _buffer(data: Buffer) -> memoryview:
    try:
        return memoryview(data).cast("B")
    except TypeError as error:
        raise CodingError(f"a stream is a contiguous bytes-like object, not {type(data).__name__}") from error


def _threads(threads: int) -> int:
    count = operator.index(threads)
    if count < 0:
        raise CodingError(f"threads is {count}; it must be 0 (all processors) or more")
    return count


class CodingTables:
    """Cumulative distributions, validated and handed to the coder once. Immutable; any number of threads may share one.

    cdfs [n, L], lengths [n], offsets [n], all int32, as `_quantized_cdf`, `_cdf_length` and `_offset` of CompressAI's
    entropy models. Row r uses the first lengths[r] columns of cdfs[r]: 0, strictly increasing, the last 65536. Its
    intervals stand for the symbols offsets[r], offsets[r] + 1, ...; the last interval is the escape, after which a
    symbol outside of them is spelt out. What is needed is copied.

    Raises CodingError, naming the row, if the tables are not like that.
    """

    __slots__ = ("_native",)

    def __init__(self, cdfs: ArrayLike, lengths: ArrayLike, offsets: ArrayLike) -> None:
        self._native = _range_coder.CodingTables(
            _input(cdfs, "cdfs", _TABLE_DTYPES),
            _input(lengths, "lengths", _TABLE_DTYPES),
            _input(offsets, "offsets", _TABLE_DTYPES),
        )

    def __len__(self) -> int:
        """Number of rows: indexes are 0 .. len - 1."""
        return len(self._native)


class Encoder:
    """Codes symbols into one stream. One thread at a time; a second one inside gets a CodingError."""

    __slots__ = ("_native",)

    def __init__(self, tables: CodingTables) -> None:
        self._native = _range_coder.Encoder(tables._native)

    def push(self, symbols: ArrayLike, indexes: ArrayLike) -> None:
        """Append symbols (int16 or int32) to the stream, each coded with the row that indexes (uint8 or int32) names.

        Both have the same shape, any; they are taken in row-major order and may be changed afterwards. They decode in
        the order in which they were pushed. Raises CodingError, naming the first position in this call that cannot be
        coded (index outside the tables; symbol 2^27 or more outside its row); nothing of the call is kept then.
        """
        self._native.push(*_pair(symbols, indexes))

    def finish(self) -> bytes:
        """The stream of everything pushed: at least 8 bytes, a multiple of 4. The encoder cannot be used afterwards."""
        return self._native.finish()


class Decoder:
    """Reads one stream's symbols, in any number of calls. One thread at a time; a second one inside gets a CodingError.

    Raises BitstreamError if `data` is shorter than 8 bytes, not a multiple of 4, or begins as no stream does.
    """

    __slots__ = ("_native",)

    def __init__(self, tables: CodingTables, data: Buffer) -> None:
        self._native = _range_coder.Decoder(tables._native, _buffer(data))

    def decode(self, indexes: ArrayLike, out: ArrayLike | None = None, dtype: npt.DTypeLike = np.int32) -> Any:
        """The next symbols, in the shape of indexes (uint8 or int32), which must be those that they were coded with.

        They are written to `out` (int16 or int32, same shape, contiguous), which is returned, or to a new array of
        `dtype`. Raises CodingError, before anything is decoded, if an index is outside the tables; BitstreamError if
        the stream is found damaged or a symbol does not fit into int16: then the decoder is of no further use and
        the contents of `out` mean nothing.
        """
        indexes = _input(indexes, "indexes", _INDEX_DTYPES)
        target = _output(out, indexes, dtype)
        self._native.decode(indexes, target)
        return target if out is None else out

    def finish(self) -> None:
        """Raise BitstreamError unless the stream ended exactly here. The decoder cannot be used afterwards."""
        self._native.finish()


class RangeCoder(NamedTuple):
    """What symbols are coded with: classes with the interface of Encoder and Decoder."""

    encoder: Callable[..., Any] = Encoder
    decoder: Callable[..., Any] = Decoder


def encode(tables: CodingTables, symbols: ArrayLike, indexes: ArrayLike) -> bytes:
    """One stream of these symbols; see Encoder.push."""
    encoder = Encoder(tables)
    encoder.push(symbols, indexes)
    return encoder.finish()


def decode(
    tables: CodingTables,
    data: Buffer,
    indexes: ArrayLike,
    out: ArrayLike | None = None,
    dtype: npt.DTypeLike = np.int32,
) -> Any:
    """All symbols of one stream, whose end is checked; see Decoder.decode."""
    decoder = Decoder(tables, data)
    result = decoder.decode(indexes, out, dtype)
    decoder.finish()
    return result


def encode_many(tables: CodingTables, jobs: Sequence[tuple[ArrayLike, ArrayLike]], threads: int = 0) -> list[bytes]:
    """One stream for each (symbols, indexes), coded in parallel on `threads` threads (0: one a processor).

    Results do not depend on the threads; nor does the error, which is that of the first stream with one and says
    which stream that is.
    """
    pairs = [_numbered(number, _pair, *job) for number, job in enumerate(jobs)]
    return _range_coder.encode_many(tables._native, pairs, _threads(threads))


def decode_many(
    tables: CodingTables,
    jobs: Sequence[tuple[Buffer, ArrayLike]],
    threads: int = 0,
    dtype: npt.DTypeLike = np.int32,
) -> list[IntArray]:
    """The symbols of each (data, indexes), as `decode` gives them, in parallel like `encode_many`."""

    def prepare(data: Buffer, indexes: ArrayLike) -> tuple[memoryview, IntArray, IntArray]:
        view = _input(indexes, "indexes", _INDEX_DTYPES)
        return _buffer(data), view, _output(None, view, dtype)

    prepared = [_numbered(number, prepare, *job) for number, job in enumerate(jobs)]
    _range_coder.decode_many(tables._native, prepared, _threads(threads))
    return [out for _, _, out in prepared]


def _numbered(number: int, prepare: Any, *job: Any) -> Any:
    try:
        return prepare(*job)
    except (CodingError, BitstreamError) as error:
        raise type(error)(f"stream {number}: {error}") from error
