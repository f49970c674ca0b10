# SPDX-License-Identifier: Apache-2.0
"""Writes the numbers of bench/results/ into the tables of README.md and docs/performance.md.

    python bench/result_tables.py

A line of such a table begins with operation, case and contestant, and may name device and machine. The rest is written
anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/performance.md")
HEADER = "| operation | case | contestant |"
_NAMES = ("operation", "case", "contestant", "device", "machine")

Row = dict[str, Any]


def read_rows(folder: Path = ROOT / "bench" / "results") -> list[Row]:
    """All rows that are kept."""
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text()).get("rows", [])]


def find(rows: list[Row], **names: Any) -> Row:
    """The one row with these values. Raises LookupError unless there is one."""
    found = [row for row in rows if all(row[name] == value for name, value in names.items())]
    if len(found) != 1:
        raise LookupError(f"bench/results/ has {len(found)} rows of {names}, not one")
    return found[0]


def row_of(rows: list[Row], cells: dict[str, str]) -> Row:
    """The row that a line names: column → cell. Without a column for the device it is the CPU's."""
    names = {name: cells[name] for name in _NAMES if name in cells}
    return find(rows, **{"device": "cpu"} | names)


def baseline_of(rows: list[Row], row: Row) -> Row:
    """The row that a row is compared with."""
    same = {name: row[name] for name in ("operation", "case", "device", "machine", "threads")}
    return find(rows, contestant=row["baseline"], **same)


def cell(row: Row, baseline: Row, column: str) -> str:
    """What a cell of this column says."""
    if column == "baseline":
        return _time(baseline["seconds"])
    if column == "ours":
        return _time(row["seconds"])
    if column == "times as fast":
        ratio = baseline["seconds"] / row["seconds"]
        return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
    if column == "of the floor":
        return "–" if row["floor_share"] is None else f"{100 * row['floor_share']:.0f} %"
    if column == "memory":
        return _size(row["peak_mib"])
    if column == "baseline's memory":
        return _size(baseline["peak_mib"])
    return str(row[column])


def rewritten(text: str, rows: list[Row]) -> str:
    """A document with the rows' numbers in its tables."""
    columns: list[str] = []
    lines = []
    for line in text.splitlines():
        if line.startswith(HEADER):
            columns = _cells(line)
        elif not line.startswith("|"):
            columns = []
        elif columns and not line.startswith("|---"):
            row = row_of(rows, dict(zip(columns, _cells(line), strict=True)))
            baseline = baseline_of(rows, row)
            line = "| " + " | ".join(cell(row, baseline, column) for column in columns) + " |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _cells(line: str) -> list[str]:
    return [part.strip() for part in line.strip("|").split("|")]


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def _size(mib: float | None) -> str:
    if mib is None:
        return "–"
    if mib >= 1000:
        return f"{mib / 1024:.2f} GiB"
    return f"{mib:.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB"


if __name__ == "__main__":
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(rewritten(path.read_text(), read_rows()))
