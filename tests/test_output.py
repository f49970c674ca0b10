# SPDX-License-Identifier: Apache-2.0
"""Output appears whole or not at all, with the permissions and links one expects."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mlic_fast.output import open_whole, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and devices")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "data", [b"", b"abc", bytes(100_000), bytearray(b"x"), memoryview(b"y")], ids=lambda d: f"{len(d)}"
)
def test_writes_and_replaces(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "out"
    for _ in range(2):
        write_whole(path, data)
        assert path.read_bytes() == data
    write_whole(str(path), b"other")
    assert path.read_bytes() == b"other"
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_failing_writer_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "out"
    if before is not None:
        path.write_bytes(before)

    def write_half() -> None:
        with open_whole(path) as file:
            file.write(b"half of")
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
            raise error

    with pytest.raises(error):
        write_half()
    assert left(tmp_path) == ([] if before is None else ["out"])
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no rename today")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no rename today"):
        write_whole(tmp_path / "out", b"x")
    assert left(tmp_path) == []


@posix
def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    code = (
        "import os, signal, sys; from mlic_fast.output import open_whole\n"
        "with open_whole(sys.argv[1]) as f: f.write(b'half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert run.returncode == -9
    assert path.read_bytes() == b"before"


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_whole(tmp_path, b"x")
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_whole(tmp_path / "missing" / "out", b"x")
    assert left(tmp_path) == []


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "out", b"x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "out") == 0o666 & ~umask


@posix
@pytest.mark.parametrize("bits", [0o600, 0o664, 0o755])
def test_replaced_files_keep_their_permissions(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(bits)
    write_whole(path, b"after")
    assert mode(path) == bits
    assert path.read_bytes() == b"after"


@posix
def test_read_only_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(0o444)
    if os.geteuid() == 0:  # root may write to anything, so say what a user would be told
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="may not be written to"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"


@posix
@pytest.mark.parametrize("dangling", [False, True])
def test_links_stay_links(tmp_path: Path, dangling: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    target, link = folder / "target", tmp_path / "link"
    if not dangling:
        target.write_bytes(b"before")
    link.symlink_to(Path("folder") / "target")
    write_whole(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert left(tmp_path) == ["folder", "link"]
    assert left(folder) == ["target"]


@posix
def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    write_whole("/dev/null", b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"through the pipe")
        assert os.read(reader, 100) == b"through the pipe"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, b"x")
    assert path.read_bytes() == b"x"
