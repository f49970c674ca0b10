# SPDX-License-Identifier: Apache-2.0
"""What a training leaves to look at: CSV files, TensorBoard events, and a line on standard error."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlic_fast.output import write_whole

STEPS, VALIDATIONS = "steps.csv", "validation.csv"
_TENSORBOARD = "tensorboard"

STEP_COLUMNS = (
    *("step", "epoch", "seconds", "learning_rate", "patch", "loss", "distortion", "psnr", "bpp", "y_bpp", "z_bpp"),
    *("aux_loss", "gradient_norm", "skipped", "images_per_second"),
)
VALIDATION_COLUMNS = ("step", "epoch", "seconds", "loss", "bpp", "psnr", "ms_ssim", "images", "failed", "best")
# one row for each of several λ
RATE_COLUMNS = (*VALIDATION_COLUMNS, "lambda", "quantisation_step")

# Where standard error is no terminal, a line this often.
_LINE_SECONDS = 60.0
_REDRAW_SECONDS = 0.2


class Table:
    """A CSV file that grows by a row at a time; rows after step `keep` are dropped at the beginning."""

    def __init__(self, path: Path, columns: tuple[str, ...], keep: int) -> None:
        self._path, self._columns = path, columns
        rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                # a row that a killed process wrote in part has no number there
                rows = [
                    row for row in csv.DictReader(file) if str(row.get("step")).isdigit() and int(row["step"]) <= keep
                ]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue().encode())

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row: values by column, missing ones empty."""
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, extrasaction="ignore").writerow(dict(row))


class Logs:
    """The log of one run, in its folder.

    keep: the step from which the run goes on; later rows are dropped. rates: validation is at several λ.
    """

    def __init__(self, folder: Path, keep: int, rates: bool = False) -> None:
        self._steps = Table(folder / STEPS, STEP_COLUMNS, keep)
        self._validations = Table(folder / VALIDATIONS, RATE_COLUMNS if rates else VALIDATION_COLUMNS, keep)
        self._events: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.missing: str | None = (
                "TensorBoard is not installed, so only CSV is logged: pip install 'mlic-fast[train]'"
            )
        else:
            self.missing = None
            self._events = SummaryWriter(str(folder / _TENSORBOARD), purge_step=keep + 1 if keep else None)  # type: ignore[no-untyped-call]

    def steps(self, row: Mapping[str, Any]) -> None:
        """Log a row of `STEP_COLUMNS`."""
        self._steps.add(row)
        self._event("train", row)

    def validation(self, row: Mapping[str, Any]) -> None:
        """Log a row of `VALIDATION_COLUMNS` or `RATE_COLUMNS`."""
        self._validations.add(row)
        self._event(f"validation at {row['lambda']:.4g}" if "lambda" in row else "validation", row)
        if self._events is not None:
            self._events.flush()

    def _event(self, group: str, row: Mapping[str, Any]) -> None:
        if self._events is None:
            return
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._events.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._events is not None:
            self._events.close()


class Line:
    """Says on standard error how far the training is: one line redrawn in a terminal, else a line a minute."""

    def __init__(self, speaks: bool = True) -> None:
        self._speaks = speaks and sys.stderr is not None
        self._redraws = self._speaks and sys.stderr.isatty()
        self._next = 0.0
        self._width = 0

    def due(self) -> bool:
        """Whether it is time for `show`."""
        return self._speaks and time.monotonic() >= self._next

    def show(self, text: str) -> None:
        """Show how far the training is."""
        self._next = time.monotonic() + (_REDRAW_SECONDS if self._redraws else _LINE_SECONDS)
        if self._redraws:
            _write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            _write(text + "\n")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._speaks:
            if self._width:
                _write("\r" + " " * self._width + "\r")
                self._width = 0
            _write(text + "\n")


def _write(text: str) -> None:
    """Messages get lost where standard error is full or closed; the training goes on."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """A time to come, for people."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 2880 else f"{minutes // 1440} days"
