# SPDX-License-Identifier: Apache-2.0
"""The command line: results, messages, exit codes, pipes, and what is left behind after a failure."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlic_fast.cli.main import _COMMANDS, build_parser, main


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "crop.png"
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        Image.open(file).convert("RGB").crop((100, 100, 290, 270)).save(path)
    return path


@pytest.fixture(scope="module")
def coded(photograph: Path) -> Path:
    path = photograph.with_suffix(".mlic")
    assert main(["encode", str(photograph), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def clear(photograph: Path) -> Path:
    """An .mlic file with half transparent pixels, EXIF data and a comment."""
    image = Image.open(photograph).crop((0, 0, 30, 20))
    image.putalpha(128)
    source, path = photograph.with_name("clear.png"), photograph.with_name("clear.mlic")
    exif = Image.Exif()
    exif[0x010F] = "maker"
    image.save(source, exif=exif, icc_profile=b"profile")
    assert main(["encode", str(source), "-o", str(path), "--thumbnail", "16"]) == 0
    return path


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "mlic_fast", *arguments], capture_output=True, check=False, **options)


def test_encode_decode(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded, decoded = tmp_path / "a.mlic", tmp_path / "a.png"
    assert main(["encode", str(photograph), "-o", str(coded), "--measure", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == coded.stat().st_size
    assert (facts["width"], facts["height"], facts["model"]) == (190, 170, "mlicpp-s-0.0067")
    assert 20 < facts["psnr_official"] <= facts["psnr"] + 0.2 < 50
    assert main(["decode", str(coded), "-o", str(decoded)]) == 0
    assert "190 x 170" in capsys.readouterr().out
    error = np.asarray(Image.open(photograph), float) - np.asarray(Image.open(decoded), float)
    assert abs(10 * np.log10(255**2 / (error**2).mean()) - facts["psnr"]) < 1e-6


def test_what_the_file_holds(clear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, plain = clear.with_suffix(".png"), tmp_path / "plain.mlic"
    assert main(["encode", str(source), "-o", str(plain), "--strip-metadata", "--no-guard"]) == 0
    assert plain.stat().st_size < clear.stat().st_size - 300
    capsys.readouterr()
    for coded, maker, kind in ((clear, "maker", ".png"), (plain, None, ".png"), (clear, "maker", ".webp")):
        decoded = tmp_path / f"decoded{kind}"
        assert main(["decode", str(coded), "-o", str(decoded), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["dropped"] == []
        image = Image.open(decoded)
        assert image.getexif().get(0x010F) == maker
        assert image.info["icc_profile"] == b"profile"
        assert image.convert("RGBA").getchannel("A").getextrema() == (128, 128)
    assert main(["decode", str(clear), "-o", str(tmp_path / "decoded.tga"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["dropped"]) == {"exif", "icc_profile"}


def test_deep_samples_are_reduced_when_asked_for(tmp_path: Path) -> None:
    deep, coded = tmp_path / "deep.png", tmp_path / "deep.mlic"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep)
    assert main(["encode", str(deep), "-o", str(coded)]) == 4
    assert main(["encode", str(deep), "-o", str(coded), "--reduce-depth"]) == 0
    assert main(["decode", str(coded), "-o", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").mode == "L"


def test_targets(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded = tmp_path / "a.mlic"
    command = ["encode", str(photograph), "-o", str(coded), "--json"]
    assert main([*command, "--target-psnr", "20", "--measure"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["reached"] is True
    assert facts["psnr"] >= 20
    tried = [trial["model"] for trial in facts["tried"]]
    assert facts["model"] in tried
    assert len(tried) == len(set(tried)) <= 2  # a binary search among three
    coded.unlink()
    assert main([*command, "--target-size", "100"]) == 9
    assert not coded.exists()
    assert main([*command, "--target-size", "100", "--best-effort"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["reached"] is False
    assert "warning" in printed.err
    folder = [*command[:1], str(photograph.parent), "-o", str(tmp_path / "all"), "--json", "--target-bpp"]
    assert main([*folder, "0.0001"]) == 1
    assert "no model at hand reaches" in json.loads(capsys.readouterr().out)["failures"][0]["error"]
    assert main([*folder, "20"]) == 0
    assert len(list((tmp_path / "all").iterdir())) >= 1


def test_limits_can_be_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, coded, decoded = tmp_path / "a.png", tmp_path / "a.mlic", tmp_path / "b.png"
    Image.new("RGB", (60, 50)).save(source)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow itself refuses twice as many
    for command, output in ((["encode", str(source)], coded), (["decode", str(coded)], decoded)):
        if command[0] == "encode":
            assert main([*command, "-o", str(output)]) == 8
            assert "--max-pixels" in capsys.readouterr().err
        for pixels in ("3000", "0"):
            assert main([*command, "-o", str(output), "--max-pixels", pixels]) == 0
        assert Image.MAX_IMAGE_PIXELS == 1000
    assert main(["decode", str(coded), "-o", str(decoded)]) == 8


def test_official_format(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded, decoded = tmp_path / "a.bin", tmp_path / "a.ppm"
    assert main(["encode", str(photograph), "-o", str(coded), "--format", "official"]) == 0
    assert main(["info", str(coded), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["format"] == "official"
    assert main(["decode", str(coded), "-o", str(decoded)]) == 6
    assert "official layout" in capsys.readouterr().err
    assert main(["decode", str(coded), "-o", str(decoded), "--model", "mlicpp-s-0.0067"]) == 0
    assert Image.open(decoded).size == (190, 170)


def test_pipes(photograph: Path) -> None:
    coded = run("encode", "-", "-o", "-", input=photograph.read_bytes())
    assert coded.returncode == 0
    assert b"bpp" in coded.stderr
    decoded = run("decode", "-", "-o", "-", input=coded.stdout)
    assert decoded.returncode == 0
    assert Image.open(io.BytesIO(decoded.stdout)).size == (190, 170)
    told = run("info", "-", input=coded.stdout)
    assert b"mlicpp-s-0.0067" in told.stdout


def test_info_does_not_import_torch(coded: Path) -> None:
    program = (
        "import sys; from mlic_fast.cli.main import main; code = main(['info', sys.argv[1], '--json']); "
        "sys.exit(code or (50 if 'torch' in sys.modules else 0))"
    )
    finished = subprocess.run([sys.executable, "-c", program, str(coded)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    facts = json.loads(finished.stdout)
    assert (facts["width"], facts["height"], facts["model"]["name"]) == (190, 170, "mlicpp-s-0.0067")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["encode", "missing.png", "-o", "x.mlic"], 3, "missing.png"),
        (["decode", "missing.mlic", "-o", "x.png"], 3, "missing.mlic"),
        (["encode", "text.txt", "-o", "x.mlic"], 4, "not a picture"),
        (["encode", "alpha.png", "-o", "x.bin", "--format", "official"], 4, "alpha"),
        (["encode", "deep.png", "-o", "x.mlic"], 4, "8 bits"),
        (["encode", ".", "-o", "x.mlic"], 2, "folder"),
        (["encode", "alpha.png", "-o", "x.mlic", "--max-pixels", "63"], 8, "63"),
        (["encode", "alpha.png", "-o", "x.mlic", "--max-side", "7"], 8, "7"),
        (["encode", "alpha.png", "-o", "x.mlic", "--target-size", "10"], 9, "--best-effort"),
        (["encode", "alpha.png", "-o", "x.mlic", "--best-effort"], 2, "--target-bpp"),
        (["decode", "text.txt", "-o", "x.png"], 5, "not an .mlic file"),
        (["decode", "cut.mlic", "-o", "x.png"], 5, "ends early"),
        (["decode", "flipped.mlic", "-o", "x.png"], 5, "damaged"),
        (["info", "cut.mlic"], 5, "ends early"),
        (["info", "empty"], 5, "ends"),
        (["decode", "good.mlic", "-o", "x.nothing"], 4, ".nothing"),
        (["decode", "good.mlic", "-o", "-", "--suffix", "nothing"], 4, "nothing"),
        (["decode", "clear.mlic", "-o", "x.jpg"], 4, "transparency"),
        (["decode", "good.mlic", "-o", "x.png", "--max-side", "100"], 8, "190 x 170"),
        (["decode", "good.mlic", "-o", "x.png", "--max-pixels", "100"], 8, "190 x 170"),
        (["decode", "good.mlic", "-o", "no/such/folder/x.png"], 3, "no folder"),
        (["decode", "good.mlic", "-o", "x.png", "--model", "absent"], 6, "absent"),
        (["decode", "good.mlic", "-o", "x.png", "--model", "absent.pth"], 3, "absent.pth"),
        (["decode", "good.mlic", "-o", "x.png", "--model", "text.txt"], 6, "text.txt"),
        (["decode", "good.mlic", "-o", "x.png", "--device", "cuda:42"], 7, "cuda:42"),
        (["decode", "good.mlic", "-o", "x.png", "--device", "abacus"], 7, "abacus"),
        (["convert", "text.txt", "x.safetensors"], 6, "text.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_failures(
    arguments: list[str],
    code: int,
    words: str,
    coded: Path,
    clear: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = coded.read_bytes()
    Path("text.txt").write_text("this is neither a picture nor a stream, nor weights\n")
    Path("good.mlic").write_bytes(data)
    Path("clear.mlic").write_bytes(clear.read_bytes())
    Path("cut.mlic").write_bytes(data[:-10])
    Path("flipped.mlic").write_bytes(data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])
    Path("empty").write_bytes(b"")
    Image.new("RGBA", (8, 8)).save("alpha.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("deep.png")
    before = sorted(path.name for path in Path().iterdir())
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith(f"mlic-fast {arguments[0]}: ")
    assert printed.err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == before  # nothing half-written is left


WIDE = ["encode", "a", "-o", "b", "--threads", "99999999999999"]


def test_wrong_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    file = ["encode", "a", "-o", "b"]
    for arguments in (
        [],
        ["encode"],
        ["frobnicate"],
        [*file, "--threads", "0"],
        [*file, "--in-flight", "0"],
        [*file, "--thumbnail", "513"],
        [*file, "--target-bpp", "nan"],
        [*file, "--target-bpp", "1", "--target-psnr", "30"],
        [*file, "--skip", "--overwrite"],
        [*file, "--max-pixels", "-1"],
        WIDE,
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert "frobnicate" in capsys.readouterr().err


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_and_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert shown(["--version"], capsys).startswith("mlic-fast ")
    for command in _COMMANDS:
        assert re.search(rf"^    {command}\s+\w", shown(["--help"], capsys), re.MULTILINE)
        printed = shown([command, "--help"], capsys)
        for title in ("usage:", "examples:", "exit codes:"):
            assert f"\n{title}\n" in f"\n{printed}".replace("usage: ", "usage:\n"), (command, title)
        assert max(map(len, printed.splitlines())) <= 100
        # the examples are commands that there are
        for line in re.findall(r"^  (?:.* )?(mlic-fast .+)$", printed, re.MULTILINE):
            words = shlex.split(line, comments=True)[1:]
            ends = [words.index(separator) for separator in ("|", "<", ">") if separator in words]
            build_parser().parse_args(words[: min(ends, default=None)])


def test_an_existing_file_survives_a_failure(coded: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious.png"
    target.write_bytes(b"precious")
    broken = tmp_path / "broken.mlic"
    broken.write_bytes(coded.read_bytes()[:-3])
    assert main(["decode", str(broken), "-o", str(target)]) == 5
    assert target.read_bytes() == b"precious"


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interruption_while_writing_leaves_nothing_behind(coded: Path, tmp_path: Path, name: str, code: int) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"precious")
    # the signal comes when the temporary file is there and the rename is still to come
    program = (
        "import os, signal, sys; from pathlib import Path; from mlic_fast.cli.main import main\n"
        "def interrupted(descriptor):\n"
        "    assert len(list(Path(sys.argv[2]).parent.iterdir())) == 2\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "os.fsync = interrupted\n"
        "sys.exit(main(['decode', sys.argv[1], '-o', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", program, str(coded), str(target)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == code, finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert target.read_bytes() == b"precious"


def test_output_never_replaces_the_input(photograph: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(photograph.read_bytes())
    link = tmp_path / "link.png"
    link.symlink_to(own)
    for target in (own, link):
        assert main(["encode", str(own), "-o", str(target)]) == 2
        assert main(["convert", str(own), str(target)]) == 2
    assert own.read_bytes() == photograph.read_bytes()


def test_closed_standard_streams_are_no_crash(coded: Path) -> None:
    module = f"{sys.executable} -m mlic_fast"
    for command, code in ((f"{module} info {coded} >&-", 0), (f"{module} info - <&-", 3)):
        finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert finished.returncode == code, finished.stderr
        assert "Traceback" not in finished.stderr


def test_doctor_on_a_broken_installation(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "from mlic_fast.cli.main import main; sys.exit(main(['doctor']))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "libcudart" in finished.stdout
    assert "compressai" in finished.stdout


def test_convert(small_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    source, target = tmp_path / "mlicpp_mse_q3_0067.pth.tar", tmp_path / "mine.safetensors"
    torch.save({"epoch": 3, "state_dict": small_model.state_dict(), "loss": torch.tensor(1.0)}, source)
    arguments = [
        "convert",
        str(source),
        str(target),
        "--name",
        "mine",
        "--lambda",
        "0.0067",
        "--metric",
        "mse",
        "--json",
    ]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["lambda"], facts["metric"], facts["config"]["N"]) == ("mine", 0.0067, "mse", 64)
    from mlic_fast import load

    converted = load(target)
    assert all(torch.equal(a, b) for a, b in zip(converted.parameters(), small_model.parameters(), strict=True))


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "mlicpp-s-0.0067" in facts["models"]
    assert facts["packages"]["torch"] != "not installed"
    assert "missing" not in facts["extensions"]["_range_coder"]
    assert main(["doctor"]) == 0
    assert "mlicpp-s-0.0067" in capsys.readouterr().out


def test_demo(tmp_path: Path, photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path / "demo"), "--image", str(photograph), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert Image.open(facts["pair"]).size == (380, 170)
    assert facts["bytes"] == Path(facts["file"]).stat().st_size
    assert facts["psnr"] > 22


def test_import_is_light() -> None:
    program = "import sys, mlic_fast; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
