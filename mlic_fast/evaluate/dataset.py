# SPDX-License-Identifier: Apache-2.0
"""Measuring over a folder: every picture is coded to a file and decoded from it, by models and by classical codecs.

Colours alone are coded and measured: alpha, colour profile and metadata are left out, so that rates are those of the
pictures and the same for all codecs.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlic_fast.errors import ImageError, MlicError, NoPicturesError
from mlic_fast.evaluate.classical import Codec
from mlic_fast.evaluate.measurements import Measurement
from mlic_fast.evaluate.metrics import Quality, measure
from mlic_fast.limits import Limits
from mlic_fast.output import write_whole
from mlic_fast.pictures.folder import Found, look_through
from mlic_fast.pictures.image import Picture, read_picture

if TYPE_CHECKING:
    from mlic_fast.codec import FileFormat
    from mlic_fast.nn.network import Network

# The next picture would fail as this one did.
_HOPELESS = {errno.ENOSPC, errno.EROFS}


@dataclass(frozen=True)
class Coded:
    """What came of one picture; the fields are those of `Measurement`."""

    bytes: int
    string_bytes: int | None
    quality: Quality
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Contestant:
    """One model, or one quality of a classical codec.

    curve, point: its names. code: codes a picture, decodes it and measures; the second argument is the picture's path
    within its folder. warm_up: whether the first coding is to be done twice, since it is slower than any further.
    """

    curve: str
    point: str
    code: Callable[[Picture, Path], Coded]
    warm_up: bool = False


@dataclass
class Outcome:
    """What was measured, and what failed: where (a contestant's name, or None for the picture itself) and why.

    notes: what could not be kept of pictures, by their names.
    """

    measurements: list[Measurement] = field(default_factory=list)
    failures: list[tuple[str, str | None, Exception]] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def pictures_in(folder: Path) -> Found:
    """Pictures in a folder and its subfolders, see `mlic_fast.pictures.folder.look_through`.

    Raises OSError for a folder that cannot be read, NoPicturesError if there are no pictures.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder: name one with pictures in it")
    found = look_through(folder)
    if not found.pictures and not found.special:
        raise NoPicturesError(f"there are no pictures in {folder}: name another folder")
    return found


def colours_of(picture: Picture) -> Picture:
    """The picture without alpha, colour profile and metadata."""
    return replace(
        picture,
        mode="grey" if picture.pixels.ndim == 2 else "rgb",
        alpha=None,
        icc_profile=None,
        exif=None,
        xmp=None,
        comment=None,
        resolution=None,
    )


def of_model(
    curve: str,
    model: Callable[[], Network],
    point: str,
    folder: Path,
    *,
    format: FileFormat = "mlic",
    guard: bool = True,
    limits: Limits | None = None,
) -> Contestant:
    """A model as a contestant. model: gives it, when first needed. folder: where the compressed files go.

    Times do not include reading and writing files; the first picture is coded once before it is measured.
    """

    def code(picture: Picture, name: Path) -> Coded:
        from mlic_fast.bitstream import container, official
        from mlic_fast.codec import decode_tensor, encode
        from mlic_fast.evaluate.metrics import compare
        from mlic_fast.pictures.image import to_pixels

        network = model()
        file = folder / name.with_name(f"{name.name}{'.mlic' if format == 'mlic' else '.bin'}")
        start = time.perf_counter()
        data = encode(picture, network, format=format, guard=guard, limits=limits)
        encoded = time.perf_counter()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, data)

        data = file.read_bytes()
        begin = time.perf_counter()
        x_hat, _ = decode_tensor(data, network, limits=limits)
        # for the time it takes; files in the official layout do not say that a picture was grey
        to_pixels(x_hat, picture.mode)
        end = time.perf_counter()
        read = container.read(data, limits) if format == "mlic" else official.read(data, limits)
        strings = len(read.y) + len(read.z)
        return Coded(len(data), strings, compare(picture, x_hat), encoded - start, end - begin)

    return Contestant(curve, point, code, warm_up=True)


def of_codec(codec: Codec) -> list[Contestant]:
    """A classical codec's qualities as contestants."""
    return [_of_quality(codec, quality) for quality in codec.ladder]


def run(
    contestants: Sequence[Contestant],
    folder: Path,
    pictures: Sequence[Path],
    *,
    limits: Limits | None = None,
    reduce_depth: bool = False,
    advance: Callable[[], None] = lambda: None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Measure every contestant over every picture. What fails is noted and does not stop the rest.

    pictures: paths in the folder. reduce_depth: as for `open_image`. advance: called after each coding. outcome: to be
    filled, so that a caller has what was measured before an interruption. Raises OSError where it makes no sense to go
    on (the disk is full).
    """
    outcome = Outcome() if outcome is None else outcome
    unread: set[Path] = set()
    for contestant in contestants:
        warm = not contestant.warm_up
        for path in pictures:
            name = path.relative_to(folder)
            if path not in unread:
                try:
                    whole = read_picture(path, limits, reduce_depth)
                except (MlicError, OSError) as error:
                    unread.add(path)
                    outcome.failures.append((name.as_posix(), None, error))
                else:
                    if whole.notes:
                        outcome.notes[name.as_posix()] = whole.notes
                    picture = colours_of(whole)
                    try:
                        if not warm:
                            contestant.code(picture, name)
                            warm = True
                        outcome.measurements.append(_measurement(contestant, picture, name))
                    except (MlicError, OSError, MemoryError) as error:
                        if isinstance(error, OSError) and error.errno in _HOPELESS:
                            raise
                        told = f"{contestant.curve}, {contestant.point}"
                        outcome.failures.append((name.as_posix(), told, error))
            advance()
    return outcome


def _measurement(contestant: Contestant, picture: Picture, name: Path) -> Measurement:
    coded = contestant.code(picture, name)
    return Measurement(
        curve=contestant.curve,
        point=contestant.point,
        picture=name.as_posix(),
        width=picture.width,
        height=picture.height,
        bytes=coded.bytes,
        string_bytes=coded.string_bytes,
        quality=coded.quality,
        encode_seconds=coded.encode_seconds,
        decode_seconds=coded.decode_seconds,
    )


def _of_quality(codec: Codec, quality: float) -> Contestant:
    def code(picture: Picture, _: Path) -> Coded:
        start = time.perf_counter()
        data = codec.encode(picture, quality)
        encoded = time.perf_counter()
        decoded = codec.decode(data, picture)
        end = time.perf_counter()
        # decoders of these give integers, so there is nothing to truncate
        result = measure(picture.pixels, decoded)
        return Coded(len(data), None, Quality(*result, *result), encoded - start, end - encoded)

    return Contestant(codec.title, codec.label(quality), code)
