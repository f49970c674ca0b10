# SPDX-License-Identifier: Apache-2.0
"""Output that appears whole or not at all: a temporary file beside the target, then a rename.

What happens to the target: a new file gets the permissions that the umask leaves; an
existing one is replaced and keeps its permission bits (its owner becomes whoever writes);
an existing one that may not be written to is left alone, although a rename could replace
it; a symbolic link stays and what it points to is replaced; devices and pipes are written
to directly, since replacing /dev/null would be a disaster.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".mlic-tmp"
_ABANDONED_SECONDS = 600


def write_whole(
    path: str | os.PathLike[str], data: bytes | bytearray | memoryview, times_ns: tuple[int, int] | None = None
) -> None:
    """Write data to the file at path, whole or not at all. Raises OSError. times_ns: as for `open_whole`."""
    with open_whole(path, times_ns) as file:
        file.write(data)


@contextlib.contextmanager
def open_whole(path: str | os.PathLike[str], times_ns: tuple[int, int] | None = None) -> Iterator[BinaryIO]:
    """Open a binary file for writing that takes its place at path when the block ends well.

    times_ns: nanoseconds of last access and last change that the file appears with; None: now.
    If the block raises anything, KeyboardInterrupt included, what was at path before is
    still there and the temporary file is gone. Raises OSError: IsADirectoryError for a
    folder, FileNotFoundError for a missing one, PermissionError for a read-only target.
    """
    target = Path(path)
    mode = _mode_of(target)
    if mode is not None and not stat.S_ISREG(mode):
        try:
            with target.open("wb") as device:
                yield device
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(target)) from error
        return
    target = Path(os.path.realpath(target))
    temporary, descriptor = _temporary_beside(target)
    try:
        # Buffered and closed in here, so that a full disk is noticed before the rename.
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                temporary.chmod(mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if times_ns is not None:
            os.utime(temporary, ns=times_ns)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def try_file(path: str | os.PathLike[str]) -> None:
    """Raise the OSError that `open_whole` would raise, before there is anything to write. Changes nothing."""
    target = Path(path)
    mode = _mode_of(target)
    if mode is None or stat.S_ISREG(mode):
        temporary, descriptor = _temporary_beside(Path(os.path.realpath(target)))
        os.close(descriptor)
        temporary.unlink()


def try_folder(path: str | os.PathLike[str]) -> None:
    """Make the folder if it is missing, and raise OSError if files cannot be written in it."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    try_file(folder / f"{secrets.token_hex(8)}{_TEMPORARY}")


def remove_abandoned(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files in a folder that processes left behind which were killed; returns how many.

    Only those that have not been touched for ten minutes: writing takes seconds, and another process may be at it.
    """
    removed = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(".") and entry.name.endswith(_TEMPORARY)):
                continue
            # the time of change, since the other times may have been set to those of another file
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_ctime > _ABANDONED_SECONDS:
                    Path(entry.path).unlink()
                    removed += 1
    return removed


def _mode_of(target: Path) -> int | None:
    """The mode of what is there, None if nothing is. Raises OSError for what a file cannot take the place of."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{target} is a folder: give the name of a file in it")
    if stat.S_ISREG(mode) and not os.access(target, os.W_OK):
        raise PermissionError(f"{target} is there and may not be written to: choose another name or change its mode")
    return mode


def _temporary_beside(target: Path) -> tuple[Path, int]:
    """A new file in the target's folder, and its descriptor."""
    temporary = target.parent / f".{secrets.token_hex(8)}{_TEMPORARY}"
    try:
        return temporary, _create(temporary)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} to") from None


def _create(path: Path) -> int:
    # os.open and not tempfile: the kernel then applies the umask, which cannot be read without
    # setting it for all threads, and tempfile's 0600 would make every output private.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags, 0o666)


def _sync_folder(folder: Path) -> None:
    # After a crash the new name must be there too. Some file systems and Windows cannot sync a
    # folder; the file itself is safe by then.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
