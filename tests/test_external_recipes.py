# SPDX-License-Identifier: Apache-2.0
"""Recipes of external codecs: what they say, and what makes no sense."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from external_samples import (
    photograph,
    picture,
    posix,
    recipe,
    temporaries,
    toml,
)

from mlic_fast.cli.main import main
from mlic_fast.errors import CodecError
from mlic_fast.evaluate.recipes import filled, read_recipe

__all__ = ["photograph", "picture", "recipe", "temporaries"]

RECIPES: dict[str, tuple[dict[str, Any] | str, str]] = {
    "no TOML": ("encode = ", "it is no TOML file"),
    "no text": ("\ud800", "it is no TOML file"),
    "unknown setting": ({"encoder": "x"}, "there is no setting 'encoder': there are encode, decode, "),
    "no command": ({"encode": None}, "encode is a command, as text or a list of words, not None"),
    "number": ({"encode": 5}, "encode is a command"),
    "empty": ({"encode": " "}, "encode is empty"),
    "empty word": ({"decode": ["", "{input}", "{output}"]}, "decode is empty"),
    "quote": ({"encode": "cp '{input} {output}"}, "encode cannot be split into words: No closing quotation"),
    "null": ({"encode": ["cp", "{input}\0", "{output}", "{quality}"]}, "no argument can have"),
    "placeholder": ({"encode": "cp {input} {output} {quality} {qp}"}, "'{qp}' is no placeholder: there are {input}, "),
    "brace": ({"encode": "cp {input} {output} {quality} }"}, "'}' is no placeholder"),
    "nameless": ({"decode": "cp {input} {output} {}"}, "'{}' is no placeholder"),
    "no input": ({"decode": "cp {output}"}, "decode lacks {input}"),
    "no output, no quality": ({"encode": "cp {input}"}, "encode lacks {output} and {quality}"),
    "program by picture": ({"encode": "./{quality} {input} {output}"}, "the program itself cannot depend"),
    "no program": ({"encode": "no-such-coder {input} {output} {quality}"}, "there is no program no-such-coder: "),
    "no program there": ({"decode": "./cp {input} {output}"}, "there is no program ./cp"),
    "folder": ({"decode": "{here} {input} {output}"}, "there is no program /"),
    "no qualities": ({"qualities": []}, "qualities are a list of 1 to 1,000"),
    "qualities": ({"qualities": 5}, "qualities are a list"),
    "quality": ({"qualities": [True]}, "a quality is a finite number or a text, not True"),
    "infinite": ("qualities = [inf]\n", "a quality is a finite number or a text, not inf"),
    "twice": ({"qualities": [1, "1"]}, "quality 1 is there twice"),
    "kind": ({"encoder_reads": "bmp"}, "encoder_reads is one of png, ppm, yuv444p, yuv444p10le, not 'bmp'"),
    "kind's kind": ({"decoder_writes": ["png"]}, "decoder_writes is one of"),
    "matrix": ({"decoder_writes": "yuv444p", "matrix": "bt2020"}, "matrix is one of bt709, bt601, not 'bt2020'"),
    "matrix of none": ({"matrix": "bt601"}, "matrix and range are of raw planes"),
    "range": ({"encoder_reads": "yuv444p", "range": "tv"}, "range is one of full, limited"),
    "suffix": ({"suffix": "webp"}, "suffix is a file name's ending"),
    "suffix elsewhere": ({"suffix": "./../x"}, "suffix is a file name's ending"),
    "timeout": ({"timeout": 0}, "timeout is a number of seconds up to 604,800, not 0"),
    "no timeout": ("timeout = nan\n", "timeout is a number of seconds"),
    "settings": ({"settings": "two\nlines"}, "settings is a line of text"),
}  # fmt: skip


@posix
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_make_no_sense(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, words = RECIPES[name]
    good: dict[str, Any] = {
        "encode": "cp {input} {output} {quality}",
        "decode": "cp {input} {output}",
        "qualities": [1, 2],
    }
    path = tmp_path / "bad.toml"
    if isinstance(settings, str):
        own = settings.partition(" ")[0]
        rest = {key: value for key, value in good.items() if key != own} if settings.endswith("\n") else {}
        path.write_bytes((settings + toml(rest)).encode("utf-8", "surrogatepass"))
    else:
        path.write_text(toml({key: value for key, value in {**good, **settings}.items() if value is not None}))
    with pytest.raises(CodecError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["eval", str(tmp_path), "--external", str(path), "--no-model"]) == 2
    assert words in capsys.readouterr().err


def test_files_that_are_no_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * 70_000)
    with pytest.raises(CodecError, match="larger than 65,536 bytes"):
        read_recipe(large)
    (tmp_path / "a.png").write_bytes(b"")
    for text, code_, words in (
        ("absent.toml", 3, "absent.toml"),
        (str(tmp_path), 3, "Is a directory"),
        (f" ={large}", 2, "no name for a curve"),
    ):
        assert main(["eval", str(tmp_path), "--external", text, "--no-model"]) == code_
        assert words in capsys.readouterr().err


def test_words_and_placeholders(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    command = "cp -q={quality} '{input} x' {output} {{width}} {width}x{height} {here}/c"
    path.write_text(toml({"encode": command, "decode": ["cp", "{input}", "{output}"], "qualities": [0.0018, "a b", 3]}))
    codec = read_recipe(path, "name")
    assert (codec.title, codec.qualities, codec.suffix) == ("name", ("0.0018", "a b", "3"), ".bin")
    values = {"input": "i {quality}", "output": "o", "quality": "a b", "width": "3", "height": "4"}
    assert filled(codec.encode, values) == [
        shutil.which("cp"),
        "-q=a b",
        "i {quality} x",
        "o",
        "{width}",
        "3x4",
        f"{tmp_path}/c",
    ]
    assert "encoder: cp -q={quality}" in codec.settings
    assert codec.settings.endswith("decoder: cp '{input}' '{output}'")
