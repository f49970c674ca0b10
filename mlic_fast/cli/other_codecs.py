# SPDX-License-Identifier: Apache-2.0
"""Codecs that `mlic-fast eval` measures beside the models of this package: classical and external."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlic_fast.cli import common

if TYPE_CHECKING:
    from mlic_fast.evaluate.dataset import Contestant
    from mlic_fast.limits import Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--classical and --external."""
    group = parser.add_argument_group("other codecs")
    group.add_argument(
        "--classical",
        metavar="CODECS",
        help="all, or some of jpeg, jpeg2000, webp, avif, jpegxl, separated by commas",
    )
    group.add_argument(
        "--external",
        metavar="[NAME=]RECIPE.toml",
        action="append",
        default=[],
        help="programs that encode and decode, called as a recipe says; may be given several times",
    )


def are_asked_for(options: argparse.Namespace) -> bool:
    """Whether there is any."""
    return bool(options.classical or options.external)


def groups_of(
    options: argparse.Namespace, folder_of: Callable[[str], Path], limits: Limits
) -> tuple[list[list[Contestant]], dict[str, str], list[str]]:
    """A group of contestants for each curve, settings by the curves' names, and remarks.

    folder_of: where compressed files of a curve go. Raises CodecError, CurveError, OSError.
    """
    settings: dict[str, str] = {}
    remarks: list[str] = []
    groups = [*_external(options, folder_of, limits, settings), *_classical(options, settings, remarks)]
    for remark in remarks:
        print(f"mlic-fast eval: {remark}", file=sys.stderr)
    return groups, settings, remarks


def _classical(options: argparse.Namespace, settings: dict[str, str], remarks: list[str]) -> list[list[Contestant]]:
    from mlic_fast.evaluate.classical import chosen
    from mlic_fast.evaluate.dataset import of_codec

    if not options.classical:
        return []
    codecs, left_out = chosen(options.classical)
    remarks += left_out
    settings |= {codec.title: codec.settings for codec in codecs}
    return [of_codec(codec) for codec in codecs]


def _external(
    options: argparse.Namespace, folder_of: Callable[[str], Path], limits: Limits, settings: dict[str, str]
) -> list[list[Contestant]]:
    if not options.external:
        return []
    from mlic_fast.evaluate.external import contestants_of
    from mlic_fast.evaluate.recipes import read_recipe

    codecs = []
    for text in options.external:
        title, path = _named(text)
        codecs.append(read_recipe(path, title))
    settings |= {codec.title: codec.settings for codec in codecs}
    keep = options.keep is not None
    return [contestants_of(codec, folder_of(codec.title) if keep else None, limits) for codec in codecs]


def _named(text: str) -> tuple[str | None, str]:
    """Name and rest of NAME=REST; None for a rest alone."""
    name, equals, rest = text.partition("=")
    if not equals:
        return None, text
    if not name.strip() or not name.isprintable():
        raise common.CommandError(f"{name!r} is no name for a curve")
    return name, rest
