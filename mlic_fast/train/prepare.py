# SPDX-License-Identifier: Apache-2.0
"""Training pictures from whatever there is: upright 8-bit sRGB without loss, JPEG sources halved. No torch."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mlic_fast.errors import MlicError, TrainingError
from mlic_fast.limits import Limits
from mlic_fast.output import write_whole
from mlic_fast.pictures.image import Picture, read_head, read_picture

Format = Literal["png", "webp"]
Halve = Literal["lossy", "all", "none"]
Status = Literal["made", "small", "failed"]

# A patch of the published size fits in.
MIN_SIDE = 256

# Of these, files are as good as always compressed with loss; of TIFF and others it is the exception.
_LOSSY = {"JPEG", "MPO", "JPEG2000", "AVIF"}

# Two tasks a worker wait, so that none is idle; more would only be lost when the user interrupts.
_AHEAD = 2


@dataclass(frozen=True)
class Settings:
    """What becomes of a picture.

    min_side: pixels that the smaller side of what is stored must have. halve: which sources are halved: those
        compressed with loss, all, or none. format: "png", or "webp" without loss (smaller, slower to make).
    limits: what a source may measure.
    """

    min_side: int = MIN_SIDE
    halve: Halve = "lossy"
    format: Format = "png"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Outcome:
    """What came of one file.

    status: "made"; "small", too small, so nothing was written; "failed". width, height: of the picture, as it is stored
        or would be; 0 where not known. bytes: written. notes: what was done to it beside halving, and what was
        left out. error: why it failed. times: the source's status before it was read.
    """

    source: Path
    status: Status
    width: int = 0
    height: int = 0
    bytes: int = 0
    halved: bool = False
    notes: tuple[str, ...] = ()
    error: str | None = None
    times: os.stat_result | None = None


def prepare(source: Path, target: Path, settings: Settings) -> Outcome:
    """Make one training picture; what is wrong with the source becomes an outcome.

    The target appears whole or not at all, with the source's times, so that it can be told whether it is up to date.
    Raises OSError where the disk is full or may not be written to, MemoryError.
    """
    try:
        times = source.stat()
        format, width, height = read_head(source)
        halved = settings.halve == "all" or (settings.halve == "lossy" and _is_lossy(source, format))
        if halved:
            width, height = width // 2, height // 2
        if min(width, height) < settings.min_side:  # before pixels are decoded
            return Outcome(source, "small", width, height, halved=halved)
        picture = read_picture(source, settings.limits, reduce_depth=True)
        image, notes = to_srgb(picture)
        notes = picture.notes + notes
        if picture.alpha is not None:
            notes += ("alpha left out",)
        if halved:
            image = half(image)
        content = _encoded(image, settings.format)
    except (MlicError, OSError) as error:
        return Outcome(source, "failed", error=str(error))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content, (times.st_atime_ns, times.st_mtime_ns))
    return Outcome(source, "made", image.width, image.height, len(content), halved, notes, times=times)


def half(image: Image.Image) -> Image.Image:
    """The picture at half its resolution; the last row or column of an odd number is left out.

    Lanczos with the window that a reduction asks for (six source pixels each way) and not the mean of 2 × 2 pixels: a
    mean lets through much of what is beyond the new resolution, which comes back as stairs and moiré, and takes away
    a part of what is below it.
    """
    width, height = image.width // 2, image.height // 2
    return image.resize((width, height), Image.Resampling.LANCZOS, box=(0, 0, 2 * width, 2 * height))


def _is_lossy(path: Path, format: str) -> bool:
    """Whether a picture of this format was compressed with loss. Raises OSError."""
    if format != "WEBP":
        return format in _LOSSY
    with path.open("rb") as file:
        head = file.read(64)
    # The first chunk, or behind one of 18 bytes; behind a colour profile it is not looked for, and taken for lossy.
    return b"VP8L" not in head


def to_srgb(picture: Picture) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture without alpha as RGB, its colour profile applied, and notes on how that went."""
    image = Image.fromarray(picture.pixels)
    if picture.icc_profile is None:
        return image.convert("RGB"), ()
    try:
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.icc_profile))
        name = ImageCms.getProfileDescription(profile).strip()
        if name.startswith("sRGB"):
            return image.convert("RGB"), ()
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
        )
    except Exception as error:  # not in this Pillow, damaged, or of another kind of colours than the pixels
        return image.convert("RGB"), (f"colour profile dropped ({type(error).__name__}: {error})",)
    assert converted is not None  # for the type checker: not in place
    converted.info.clear()  # or the profile would be stored
    return converted, (f"converted from {name or 'an unnamed colour profile'}",)


def _encoded(image: Image.Image, format: Format) -> bytes:
    buffer = io.BytesIO()
    if format == "webp":
        image.save(buffer, "WEBP", lossless=True, quality=75, method=4)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def prepare_all(tasks: Sequence[tuple[Path, Path]], settings: Settings, jobs: int) -> Iterator[Outcome]:
    """Make (source, target) pictures in `jobs` processes; yields outcomes in the order of the tasks.

    Outcomes do not depend on the number of processes, which are started anew, not forked, and end when this one
    does, however it ends. Raises what `prepare` raises, and TrainingError if a process dies.
    """
    if jobs == 1 or len(tasks) < 2:
        for source, target in tasks:
            yield prepare(source, target, settings)
        return
    context = multiprocessing.get_context("spawn")
    initialise = partial(_begin, Image.MAX_IMAGE_PIXELS)
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context, initializer=initialise)
    waiting: list[Any] = []
    try:
        for source, target in tasks:
            if len(waiting) >= jobs * _AHEAD:
                yield waiting.pop(0).result()
            waiting.append(pool.submit(prepare, source, target, settings))
        while waiting:
            yield waiting.pop(0).result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process that prepares pictures died, for lack of memory perhaps: run the same command again, which "
            "goes on from here, with --jobs 1 if that does not help"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(max_pixels: int | None) -> None:
    """In a new worker: the parent's pixel limit; interruptions are the parent's affair; no life after the parent's."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        with suppress(OSError):
            multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
