# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed, full or of few characters; outputs and limits that are looked at in time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlic_fast.cli import demo
from mlic_fast.cli.main import _COMMANDS, main
from mlic_fast.output import try_file, try_folder

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, and its file."""
    place = tmp_path_factory.mktemp("streams")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(place / "p.png")
    assert main(["encode", str(place / "p.png"), "-o", str(place / "p.mlic")]) == 0
    return place


def shell(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell line in which M is the program."""
    line = f'M() {{ "{sys.executable}" -m mlic_fast "$@"; }}\n{command}'
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=variables, capture_output=True, timeout=300)


@posix
@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full", "2> >(true)"])
@pytest.mark.parametrize(
    "command", ["encode p.png -o new.mlic", "decode p.mlic -o new.png", "compare p.png p.mlic -o new.html"]
)
def test_work_is_done_whatever_becomes_of_messages(folder: Path, command: str, streams: str) -> None:
    target = folder / command.split()[-1]
    target.unlink(missing_ok=True)
    done = shell(folder, f"M {command} {streams}")
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 100


@posix
@pytest.mark.parametrize("command", ["models", "info p.mlic", "compare p.png p.mlic", "--help", "encode --help"])
def test_output_that_nobody_takes(folder: Path, command: str) -> None:
    done = shell(folder, f"M {command} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode in (0, 3)
    assert done.stderr == b""
    if "help" not in command:
        done = shell(folder, f"M {command} >/dev/full")
        assert done.returncode == 3
        assert done.stderr.decode().splitlines() == [
            f"mlic-fast {command.split()[0]}: standard output: No space left on device"
        ]
        assert shell(folder, f"M {command} >&- 2>&-").returncode == 0


@posix
def test_data_for_a_closed_stream_is_refused_before_the_work(folder: Path) -> None:
    done = shell(folder, "M encode p.png -o - >&-")
    assert done.returncode == 3
    assert b"standard output is closed" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
def test_help_in_any_characters(encoding: str) -> None:
    script = (
        "import sys\nfrom mlic_fast.cli.main import _COMMANDS, main\n"
        "for words in [['--help'], *([name, '--help'] for name in _COMMANDS), ['models']]:\n"
        "    try:\n        main(words)\n    except SystemExit as end:\n        assert not end.code, words\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "\\u" not in text  # what it has no character for is written in others
    assert "δ" in text or "delta" in text
    assert "λ" in text or "lambda" in text
    assert text.count("usage:") == len(_COMMANDS) + 1


@pytest.mark.parametrize("columns", ["1", "2", "3", "13"])
def test_help_in_a_narrow_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for words in [["--help"], *([name, "--help"] for name in _COMMANDS)]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code


def test_names_that_begin_with_a_tilde(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["encode", "p.png", "-o", "b.mlic", "--model", "~backup.pth.tar"]) == 3
    assert "no weights file ~backup.pth.tar" in capsys.readouterr().err
    monkeypatch.setenv("MLIC_FAST_MODELS", os.pathsep.join(["~nosuchuser/x", "~nosuchuser"]))
    for command in (["models"], ["doctor"], ["encode", "p.png", "-o", "b.mlic"]):
        assert main(command) == 0
    weights = folder / "~mine.safetensors"
    assert main(["convert", str(ROOT / "mlic_fast/weights/mlicpp-s-0.0067.safetensors"), str(weights)]) == 0
    assert main(["encode", "p.png", "-o", "b.mlic", "--model", "~mine.safetensors"]) == 0


@pytest.mark.parametrize(
    "command",
    ["encode {} -o b.mlic", "encode p.png -o {}", "decode {} -o b.png", "info {}", "train {} -o r", "plot {}"],
)
def test_names_with_a_nul(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.format("a\0b") for word in command.split()]) == 2
    assert "NUL" in capsys.readouterr().err


@posix
def test_pictures_from_pipes(folder: Path) -> None:
    done = shell(folder, "M compare <(cat p.png) <(cat p.mlic) <(cat p.png) --json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    size = (folder / "p.png").stat().st_size
    assert facts["reference"]["bytes"] == size
    assert [one["bytes"] for one in facts["pictures"]] == [(folder / "p.mlic").stat().st_size, size]
    assert facts["pictures"][1]["equal"]


@posix
def test_devices_are_named(folder: Path) -> None:
    done = shell(folder, "M encode p.png -o /dev/full")
    assert done.returncode == 3
    assert done.stderr.decode().splitlines() == ["mlic-fast encode: /dev/full: No space left on device"]


def test_warnings_are_lines_of_the_command(folder: Path, tmp_path: Path) -> None:
    Image.effect_noise((80, 70), 60).convert("RGB").save(tmp_path / "p.png")
    (tmp_path / "q.png").write_bytes(b"no picture")
    (tmp_path / "size.json").write_text('{"N": 8, "M": 64, "slice_num": 2}')
    more = "--config size.json --steps 1 --batch 1 --patches 64 --validation-images 0 --epoch-patches 1"
    done = shell(tmp_path, f"M train . -o run {more}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    text = done.stderr.decode()
    assert "mlic-fast train: warning: 1 pictures cannot be read, left out: q.png\n" in text
    assert "UserWarning" not in text


@posix
def test_names_that_are_no_text(folder: Path) -> None:
    done = shell(
        folder,
        "cp p.png $'\\xff.png' && cp p.mlic $'\\xe9.mlic' && M compare $'\\xff.png' $'\\xe9.mlic' -o odd.html && "
        "M encode $'\\xff.png' -o $'\\xfe.mlic' --json && M info $'\\xfe.mlic' --json && "
        "M decode $'\\xfe.mlic' -o d.png",
    )
    assert done.returncode == 0, done.stderr
    (folder / "odd.html").read_bytes().decode()


def test_limits_hold_for_all_that_a_command_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a command makes limits of its own, they are the usual ones, which are smaller than the picture here."""
    from mlic_fast.cli import common
    from mlic_fast.limits import Limits

    monkeypatch.chdir(folder)
    monkeypatch.setattr(common, "MAX_SIDE", 45)
    pixels, _, metadata = Limits.__init__.__defaults__ or ()
    monkeypatch.setattr(Limits.__init__, "__defaults__", (pixels, 45, metadata))
    more = ["--max-side", "50"]
    assert main(["encode", "p.png", "-o", "long.mlic"]) == 8
    assert main(["encode", "p.png", "-o", "long.mlic", "--measure", *more]) == 0
    assert main(["encode", "p.png", "-o", "long.mlic", "--target-psnr", "1", *more]) == 0
    assert main(["compare", "p.png", "long.mlic"]) == 8
    assert main(["compare", "p.png", "long.mlic", "-o", "long.html", *more]) == 0
    assert main(["decode", "long.mlic", "-o", "again.png", *more]) == 0
    monkeypatch.setattr(demo, "_decode_elsewhere", _decode_here)
    assert main(["demo", "--image", "p.png", "-o", "demo", *more]) == 0
    assert main(["calibrate", "mlicpp-s-0.0067", "p.png", "--size", "16x16", *more]) == 0
    Path("large").mkdir()
    Path("large/p.png").write_bytes(Path("p.png").read_bytes())
    assert main(["eval", "large", *more]) == 0
    assert main(["prepare-data", "large", "prepared", "--min-side", "8", *more]) == 0
    Path("size.json").write_text('{"N": 8, "M": 64, "slice_num": 2}')
    short = ["--config", "size.json", "--steps", "1", "--batch", "1", "--patches", "64", "--epoch-patches", "1"]
    Image.effect_noise((80, 70), 60).convert("RGB").save("large/p.png")
    assert main(["train", "large", "-o", "run", *short, "--max-side", "80"]) == 0
    assert "inf" not in Path("run/validation.csv").read_text()  # the picture could be coded


def _decode_here(options: argparse.Namespace, coded: Path, decoded: Path) -> dict[str, float]:
    """In this process, whose usual limits are smaller."""
    words = ["decode", str(coded), "-o", str(decoded), "--max-side", str(options.max_side)]
    assert main(words) == 0
    return {"seconds": 0.0}


@pytest.mark.parametrize(
    "command",
    [
        "encode p.png -o {}",
        "decode p.mlic -o {}.png",
        "encode . -o {}",
        "decode . -o {}",
        "compare p.png p.mlic -o {}.html",
        "convert weights.safetensors {}.safetensors",
        "calibrate weights.safetensors -o {}.safetensors",
        "demo -o {}",
        "eval . -o {}",
        "eval . --keep {}",
        "plot --published kodak -o {}.svg",
        "prepare-data . {}",
        "train . -o {}",
        "train . -o {} --start-from weights.safetensors",
    ],
)
def test_outputs_are_tried_before_the_work(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlic_fast import MLICPlusPlus
    from mlic_fast.checkpoint import files
    from mlic_fast.evaluate import calibration, plots
    from mlic_fast.train import loop

    def work(*arguments: object, **settings: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.chdir(folder)
    if not Path("weights.safetensors").exists():
        source = (ROOT / "mlic_fast/weights/mlicpp-s-0.0067.safetensors").read_bytes()
        Path("weights.safetensors").write_bytes(source)
    for place, name in ((MLICPlusPlus, "compress"), (MLICPlusPlus, "decompress"), (calibration, "measure")):
        monkeypatch.setattr(place, name, work)
    monkeypatch.setattr(plots, "draw", work)
    if command.startswith("train"):
        monkeypatch.setattr(files, "read_native", work)
        monkeypatch.setattr(loop, "Trainee", work)
    # a folder in a file, where nobody can make one, whatever they may do
    assert main(command.format("p.png/results").split()) in (2, 3)
    assert "results" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["--max-side 49", "--max-pixels 1999"])
@pytest.mark.parametrize(
    "command",
    [
        "encode p.png -o {}.mlic",
        "encode pictures -o {}",
        "decode p.mlic -o {}.png",
        "compare p.png p.mlic",
        "demo --image p.png -o {}",
        "calibrate mlicpp-s-0.0067 p.png --size 16x16",
        "eval pictures",
        "prepare-data pictures {} --min-side 8",
        "train pictures -o {} --patches 64",
    ],
)
def test_every_command_keeps_its_limits(
    folder: Path, tmp_path: Path, command: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlic_fast.evaluate import calibration
    from mlic_fast.pictures.image import read_picture

    monkeypatch.chdir(folder)
    monkeypatch.setattr(calibration, "given_symbols", lambda model, picture: read_picture(picture) and 1 / 0)
    monkeypatch.setattr(calibration, "pictures", lambda **size: iter(()))
    (folder / "pictures").mkdir(exist_ok=True)
    Image.effect_noise((80, 70), 60).convert("RGB").save(folder / "pictures" / "p.png")
    words = command.format(tmp_path / "out").split() + limit.split()
    if command.startswith("train"):  # which leaves such pictures out
        with pytest.warns(UserWarning, match="cannot be read, left out"):
            assert main(words) == 4
    else:
        one_of_a_folder = command.split()[0] in ("eval", "prepare-data") or "encode pictures" in command
        assert main(words) == (1 if one_of_a_folder else 8)


def test_training_whose_run_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    for name in ("last.pth.tar", "steps.csv", "recipe.json"):
        (tmp_path / name / name).mkdir(parents=True)
        assert main(["train", str(folder), "-o", str(tmp_path / name)]) == 3
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "new")]) == 4
    assert main(["train", str(folder), "-o", str(tmp_path / "new"), "--validation", str(tmp_path)]) == 4
    assert not (tmp_path / "new").exists()


@posix
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full"])
def test_training_goes_on_whatever_becomes_of_messages(tmp_path: Path, streams: str) -> None:
    (tmp_path / "size.json").write_text('{"N": 8, "M": 64, "slice_num": 2}')
    (tmp_path / "data").mkdir()
    Image.effect_noise((80, 70), 60).convert("RGB").save(tmp_path / "data" / "p.png")
    more = "--config size.json --steps 2 --batch 2 --patches 64 --validation-images 0 --epoch-patches 4"
    done = shell(tmp_path, f"M train data -o run {more} {streams}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last.pth.tar").stat().st_size > 1000


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    there = tmp_path / "there.txt"
    there.write_text("as it was")
    try_file(there)
    try_file(tmp_path / "new.txt")
    try_folder(tmp_path / "a" / "b")
    assert there.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "there.txt"]
    with pytest.raises(IsADirectoryError):
        try_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        try_file(tmp_path / "missing" / "new.txt")
