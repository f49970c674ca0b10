# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are pictures, by their names."""

from __future__ import annotations

import os
from pathlib import Path

# Pillow knows these by their beginning only, or reads them by running another program.
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Compressed files are no pictures to begin with, also where the plugin has registered them.
_NOT_TAKEN = {".mlic"}


def picture_endings() -> frozenset[str]:
    """Endings of the names of pictures that are read, in lower case and with their dots."""
    from PIL import Image

    Image.init()
    kinds = set(Image.OPEN) - _NOT_READ
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in kinds) - _NOT_TAKEN


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Files with a picture's ending in the folder and all that are in it, sorted by their path within it.

    Hidden files and folders are left out. Links to files are taken; links to folders are not followed, so that no
    loop is walked. Raises OSError if a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise error

    root = Path(folder)
    os.scandir(root).close()  # a missing folder would be an empty one to os.walk
    endings = picture_endings()
    found: list[Path] = []
    for place, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in endings  # noqa: PTH122
        ]
    # not by the file system's order, nor by its separator: the same folder is the same data set anywhere
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())
