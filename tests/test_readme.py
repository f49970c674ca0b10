# SPDX-License-Identifier: Apache-2.0
"""What the README says is so: files exist, commands parse, Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mlic_fast.cli.main import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_two_commands_install_and_run() -> None:
    first, second = (line for line in blocks("sh")[0].splitlines() if line)
    assert first.endswith("mlic-fast demo")
    assert second.endswith("pytest")
    for command in (first, second):
        assert "venv" in command
        assert "pip install" in command


def test_every_named_file_exists() -> None:
    names = set(re.findall(r"`((?:mlic_fast|csrc|kernels|bench|tests|docs)/[\w./-]*)`", README))
    assert len(names) > 15
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def commands() -> list[str]:
    lines = [line for block in blocks("sh")[1:] for line in block.splitlines()]
    return [line for line in lines if line.startswith("mlic-fast ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    for separator in ("|", "<", ">", "&&"):
        if separator in words:
            words = words[: words.index(separator)]
    build_parser().parse_args(words)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import resources

    from PIL import Image

    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        Image.open(file).convert("RGB").crop((0, 0, 130, 90)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    examples = [block for block in blocks("python") if "checkpoint.pth.tar" not in block]
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert Image.open("decoded.png").size == (130, 90)
