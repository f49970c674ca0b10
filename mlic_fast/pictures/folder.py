# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are pictures, by their names."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from mlic_fast.pictures.reading import REFUSED_FORMATS

# Pillow knows these by their beginning only, or they are not to be read.
_NOT_READ = {"BUFR", "GRIB", "HDF5", "MPEG", *REFUSED_FORMATS}

# Compressed files are no pictures to begin with, also where the plugin has registered them.
_NOT_TAKEN = {".mlic"}


def picture_endings() -> frozenset[str]:
    """Endings of the names of pictures that are read, in lower case and with their dots."""
    from PIL import Image

    Image.init()
    kinds = set(Image.OPEN) - _NOT_READ
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in kinds) - _NOT_TAKEN


@dataclass
class Found:
    """pictures: files with a picture's ending. special: pipes, sockets and devices with one, which could be read from
    for ever."""

    pictures: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures that `look_through` finds."""
    return look_through(folder).pictures


def look_through(folder: str | os.PathLike[str]) -> Found:
    """Files with a picture's ending in the folder and all that are in it, sorted by their path within it.

    Hidden files and folders are left out. Links to files are taken; links to folders are not followed, so that no
    loop is walked. Raises OSError if a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise error

    root = Path(folder)
    os.scandir(root).close()  # a missing folder would be an empty one to os.walk
    endings = picture_endings()
    found = Found()
    for place, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in endings:  # noqa: PTH122
                continue
            path = Path(place, name)
            (found.special if _is_special(path) else found.pictures).append(path)
    # not by the file system's order, nor by its separator: the same folder is the same data set anywhere
    for paths in (found.pictures, found.special):
        paths.sort(key=lambda path: path.relative_to(root).as_posix())
    return found


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # to be named where it is opened
        return False
