# SPDX-License-Identifier: Apache-2.0
"""The loop: steps, epochs, validation and checkpoints, from the beginning or from where it was interrupted."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import torch

from mlic_fast.compute.device import memory_errors
from mlic_fast.errors import NoPicturesError, NotAModelError, RecipeError, TrainingError
from mlic_fast.limits import Limits
from mlic_fast.model import CodecModel, class_of
from mlic_fast.output import try_file, try_folder, write_whole
from mlic_fast.pictures.folder import find_pictures
from mlic_fast.train import logs, state
from mlic_fast.train.distributed import processes
from mlic_fast.train.feed import Feed
from mlic_fast.train.recipe import Recipe, recipe_from
from mlic_fast.train.state import Progress
from mlic_fast.train.step import StepResult, Trainee
from mlic_fast.train.validation import Validation, Validator
from mlic_fast.wrappers import unwrapped

RECIPE = "recipe.json"
_LOCK = ".lock"

# An epoch of few pictures has so many batches, so that validation does not take most of the time.
_LEAST_BATCHES = 1000
_TIMED_WARMUP = 100


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    best: smallest validation loss. stopped_by: the signal that stopped it early, or None. first: whether this is the
    process that is to report it.
    """

    steps: int
    seconds: float
    skipped: int
    best: float
    stopped_by: int | None
    first: bool


def train(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    device: str | None = None,
    validation: str | os.PathLike[str] | None = None,
    resume: bool = False,
    initial: CodecModel | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """Train a model, alone or as one of the processes that torchrun started.

    data: folder of pictures, which may have folders in it. output: folder of the run, made if missing: `last.pth.tar`,
        `best.pth.tar`, `steps.csv`, `validation.csv`, `recipe.json`, `tensorboard/`.
    settings: what differs from the published recipe, or, when resuming, from the one that was used: names and values as
        in `recipe.Recipe`. device: None: CUDA if there is any.
    validation: folder of pictures to validate on; None: some of `data`.
    resume: go on from `last.pth.tar` in `output`. initial: a model to begin with, which is trained itself.
    limits: what a picture may measure, others are left out with a warning; None: Pillow's pixel limit.

    SIGINT and SIGTERM end the training after the step that is going on, with its state saved; a second one ends it at
    once, unless there are several processes, to which torchrun passes signals on.
    Raises RecipeError, NoPicturesError, CheckpointError, DeviceError, OSError; TrainingError if losses stay not finite.
    """
    data, output = Path(data), Path(output)
    pictures = check_data(data, validation)
    initial = None if initial is None else _trainable(initial)
    checkpoint = state.read(output / state.LAST) if resume else None
    used = state.recipe_of(checkpoint) if checkpoint else Recipe()
    recipe = recipe_from(settings or {}, used)
    if checkpoint and (initial is not None or recipe.model != used.model):
        raise RecipeError("a training is resumed with its own model: leave what is about models and other weights out")
    if initial is not None and initial.config != recipe.model:
        raise RecipeError(f"the model to begin with is {initial.config}, the recipe's {recipe.model}: make them equal")
    with (
        processes(device, recipe.batch) as group,
        memory_errors("training (--micro-batch makes the parts smaller)"),
        _taken(output, resume) if group.first else nullcontext(),
    ):
        trainee = Trainee(initial or _new_model(recipe), recipe, group)
        progress = state.restore(checkpoint, trainee) if checkpoint else Progress()
        del checkpoint  # as large as model and optimisers together
        folder = None if validation is None else Path(validation)
        return _Run(data, pictures, output, trainee, progress, folder, Limits.of(limits)).go()


def _trainable(model: Any) -> CodecModel:
    """The model in this one, which may be a wrapper of PyTorch's around it. Raises NotAModelError."""
    inner = unwrapped(model)
    if not isinstance(inner, CodecModel):
        raise NotAModelError(f"training takes a model of mlic_fast, not {type(inner).__name__}: load(…) gives one")
    return inner


def check_data(data: str | os.PathLike[str], validation: str | os.PathLike[str] | None) -> int:
    """How many pictures there are to train on. Raises NoPicturesError for a folder without any, OSError."""
    if validation is not None and not find_pictures(validation):
        raise NoPicturesError(f"{validation} holds no pictures: name a folder with pictures to validate on")
    count = len(find_pictures(data))
    if not count:
        raise NoPicturesError(f"{data} holds no pictures: name a folder with pictures to train on")
    return count


def try_run(folder: str | os.PathLike[str]) -> None:
    """Make a run's folder if it is missing. Raises OSError if one of its files could not be written at the end."""
    try_folder(folder)
    for name in (RECIPE, _LOCK, state.LAST, state.BEST, logs.STEPS, logs.VALIDATIONS):
        try_file(Path(folder, name))


class _Run:
    def __init__(
        self,
        data: Path,
        pictures: int,
        output: Path,
        trainee: Trainee,
        progress: Progress,
        validation: Path | None,
        limits: Limits,
    ) -> None:
        self.trainee, self.progress, self.recipe, self.group = trainee, progress, trainee.recipe, trainee.group
        self.output = output
        recipe = self.recipe
        patches = recipe.epoch_patches or max(pictures, _LEAST_BATCHES * recipe.batch)
        self.epoch_steps = max(1, patches // recipe.batch)
        self.steps = recipe.epochs * self.epoch_steps if recipe.epochs else recipe.steps
        self.warmup = recipe.warmup_steps
        if self.warmup < 0:
            self.warmup = min(self.epoch_steps, _TIMED_WARMUP if recipe.time_limit else self.steps // 10)
        self.feed = Feed(data, recipe, self.group, self.epoch_steps, limits)
        self.validator = Validator(recipe, data, validation, self.group, limits) if recipe.validation_images else None
        self.logs = logs.Logs(output, progress.step, recipe.rates is not None) if self.group.first else None
        self.line = logs.Line(self.group.first)
        self.saved_at = time.monotonic()
        self.shown = progress.step, progress.seconds
        if self.logs and self.logs.missing:
            self.line.say(self.logs.missing)
        if validation is None and self.validator:
            self.line.say("no --validation: the validation pictures are training pictures")

    def go(self) -> Outcome:
        progress, recipe = self.progress, self.recipe
        before, start = progress.seconds, time.monotonic()
        if self.group.first:
            write_whole(self.output / RECIPE, (json.dumps(recipe.as_dict(), indent=2) + "\n").encode())
        batches = self.feed.batches(progress.step)
        window = time.monotonic()
        stopped = False
        try:
            with _signals(insist=self.group.world > 1) as caught:
                while not stopped and not self._finished():
                    patches = next(batches)
                    rate = recipe.learning_rate(progress.step, self._fraction(), self.warmup)
                    result = self.trainee.step(progress.step, patches, rate)
                    progress.step += 1
                    own = [before + time.monotonic() - start if self.group.first else 0.0, float(bool(caught))]
                    # one clock for all, on which the schedule may depend; and whoever is asked to stop stops all
                    progress.seconds, stops = self.group.summed(own)
                    stopped = stops > 0
                    self._count(result)
                    if progress.step % recipe.log_steps == 0:
                        self._log(rate, patches.shape[-1], time.monotonic() - window)
                        window = time.monotonic()
                    if self.line.due():
                        self._show(result, rate)
                    if progress.step % self.epoch_steps == 0 or self._finished():
                        self._end_epoch()
                    elif self._save_is_due() or stopped:
                        self._save(state.LAST)
                if stopped:
                    self.line.say(f"stopped at step {progress.step:,}; --resume goes on")
        finally:
            batches.close()
            if self.logs:
                self.logs.close()
        by = (caught[0] if caught else signal.SIGTERM) if stopped else None
        return Outcome(progress.step, progress.seconds, progress.skipped, progress.best, by, self.group.first)

    def _finished(self) -> bool:
        if self.recipe.time_limit:
            return self.progress.seconds >= self.recipe.time_limit * 60
        return self.progress.step >= self.steps

    def _fraction(self) -> float:
        if self.recipe.time_limit:
            return self.progress.seconds / (self.recipe.time_limit * 60)
        return self.progress.step / self.steps

    def _count(self, result: StepResult) -> None:
        progress = self.progress
        if not result.taken:
            progress.skipped += 1
            progress.bad += 1
            self.line.say(
                f"step {progress.step:,} skipped: loss {result.loss:g}, gradient norm {result.norm:g} "
                f"({progress.skipped:,} skipped so far)"
            )
            if progress.bad >= self.recipe.max_bad_steps:
                raise TrainingError(
                    f"loss or gradient were not finite in {progress.bad} steps in a row, up to step {progress.step:,}: "
                    f"{self.output / state.LAST}, if it is there, is from before; try a smaller learning rate"
                )
            return
        progress.bad = 0
        for name in ("loss", "distortion", "y_bpp", "z_bpp", "aux_loss", "norm"):
            progress.sums[name] = progress.sums.get(name, 0.0) + getattr(result, name)
        progress.sums["count"] = progress.sums.get("count", 0.0) + 1

    def _log(self, rate: float, side: int, seconds: float) -> None:
        sums, progress = self.progress.sums, self.progress
        progress.sums = {}
        if self.logs is None or not sums:
            return
        mean = {name: value / sums["count"] for name, value in sums.items()}
        self.logs.steps(
            {
                "step": progress.step,
                "epoch": (progress.step - 1) // self.epoch_steps,
                "seconds": round(progress.seconds, 1),
                "learning_rate": rate,
                "patch": side,
                **{name: mean[name] for name in ("loss", "distortion", "y_bpp", "z_bpp", "aux_loss")},
                "psnr": _psnr(mean["distortion"]) if self.recipe.metric == "mse" else None,
                "bpp": mean["y_bpp"] + mean["z_bpp"],
                "gradient_norm": mean["norm"],
                "skipped": progress.skipped,
                "images_per_second": round(self.recipe.log_steps * self.recipe.batch / max(seconds, 1e-9), 2),
            }
        )

    def _show(self, result: StepResult, rate: float) -> None:
        progress, fraction = self.progress, self._fraction()
        # since the line before
        steps, seconds = progress.step - self.shown[0], progress.seconds - self.shown[1]
        self.shown = progress.step, progress.seconds
        quality = f"1−MS-SSIM {result.distortion:.4f}"
        if self.recipe.metric == "mse":
            quality = f"PSNR {_psnr(result.distortion):.2f} dB"
        left = progress.seconds * (1 - fraction) / fraction if fraction else math.inf
        self.line.show(
            f"step {progress.step:,}{'' if self.recipe.time_limit else f'/{self.steps:,}'}  "
            f"epoch {(progress.step - 1) // self.epoch_steps}  loss {result.loss:.4f}  "
            f"bpp {result.y_bpp + result.z_bpp:.4f} (z {result.z_bpp:.4f})  {quality}  lr {rate:.1e}  "
            f"{steps * self.recipe.batch / max(seconds, 1e-9):.1f} images/s  "
            f"{progress.skipped} skipped  {logs.duration(left)} left"
        )

    def _end_epoch(self) -> None:
        """Validate if it is time to, and save."""
        epoch = (self.progress.step - 1) // self.epoch_steps
        names = [state.LAST]
        if self.validator and ((epoch + 1) % self.recipe.validation_epochs == 0 or self._finished()):
            found = self.validator.run(self.trainee)
            loss = fmean(one.weight * one.loss for one in found)
            if loss < self.progress.best:
                self.progress.best = loss
                names.append(state.BEST)
            for one in found:
                self._report(epoch, one, best=state.BEST in names)
        self._save(*names)

    def _report(self, epoch: int, found: Validation, best: bool) -> None:
        progress = self.progress
        row = {"step": progress.step, "epoch": epoch, "seconds": round(progress.seconds, 1), "best": int(best)}
        for name in ("loss", "bpp", "psnr", "ms_ssim", "images", "failed"):
            row[name] = getattr(found, name)
        rate = ""
        if found.lmbda is not None:
            row |= {"lambda": found.lmbda, "quantisation_step": found.step}
            rate = f" at λ = {found.lmbda:.4g}"
        if self.logs is not None:
            self.logs.validation(row)
        if found.failed:
            self.line.say(f"{found.failed} validation pictures could not be coded: {found.reason}")
        similarity = "" if found.ms_ssim is None else f", MS-SSIM {found.ms_ssim:.4f}"
        self.line.say(
            f"epoch {epoch}, step {progress.step:,}: {found.images} pictures coded{rate} in {found.seconds:.0f} s: "
            f"loss {found.loss:.4f}, {found.bpp:.4f} bpp, {found.psnr:.2f} dB{similarity}{' (best)' if best else ''}"
        )

    def _save_is_due(self) -> bool:
        return self.group.first and time.monotonic() - self.saved_at >= self.recipe.checkpoint_minutes * 60

    def _save(self, *names: str) -> None:
        if not self.group.first:
            return
        epoch = (self.progress.step - 1) // self.epoch_steps
        checkpoint = state.checkpoint_of(self.trainee, self.progress, epoch)
        for name in names:
            state.save(checkpoint, self.output / name)
        self.saved_at = time.monotonic()


def _psnr(mse: float) -> float:
    return -10 * math.log10(mse) if mse > 0 else math.inf


def _new_model(recipe: Recipe) -> CodecModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return class_of(recipe.model.architecture)(recipe.model)


@contextmanager
def _taken(folder: Path, resume: bool) -> Iterator[None]:
    """Have the run's folder for this process alone. Raises RecipeError if another has it, or there is a run in it."""
    try_run(folder)
    if not resume and any((folder / name).exists() for name in (state.LAST, state.BEST)):
        raise RecipeError(f"{folder} holds a training already: --resume goes on with it; else name another folder")
    with (folder / _LOCK).open("w") as file:
        with suppress(ImportError):  # Windows has no such locks
            import fcntl

            try:
                # gone with the process, whatever becomes of it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecipeError(f"another process is training in {folder}: name another folder") from None
        yield


@contextmanager
def _signals(insist: bool) -> Iterator[list[int]]:
    """The signals that asked the training to stop, while the block runs; a second one is held back if `insist`."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if not insist:
            for one, handler in before.items():
                signal.signal(one, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
