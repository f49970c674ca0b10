# SPDX-License-Identifier: Apache-2.0
"""Every number in the tables of README.md and docs/performance.md is that of the row in bench/results/ it names."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/performance.md")
NAMES = ["operation", "case", "contestant"]
UNITS = {"": 1, "%": 0.01, "ms": 1e-3, "s": 1, "MiB": 1, "GiB": 1024}

Row = dict[str, Any]
ROWS: list[Row] = [
    row
    for path in sorted((ROOT / "bench" / "results").glob("*.json"))
    for row in json.loads(path.read_text()).get("rows", [])
]
# column → its value for a row and the row's baseline
VALUES: dict[str, Callable[[Row, Row], float | None]] = {
    "baseline": lambda row, baseline: baseline["seconds"],
    "ours": lambda row, baseline: row["seconds"],
    "times as fast": lambda row, baseline: baseline["seconds"] / row["seconds"],
    "of the floor": lambda row, baseline: row["floor_share"],
    "memory": lambda row, baseline: row["peak_mib"],
    "baseline's memory": lambda row, baseline: baseline["peak_mib"],
}


def tables(name: str) -> Iterator[list[list[str]]]:
    """The tables of a document: lines of cells, the header first, without the line under it."""
    for table in re.findall(r"(?:^\|.*\|\n)+", (ROOT / name).read_text(), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        yield [lines[0], *lines[2:]]


LINES = [
    pytest.param(dict(zip(table[0], line, strict=True)), id=f"{name}: {', '.join(line[:3])}")
    for name in DOCUMENTS
    for table in tables(name)
    if table[0][:3] == NAMES
    for line in table[1:]
]


def find(**names: Any) -> Row:
    found = [row for row in ROWS if all(row[name] == value for name, value in names.items())]
    assert len(found) == 1, f"bench/results/ has {len(found)} rows of {names}, not one"
    return found[0]


def says(text: str, value: float | None) -> bool:
    """Whether a cell is this value, rounded to the digits that it has."""
    if value is None or text == "–":
        return value is None and text == "–"
    number, _, unit = text.partition(" ")
    half_a_digit = 0.5 * 10.0 ** -len(number.partition(".")[2])
    return abs(float(number) - value / UNITS[unit]) <= half_a_digit * 1.0001


@pytest.mark.parametrize("cells", LINES)
def test_numbers_are_those_of_the_row(cells: dict[str, str]) -> None:
    own = {name: cells[name] for name in (*NAMES, "device", "machine") if name in cells}
    row = find(**{"device": "cpu"} | own)
    same = {name: row[name] for name in ("operation", "case", "device", "machine", "threads")}
    baseline = find(contestant=row["baseline"], **same)
    wrong = [
        name
        for name, text in cells.items()
        if not (says(text, VALUES[name](row, baseline)) if name in VALUES else text == row[name])
    ]
    assert wrong == [], "python bench/result_tables.py writes the rows' numbers"


def test_both_documents_give_results() -> None:
    assert {str(line.id).partition(":")[0] for line in LINES} == set(DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_other_tables_have_no_measurements(name: str) -> None:
    for table in tables(name):
        if table[0][:3] != NAMES:
            text = re.sub(r"`[^`]*`", "", "\n".join(" ".join(line) for line in table))
            assert re.search(r"\d ?(?:%|ms|s|dB|times|bpp)\b|\d\.\d", text) is None, text


def test_a_wrong_number_is_noticed() -> None:
    assert says("2.34", 2.3443)
    assert not says("2.35", 2.3443)
    assert says("73 %", 0.7301)
    assert not says("0.73 s", 0.7361)
    assert says("1.88 GiB", 1929.4)
    assert not says("–", 1.0)


def test_the_program_writes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    result_tables = importlib.import_module("result_tables")
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        assert result_tables.rewritten(text, result_tables.read_rows()) == text
        spoiled = re.sub(r"\| \d\.\d\d \|", "| 0.00 |", text)
        assert spoiled != text
        assert result_tables.rewritten(spoiled, result_tables.read_rows()) == text
    wanted = [row for row in ROWS if row["contestant"] != row["baseline"]]
    for row in wanted:
        line = f"| {row['operation']} | {row['case']} | {row['contestant']} | {row['device']} | {row['machine']} |"
        header = "| operation | case | contestant | device | machine | times as fast |\n|---|---|---|---|---|---|\n"
        made = result_tables.rewritten(f"{header}{line} ? |\n", ROWS).splitlines()[-1]
        baseline = find(contestant=row["baseline"], **{n: row[n] for n in ("operation", "case", "device", "machine")})
        assert says(made.split("|")[-2].strip(), baseline["seconds"] / row["seconds"])


def test_what_is_shown_is_still_measured() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "bench").glob("bench_*.py"))
    operations = {str(line.values[0]["operation"]) for line in LINES}  # type: ignore[index, call-overload]
    assert [name for name in operations if f'"{name}"' not in sources] == []
