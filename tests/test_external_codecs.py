# SPDX-License-Identifier: Apache-2.0
"""External codecs: rates of their files, what their programs get and see, and how failures are told."""

from __future__ import annotations

import csv
import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from external_samples import (
    DECODE,
    ENCODE,
    PROGRAM,
    Recipe,
    photograph,
    picture,
    posix,
    python,
    recipe,
    temporaries,
    toml,
)
from PIL import Image

from mlic_fast.cli.main import main
from mlic_fast.errors import CodecRunError
from mlic_fast.evaluate.external import code
from mlic_fast.evaluate.metrics import psnr
from mlic_fast.pictures.image import Picture, open_image

__all__ = ["photograph", "picture", "recipe", "temporaries"]


def test_a_codec_of_files(recipe: Recipe, picture: Picture, temporaries: Path) -> None:
    codec = recipe(encode=ENCODE, decode=DECODE)
    for quality in codec.qualities:
        run = code(codec, picture, quality)
        step = int(quality)
        assert np.array_equal(run.pixels, picture.pixels // step * step)
        assert run.data.startswith(b"RGB 97 81 ")
        assert 0 < run.encode_seconds < 60 > run.decode_seconds > 0
    assert list(temporaries.iterdir()) == []


@pytest.mark.parametrize("size", [(31, 47), (1, 1), (64, 3)], ids=str)
def test_grey_and_odd_sizes(size: tuple[int, int], recipe: Recipe, photograph: Image.Image) -> None:
    grey = open_image(photograph.convert("L").crop((0, 0, *size)))
    run = code(recipe(encode=ENCODE, decode=DECODE), grey, "8")
    assert run.data.startswith(b"L ")
    assert np.array_equal(run.pixels, grey.pixels // 8 * 8)
    # three channels elsewhere, and back to one
    copy = "import sys, shutil; shutil.copy(*sys.argv[1:3])"
    for reads in ("ppm", "yuv444p", "yuv444p10le"):
        codec = recipe(
            encode=python(copy, "{input}", "{output}", "{quality}"),
            decode=python(copy, "{input}", "{output}"),
            encoder_reads=reads,
            decoder_writes=reads,
        )
        run = code(codec, grey, "8")
        assert np.array_equal(run.pixels, grey.pixels)
        assert len(run.data) >= 3 * size[0] * size[1] * (2 if reads == "yuv444p10le" else 1)


def test_the_decoder_sees_the_compressed_file_alone(recipe: Recipe, picture: Picture) -> None:
    see = (
        PROGRAM.replace('print("in', 'sys.exit("in').replace("file=sys.stderr", "").replace(", sorted", " + str(sorted")
    )
    see = see.replace('os.listdir(".")), )', 'os.listdir(".")))' + ")")
    codec = recipe(encode=ENCODE, decode=python(see, "decode", "{input}", "{output}", "{quality}"), suffix=".x")
    with pytest.raises(CodecRunError, match=re.escape("in the folder:['compressed.x', 'decoded.png']")):
        code(codec, picture, "8")


ALL = "{input}{output}{quality}"
SAVE = "import sys; from PIL import Image; "
RAW = {"decoder_writes": "yuv444p"}

FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "exit code": (
        {"encode": python("import sys; print('a\\n\\n b'); sys.exit('the end')", ALL)},
        "the encoder of recipe ended with exit code 1; it said: a / b / the end",
    ),
    "silent": ({"decode": python("raise SystemExit(3)", "{input}{output}")}, "exit code 3 and said nothing"),
    "no output": (
        {"encode": python("pass", ALL)},
        r"the encoder of recipe ended well, but wrote no file or an empty one where \{output\} says",
    ),
    "empty output": (
        {"decode": python("import sys; open(sys.argv[2], 'w')", "{input}", "{output}")},
        "the decoder of recipe ended well, but wrote no file or an empty one",
    ),
    "link": (
        {"encode": python("import os, sys; os.symlink('/etc/passwd', sys.argv[1])", "{output}", "{input}{quality}")},
        "wrote no file",
    ),
    "folder": (
        {"encode": python("import os, sys; os.mkdir(sys.argv[1])", "{output}", "{input}{quality}")},
        "wrote no file",
    ),
    "no picture": (
        {"decode": python("import sys; open(sys.argv[2], 'w').write('text')", "{input}", "{output}")},
        "the decoder of recipe wrote something else than the picture: .*decoded.png",
    ),
    "another size": (
        {"decode": python(SAVE + "Image.new('RGB', (97, 80)).save(sys.argv[2])", "{input}", "{output}")},
        "wrote something else than the picture: 97 x 80 pixels, where the picture has 97 x 81",
    ),
    "raw planes of another size": (
        {"decode": python(SAVE + "open(sys.argv[2], 'wb').write(bytes(77))", "{input}", "{output}"), **RAW},
        "77 bytes, where 97 x 81 in 4:4:4 with 8 bits a sample take 23,571",
    ),
    "time": (
        {"encode": python("import time; print('at it', flush=True); time.sleep(60)", ALL), "timeout": 1},
        "the encoder of recipe took longer than 1 s; it said: at it",
    ),
    "killed": (
        {"encode": python("import os; os.kill(os.getpid(), 9)", ALL)},
        "was ended by SIGKILL and said nothing",
    ),
    "much output": (
        {"encode": python("while True: open('litter', 'ab').write(bytes(2**20))", ALL)},
        "wrote .* bytes, more than the 1,000,000 that a picture can need",
    ),
    "much talk": (
        {"encode": python("while True: print('x' * 10000)", ALL)},
        "wrote .* bytes, more than the 1,000,000 that a picture can need",
    ),
}  # fmt: skip


@posix
@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_named(
    name: str, recipe: Recipe, picture: Picture, temporaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("much"):
        monkeypatch.setattr("mlic_fast.evaluate.external._OTHER_BYTES", 1_000_000 - 64 * 97 * 81)
    settings, words = FAILURES[name]
    codec = recipe(**{"encode": ENCODE, "decode": DECODE, **settings})
    begin = time.perf_counter()
    with pytest.raises(CodecRunError, match=words):
        code(codec, picture, "8")
    assert time.perf_counter() - begin < 30
    assert list(temporaries.iterdir()) == []


def test_a_program_that_goes_away(recipe: Recipe, picture: Picture, tmp_path: Path) -> None:
    program = tmp_path / "coder"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    codec = recipe(encode="./coder {input} {output} {quality}", decode=DECODE)
    assert codec.encode[0] == str(program)
    program.unlink()
    with pytest.raises(CodecRunError, match=r"the encoder of recipe cannot be started: .*coder: No such file"):
        code(codec, picture, "8")
    program.write_text("no program")
    program.chmod(0o755)
    with pytest.raises(CodecRunError, match=r"cannot be started: .*coder: Exec format error"):
        code(codec, picture, "8")


def test_the_seconds_are_the_programs(recipe: Recipe, picture: Picture) -> None:
    slow = python(f"{PROGRAM}\nimport time; time.sleep(0.3)", *ENCODE[3:])
    assert code(recipe(encode=slow, decode=DECODE), picture, "8").encode_seconds >= 0.3


def test_programs_may_run_in_several_threads(recipe: Recipe, picture: Picture) -> None:
    codec = recipe(encode=ENCODE, decode=DECODE)
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(len(code(codec, picture, "8").data))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 3
    assert len(set(sizes)) == 1


def test_names_cannot_become_words(
    recipe: Recipe, photograph: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of pictures, of qualities, of the recipe's folder."""
    folder = tmp_path / "a folder; touch no $(touch no) `touch no`"
    folder.mkdir()
    names = ["-q 9; touch no.png", "$(touch no).png", "{quality}.png", "--help.png", "a b.png"]
    for name in names:
        photograph.crop((0, 0, 20, 17)).save(folder / name)
    program = folder / "{coder} it"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}\nassert sys.argv[5:] == ['{{x}}', '{folder}/y', 'a b']")
    program.chmod(0o755)
    words = "{here}/{{coder}}\\ it encode {input} {output} {quality} {{x}} {here}/y 'a b'"
    settings = {"encode": words, "decode": words.replace("encode", "decode"), "qualities": [9, "8 "]}
    (folder / "r.toml").write_text(toml(settings | {"quality_name": "../$(touch no)"}))
    out = tmp_path / "out"
    arguments = ["eval", str(folder), "--external", f"a/b; c={folder / 'r.toml'}", "--no-model", "--json"]
    assert main([*arguments, "-o", str(out), "--keep", str(tmp_path / "kept")]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == len(names)
    assert sorted(path.name for path in out.iterdir()) == ["a-b-c.json", "pictures.csv", "report.md"]
    kept = [path.relative_to(tmp_path / "kept") for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert len(kept) == 2 * len(names)
    assert {path.parts[0] for path in kept} == {"a-b-c"}
    assert not list(tmp_path.rglob("no"))


def test_curves_rates_and_reports(
    recipe: Recipe, photograph: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    photograph.save(pictures / "a.png")
    photograph.convert("L").crop((0, 0, 65, 60)).save(pictures / "b.png")
    recipe(encode=ENCODE, decode=DECODE, qualities=[64, 16, 4], quality_name="step", settings="of a few lines")
    out = tmp_path / "out"
    arguments = ["eval", str(pictures), "--external", f"Zlib={tmp_path / 'recipe.toml'}", "--classical", "jpeg"]
    assert main([*arguments, "--no-model", "-o", str(out), "--keep", str(tmp_path / "kept"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [point["label"] for point in facts["averages"]][:3] == ["step 64", "step 16", "step 4"]
    with (out / "pictures.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["curve"] == "Zlib"]
    assert len(rows) == 6
    for row in rows:
        data = (tmp_path / "kept" / "Zlib" / row["point"] / f"{row['picture']}.bin").read_bytes()
        assert int(row["bytes"]) == len(data)
        original = np.asarray(Image.open(pictures / row["picture"]))
        step = int(row["point"].split()[1])
        assert float(row["psnr"]) == pytest.approx(psnr(original, original // step * step))
        assert row["bytes_strings"] == ""
    data = json.loads((out / "Zlib.json").read_text())
    assert data["points"] == ["step 64", "step 16", "step 4"]
    assert data["description"].startswith("of a few lines; encoder: ")
    report = (out / "report.md").read_text()
    assert "## Against Zlib" in report
    assert re.search(r"\| JPEG \| [+-][\d.]+ % \|", report)
    assert (
        main(["plot", str(out / "Zlib.json"), str(out / "JPEG.json"), "--anchor", "JPEG", "-o", str(out / "p.svg")])
        == 0
    )
    assert "Zlib" in (out / "p.svg").read_text()
    # one quality fails with one picture
    fails = python(f"{PROGRAM}\nif quality == '16' and image.mode == 'L': sys.exit('no grey')", *ENCODE[3:])
    recipe(encode=fails, decode=DECODE, qualities=[64, 16, 4])
    assert main([*arguments, "--no-model", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert [(one["picture"], one["codec"]) for one in facts["failures"]] == [("b.png", "Zlib, quality 16")]
    assert facts["pictures"] == 1
