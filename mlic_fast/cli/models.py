# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast models`: the weights at hand, and which of them rate control chooses among."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, get_args

from mlic_fast.cli import common, table
from mlic_fast.config import LossMetric
from mlic_fast.errors import TargetError
from mlic_fast.rate_control import ladder
from mlic_fast.registry import ENVIRONMENT, KnownWeights, available

DESCRIPTION = (
    "List the weights at hand: those that come with the package, and the files and folders named in "
    f"{ENVIRONMENT}. Says what cannot be read there, and why. Native files (see `mlic-fast convert`) are known by "
    "their headers; others are read as a whole, which takes a second or two each."
)

EPILOG = f"""columns:
  name         what --model takes, and what files say they were written with
  λ, metric    rate-distortion trade-off, and the distortion it was trained for
  shape        architecture, N, M, slices, variant of the network
  parameters   trained numbers
  bytes        of the weights file
  guard        largest difference in log-scale that the guard covers; – if not calibrated
  fingerprint  first 8 of 32 bytes, as in the header of .mlic files
  target       * for models that --target-bpp, --target-size and --target-psnr choose among
               if no model is named: those of one architecture, N, M and slices, and metric mse

examples:
  {ENVIRONMENT}=~/weights mlic-fast models
  mlic-fast models --json | python -m json.tool

environment:
  {ENVIRONMENT}  files and folders of weights, separated as in PATH
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """List; raises nothing of its own: what cannot be read is part of the report."""
    listing = available()
    models = sorted(listing.models, key=_order)
    ladders = {metric: _ladder(metric) for metric in get_args(LossMetric)}
    facts: dict[str, Any] = {
        "models": [_facts(model) for model in models],
        "ladders": {metric: [model.name for model in rungs] for metric, rungs in ladders.items()},
        "problems": [{"path": str(path), "problem": problem} for path, problem in listing.problems],
    }
    chosen = {model.path for model in ladders["mse"]}
    heads = ("name", "λ", "metric", "shape", "parameters", "bytes", "guard", "fingerprint", "target", "where")
    words = {"name", "metric", "shape", "fingerprint", "target", "where"}
    lines = table.lines(heads, [_row(model, model.path in chosen) for model in models], words)
    if listing.problems:
        # messages of a file's own begin with its path
        told = (text if str(path) in text else f"{path}: {text}" for path, text in listing.problems)
        lines += ["cannot be used:", *(f"  {text}" for text in told)]
    common.report(options, facts, "\n".join(lines))


def _order(model: KnownWeights) -> tuple[Any, ...]:
    """By metric, then by shape, then by λ: a ladder stands together."""
    c = model.config
    return model.metric or "~", c.N, c.M, c.slice_num, c.member.title, model.lmbda or 0, model.name


def _ladder(metric: LossMetric) -> tuple[KnownWeights, ...]:
    try:
        return ladder(metric=metric)
    except TargetError:  # there is none of that metric
        return ()


def _facts(model: KnownWeights) -> dict[str, Any]:
    return {
        "name": model.name,
        "lambda": model.lmbda,
        "metric": model.metric,
        "config": asdict(model.config),
        "parameters": model.parameters,
        "bytes": model.size,
        "guard_delta": model.guard_delta,
        "fingerprint": model.fingerprint.hex(),
        "origin": model.origin,
        "path": str(model.path),
    }


def _row(model: KnownWeights, chosen: bool) -> tuple[str, ...]:
    c = model.config
    return (
        model.name,
        table.NOTHING if model.lmbda is None else f"{model.lmbda:g}",
        model.metric or table.NOTHING,
        f"{c.member.title} {c.N}/{c.M}/{c.slice_num} {c.variant}",
        f"{model.parameters:,}",
        f"{model.size:,}",
        table.NOTHING if model.guard_delta is None else f"{model.guard_delta:g}",
        model.fingerprint.hex()[:16],
        "*" if chosen else "",
        f"{model.origin}: {model.path}",
    )
