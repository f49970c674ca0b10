# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training, in the official structure, and going on from one exactly where it was written.

`state_dict` holds the weights to be used, coding tables included, so that every reader of official
checkpoints takes the file. With a moving average that is the average, and `trained_weights` holds
the parameters that training goes on with. Nothing random is saved: patches and noise depend on the seed and
the step only.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mlic_fast.checkpoint import read_checkpoint
from mlic_fast.errors import CheckpointError
from mlic_fast.output import open_whole
from mlic_fast.train.recipe import Recipe, recipe_from
from mlic_fast.train.step import Trainee

LAST, BEST = "last.pth.tar", "best.pth.tar"
_FORMAT = 1


@dataclass
class Progress:
    """How far a training is.

    step: steps done, skipped ones included. seconds: spent so far. best: smallest validation loss.
    skipped: steps, in all; bad: in a row until now. sums: of the log's unfinished line.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    skipped: int = 0
    bad: int = 0
    sums: dict[str, float] = field(default_factory=dict)


def checkpoint_of(trainee: Trainee, progress: Progress, epoch: int) -> dict[str, Any]:
    """All of a training's state, in tensors and plain values. Computes the coding tables anew."""
    model, average = trainee.model, trainee.average
    with average.in_place() if average else nullcontext():
        model.update(force=True)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "state_dict": weights,
        "loss": progress.best,
        **{name: optimizer.state_dict() for name, optimizer in trainee.optimizers.items()},
        "lr_scheduler": {"last_epoch": epoch, "_last_lr": [trainee.optimizers["optimizer"].param_groups[0]["lr"]]},
        "mlic_fast": {"format": _FORMAT, "recipe": trainee.recipe.as_dict(), "progress": dict(vars(progress))},
    }
    if average:
        checkpoint["trained_weights"] = {
            name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()
        }
        checkpoint["mlic_fast"]["average_steps"] = average.steps
    if rates := trainee.recipe.rates:
        # what maps λ to a quantisation step: Δ = (λ / λ₀)^(-1/2)
        checkpoint["mlic_fast"]["rates"] = {"lambda": [rates.low, rates.high], "lambda_of_step_1": rates.middle}
    return checkpoint


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all. Raises OSError."""
    with open_whole(path) as file:
        torch.save(checkpoint, file)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint that `save` wrote. Raises FileNotFoundError, CheckpointError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path} to go on from: start without --resume")
    # validates the weights; nothing in the file is run by either reading
    read_checkpoint(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    own = checkpoint.get("mlic_fast")
    if not isinstance(own, dict) or own.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} was not written by this trainer, or by another release of it: "
            "to begin a new training with its weights, use --start-from"
        )
    return dict(checkpoint)


def recipe_of(checkpoint: dict[str, Any]) -> Recipe:
    """The recipe that the checkpoint was trained with so far."""
    return recipe_from(checkpoint["mlic_fast"]["recipe"], source="the checkpoint")


def restore(checkpoint: dict[str, Any], trainee: Trainee) -> Progress:
    """Put the checkpoint's state into the trainee; returns how far it was. Raises CheckpointError."""
    try:
        trainee.model.load_state_dict(checkpoint["state_dict"])
        own, average = checkpoint["mlic_fast"], trainee.average
        if average:
            average.values = [parameter.detach().clone() for parameter in trainee.model.parameters()]
            average.steps = own.get("average_steps", 0)
        with torch.no_grad():
            for name, value in checkpoint.get("trained_weights", {}).items():
                trainee.model.get_parameter(name).copy_(value)
        for name, optimizer in trainee.optimizers.items():
            optimizer.load_state_dict(checkpoint[name])
        return Progress(**own["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint does not fit the training: {error}") from error
