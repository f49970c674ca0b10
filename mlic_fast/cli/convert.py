# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast convert`: any checkpoint to the native safetensors form."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from mlic_fast.cli import common
from mlic_fast.contexts import FAMILY
from mlic_fast.output import try_file

DESCRIPTION = (
    "Convert a checkpoint (official, old or new, or CompressAI's own family) to the native form: safetensors with "
    "architecture, configuration, variant, lambda, metric and fingerprint, which loads faster and runs no code."
)

EPILOG = """Pickles are read without running code in them; what they hold beside tensors and plain values is
refused.

examples:
  mlic-fast convert checkpoint.pth.tar mlicpp-0.0130.safetensors --lambda 0.0130 --metric mse
  mlic-fast convert checkpoint.pth.tar small.safetensors --name mine --half
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("input", metavar="IN", help="checkpoint")
    parser.add_argument("output", metavar="OUT.safetensors", help="native file to write")
    parser.add_argument("--name", help="name that files will say they were written with (default: from IN's name)")
    parser.add_argument(
        "--architecture",
        choices=tuple(FAMILY),
        help="whose weights they are (default: as IN says, or its tensors tell; mlicpp where they fit mlic+ too)",
    )
    parser.add_argument("--lambda", dest="lmbda", type=float, help="rate-distortion trade-off it was trained for")
    parser.add_argument("--metric", choices=("mse", "ms-ssim"), help="distortion it was trained for")
    parser.add_argument(
        "--half",
        action="store_true",
        help="store convolutions and linear layers in 16 bits: another model, half the size",
    )
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Convert; raises this package's errors and OSError."""
    from mlic_fast.checkpoint import convert

    common.refuse_same_file(options.input, options.output)
    try_file(options.output)
    with common.progress("converting"):
        done = convert(
            options.input,
            options.output,
            name=options.name,
            architecture=options.architecture,
            lmbda=options.lmbda,
            metric=options.metric,
            half=options.half,
        )
    source, written = done.source, done.written
    config = written.config
    facts: dict[str, Any] = {
        "input": options.input,
        "output": options.output,
        "name": written.name,
        "layout": source.layout,
        "taken": source.taken,
        "config": asdict(config),
        "lambda": written.lmbda,
        "metric": written.metric,
        "labels_guessed": done.labels_guessed,
        "tables": "saved" if source.tables_saved else "computed",
        "fingerprint": written.fingerprint.hex(),
    }
    told = source.taken not in ("", "all names")
    guessed = " (from the file's name)" if done.labels_guessed else ""
    text = "\n".join(
        [
            f"{options.output}: {written.name}, from {source.layout} names" + (f", {source.taken}" if told else ""),
            f"  {config.member.title}, N={config.N}, M={config.M}, {config.slice_num} slices, {config.variant} variant",
            f"  lambda {written.lmbda or 'unknown'}, metric {written.metric or 'unknown'}{guessed}",
            f"  coding tables: {facts['tables']}",
            f"  fingerprint {facts['fingerprint']}",
        ]
    )
    common.report(options, facts, text)
