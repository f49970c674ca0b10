# SPDX-License-Identifier: Apache-2.0
"""What README and docs/ say is so: files and modules exist, commands parse, Python runs, the map shows what is run."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mlic_fast.cli.main import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench" / "README.md"])
}
# what changed is told under the names that things had
PRESENT = {name: text for name, text in DOCUMENTS.items() if name != "CHANGELOG.md"}
FOLDERS = "mlic_fast|csrc|kernels|bench|tests|docs"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_first_two_commands_install_and_run() -> None:
    first, second = (line for line in blocks(README, "sh")[0].splitlines() if line)
    assert first.endswith("mlic-fast demo")
    assert second.endswith("pytest")
    for command in (first, second):
        assert "venv" in command
        assert "pip install" in command


def test_the_changelog_has_this_version() -> None:
    from mlic_fast import __version__

    assert f"\n## [{__version__}] - " in DOCUMENTS["CHANGELOG.md"]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("name", PRESENT)
def test_every_named_file_exists(name: str) -> None:
    text = re.sub(r"```.*?```", "", PRESENT[name], flags=re.DOTALL)
    names = set(re.findall(rf"`(?:python )?((?:{FOLDERS})/[\w./-]*)[^`]*`", text))
    missing = {one for one in names if not (ROOT / one).exists()}
    # beside the document, or in the root
    alone = set(re.findall(r"`([\w-]+\.(?:py|md|sh|toml|cpp|hpp))(?: [^`]*)?`", text))
    own = (ROOT / name).parent
    missing |= {one for one in alone if not (own / one).exists() and not (ROOT / one).exists()}
    written_by_users = {one for one in missing if "NAME" in one or one in ("run.py", "report.md", "vtm.toml")}
    assert missing - written_by_users == set()
    if name == "README.md":
        assert len(names) > 15


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", DOCUMENTS[name])
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(".".join(parts[:number]))
            except ImportError:
                return False
    return True


def sources() -> Iterator[Path]:
    for folder in FOLDERS.split("|"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".pyi", ".cpp", ".hpp", ".inc", ".txt"} and path.is_file():
                yield path
    yield from (ROOT / name for name in ("setup.py", "conftest.py", "pyproject.toml"))


def test_no_line_names_a_module_that_is_gone() -> None:
    places: dict[str, set[str]] = {}
    texts = dict(PRESENT) | {str(path.relative_to(ROOT)): path.read_text() for path in sources()}
    for where, text in texts.items():
        for name in re.findall(r"(?<![\w./-])mlic_fast(?:\.[A-Za-z_]\w*)+", text):
            places.setdefault(name, set()).add(where)
    assert len(places) > 100
    gone = {
        name: where for name, where in places.items() if not name.endswith(("__main__", ".so")) and not resolves(name)
    }
    assert gone == {}


def commands() -> list[str]:
    texts = [README.partition("```\n")[2], *(text for name, text in PRESENT.items() if name != "README.md")]
    lines = [line for text in texts for block in blocks(text, "sh") for line in block.splitlines()]
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
    found = [block for name in ("README.md", "docs/usage.md") for block in blocks(PRESENT[name], "python")]
    # official weights are not here; a bundled model is loaded as they are
    examples = [block.replace("checkpoint.pth.tar", "mlicpp-s-0.0018") for block in found]
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert Image.open("decoded.png").size == (130, 90)


def test_the_map_shows_what_a_default_call_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python file that the map names runs; the network as written down does not."""
    import mlic_fast

    section = re.search(r"## What a default call runs\n(.*?)\nOn a GPU", README, re.DOTALL)
    assert section is not None
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", section[1]))
    calls: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            calls.add((path.relative_to(ROOT).as_posix(), frame.f_code.co_name))

    from PIL import Image

    picture = Image.effect_noise((300, 200), 40)
    mlic_fast.release()  # so that weights are read, and an engine is compiled
    monkeypatch.delenv("MLIC_FAST_EXACT", raising=False)
    sys.setprofile(note)
    try:
        data = mlic_fast.encode(picture, device="cpu")
        mlic_fast.decode(data, device="cpu")
    finally:
        sys.setprofile(None)
    run = {name for name, _ in calls}
    native = {name for name in named if name.startswith("csrc/")}
    silent = {name for name in named - native if not any(one == name or one.startswith(name) for one in run)}
    assert silent - {"mlic_fast/model.py"} == set()
    assert "mlic_fast/nn/walk.py" not in run
    layers = {name for name, function in calls if name.startswith("mlic_fast/nn/") and function == "forward"}
    assert layers <= {"mlic_fast/nn/gdn.py"}  # whose parameters are computed when the engine is compiled


def test_every_environment_variable_is_in_the_table() -> None:
    table = re.search(r"## Environment variables\n(.*)", PRESENT["docs/usage.md"], re.DOTALL)
    assert table is not None
    told = set(re.findall(r"MLIC_FAST_[A-Z]+(?:_[A-Z]+)*", table[1]))
    read = {
        name
        for path in sources()
        if path.relative_to(ROOT).parts[0] not in ("docs", "bench")
        for name in re.findall(r"MLIC_FAST_[A-Z]+(?:_[A-Z]+)*", path.read_text())
    }
    assert told == read
