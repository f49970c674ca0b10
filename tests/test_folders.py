# SPDX-License-Identifier: Apache-2.0
"""Folders on the command line: trees, times, what is done, what is left out, failures, kills, shares of the work."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlic_fast import output as files
from mlic_fast.bitstream import container
from mlic_fast.cli import batch, folders
from mlic_fast.cli.common import CommandError
from mlic_fast.cli.main import main
from mlic_fast.cli.record import PREFIX
from mlic_fast.cli.shards import Shard

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals, links and pipes")

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "ENVIRONMENT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def paint(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.linspace(seed % 7, 200, size[1])[:, None, None]
    pixels = (rows + np.linspace(0, 50, size[0])[None, :, None] + np.zeros(3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    image.save(path)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Relative names and contents, hidden files included but for the record of what was made."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(PREFIX)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def encoded(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, coded, decoded = tmp_path / "photos", tmp_path / "coded", tmp_path / "decoded"
    paint(photos / "a.png")
    paint(photos / "deep" / "er" / "B.JPG", 1)
    paint(photos / "deep" / "clear.webp", 2, mode="RGBA")
    os.utime(photos / "a.png", ns=(10**18, 981_173_106_123_456_789))
    facts = encoded(["encode", str(photos), "-o", str(coded)], capsys)
    assert (facts["files"], facts["skipped"], facts["failures"]) == (3, 0, [])
    assert set(tree(coded)) == {"a.mlic", "deep/er/B.mlic", "deep/clear.mlic"}
    assert facts["bytes"] == sum(map(len, tree(coded).values()))
    assert facts["bpp"] == 8 * facts["bytes"] / (3 * 40 * 30)
    assert (coded / "a.mlic").stat().st_mtime_ns == (photos / "a.png").stat().st_mtime_ns
    facts = encoded(["decode", str(coded), "-o", str(decoded), "--suffix", ".webp"], capsys)
    assert facts["files"] == 3
    assert set(tree(decoded)) == {"a.webp", "deep/er/B.webp", "deep/clear.webp"}
    assert Image.open(decoded / "deep" / "clear.webp").mode == "RGBA"
    assert (decoded / "a.webp").stat().st_mtime_ns == (photos / "a.png").stat().st_mtime_ns
    assert main(["encode", str(photos / "a.png"), "-o", str(tmp_path / "one.mlic")]) == 0
    assert (tmp_path / "one.mlic").read_bytes() == tree(coded)["a.mlic"]


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, coded = tmp_path / "photos", tmp_path / "coded"
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        paint(photos / name, seed)
    command = ["encode", str(photos), "-o", str(coded)]
    assert encoded(command, capsys)["files"] == 3
    (coded / "a.mlic").write_bytes(b"mine")  # newer than its picture
    later = time.time() + 60
    os.utime(photos / "b.png", (later, later))  # a picture that has changed
    (coded / "c.mlic").unlink()
    facts = encoded([*command, "--skip"], capsys)
    assert (facts["files"], facts["skipped"]) == (1, 2)
    facts = encoded(command, capsys)
    assert (facts["files"], facts["skipped"]) == (1, 2)
    assert (coded / "b.mlic").stat().st_mtime_ns == (photos / "b.png").stat().st_mtime_ns
    assert tree(coded)["a.mlic"] == b"mine"
    facts = encoded([*command, "--overwrite"], capsys)
    assert (facts["files"], facts["skipped"]) == (3, 0)
    container.read(tree(coded)["a.mlic"])
    assert main(command) == 0
    assert "already there: 3" in capsys.readouterr().out


def test_decoding_replaces_no_originals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, coded = tmp_path / "photos", tmp_path / "photos" / "coded"
    original = paint(photos / "a.png").read_bytes()
    assert main(["encode", str(photos), "-o", str(coded)]) == 0
    for target in (coded, photos):
        assert main(["decode", str(coded), "-o", str(target)]) == 2
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(photos, elsewhere, ignore=shutil.ignore_patterns("coded"))
    os.utime(coded / "a.mlic")  # as a copy without times would have it
    os.utime(elsewhere / "a.png", (1, 1))
    facts = encoded(["decode", str(coded), "-o", str(elsewhere)], capsys, code=1)
    assert "--overwrite" in facts["failures"][0]["error"]
    assert (elsewhere / "a.png").read_bytes() == original
    assert encoded(["decode", str(coded), "-o", str(elsewhere), "--skip"], capsys)["skipped"] == 1
    assert encoded(["decode", str(coded), "-o", str(elsewhere), "--overwrite"], capsys)["files"] == 1
    assert (elsewhere / "a.png").read_bytes() != original


@posix
def test_failures_are_listed_and_stop_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, coded = tmp_path / "photos", tmp_path / "coded"
    paint(photos / "a.png")
    paint(photos / "z.png", 1)
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:60])
    (photos / "text.jpg").write_text("no picture")
    (photos / "dangling.png").symlink_to("nowhere")
    (photos / "taken.png").write_bytes((photos / "a.png").read_bytes())
    (coded / "taken.mlic").mkdir(parents=True)
    os.mkfifo(photos / "pipe.png")  # opening it would wait for ever
    assert main(["encode", str(photos), "-o", str(coded)]) == 1
    printed = capsys.readouterr()
    assert "encoded 2 pictures" in printed.out
    assert "failed: 5" in printed.out
    lines = printed.err[printed.err.index("mlic-fast encode: failed: 5") :].splitlines()
    assert len(lines) == 6
    for name in ("broken.png", "text.jpg", "dangling.png", "pipe.png", "taken.mlic"):
        assert sum(name in line for line in lines) == 1
    assert set(tree(coded)) == {"a.mlic", "z.mlic"}
    (coded / "a.mlic").write_bytes(b"rubbish")
    facts = encoded(["decode", str(coded), "-o", str(tmp_path / "decoded")], capsys, code=1)
    assert facts["files"] == 1
    assert "a.mlic" in facts["failures"][0]["input"]


@posix
def test_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    paint(photos / "a.png")
    paint(photos / "sub" / "b.png")
    for name in (".hidden.png", ".folder/c.png", "out/d.png"):
        paint(photos / name)
    for name in ("notes.txt", "movie.mpeg", "drawing.eps", "old.mlic"):
        (photos / name).write_bytes(b"?")
    (photos / "sub" / "loop").symlink_to("..")
    (photos / "link.png").symlink_to("sub/b.png")
    facts = encoded(["encode", str(photos), "-o", str(photos / "out")], capsys)
    assert (facts["files"], facts["others"], facts["links"]) == (3, 4, 1)
    assert set(tree(photos / "out")) == {"d.png", "a.mlic", "link.mlic", "sub/b.mlic"}
    assert encoded(["encode", str(photos), "-o", str(photos)], capsys)["files"] == 4  # out/ is a folder as others now
    assert (photos / "sub" / "b.mlic").is_file()


def test_an_unreadable_folder_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    paint(photos / "a.png")
    (photos / "locked").mkdir()
    scan = os.scandir

    def guarded(path: Any = ".") -> Any:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    facts = encoded(["encode", str(photos), "-o", str(tmp_path / "coded")], capsys, code=1)
    assert facts["files"] == 1
    assert "Permission denied" in facts["failures"][0]["error"]


@pytest.mark.parametrize(
    ("names", "goals"),
    [
        (["a.png", "b.png"], ["a.mlic", "b.mlic"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg.mlic", "a.png.mlic", "b.mlic"]),
        (["a.jpg", "a.png", "a.png.tif"], ["a.jpg.mlic", "a.png.mlic", "a.png.tif.mlic"]),
        (["IMG.jpg", "img.png"], ["IMG.jpg.mlic", "img.png.mlic"]),
        (["é.jpg", "é.png"], ["é.jpg.mlic", "é.png.mlic"]),
        (["x/a.jpg", "y/a.png"], ["x/a.mlic", "y/a.mlic"]),
    ],
    ids=lambda names: " ".join(names).encode("ascii", "replace").decode(),
)
def test_names_that_meet_keep_their_ending(tmp_path: Path, names: list[str], goals: list[str]) -> None:
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    found = folders.plan(tmp_path / "in", tmp_path / "out", ".mlic", lambda name: True)
    made = {task.source.relative_to(tmp_path / "in").as_posix(): task.target for task in found.tasks}
    assert {name: made[name].relative_to(tmp_path / "out").as_posix() for name in names} == dict(
        zip(names, goals, strict=True)
    )
    assert found.renamed == sum(Path(goal).stem == Path(name).name for name, goal in zip(names, goals, strict=True))


def test_names_that_differ_in_case_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "A.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    if len(list((tmp_path / "in").iterdir())) == 1:
        pytest.skip("this file system ignores case")
    found = folders.plan(tmp_path / "in", tmp_path / "out", ".mlic", lambda name: True)
    assert {task.target.name for task in found.tasks} == {"a.png.mlic", "A.png.mlic"}
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(folders, "_ignores_case", lambda folder: True)
    with pytest.raises(CommandError, match="upper from lower case"):
        folders.plan(tmp_path / "in", tmp_path / "out", ".mlic", lambda name: True)


def test_wrong_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    paint(Path("in/a.png"))
    Path("file").write_bytes(b"x")
    for arguments, code, words in (
        (["encode", "in", "-o", "-"], 2, "standard output"),
        (["encode", "in", "-o", "file"], 2, "is a file"),
        (["encode", "in", "-o", "out.mlic"], 2, "name of a file"),
        (["encode", "in", "-o", "out", "--measure"], 2, "--measure"),
        (["encode", "in", "-o", "out", "--model", "absent"], 6, "absent"),
        (["encode", "in", "-o", "out", "--device", "abacus"], 7, "abacus"),
        (["encode", "in", "-o", "out", "--best-effort"], 2, "--best-effort"),
        (["decode", "in", "-o", "out", "--suffix", ".nothing"], 4, ".nothing"),
        (["decode", "in", "-o", "out", "--device", "abacus"], 7, "abacus"),
    ):
        assert main(arguments) == code, arguments
        assert words in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["file", "in"]
    Path("empty").mkdir()
    for command in ("encode", "decode"):
        assert main([command, "empty", "-o", "out"]) == 4
        assert "holds no" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_full_disk_ends_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(8):
        paint(tmp_path / "in" / f"{seed}.png", seed)
    written = 0

    def full(path: Path, *rest: Any) -> None:
        nonlocal written
        written += 1
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(batch, "write_whole", full)
    assert main(["encode", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--in-flight", "1"]) == 3
    assert "No space left" in capsys.readouterr().err
    assert written <= 3


def test_leftovers_of_a_kill_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young = tmp_path / ".00aa.mlic-tmp", tmp_path / "other.mlic-tmp"
    old.touch()
    young.touch()
    os.utime(old, (1, 1))  # a file that is being written may have its final, old time already
    assert files.remove_abandoned(tmp_path) == 0
    monkeypatch.setattr(files, "_ABANDONED_SECONDS", -1)
    assert files.remove_abandoned(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == [young]
    assert files.remove_abandoned(tmp_path / "missing") == 0


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlic_fast", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def when(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@posix
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_stopped_command_goes_on(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    photos, coded = tmp_path / "photos", tmp_path / "coded"
    for seed in range(24):
        paint(photos / f"{seed % 3}" / f"{seed:02}.png", seed, (200, 150))
    command = ["encode", str(photos), "-o", str(coded), "--threads", "2"]
    process = start(*command)
    when(lambda: len(list(coded.rglob("*.mlic"))) >= 3)
    process.send_signal(getattr(signal, how))
    _, printed = process.communicate(timeout=120)
    if how == "SIGINT":
        assert process.returncode == 130, printed
        assert "goes on from here" in printed
        assert all(name.endswith(".mlic") for name in tree(coded))
    first = {name: data for name, data in tree(coded).items() if name.endswith(".mlic")}
    assert 3 <= len(first) < 24
    for data in first.values():
        container.read(data)  # checks lengths and checksums
    facts = encoded(command, capsys)
    assert facts["skipped"] == len(first)
    assert facts["files"] == 24 - len(first)
    again = {name: data for name, data in tree(coded).items() if name.endswith(".mlic")}
    assert main(["encode", str(photos), "-o", str(tmp_path / "at once"), "--threads", "2"]) == 0
    assert again == tree(tmp_path / "at once")
    assert {name: again[name] for name in first} == first


def test_shards_are_disjoint_and_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, coded = tmp_path / "photos", tmp_path / "coded"
    for seed in range(7):
        paint(photos / f"{seed}.png", seed)
    (photos / "bad.png").write_bytes(b"")
    seen: set[str] = set()
    failed = 0
    for rank in (2, 0, 1):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_NTASKS", "3")
        before = set(tree(coded)) if coded.exists() else set()
        capsys.readouterr()
        failed += main(["encode", str(photos), "-o", str(coded), "--json"])
        facts = json.loads(capsys.readouterr().out)
        mine = set(tree(coded)) - before
        assert facts["files"] == len(mine)
        assert facts["skipped"] == 0
        assert facts["shard"] == {"rank": rank, "count": 3}
        assert 2 <= facts["files"] + len(facts["failures"]) <= 3
        assert not mine & seen
        seen |= mine
    assert seen == {f"{seed}.mlic" for seed in range(7)}
    assert failed == 1


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, Shard()),
        ({"RANK": "1"}, Shard()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, Shard(3, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Shard(3, 4, 0)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "ENVIRONMENT": "BATCH"}, Shard(1, 2)),
        # a batch script, and a shell of salloc's: one process, whatever was reserved
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "ENVIRONMENT": "BATCH"}, Shard()),
        ({"SLURM_NTASKS": "8"}, Shard()),
    ],
    ids=str,
)
def test_which_part_is_mine(environment: dict[str, str], shard: Shard) -> None:
    assert Shard.of_environment(environment) == shard


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}],
    ids=str,
)
def test_parts_that_make_no_sense(environment: dict[str, str]) -> None:
    with pytest.raises(CommandError, match="RANK"):
        Shard.of_environment(environment)


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [Shard(rank, 8, rank % 4).device("auto") for rank in (0, 3, 5)] == ["cuda:0", "cuda:3", "cuda:1"]
    assert Shard(1, 2, 1).device("cuda") == "cuda:1"
    assert Shard(1, 2, 1).device("cuda:0") == "cuda:0"
    assert Shard(1, 2, 1).device("cpu") == "cpu"
    assert Shard(1, 2).device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # as srun --gpus-per-task shows it
    assert Shard(1, 2, 1).device("auto") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Shard(1, 2, 1).device("auto") == "auto"


@pytest.mark.slow
@posix
def test_torchrun_lets_all_parts_finish(tmp_path: Path) -> None:
    # part 1 has the broken picture, and fails long before part 2 is done
    photos, coded = tmp_path / "photos", tmp_path / "coded"
    (photos).mkdir()
    (photos / "0.png").write_bytes(b"")
    paint(photos / "1.png", 1, (900, 700))
    for seed in (3, 5, 7, 9):
        paint(photos / f"{seed}.png", seed, (900, 700))
        (photos / f"{seed - 1}.txt").touch()
    for even in (2, 4, 6, 8):
        (photos / f"{even}.png").write_bytes(b"")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mlic_fast"]
    command = [*launch, "encode", str(photos), "-o", str(coded)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 1
    assert set(tree(coded)) == {f"{seed}.mlic" for seed in (1, 3, 5, 7, 9)}
    assert "part 2 of 2): encoded 5 pictures" in finished.stdout
    assert "failed: 5" in finished.stderr
