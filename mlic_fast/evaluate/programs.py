# SPDX-License-Identifier: Apache-2.0
"""Running somebody's program on files in a folder: no shell, a time limit, and nothing of it left running.

The program gets a session of its own, so that whatever it starts can be ended with it: when time is up, when this
process is interrupted or terminated, and when the program itself has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mlic_fast.errors import CodecRunError

# How often is looked whether time is up, or too much is written.
_LOOK_SECONDS = 0.2

# How long a killed program's processes may take to be gone.
_GONE_SECONDS = 2.0

# Of what a program says, the end is told.
_TAIL_BYTES = 4096
_TAIL_LINES = 4
_TAIL_CHARACTERS = 500


def run_program(arguments: Sequence[str], folder: Path, *, what: str, timeout: float, largest: int) -> float:
    """Run a program in a folder; returns the seconds from its start to its end.

    arguments: program and arguments, as the system hands them over. what: for messages, "the encoder of NAME".
    timeout: seconds. largest: bytes that the files in the folder, and what the program says, may have together.

    Raises CodecRunError, with the end of what the program said, if it cannot be started, ends with an error, takes
    longer or writes more. It has no standard input. It and what it started are ended in any case, KeyboardInterrupt
    included.
    """
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(
                arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise CodecRunError(f"{what} cannot be started: {arguments[0]}: {why}") from error
        ended = threading.Event()
        end: list[float] = []
        watch = threading.Thread(target=_watch, args=(process, end, ended), daemon=True)
        try:
            watch.start()
            while not ended.wait(min(_LOOK_SECONDS, max(begin + timeout - time.perf_counter(), 0.001))):
                if time.perf_counter() - begin > timeout:
                    raise CodecRunError(f"{what} took longer than {timeout:g} s{_told(said)}")
                _check_size(folder, said, what, largest)
        finally:
            _end(process)
            watch.join()
        if process.returncode:
            raise CodecRunError(f"{what} {_how(process.returncode)}{_told(said)}")
        _check_size(folder, said, what, largest)
        return end[0] - begin


def _watch(process: subprocess.Popen[bytes], end: list[float], ended: threading.Event) -> None:
    """Note when the program ends. A thread, since waiting with a time limit looks only every so often."""
    if hasattr(os, "waitid"):
        # its number stays its own until it is waited for, so that no other process's group can be meant in `_end`
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()
    end.append(time.perf_counter())
    ended.set()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program and what it started."""
    if not hasattr(os, "killpg"):
        process.kill()
        process.wait()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # those that it started are others' to wait for; their files should not come after the folder is removed
    limit = time.perf_counter() + _GONE_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.perf_counter() < limit:
            os.killpg(process.pid, 0)
            time.sleep(0.005)


def _check_size(folder: Path, said: IO[bytes], what: str, largest: int) -> None:
    written = os.fstat(said.fileno()).st_size
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it may be gone already
                written += Path(place, name).lstat().st_size
    if written > largest:
        raise CodecRunError(f"{what} wrote {written:,} bytes, more than the {largest:,} that a picture can need")


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _told(said: IO[bytes]) -> str:
    """The end of what a program said, in one line."""
    size = os.fstat(said.fileno()).st_size
    said.seek(max(size - _TAIL_BYTES, 0))
    lines = said.read(_TAIL_BYTES).decode("utf-8", "replace").replace("\r", "\n").split("\n")
    text = " / ".join([line for line in map(str.strip, lines) if line][-_TAIL_LINES:])
    return f"; it said: {text[-_TAIL_CHARACTERS:]}" if text else " and said nothing"
