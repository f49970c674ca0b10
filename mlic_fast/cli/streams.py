# SPDX-License-Identifier: Apache-2.0
"""What a command finds when it starts: standard streams, however they are, and how OpenMP's threads wait.

Streams may be closed, broken or full, or have few characters: messages get lost there, work does not.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Any, TextIO, cast

# What stands for the characters of help and messages where the terminal has none of them.
_PLAIN = {
    "→": "->",
    "δ": "delta",
    "λ": "lambda",
    "Δ": "Delta",
    "…": "...",
    "·": "*",
    "×": "x",
    "−": "-",
    "–": "-",
    "²": "^2",
    "³": "^3",
    "±": "+-",
    "≤": "<=",
    "ø": "mean",
    "\N{REPLACEMENT CHARACTER}": "?",
}
# What OpenMP's runtimes read when they are loaded.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

_HANDLER = "mlic_fast-plain"


def prepare() -> None:
    """Make the standard streams fit for a command; what is fit already stays as it is."""
    _fill_descriptors()
    codecs.register_error(_HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # names of files need not be text, and a report about them must not fail for that
            stream.reconfigure(errors=_HANDLER)
    if not isinstance(sys.stderr, _Forgiving):
        sys.stderr = cast(TextIO, _Forgiving(sys.stderr))


def finish() -> None:
    """Write what standard output holds back. Raises OSError, once: the interpreter does not try again when it ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, OSError):
            raise


class _Forgiving:
    """A stream for messages: writing to it never fails."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            # nor may it when the interpreter ends, and flushes it once more
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "ascii"

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)


def _fill_descriptors() -> None:
    """Open the null device in place of closed descriptors, whose messages the next file opened would get."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                found = os.open(os.devnull, os.O_RDWR)
                if found != descriptor:
                    os.dup2(found, descriptor)
                    os.close(found)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = error.object[error.start]
    if first in _PLAIN:
        return _PLAIN[first], error.start + 1
    error.end = error.start + 1
    return codecs.backslashreplace_errors(error)
