# SPDX-License-Identifier: Apache-2.0
"""Random patches of a folder of pictures: a data set for training, the same whatever loads it."""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mlic_fast.errors import ConfigError, ImageError, LimitError, NoPicturesError
from mlic_fast.limits import Limits
from mlic_fast.pictures.folder import look_through
from mlic_fast.pictures.image import open_image, read_head

Weighting = Literal["area", "even"]

# 700 pictures of 2 megapixels.
CACHE_BYTES = 4 * 2**30

_CHANNELS = 3
# Decoding leaves Python's lock, so that threads help; more than this only fight for the disk.
_MAX_THREADS = 8
# So many broken pictures in a row do not come by chance.
_MAX_DRAWS = 1000
_NAMED = 5


class Patches(Dataset[Tensor]):
    """`count` random patches an epoch of the pictures in a folder and all that are in it.

    Item `index` is a uint8 tensor [3, size, size]: a picture is drawn, then a position, uniformly among those where the
    patch fits, then whether it is mirrored left to right. All three follow from (seed, epoch, index) and the
    folder's content alone, so neither the number of workers nor of processes has a say, nor what is in
    memory. Grey pictures are repeated, alpha is left out, 16 bits become 8, orientation is applied; colour profiles are
    not (`mlic-fast prepare-data` does).

    folder: where the pictures are. size: side of a patch in pixels. count: patches an epoch, so the length.
    seed: any whole number.
    weighting: "area": a picture is drawn with a probability in proportion to its pixels, so that every part of the data
        counts alike; "even": all pictures have the same.
    cache_bytes: as many pictures as fit into this are decoded at once and kept, the first ones in the order of their
        names; others are decoded each time. Forked workers share what is kept, and so do spawned ones, through shared
        memory.
    limits: what a picture may measure; None: Pillow's pixel limit.

    Pictures smaller than the patch are left out, with a warning (`too_small`), and so are those that cannot be read
    (`broken`: path → reason). One that turns out to be damaged only when it is decoded is named then, and another
    picture is drawn in its place.

    Raises NoPicturesError if nothing is left, ConfigError for numbers that make no sense, and OSError for a
    folder that cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        size: int,
        *,
        count: int,
        seed: int,
        cache_bytes: int = CACHE_BYTES,
        weighting: Weighting = "area",
        limits: Limits | None = None,
    ) -> None:
        if size < 1 or count < 1 or cache_bytes < 0:
            raise ConfigError(f"patches of {size} pixels, {count} of them, {cache_bytes} bytes of memory: not possible")
        if weighting not in ("area", "even"):
            raise ConfigError(f"pictures are drawn by 'area' or 'even', not {weighting!r}")
        self.size = size
        self.count = count
        self.seed = seed
        self._limits = Limits.of(limits)
        self.too_small: list[Path] = []
        self.broken: dict[Path, str] = {}
        # shared, so that workers which persist from epoch to epoch see it change
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

        self.pictures: list[Path] = []
        areas: list[int] = []
        everything = look_through(folder)
        found = everything.pictures
        self.broken.update(dict.fromkeys(everything.special, "a pipe, socket or device, not a file"))
        with ThreadPoolExecutor(_threads()) as pool:
            for path, area in zip(found, pool.map(self._area, found), strict=True):
                if isinstance(area, Exception):
                    self.broken[path] = str(area)
                elif area == 0:
                    self.too_small.append(path)
                else:
                    self.pictures.append(path)
                    areas.append(area)
            self._pixels = self._decoded(pool, areas, cache_bytes)
        if self.too_small:
            _warn(f"smaller than a patch of {size} pixels, left out", self.too_small)
        if self.broken:
            _warn("cannot be read, left out", list(self.broken))
        # A broken picture keeps its place among the weights, and what falls on it is drawn again: so whether it
        # is found out now or later makes no difference to the others.
        self._ends = list(accumulate(areas if weighting == "area" else [1] * len(areas)))
        if not set(self.pictures) - set(self.broken):
            raise NoPicturesError(
                f"{folder} has no picture to take patches of {size} x {size} pixels from ({len(self.too_small)} are "
                f"smaller, {len(self.broken)} cannot be read): name another folder, or take smaller patches"
            )

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Go on to other patches. Workers notice, also persistent ones; call it before iterating."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, size, size]. Raises IndexError, and NoPicturesError if every picture turns out to be broken."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        for attempt in range(_MAX_DRAWS):
            which, row, column, mirrored = self._draws(index, attempt)
            position = bisect_right(self._ends, _scaled(which, self._ends[-1]))
            pixels = self._picture(position)
            if pixels is None:
                continue
            top = _scaled(row, pixels.shape[0] - self.size + 1)
            left = _scaled(column, pixels.shape[1] - self.size + 1)
            patch = pixels[top : top + self.size, left : left + self.size].permute(2, 0, 1)  # [1 or 3, size, size]
            if mirrored & 1:
                patch = patch.flip(2)
            return patch.expand(_CHANNELS, -1, -1).contiguous()
        raise NoPicturesError(f"{_MAX_DRAWS} draws met broken pictures only, such as {next(iter(self.broken), '')}")

    def _draws(self, index: int, attempt: int) -> tuple[int, int, int, int]:
        """Four random numbers of 64 bits: of a hash, because that is the same in every release of everything."""
        text = f"{self.seed} {int(self._epoch)} {index} {attempt}"
        return struct.unpack("<4Q", hashlib.blake2b(text.encode(), digest_size=32).digest())

    def _area(self, path: Path) -> int | Exception:
        """Pixels of a picture, 0 if no patch fits in, or why it cannot be read."""
        try:
            _, width, height = read_head(path)
        except (ImageError, LimitError, OSError) as error:
            return error
        return width * height if min(width, height) >= self.size else 0

    def _decoded(self, pool: ThreadPoolExecutor, areas: list[int], cache_bytes: int) -> list[Tensor | None]:
        """The pixels of those pictures that are kept; None for the others."""
        kept: list[int] = []
        free = cache_bytes
        for position, area in enumerate(areas):
            if area * _CHANNELS <= free:
                free -= area * _CHANNELS
                kept.append(position)
        pixels: list[Tensor | None] = [None] * len(areas)
        for position, decoded in zip(kept, pool.map(self._read, (self.pictures[i] for i in kept)), strict=True):
            if isinstance(decoded, Exception):
                self.broken[self.pictures[position]] = str(decoded)
            else:
                pixels[position] = decoded
        return pixels

    def _read(self, path: Path) -> Tensor | Exception:
        """uint8 [H, W, 3], or [H, W, 1] of a grey picture; or why there is none."""
        try:
            pixels = open_image(path, self._limits, reduce_depth=True).pixels
        except (ImageError, LimitError, OSError) as error:
            return error
        if min(pixels.shape[:2]) < self.size:
            return ImageError(f"{path} is smaller than its head says")
        tensor = torch.from_numpy(pixels.copy())  # PyTorch wants it writable
        return tensor if tensor.ndim == 3 else tensor[..., None]

    def _picture(self, position: int) -> Tensor | None:
        """Pixels of the picture at this position, kept or decoded; None for a broken one."""
        pixels = self._pixels[position]
        path = self.pictures[position]
        if pixels is not None or path in self.broken:
            return pixels
        decoded = self._read(path)
        if isinstance(decoded, Exception):
            self.broken[path] = str(decoded)
            warnings.warn(f"left out: {decoded}", stacklevel=2)
            return None
        return decoded


def _scaled(random: int, below: int) -> int:
    """A random number of 64 bits brought into 0 … below − 1, uniformly to within 2⁻⁶⁴ × below."""
    return random * below >> 64


def _threads() -> int:
    return min(_MAX_THREADS, os.cpu_count() or 1)


def _warn(what: str, paths: list[Path]) -> None:
    names = ", ".join(map(str, paths[:_NAMED])) + (", …" if len(paths) > _NAMED else "")
    warnings.warn(f"{len(paths)} pictures {what}: {names}", stacklevel=3)
