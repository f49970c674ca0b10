# SPDX-License-Identifier: Apache-2.0
"""Recipes of external codecs: TOML files that say how an encoder and a decoder are called. docs/evaluation.md has some.

    encode = "cwebp -quiet -q {quality} {input} -o {output}"
    decode = "dwebp -quiet {input} -o {output}"
    qualities = [5, 25, 50, 75, 95]

A command is split into words as a shell splits them, or is a list of words; no shell sees it. Placeholders are replaced
inside of words afterwards, so that nothing that they stand for can become another word.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mlic_fast.errors import CodecError
from mlic_fast.evaluate.yuv import Matrix, Range, YuvFormat

# A recipe has some hundred bytes.
_MAX_BYTES = 2**16
_MAX_QUALITIES = 1000
_MAX_TIMEOUT = 7 * 24 * 3600
_DEFAULT_TIMEOUT = 600.0

# What lies in a file that an encoder reads or a decoder writes: its name's ending, and bits a sample of raw planes.
PICTURE_FILES: dict[str, tuple[str, int | None]] = {
    "png": (".png", None),
    "ppm": (".ppm", None),
    "yuv444p": (".yuv", 8),
    "yuv444p10le": (".yuv", 10),
}

_KEYS = (
    "encode",
    "decode",
    "qualities",
    "quality_name",
    "encoder_reads",
    "decoder_writes",
    "matrix",
    "range",
    "suffix",
    "timeout",
    "settings",
)

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_OF_A_PICTURE = ("input", "output", "quality", "width", "height")
_HERE = "here"
_SUFFIX = re.compile(r"\.[\w.+-]{1,16}")


@dataclass(frozen=True)
class ExternalCodec:
    """An encoder and a decoder, and how they are called.

    title: what its curve is called. encode, decode: words with placeholders; the first is the program's path.
    qualities: values of {quality}, one a point. quality_name: what they are.
    encoder_reads, decoder_writes: kinds of `PICTURE_FILES`. yuv_in, yuv_out: what raw planes mean; None for the others.
    suffix: ending of the compressed file's name. timeout: seconds that a program may take. settings: in words.
    """

    title: str
    encode: tuple[str, ...]
    decode: tuple[str, ...]
    qualities: tuple[str, ...]
    quality_name: str
    encoder_reads: str
    decoder_writes: str
    yuv_in: YuvFormat | None
    yuv_out: YuvFormat | None
    suffix: str
    timeout: float
    settings: str

    def label(self, quality: str) -> str:
        """Name of a point of its curve."""
        return f"{self.quality_name} {quality}"


def read_recipe(path: str | os.PathLike[str], title: str | None = None) -> ExternalCodec:
    """Read a recipe and find its programs. title: what the curve is called (default: the file's stem).

    Raises OSError, and CodecError for what is no recipe, for settings that make no sense, and for a program that is
    not there.
    """
    file = Path(path)
    with file.open("rb") as opened:
        content = opened.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise CodecError(f"{file} is larger than {_MAX_BYTES:,} bytes: no recipe is")
    try:
        return _recipe(_toml(content), title or file.stem, file.absolute().parent)
    except CodecError as error:
        raise CodecError(f"{file}: {error}") from error


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The words with their placeholders replaced. They must all be among the values."""

    def value(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else values[match[1]]

    return [_PLACEHOLDER.sub(value, word) for word in words]


def _toml(content: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise CodecError(f"it is no TOML file: {error}") from None


def _recipe(given: dict[str, Any], title: str, folder: Path) -> ExternalCodec:
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise CodecError(f"there is no setting {unknown[0]!r}: there are {', '.join(_KEYS)}")
    qualities = _qualities(given)
    encode = _command(given, "encode", folder, {"input", "output"} | ({"quality"} if len(qualities) > 1 else set()))
    decode = _command(given, "decode", folder, {"input", "output"})
    reads = _choice(given, "encoder_reads", tuple(PICTURE_FILES), "png")
    writes = _choice(given, "decoder_writes", tuple(PICTURE_FILES), "png")
    matrix: Any = _choice(given, "matrix", get_args(Matrix), "bt709")
    value_range: Any = _choice(given, "range", get_args(Range), "full")
    depths = [PICTURE_FILES[kind][1] for kind in (reads, writes)]
    if depths == [None, None] and ("matrix" in given or "range" in given):
        raise CodecError("matrix and range are of raw planes: set encoder_reads or decoder_writes to yuv444p")
    yuv_in, yuv_out = (None if depth is None else YuvFormat(depth, matrix, value_range) for depth in depths)
    suffix = _text(given, "suffix", ".bin")
    if not _SUFFIX.fullmatch(suffix):
        raise CodecError(f"suffix is a file name's ending, such as .webp, not {suffix!r}")
    timeout = given.get("timeout", _DEFAULT_TIMEOUT)
    if not _is_number(timeout) or not 0 < timeout <= _MAX_TIMEOUT:
        raise CodecError(f"timeout is a number of seconds up to {_MAX_TIMEOUT:,}, not {timeout!r}")
    told = [_text(given, "settings", ""), f"encoder: {_shown(given['encode'])}", f"decoder: {_shown(given['decode'])}"]
    if yuv_in or yuv_out:
        told.append(f"{reads} to the encoder, {writes} from the decoder, {matrix}, {value_range} range")
    return ExternalCodec(
        title=title,
        encode=encode,
        decode=decode,
        qualities=qualities,
        quality_name=_text(given, "quality_name", "quality"),
        encoder_reads=reads,
        decoder_writes=writes,
        yuv_in=yuv_in,
        yuv_out=yuv_out,
        suffix=suffix,
        timeout=float(timeout),
        settings="; ".join(part for part in told if part),
    )


def _command(given: Mapping[str, Any], key: str, folder: Path, needed: set[str]) -> tuple[str, ...]:
    """The words of a command, with the program's path and {here} filled in."""
    words = _words(given.get(key), key)
    used: set[str | None] = set()
    for match in (match for word in words for match in _PLACEHOLDER.finditer(word)):
        if match[0] in "{}" or match[1] not in (None, *_OF_A_PICTURE, _HERE):
            known = ", ".join(f"{{{name}}}" for name in (*_OF_A_PICTURE, _HERE))
            raise CodecError(f"{key}: {match[0]!r} is no placeholder: there are {known}; write braces twice")
        used.add(match[1])
    missing = sorted(needed - used)
    if missing:
        raise CodecError(f"{key} lacks {' and '.join(f'{{{name}}}' for name in missing)}")
    if any(match[1] in _OF_A_PICTURE for match in _PLACEHOLDER.finditer(words[0])):
        raise CodecError(f"{key}: the program itself cannot depend on the picture")
    (program,) = filled(words[:1], {_HERE: str(folder)})
    # in PATH, or a path that begins at the recipe's folder
    found = shutil.which(program if Path(program).name == program else str(folder / program))
    if found is None:
        raise CodecError(f"{key}: there is no program {program}: install it, or give its path")
    here = _literal(str(folder))
    rest = [_PLACEHOLDER.sub(lambda match: here if match[1] == _HERE else match[0], word) for word in words[1:]]
    return _literal(found), *rest


def _words(command: Any, key: str) -> list[str]:
    if isinstance(command, str):
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise CodecError(f"{key} cannot be split into words: {error}") from None
    elif isinstance(command, list) and all(isinstance(word, str) for word in command):
        words = command
    else:
        raise CodecError(f"{key} is a command, as text or a list of words, not {command!r:.200}")
    if not words or not words[0]:
        raise CodecError(f"{key} is empty: it begins with a program")
    if any("\0" in word for word in words):
        raise CodecError(f"{key} has a character in it that no argument can have")
    return words


def _literal(text: str) -> str:
    """Text whose braces are no placeholders."""
    return text.replace("{", "{{").replace("}", "}}")


def _qualities(given: Mapping[str, Any]) -> tuple[str, ...]:
    values = given.get("qualities")
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_QUALITIES:
        raise CodecError(f"qualities are a list of 1 to {_MAX_QUALITIES:,} numbers or texts, not {values!r:.200}")
    texts = []
    for value in values:
        if not (_is_number(value) or (isinstance(value, str) and value and value.isprintable())):
            raise CodecError(f"a quality is a finite number or a text, not {value!r:.200}")
        text = str(value)
        if text in texts:
            raise CodecError(f"quality {text} is there twice")
        texts.append(text)
    return tuple(texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12


def _text(given: Mapping[str, Any], key: str, default: str) -> str:
    value = given.get(key, default)
    if not isinstance(value, str) or not value.isprintable():
        raise CodecError(f"{key} is a line of text, not {value!r:.200}")
    return value


def _choice(given: Mapping[str, Any], key: str, choices: Sequence[str], default: str) -> str:
    value = given.get(key, default)
    if value not in choices:
        raise CodecError(f"{key} is one of {', '.join(choices)}, not {value!r:.200}")
    return str(value)


def _shown(command: str | list[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)
