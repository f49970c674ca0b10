# SPDX-License-Identifier: Apache-2.0
"""A file for what CompressAI's models compress to, so that their rates are those of real files.

`compress` gives {"strings", "shape"}: strings in nested lists, and sizes of latents that the decoder takes. A file
holds those and the picture's size, all that a decoder with the same weights needs:

    file    = width, height, shape, strings
    number  = unsigned LEB128 of at most 5 bytes
    value   = 0x00 number | 0x01 number bytes | 0x02 number value... (list) | 0x03 number value... (tuple)
            | 0x04 number (number bytes, value)... (dictionary; keys in UTF-8)

width and height are bare numbers, shape and strings are values. Bytes only, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mlic_fast.errors import BitstreamError, CodecRunError

_NUMBER, _BYTES, _LIST, _TUPLE, _DICTIONARY = range(5)

_LARGEST = 2**32 - 1

# {"y": [(C, H, W), …]} is three deep.
_DEEPEST = 8


class Strings(NamedTuple):
    """width, height: of the picture in pixels. strings, shape: as `compress` gave them, `decompress` takes them."""

    width: int
    height: int
    strings: Any
    shape: Any

    @property
    def string_bytes(self) -> int:
        """Bytes of the strings alone, which is what CompressAI counts."""
        return _bytes_in(self.strings)


def write(content: Strings) -> bytes:
    """The file. Raises CodecRunError for what it cannot hold: a number below 0, a float, a tensor."""
    out = bytearray()
    for number in (content.width, content.height):
        _write_number(out, number)
    _write_value(out, content.shape, 0)
    _write_value(out, content.strings, 0)
    return bytes(out)


def read(data: bytes) -> Strings:
    """What was written; torch.Size comes back as a tuple. Raises BitstreamError for any other data."""
    reader = _Reader(data)
    width, height = reader.number(), reader.number()
    if not (width and height):
        raise BitstreamError(f"a picture has at least one pixel, not {width} x {height}")
    shape, strings = reader.value(0), reader.value(0)
    reader.finish()
    return Strings(width, height, strings, shape)


def _bytes_in(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_bytes_in, value.values()))
    return sum(map(_bytes_in, value)) if isinstance(value, (list, tuple)) else 0


def _write_number(out: bytearray, number: int) -> None:
    if not 0 <= number <= _LARGEST:
        raise CodecRunError(f"the model's sizes and lengths are numbers from 0 to {_LARGEST}, not {number}")
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _write_value(out: bytearray, value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise CodecRunError(f"the model's strings and shapes are nested more than {_DEEPEST} deep")
    if isinstance(value, int) and not isinstance(value, bool):
        out.append(_NUMBER)
        _write_number(out, value)
    elif isinstance(value, (bytes, bytearray)):
        out.append(_BYTES)
        _write_number(out, len(value))
        out += value
    elif isinstance(value, (list, tuple)):
        out.append(_LIST if isinstance(value, list) else _TUPLE)
        _write_number(out, len(value))
        for one in value:
            _write_value(out, one, depth + 1)
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        out.append(_DICTIONARY)
        _write_number(out, len(value))
        for key, one in value.items():
            name = key.encode()
            _write_number(out, len(name))
            out += name
            _write_value(out, one, depth + 1)
    else:
        raise CodecRunError(
            f"the model's compress gives a {type(value).__name__} among strings and shapes, which no file here holds"
        )


class _Reader:
    """Takes values off the front of the data. Raises BitstreamError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._position:
            raise BitstreamError(f"the strings end early, at offset {self._position}")
        self._position += count
        return self._data[self._position - count : self._position]

    def number(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > _LARGEST or (byte == 0 and shift):
                    break
                return value
        raise BitstreamError(f"the strings are damaged: no number ends at offset {self._position}")

    def value(self, depth: int) -> Any:
        kind = self.take(1)[0]
        if depth > _DEEPEST or kind > _DICTIONARY:
            raise BitstreamError(f"the strings are damaged at offset {self._position - 1}")
        number = self.number()
        if kind == _NUMBER:
            return number
        if kind == _BYTES:
            return self.take(number)
        if number > len(self._data) - self._position:  # a value takes a byte at least
            raise BitstreamError(f"the strings end early, at offset {self._position}")
        if kind == _DICTIONARY:
            entries = dict(self._entry(depth + 1) for _ in range(number))
            if len(entries) < number:
                raise BitstreamError(f"the strings are damaged: a name is there twice before offset {self._position}")
            return entries
        values = [self.value(depth + 1) for _ in range(number)]
        return values if kind == _LIST else tuple(values)

    def _entry(self, depth: int) -> tuple[str, Any]:
        try:
            key = self.take(self.number()).decode()
        except UnicodeDecodeError:
            raise BitstreamError(f"the strings are damaged: no name at offset {self._position}") from None
        return key, self.value(depth)

    def finish(self) -> None:
        if self._position < len(self._data):
            raise BitstreamError(f"something is left over after the strings, from offset {self._position}")
