# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast info`: what a compressed file holds, told without decoding it (and without torch and NumPy)."""

from __future__ import annotations

import argparse
from typing import Any

from mlic_fast.bitstream import container, official, sniff
from mlic_fast.cli import common
from mlic_fast.entropy import guard
from mlic_fast.pictures import description

DESCRIPTION = "Say what an .mlic file, or one in the layout of the official test script, holds. Decodes nothing."

EPILOG = """What of its source it could not keep (further pictures, deeper samples, inks) is not in the file:
`mlic-fast encode` says so in a warning and in the "notes" of its --json, and --strict refuses it.

examples:
  mlic-fast info photo.mlic
  mlic-fast info photo.mlic --json | python -m json.tool
  mlic-fast info - < photo.mlic
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("input", metavar="IN.mlic", help="compressed file; - for standard input")
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Describe; raises this package's errors and OSError."""
    data = common.read_input(options.input)
    facts = official.describe(data) if sniff(data) == "official" else _describe(data)
    common.report(options, facts, "\n".join(_lines(facts)))


def _describe(data: bytes) -> dict[str, Any]:
    """What the container says, with what is inside the guard and the metadata."""
    facts = container.describe(data)
    mlic = container.read(data, container.NO_LIMITS)
    if mlic.guard is not None:
        facts["guard"].update(guard.describe(mlic.guard))
    for about, chunk in zip(facts["metadata"], mlic.metadata, strict=True):
        about.update(description.describe(chunk.kind, chunk.data))
    return facts


def _lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in facts.items():
        label = f"{indent}{name.replace('_', ' ')}:"
        if isinstance(value, dict):
            lines += [label, *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [label, *(line for item in value for line in _item(item, indent))] if value else []
        else:
            lines.append(f"{label} {_text(value)}")
    return lines


def _item(facts: dict[str, Any], indent: str) -> list[str]:
    first, *others = _lines(facts, indent + "    ")
    return [f"{indent}  - {first.lstrip()}", *others]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
