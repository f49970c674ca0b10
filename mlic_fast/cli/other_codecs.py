# SPDX-License-Identifier: Apache-2.0
"""Codecs that `mlic-fast eval` measures beside the models of this package: classical, external, and CompressAI's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.cli import common

if TYPE_CHECKING:
    from mlic_fast.evaluate.dataset import Contestant
    from mlic_fast.limits import Limits

# More than any curve has points are a slip of the finger.
_LARGEST_QUALITY = 1000


@dataclass
class CompressaiModel:
    """What the command line says of one --compressai."""

    title: str
    name: str
    checkpoints: list[Path] = field(default_factory=list)
    qualities: list[int] | None = None
    pad_to: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--classical, --external, --compressai and what belongs to it, --fast-coder."""
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
    group.add_argument(
        "--compressai",
        metavar="[NAME=]MODEL",
        action=_Model,
        default=[],
        help="a model of CompressAI's registry, or MODULE:CLASS; may be given several times",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        action=_of_model(_add_checkpoint),
        help="weights for the --compressai before it, a point each; without any, CompressAI's own, which it downloads",
    )
    group.add_argument(
        "--quality",
        metavar="N[,N…]",
        action=_of_model(_set_qualities),
        help="which of CompressAI's own weights, or which steps of a model of variable rate (default: all)",
    )
    group.add_argument(
        "--pad-to",
        metavar="N",
        action=_of_model(_set_padding),
        help="pad the pictures of the --compressai before it to multiples of N (default: what it says, else 64)",
    )
    group.add_argument(
        "--fast-coder", action="store_true", help="CompressAI's models make and read the same strings with our coder"
    )


def are_asked_for(options: argparse.Namespace) -> bool:
    """Whether there is any."""
    return bool(options.classical or options.external or options.compressai)


def groups_of(
    options: argparse.Namespace, folder_of: Callable[[str], Path], limits: Limits
) -> tuple[list[list[Contestant]], dict[str, str], list[str]]:
    """A group of contestants for each curve, settings by the curves' names, and remarks.

    folder_of: where compressed files of a curve go. Raises CodecError, CurveError, CheckpointError, OSError.
    """
    if options.fast_coder and not options.compressai:
        raise common.CommandError("--fast-coder is for the models of --compressai")
    groups: list[list[Contestant]] = []
    settings: dict[str, str] = {}
    remarks: list[str] = []
    # recipes and names first: reading weights takes longer
    external = _external(options, folder_of, limits, settings)
    classical = _classical(options, settings, remarks)
    groups = [*_compressai(options, folder_of, settings), *external, *classical]
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


def _compressai(
    options: argparse.Namespace, folder_of: Callable[[str], Path], settings: dict[str, str]
) -> list[list[Contestant]]:
    if not options.compressai:
        return []
    from mlic_fast.compute.device import resolve_device
    from mlic_fast.evaluate import compressai_models

    device = resolve_device(options.device)
    points = [compressai_models.points_of(one.name, one.checkpoints, one.qualities) for one in options.compressai]
    for one in options.compressai:
        settings[one.title] = compressai_models.settings(one.name, options.fast_coder)
        if not one.checkpoints:
            told = f"{one.title}: CompressAI's own weights; what torch's cache lacks is downloaded"
            print(f"mlic-fast eval: {told}", file=sys.stderr)
    return [
        compressai_models.contestants_of(
            one.title,
            own,
            folder_of(one.title),
            device=device,
            fast_coder=options.fast_coder,
            pad_to=one.pad_to,
        )
        for one, own in zip(options.compressai, points, strict=True)
    ]


def _named(text: str) -> tuple[str | None, str]:
    """Name and rest of NAME=REST; None for a rest alone."""
    name, equals, rest = text.partition("=")
    if not equals:
        return None, text
    if not name.strip() or not name.isprintable():
        raise common.CommandError(f"{name!r} is no name for a curve")
    return name, rest


class _Model(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            title, name = _named(str(values))
        except common.CommandError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        # a new list: the default is everybody's
        namespace.compressai = [*namespace.compressai, CompressaiModel(title or name, name)]


def _of_model(use: Callable[[CompressaiModel, str], None]) -> type[argparse.Action]:
    """The action of an option that belongs to the --compressai before it."""

    class OfModel(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: str | Sequence[Any] | None,
            option_string: str | None = None,
        ) -> None:
            if not namespace.compressai:
                raise argparse.ArgumentError(self, "it belongs to a --compressai, which has to stand before it")
            try:
                use(namespace.compressai[-1], str(values))
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentError(self, str(error)) from None

    return OfModel


def _add_checkpoint(model: CompressaiModel, text: str) -> None:
    model.checkpoints.append(Path(text))


def _set_qualities(model: CompressaiModel, text: str) -> None:
    number = common.positive_of(_LARGEST_QUALITY)
    model.qualities = [0 if part == "0" else number(part) for part in text.split(",")]


def _set_padding(model: CompressaiModel, text: str) -> None:
    from mlic_fast.evaluate.compressai_models import LARGEST_PAD

    model.pad_to = common.positive_of(LARGEST_PAD)(text)
