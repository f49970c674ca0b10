# SPDX-License-Identifier: Apache-2.0
"""What the range coder's tests share: tables of all kinds, symbols for them, and CompressAI's coder as the judge."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from compressai import ans
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from hypothesis import strategies as st

from mlic_fast.entropy.range_coder import CodingTables

# CompressAI's encoder sizes its buffer by the number of symbols and corrupts the heap when the stream is longer than
# that: with fewer than four.
COMPRESSAI_MINIMUM = 4


class Tables(NamedTuple):
    cdfs: np.ndarray[Any, Any]  # [n, L]
    lengths: np.ndarray[Any, Any]  # [n]
    offsets: np.ndarray[Any, Any]  # [n]

    def native(self) -> CodingTables:
        return CodingTables(*self)

    def lists(self) -> tuple[list[list[int]], list[int], list[int]]:
        return self.cdfs.tolist(), self.lengths.tolist(), self.offsets.tolist()


def tables_of(rows: list[list[int]], offsets: list[int]) -> Tables:
    """Rows of boundaries, without the leading 0 and the closing 65536."""
    cdfs = np.zeros((len(rows), max(map(len, rows)) + 2), np.int32)
    for cdf, row in zip(cdfs, rows, strict=True):
        cdf[: len(row) + 2] = [0, *row, 65536]
    return Tables(cdfs, np.array([len(row) + 2 for row in rows], np.int32), np.array(offsets, np.int32))


def tables_from_model(model: Any) -> Tables:
    return Tables(*(buffer.numpy() for buffer in (model._quantized_cdf, model._cdf_length, model._offset)))


@functools.cache
def gaussian_tables() -> Tables:
    model = GaussianConditional(None)
    model.update_scale_table(torch.exp(torch.linspace(math.log(0.11), math.log(256), 64)), force=True)
    return tables_from_model(model)


@functools.cache
def bottleneck_tables() -> Tables:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = EntropyBottleneck(24)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.update(force=True)
    return tables_from_model(model)


_row = st.one_of(
    st.lists(st.integers(1, 65535), min_size=1, max_size=40, unique=True).map(sorted),
    st.sampled_from([[1], [65535], [32768], [1, 65535], [1, 2], [65534, 65535], [300, 65000], list(range(1, 500))]),
)


@st.composite
def any_tables(draw: st.DrawFn) -> Tables:
    rows = draw(st.lists(_row, min_size=1, max_size=6))
    offsets = draw(st.lists(st.integers(-(2**20), 2**20), min_size=len(rows), max_size=len(rows)))
    return tables_of(rows, offsets)


class Case(NamedTuple):
    tables: Tables
    symbols: np.ndarray[Any, Any]  # [count] int32
    indexes: np.ndarray[Any, Any]  # [count] int32


@st.composite
def any_case(draw: st.DrawFn, min_size: int = 0, max_size: int = 60) -> Case:
    """Tables of any kind, with symbols inside and outside of what they cover, as far out as can be coded."""
    tables = draw(st.one_of(any_tables(), st.builds(gaussian_tables), st.builds(bottleneck_tables)))
    indexes = draw(st.lists(st.integers(0, len(tables.lengths) - 1), min_size=min_size, max_size=max_size))
    symbols = []
    for index in indexes:
        ordinary, offset = int(tables.lengths[index]) - 2, int(tables.offsets[index])
        inside = st.integers(0, ordinary - 1)
        near = st.integers(-20, ordinary + 20)
        far = st.integers(-(2**27), ordinary + 2**27 - 1)
        symbols.append(offset + draw(st.one_of(inside, inside, near, far)))
    return Case(tables, np.array(symbols, np.int32), np.array(indexes, np.int32))


def plain_symbols(tables: Tables, count: int, seed: int = 0) -> Case:
    """Symbols drawn from the tables themselves."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, len(tables.lengths), count).astype(np.int32)
    targets = rng.integers(0, 65536, count)
    symbols = np.empty(count, np.int32)
    for i, (index, target) in enumerate(zip(indexes, targets, strict=True)):
        length = tables.lengths[index]
        interval = int(np.searchsorted(tables.cdfs[index, :length], target, side="right")) - 1
        symbols[i] = tables.offsets[index] + interval
    return Case(tables, symbols, indexes)


def compressai_encode(case: Case) -> bytes:
    assert len(case.symbols) >= COMPRESSAI_MINIMUM
    stream: bytes = ans.RansEncoder().encode_with_indexes(
        case.symbols.tolist(), case.indexes.tolist(), *case.tables.lists()
    )
    return stream


def compressai_decode(case: Case, stream: bytes) -> list[int]:
    symbols: list[int] = ans.RansDecoder().decode_with_indexes(stream, case.indexes.tolist(), *case.tables.lists())
    return symbols
