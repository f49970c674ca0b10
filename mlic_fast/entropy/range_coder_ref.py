# SPDX-License-Identifier: Apache-2.0
"""The range coder's executable specification: slow, plain Python integers, the same bytes and the same refusals.

The coder is an asymmetric numeral system (rANS): one integer x, the state, holds all steps that were pushed and not
yet popped. A step is an interval [start, start + f) of 0 .. total - 1, which has probability f / total. To push it:

    x  <-  (x div f) * total + (x mod f) + start.

To pop, look at x mod total, which lies in the interval that was pushed last:

    x  <-  f * (x div total) + (x mod total) - start.

x stays in [2^31, 2^63): before a push that would lead beyond, its low 32 bits move to the stream, and after a pop
that led below they come back. What is pushed last is popped first, so the encoder runs over the steps backwards.

A symbol s of row r: let v = s - offsets[r] and m = lengths[r] - 2. If 0 <= v < m, it is interval v of cdfs[r], whose
total is 2^16. Otherwise it is interval m, the escape, and then raw = -2v - 1 (v < 0) or 2(v - m) in digits of 4 bits,
each a step with f = 1 and total = 16: first their number (the fewest that hold raw, at most 7), then they, least
significant first.

The stream is the final x as two 32-bit words, the low one first, then the words in the order in which the decoder
takes them; all little-endian. A decoder that has popped everything has used all words and stands at x = 2^31.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from mlic_fast.errors import BitstreamError, CodingError

LOWER = 1 << 31
UPPER = 1 << 63
TOTAL = 1 << 16
DIGIT = 16
MAX_DIGITS = 7
WORD_BYTES = 4

Rows = Sequence[Sequence[int]]


def encode_ref(
    cdfs: Rows, lengths: Sequence[int], offsets: Sequence[int], symbols: Sequence[int], indexes: Sequence[int]
) -> bytes:
    """The stream of symbols[i] coded with row indexes[i]. Raises CodingError for what cannot be coded."""
    steps: list[tuple[int, int, int]] = []  # (start, frequency, total), in the order in which they are popped
    for position, (symbol, index) in enumerate(zip(symbols, indexes, strict=True)):
        if not 0 <= index < len(lengths):
            raise CodingError(f"index {index} at position {position} is outside the tables")
        cdf, escape = cdfs[index], lengths[index] - 2
        value = symbol - offsets[index]
        interval = value if 0 <= value < escape else escape
        steps.append((cdf[interval], cdf[interval + 1] - cdf[interval], TOTAL))
        if interval == escape:
            digits = _digits(-2 * value - 1 if value < 0 else 2 * (value - escape))
            if len(digits) > MAX_DIGITS:
                raise CodingError(f"symbol {symbol} at position {position} is too far from what its row covers")
            steps += [(digit, 1, DIGIT) for digit in [len(digits), *digits]]

    x = LOWER
    words: list[int] = []
    for start, frequency, total in reversed(steps):
        if x >= frequency * (UPPER // total):
            words.append(x & 0xFFFFFFFF)
            x >>= 32
        x = (x // frequency) * total + x % frequency + start
    words += [x >> 32, x & 0xFFFFFFFF]
    return b"".join(word.to_bytes(WORD_BYTES, "little") for word in reversed(words))


def decode_ref(
    cdfs: Rows, lengths: Sequence[int], offsets: Sequence[int], data: bytes, indexes: Sequence[int]
) -> list[int]:
    """The symbols of a stream coded with these rows. Raises BitstreamError unless it is one that encode_ref writes."""
    if len(data) < 2 * WORD_BYTES or len(data) % WORD_BYTES:
        raise BitstreamError("a stream has a multiple of 4 bytes, at least 8")
    x = int.from_bytes(data[: 2 * WORD_BYTES], "little")
    place = 2 * WORD_BYTES
    if not LOWER <= x < UPPER:
        raise BitstreamError("the stream begins with a state that no encoder leaves")

    def pop(start: int, frequency: int, total: int) -> None:
        nonlocal x, place
        x = frequency * (x // total) + x % total - start
        if x < LOWER:
            if place == len(data):
                raise BitstreamError("the stream ends too early")
            x = x << 32 | int.from_bytes(data[place : place + WORD_BYTES], "little")
            place += WORD_BYTES

    def pop_digit() -> int:
        digit = x % DIGIT
        pop(digit, 1, DIGIT)
        return digit

    symbols = []
    for position, index in enumerate(indexes):
        if not 0 <= index < len(lengths):
            raise CodingError(f"index {index} at position {position} is outside the tables")
        cdf, escape = cdfs[index], lengths[index] - 2
        interval = bisect_right(cdf, x % TOTAL, 0, lengths[index]) - 1
        pop(cdf[interval], cdf[interval + 1] - cdf[interval], TOTAL)
        value = interval
        if interval == escape:
            count = pop_digit()
            if count > MAX_DIGITS:
                raise BitstreamError("an escape is longer than any encoder writes")
            digits = [pop_digit() for _ in range(count)]
            if digits and digits[-1] == 0:
                raise BitstreamError("an escape has a leading zero, which no encoder writes")
            raw = sum(digit * DIGIT**place for place, digit in enumerate(digits))
            value = -(raw + 1) // 2 if raw % 2 else raw // 2 + escape
        symbols.append(value + offsets[index])
    if place != len(data) or x != LOWER:
        raise BitstreamError("the stream does not end here in the initial state")
    return symbols


def _digits(raw: int) -> list[int]:
    """The fewest digits that hold raw, least significant first; none for 0."""
    digits = []
    while raw:
        digits.append(raw % DIGIT)
        raw //= DIGIT
    return digits
