# SPDX-License-Identifier: Apache-2.0
"""What counts as done in a folder: source, name, model and options; what is made anew, why, and what is left over."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlic_fast.bitstream import container
from mlic_fast.cli.main import main
from mlic_fast.cli.record import PREFIX, Record

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")


def paint(path: Path, value: int = 0, when: float | None = None, frames: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(np.full((20, 30, 3), value + 9 * index, np.uint8)) for index in range(frames)]
    images[0].save(path, **({"save_all": True, "append_images": images[1:]} if frames > 1 else {}))
    if when is not None:
        os.utime(path, (when, when))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_sources_models_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, coded = tmp_path / "photos", tmp_path / "coded"
    now = time.time()
    paint(photos / "a.png", 10, now - 50)
    paint(photos / "b.png", 20, now - 50)
    command = ("encode", photos, "-o", coded)
    assert run(capsys, *command)[0]["files"] == 2
    facts, _ = run(capsys, *command)
    assert (facts["files"], facts["skipped"], facts["redone"]) == (0, 2, {})

    # another picture under the same name of output, older than what is there
    (photos / "a.png").unlink()
    paint(photos / "a.jpg", 200, now - 5000)
    facts, _ = run(capsys, *command)
    assert facts["redone"] == {"made of another picture": 1}
    assert facts["left_over"] == []

    # names change: a.mlic stays behind, and is named
    paint(photos / "a.png", 10, now - 50)
    facts, said = run(capsys, *command)
    assert (facts["files"], facts["skipped"]) == (2, 1)
    assert [Path(name).name for name in facts["left_over"]] == ["a.mlic"]
    assert "a.mlic" in said

    facts, _ = run(capsys, *command, "--thumbnail", "16")
    assert facts["redone"] == {"made with other options (thumbnail)": 3}
    facts, _ = run(capsys, *command, "--thumbnail", "16", "--model", "mlicpp-s-0.0018")
    assert facts["redone"] == {"made with another model": 3}
    assert run(capsys, *command, "--thumbnail", "16", "--model", "mlicpp-s-0.0018")[0]["skipped"] == 3
    assert run(capsys, *command, "--skip")[0]["skipped"] == 3

    # without the record, the model that a file names decides
    for path in coded.glob(f"{PREFIX}*"):
        path.unlink()
    assert run(capsys, *command, "--model", "mlicpp-s-0.0018")[0]["skipped"] == 3
    assert run(capsys, *command)[0]["redone"] == {"made with another model": 3}
    assert {container.read(path.read_bytes()).model_name for path in coded.glob("*.mlic") if path.name != "a.mlic"} == {
        "mlicpp-s-0.0067"
    }


def test_decoded_pictures_that_are_known_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, coded, decoded = tmp_path / "photos", tmp_path / "coded", tmp_path / "decoded"
    paint(photos / "a.png", 10)
    run(capsys, "encode", photos, "-o", coded)
    command = ("decode", coded, "-o", decoded, "--suffix", ".jpg")
    assert run(capsys, *command)[0]["files"] == 1
    assert run(capsys, *command)[0]["skipped"] == 1
    assert run(capsys, *command, "--quality", 40)[0]["redone"] == {"made with other options (quality)": 1}
    paint(photos / "a.png", 200, time.time() + 60)
    run(capsys, "encode", photos, "-o", coded)
    assert run(capsys, *command, "--quality", 40)[0]["redone"] == {"the picture has changed": 1}
    assert np.asarray(Image.open(decoded / "a.jpg")).mean() > 150
    assert main(["decode", str(coded), "-o", str(decoded), "--suffix", ".ppm", "--quality", "40"]) == 2


def test_training_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, made = tmp_path / "photos", tmp_path / "made"
    paint(photos / "a.jpg", 10)
    command = ("prepare-data", photos, made, "--min-side", 8, "--jobs", 1)
    assert run(capsys, *command)[0]["made"] == 1
    assert run(capsys, *command)[0]["already_there"] == 1
    facts, _ = run(capsys, *command, "--halve", "none")
    assert (facts["made"], facts["redone"]) == (1, {"made with other options (halve)": 1})
    assert Image.open(made / "a.png").size == (30, 20)


def test_a_damaged_record_is_no_harm(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    picture, made = paint(source / "a.png"), paint(target / "a.mlic.png")
    record = Record(source, target, {"model": "m"})
    record.note(picture, made, picture.stat())
    record.note(picture, made, picture.stat())
    (file,) = target.glob(f"{PREFIX}*")
    whole = file.read_bytes()
    assert len(whole.splitlines()) == 2
    file.write_bytes(whole + whole[:30] + b'\n[1]\n{}\n"x"\n\xff\n' + whole.replace(b'"a.mlic.png"', b'"../x"'))
    again = Record(source, target, {"model": "m"})
    assert again.why_anew(picture, made, picture.stat(), made.stat()) == ""
    assert again.left_over([]) == [made]
    again.compact()
    assert len(file.read_bytes().splitlines()) == 1
    paint(made, 77)  # somebody else's now
    os.utime(made, (1, 1))
    assert again.why_anew(picture, made, picture.stat(), made.stat()) is None
    assert again.left_over([]) == []


def test_what_cannot_be_kept_is_named_in_folders_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    paint(photos / "a.gif", 10, frames=5)
    paint(photos / "b.png", 10)
    (photos / "icon.ico").write_bytes(b"no matter what")
    facts, said = run(capsys, "encode", photos, "-o", tmp_path / "coded")
    assert (facts["files"], facts["others"], len(facts["notes"])) == (2, 1, 1)
    assert "5 pictures in the file" in facts["notes"][0]["notes"][0]
    assert said.count("4 left out") == 1
    assert main(["encode", str(photos), "-o", str(tmp_path / "strict"), "--strict"]) == 1
    assert [path.name for path in (tmp_path / "strict").glob("*.mlic")] == ["b.mlic"]
    assert main(["encode", str(photos), "-o", str(tmp_path / "no"), "--frame", "2"]) == 2
    one = ("encode", photos / "a.gif", "-o", tmp_path / "one.mlic")
    facts, said = run(capsys, *one)
    assert len(facts["notes"]) == 1
    assert "4 left out" in said
    facts, said = run(capsys, *one, "--frame", 3, "--strict")
    assert (facts["notes"], said) == ([], "")
    assert main([*map(str, one), "--strict"]) == 4
    assert main([*map(str, one), "--frame", "6"]) == 4
    facts, _ = run(capsys, "prepare-data", photos, tmp_path / "made", "--min-side", 8, "--jobs", 1)
    assert sum("4 left out" in note for note in facts["notes"]) == 1
    facts, said = run(capsys, "compare", photos / "a.gif", photos / "b.png")
    assert "4 left out" in facts["reference"]["notes"][0]
    facts, said = run(capsys, "eval", photos, "--classical", "jpeg", "--classical-only")
    assert [entry["picture"] for entry in facts["notes"]] == ["a.gif"]
    assert "4 left out" in said


@posix
@pytest.mark.filterwarnings("ignore:1 pictures cannot be read")
def test_pipes_and_sockets_are_named_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "p"
    paint(photos / "a.png")
    os.mkfifo(photos / "pipe.png")
    for command in (
        ("eval", photos, "--classical", "jpeg", "--classical-only"),
        ("encode", photos, "-o", tmp_path / "coded"),
        ("prepare-data", photos, tmp_path / "made", "--min-side", 8, "--jobs", 1),
    ):
        _, said = run(capsys, *command, code=1)
        assert "pipe.png" in said
        assert "pipe, socket or device" in said
    from mlic_fast.train.patches import Patches

    patches = Patches(photos, 8, count=1, seed=0)
    assert [path.name for path in patches.broken] == ["pipe.png"]
    assert patches[0].shape == (3, 8, 8)
    shutil.copy(photos / "a.png", tmp_path / "b.png")
    (photos / "pipe.png").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(photos / "s.png"))
        run(capsys, "eval", photos, "--classical", "jpeg", "--classical-only", code=1)


def test_folders_without_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "icon.ico").write_bytes(b"no picture to be read")
    for command in (
        ("encode", empty, "-o", tmp_path / "a"),
        ("decode", empty, "-o", tmp_path / "b"),
        ("eval", empty),
        ("prepare-data", empty, tmp_path / "c"),
    ):
        assert main([*map(str, command)]) == 4
        assert "name another folder" in capsys.readouterr().err
