# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast info`: what a compressed file holds, told without decoding it (and without torch)."""

from __future__ import annotations

import argparse

from mlic_fast.bitstream import container, official, sniff
from mlic_fast.cli import common

DESCRIPTION = "Say what an .mlic file, or one in the layout of the official test script, holds. Decodes nothing."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("input", metavar="IN.mlic", help="compressed file; - for standard input")
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Describe; raises this package's errors and OSError."""
    data = common.read_input(options.input)
    facts = official.describe(data) if sniff(data) == "official" else container.describe(data)
    common.report(options, facts, "\n".join(_lines(facts)))


def _lines(facts: dict[str, object], indent: str = "") -> list[str]:
    lines = []
    for name, value in facts.items():
        label = f"{indent}{name.replace('_', ' ')}:"
        if isinstance(value, dict):
            lines += [label, *_lines(value, indent + "  ")]
        elif isinstance(value, float):
            lines.append(f"{label} {value:.4f}")
        elif isinstance(value, list):
            lines += [label, *(line for item in value for line in _lines(item, indent + "  "))] if value else []
        else:
            lines.append(f"{label} {value:,}" if isinstance(value, int) else f"{label} {value}")
    return lines
