# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast train`: train a model on a folder of pictures, by the published recipe or another."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from mlic_fast.cli import common
from mlic_fast.contexts import FAMILY, Variant

if TYPE_CHECKING:
    from mlic_fast.model import CodecModel

DESCRIPTION = (
    "Train a model on the pictures in a folder and all that are in it. Without options this is the published recipe: "
    "the full-size model, Adam at 1e-4, 32 patches of 256×256 a step and of 512×512 after 1.2 million steps. RUN "
    "gets last.pth.tar and best.pth.tar, which every command takes with --model, and the log: steps.csv, "
    "validation.csv and, if TensorBoard is installed, its events.\n\n"
    "Ctrl-C (or SIGTERM) ends the training after the step that is going on and saves it; --resume goes on exactly "
    "there. Under torchrun the processes share each batch, one GPU each."
)

EPILOG = """Settings come from the defaults, then the run's own (with --resume), then --recipe, then the
flags; a later one wins. A recipe is a TOML file, or a JSON file (.json) such as RUN/recipe.json,
with the settings' names as in docs/training.md.

examples:
  mlic-fast train photos --lambda 0.0130 --metric mse -o run
  mlic-fast train photos -o run --resume
  mlic-fast train photos -o fast --config small --precision bf16 --patches 128 --time-limit 240
  torchrun --nproc-per-node 4 --no-python mlic-fast train photos -o run --validation kodak
"""

# Setting, what stands for its value, its type, group and help.
_SETTINGS: tuple[tuple[str, str, Callable[[str], Any], str, str], ...] = (
    ("metric", "mse|ms-ssim", str, "training", "distortion in the loss (default: mse)"),
    ("steps", "N", int, "training", "optimiser steps in all (default: 2,000,000)"),
    ("epochs", "N", int, "training", "the same in epochs"),
    ("time_limit", "MINUTES", float, "training", "train for so long; the schedule follows the clock"),
    ("seed", "N", int, "training", "of initial weights, patches and noise (default: 0)"),
    ("batch", "N", int, "data", "patches a step, of all processes together (default: 32)"),
    ("micro_batch", "N", int, "data", "patches that a process computes at once (default: its whole part)"),
    ("epoch_patches", "N", int, "data", "patches an epoch (default: as many as pictures, at least 1,000 batches)"),
    ("optimizer", "adam|muon|soap", str, "optimisers", "muon needs PyTorch 2.9, soap pytorch_optimizer (default adam)"),
    ("lr", "RATE", float, "optimisers", "learning rate (default: 1e-4)"),
    ("aux_lr", "RATE", float, "optimisers", "that of the entropy bottleneck's quantiles (default: 1e-3)"),
    ("clip", "NORM", float, "optimisers", "largest norm of the gradient; 0: any (default: 1.0)"),
    ("warmup_steps", "N", int, "optimisers", "steps of linear rise (default: the first epoch, at most a tenth of all)"),
    ("schedule", "constant|steps|cosine", str, "optimisers", "course of the learning rate (default: constant)"),
    ("lr_final", "RATE", float, "optimisers", "where the cosine ends (default: 1e-6)"),
    ("ema", "DECAY", float, "optimisers", "use a moving average of the weights, 0.999 for instance (default: none)"),
    ("max_bad_steps", "N", int, "optimisers", "steps in a row that are not finite before it gives up (default: 20)"),
    ("precision", "float32|bf16", str, "speed", "of the transforms; all else stays in float32 (default: float32)"),
    ("channels_last", "auto|yes|no", str, "speed", "layout of the transforms (default: auto, yes on CUDA only)"),
    ("validation_images", "N", int, "validation and log", "pictures to code at each validation; 0: none (default: 8)"),
    ("validation_epochs", "N", int, "validation and log", "epochs between validations (default: 1)"),
    ("checkpoint_minutes", "MINUTES", float, "validation and log", "between saves within an epoch (default: 10)"),
    ("log_steps", "N", int, "validation and log", "steps that a line of steps.csv sums up (default: 50)"),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    parser.add_argument("data", metavar="DATA", help="folder of pictures; prepare-data makes a good one")
    parser.add_argument("-o", "--output", metavar="RUN", required=True, help="folder of the run, made if missing")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/last.pth.tar")
    parser.add_argument(
        "--start-from", metavar="NAME|FILE", help="begin with the weights of a model: official or native"
    )
    parser.add_argument("--recipe", metavar="FILE", help="settings from a TOML or JSON file")
    groups: dict[str, Any] = {}
    for title in ("model", "training", "data", "optimisers", "speed", "validation and log"):
        groups[title] = parser.add_argument_group(title)
    groups["model"].add_argument(
        "--config",
        metavar="small|full|FILE",
        help="size: a name, or a TOML or JSON file with N, M, slice_num (default: full)",
    )
    groups["model"].add_argument(
        "--architecture", choices=tuple(FAMILY), help="member of the family (default: as FILE says, else mlicpp)"
    )
    groups["model"].add_argument(
        "--variant", choices=get_args(Variant), help="old: of MLIC++; guided: of MLICv2 (default: new)"
    )
    groups["training"].add_argument(
        "--lambda",
        dest="lmbda",
        type=_lambda,
        metavar="λ[-λ]",
        help="weight of the distortion, or a range, 0.0018-0.0483 for instance: one model for all rates "
        "(default: 0.0130)",
    )
    for name, metavar, kind, title, text in _SETTINGS:
        choices = metavar.split("|") if "|" in metavar else None
        flag = "--" + name.replace("_", "-")
        if choices:
            groups[title].add_argument(flag, choices=choices, help=text)
        else:
            groups[title].add_argument(flag, type=_number(kind), metavar=metavar, help=text)
    groups["data"].add_argument(
        "--patches",
        type=_stages,
        metavar="SIDE[,SIDE@STEP…]",
        help="side of the patches, and of those from a step on (default: 256,512@1200000)",
    )
    groups["optimisers"].add_argument(
        "--milestones",
        type=_milestones,
        metavar="RATE@STEP,…",
        help="learning rates from steps on; implies --schedule steps",
    )
    groups["speed"].add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile for the transforms"
    )
    groups["validation and log"].add_argument(
        "--validation", metavar="FOLDER", help="pictures to validate on (default: some of DATA)"
    )
    common.add_device_arguments(parser)
    common.add_json_argument(parser)
    common.add_limit_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Train; raises this package's errors and OSError."""
    if options.resume and (options.start_from or options.config or options.variant or options.architecture):
        raise common.CommandError("--resume goes on with the run's own model: leave the options about models out")
    from mlic_fast.train.loop import train

    common.set_threads(options)
    settings, initial = _settings(options)
    with common.limits(options) as limits:
        outcome = train(
            options.data,
            options.output,
            settings,
            device=options.device,
            validation=options.validation,
            resume=options.resume,
            initial=initial,
            limits=limits,
        )
    best = common.finite(outcome.best)
    facts = {
        "output": options.output,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "skipped": outcome.skipped,
        "best_loss": best,
        "finished": outcome.stopped_by is None,
    }
    if outcome.first:
        text = f"{options.output}: {outcome.steps:,} steps in {outcome.seconds:.0f} s, {outcome.skipped:,} skipped"
        common.report(options, facts, text + ("" if best is None else f", best validation loss {best:.4f}"))
    if outcome.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if outcome.stopped_by is not None:
        sys.exit(128 + outcome.stopped_by)


def _settings(options: argparse.Namespace) -> tuple[dict[str, Any], CodecModel | None]:
    """What differs from the defaults, or from the run's own settings, and the model to begin with if one is named."""
    from mlic_fast.train.recipe import SIZES, model_config, read_settings

    settings = {} if options.recipe is None else read_settings(options.recipe)
    flags = {
        name: getattr(options, name) for name in ("patches", "milestones", "compile", *(row[0] for row in _SETTINGS))
    }
    flags["lambda"] = options.lmbda
    settings |= {name: value for name, value in flags.items() if value is not None}
    if options.milestones is not None and options.schedule is None:
        settings["schedule"] = "steps"
    elif options.schedule in ("constant", "cosine"):
        settings["milestones"] = ()
    if options.config is not None:
        settings["model"] = options.config if options.config in SIZES else read_settings(options.config)
    initial = None
    if options.start_from is not None:
        from mlic_fast import load
        from mlic_fast.registry import resolve
        from mlic_fast.train.loop import check_data, try_run

        path = resolve(options.start_from)
        # what would go wrong at the end goes wrong before weights are read
        check_data(options.data, options.validation)
        try_run(options.output)
        initial = load(path, architecture=options.architecture)
        settings.setdefault("model", initial.config)
    if options.variant is not None or options.architecture is not None:
        model = model_config(settings.get("model", "full"), options.config or "the recipe", options.architecture)
        settings["model"] = model if options.variant is None else dataclasses.replace(model, variant=options.variant)
    return settings, initial


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        try:
            value = kind(text) if len(text) < 40 else None
        except ValueError:
            value = None
        if value is None or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number")
        return value

    return number


def _lambda(text: str) -> Any:
    """ "λ" → λ, "λ-λ" → [λ, λ]; the minus of an exponent is none of the range's."""
    ends = [_number(float)(part) for part in re.split(r"(?<=[0-9.])-", text)]
    if len(ends) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a range such as 0.0018-0.0483")
    return ends if len(ends) == 2 else ends[0]


def _pairs(text: str, value: Callable[[str], Any], first: str | None) -> tuple[tuple[int, Any], ...]:
    """ "V,V@STEP" → ((step of the first, V), (STEP, V))."""
    pairs: list[tuple[int, Any]] = []
    for part in text.split(","):
        what, at, step = part.partition("@")
        if not at and first is not None and not pairs:
            step = first
        pairs.append((_number(int)(step), _number(value)(what)))
    return tuple(pairs)


def _stages(text: str) -> tuple[tuple[int, int], ...]:
    return _pairs(text, int, "0")


def _milestones(text: str) -> tuple[tuple[int, float], ...]:
    return _pairs(text, float, None)
