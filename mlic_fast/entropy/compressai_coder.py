# SPDX-License-Identifier: Apache-2.0
"""CompressAI's models, coded with this package's range coder: the same strings, in less time.

`use_range_coder(model)` changes one model, and nothing of the library. There are two ways in which such models code:

- through an entropy model's `compress` and `decompress`, which make Python lists of symbols, indexes and the whole
  tables at each call. `_ArrayCoding` stands in their place: arrays, and tables that are handed over once.
- through `compressai.ans` in methods of their own, as autoregressive models do, a list of symbols a position. Those
  methods run as they are written, with the three classes below under the names that they look up.

Both are done by giving the module a subclass of its own class.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import compressai.ans as compressai_ans
import numpy as np
import numpy.typing as npt
import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel
from torch import Tensor, nn

from mlic_fast.entropy.range_coder import CodingTables, Decoder, Encoder, decode, encode
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.errors import CodecError, CodingError

_PRECISION = 16  # bits of the tables that the coder takes


def use_range_coder(model: nn.Module) -> None:
    """Let a model of CompressAI code with this package's range coder. Its strings stay the same, byte for byte.

    All of its modules are looked at first; the model is left as it was if one cannot be served. A deep copy of the
    model has the coder too.

    Raises CodecError, naming the module, for an entropy model that codes in a way of its own (as the one with variable
    quantisation steps), for another coder or precision than CompressAI's default, for a decorated method that drives
    `compressai.ans`, and for a model that codes nothing. Coding raises CodingError where the coder refuses symbols
    (2^27 or more outside their table), and where a method changes its tables inside of a string.
    """
    served = [(module, _class_for(name or "the model", module)) for name, module in model.named_modules()]
    if all(cls is None for _, cls in served):
        raise CodecError(
            f"{type(model).__name__} has neither an entropy model of CompressAI nor a coder: nothing to do"
        )
    for module, cls in served:
        if cls is not None:
            module.__class__ = cls


def _class_for(name: str, module: nn.Module) -> type[nn.Module] | None:
    """The class that a module gets; None where it keeps its own."""
    cls: Any = type(module)
    if not hasattr(module, "entropy_coder"):
        return _with_coder(cls)
    whose = f"{name} ({cls.__name__})"
    if not isinstance(module, EntropyModel) or _own_coding(cls):
        raise CodecError(f"{whose} codes in a way of its own, which the range coder does not know: leave the coder out")
    coder = getattr(module.entropy_coder, "name", type(module.entropy_coder).__name__)
    if coder != "ans":
        raise CodecError(f"{whose} codes with {coder}, not with CompressAI's rANS, so the strings would differ")
    if module.entropy_coder_precision != _PRECISION:
        raise CodecError(f"{whose} has tables of {module.entropy_coder_precision} bits; the coder takes {_PRECISION}")
    return _with_arrays(cls)


def _own_coding(cls: type) -> bool:
    """Whether a class between an entropy model and CompressAI's base class codes itself."""
    known = (EntropyModel, EntropyBottleneck, _ArrayCoding)
    return any(name in vars(base) for base in cls.__mro__ if base not in known for name in ("compress", "decompress"))


class _ArrayCoding(EntropyModel):
    """What stands between an entropy model's class and EntropyModel, so that calls of `super()` end here."""

    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> list[bytes]:
        """inputs, indexes [B, C, ...], means: broadcast to them → a string an item. Raises CodingError."""
        symbols = self.quantize(inputs, "symbols", means)
        if symbols.ndim < 2 or symbols.shape != indexes.shape:
            raise CodingError(f"inputs have shape {list(symbols.shape)} but indexes {list(indexes.shape)}")
        tables = coding_tables(self)
        rows = _int32(indexes)
        return [encode(tables, item, row) for item, row in zip(_int32(symbols), rows, strict=True)]

    def decompress(
        self, strings: Sequence[bytes], indexes: Tensor, dtype: torch.dtype = torch.float, means: Tensor | None = None
    ) -> Tensor:
        """Strings, indexes [B, C, ...] → values of dtype, or that of the means. Raises CodingError, BitstreamError."""
        if len(strings) != indexes.shape[0]:
            raise CodingError(f"there are {len(strings)} strings for {indexes.shape[0]} items")
        tables = coding_tables(self)
        rows = _int32(indexes)
        symbols = np.empty(rows.shape, np.int32)
        for string, row, out in zip(strings, rows, symbols, strict=True):
            decode(tables, string, row, out=out)
        values: Tensor = self.dequantize(torch.from_numpy(symbols).to(self._quantized_cdf.device), means, dtype)
        return values


def _int32(tensor: Tensor) -> npt.NDArray[np.int32]:
    array: npt.NDArray[np.int32] = tensor.detach().to("cpu", torch.int32).contiguous().numpy()
    return array


@functools.cache
def _with_arrays(cls: Any) -> type[nn.Module]:
    if issubclass(cls, _ArrayCoding):
        return cls
    return type(cls.__name__, (cls, _ArrayCoding), {"__module__": cls.__module__})


Numbers = Sequence[int]


class BufferedRansEncoder:
    """As CompressAI's class of that name: symbols in lists, until `flush` gives the string."""

    def __init__(self) -> None:
        self._tables = _OneTable()
        self._encoder: Encoder | None = None

    def encode_with_indexes(
        self, symbols: Numbers, indexes: Numbers, cdfs: Sequence[Numbers], lengths: Numbers, offsets: Numbers
    ) -> None:
        """Append symbols. Raises CodingError."""
        tables = self._tables.of(cdfs, lengths, offsets)
        if self._encoder is None:
            self._encoder = Encoder(tables)
        self._encoder.push(_array(symbols, "symbols"), _array(indexes, "indexes"))

    def flush(self) -> bytes:
        """The string of all symbols so far; the next one begins anew. Raises CodingError if there are no tables yet."""
        if self._encoder is None:
            raise CodingError("nothing was encoded, not even an empty list")
        string = self._encoder.finish()
        self._tables, self._encoder = _OneTable(), None
        return string


class RansEncoder:
    """As CompressAI's class of that name: one call, one string."""

    def encode_with_indexes(
        self, symbols: Numbers, indexes: Numbers, cdfs: Sequence[Numbers], lengths: Numbers, offsets: Numbers
    ) -> bytes:
        """The string of the symbols. Raises CodingError."""
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, cdfs, lengths, offsets)
        return encoder.flush()


class RansDecoder:
    """As CompressAI's class of that name: a string, read as a whole or in parts, into lists."""

    def __init__(self) -> None:
        self._tables = _OneTable()
        self._decoder: Decoder | None = None
        self._string: bytes | None = None

    def set_stream(self, string: bytes) -> None:
        """Read from the beginning of a string."""
        self._tables, self._decoder, self._string = _OneTable(), None, string

    def decode_stream(self, indexes: Numbers, cdfs: Sequence[Numbers], lengths: Numbers, offsets: Numbers) -> list[int]:
        """The next symbols. Raises CodingError, BitstreamError."""
        if self._string is None:
            raise CodingError("there is no string to read: call set_stream first")
        tables = self._tables.of(cdfs, lengths, offsets)
        if self._decoder is None:
            self._decoder = Decoder(tables, self._string)
        symbols: list[int] = self._decoder.decode(_array(indexes, "indexes")).tolist()
        return symbols

    def decode_with_indexes(
        self, string: bytes, indexes: Numbers, cdfs: Sequence[Numbers], lengths: Numbers, offsets: Numbers
    ) -> list[int]:
        """All symbols of a string. Raises CodingError, BitstreamError."""
        decoder = RansDecoder()
        decoder.set_stream(string)
        symbols = decoder.decode_stream(indexes, cdfs, lengths, offsets)
        assert decoder._decoder is not None
        decoder._decoder.finish()
        return symbols


class _OneTable:
    """The tables of one string, which callers hand over again with every call: looked at once."""

    def __init__(self) -> None:
        self._given: tuple[Sequence[Numbers], Numbers, Numbers] | None = None
        self._tables: CodingTables | None = None

    def of(self, cdfs: Sequence[Numbers], lengths: Numbers, offsets: Numbers) -> CodingTables:
        """Raises CodingError for other tables than those of the call before."""
        if self._tables is not None and self._given is not None:
            # equal lists count as well, but nobody should pay for comparing them
            same = all(a is b or a == b for a, b in zip(self._given, (cdfs, lengths, offsets), strict=True))
            if not same:
                raise CodingError("the tables change inside of a string, which the range coder does not do")
            return self._tables
        self._given = (cdfs, lengths, offsets)
        self._tables = CodingTables(_array(cdfs, "cdfs"), _array(lengths, "lengths"), _array(offsets, "offsets"))
        return self._tables


def _array(values: Any, what: str) -> npt.NDArray[np.int32]:
    """A list of whole numbers as int32. Raises CodingError."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise CodingError(f"{what} are no rectangular list: {error}") from None
    if array.size == 0:
        return array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise CodingError(f"{what} are {array.dtype}, not whole numbers")
    limits = np.iinfo(np.int32)
    if not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise CodingError(f"{what} go beyond 32 bits")
    return array.astype(np.int32)


_REPLACED: dict[Any, Any] = {
    compressai_ans.BufferedRansEncoder: BufferedRansEncoder,
    compressai_ans.RansEncoder: RansEncoder,
    compressai_ans.RansDecoder: RansDecoder,
    compressai_ans: types.SimpleNamespace(
        BufferedRansEncoder=BufferedRansEncoder, RansEncoder=RansEncoder, RansDecoder=RansDecoder
    ),
}


@functools.cache
def _with_coder(cls: Any) -> type[nn.Module] | None:
    """A subclass whose methods find the coder under the names of CompressAI's; None if no method looks for it."""
    methods: dict[str, Any] = {}
    for name in {name for base in cls.__mro__ if base is not object for name in vars(base)}:
        found = inspect.getattr_static(cls, name)
        function = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
        inner = inspect.unwrap(function) if callable(function) else function
        if not isinstance(inner, types.FunctionType):
            continue
        replaced = {key: _REPLACED[value] for key, value in _looked_up(inner) if _known(value)}
        if not replaced:
            continue
        if inner is not function:
            raise CodecError(
                f"{cls.__name__}.{name} drives compressai.ans under a decorator, where the range coder cannot take its "
                "place: leave the coder out"
            )
        renewed = _with_globals(inner, replaced)
        methods[name] = type(found)(renewed) if isinstance(found, (staticmethod, classmethod)) else renewed
    if not methods:
        return None
    return type(cls.__name__, (cls,), {**methods, "__module__": cls.__module__})


def _known(value: Any) -> bool:
    return isinstance(value, (type, types.ModuleType)) and value in _REPLACED


def _looked_up(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The global names that a function's code mentions, that of functions inside of it too, with their values."""
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)
        pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _with_globals(function: types.FunctionType, replaced: dict[str, Any]) -> Callable[..., Any]:
    """The same code, defaults and closure, where some global names mean something else."""
    renewed = types.FunctionType(
        function.__code__,
        {**function.__globals__, **replaced},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    # not functools.wraps, which would leave the function that was replaced in sight
    renewed.__kwdefaults__, renewed.__qualname__ = function.__kwdefaults__, function.__qualname__
    return renewed
