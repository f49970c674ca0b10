# SPDX-License-Identifier: Apache-2.0
"""What several subcommands share: "-" for standard input and output, model options, progress, reports."""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlic_fast.errors import LimitError, MlicError
from mlic_fast.limits import MAX_SIDE, Limits
from mlic_fast.output import try_file, write_whole

if TYPE_CHECKING:
    from mlic_fast.evaluate.metrics import Quality

STANDARD_STREAM = "-"

# More threads than any machine has are a slip of the finger.
MAX_THREADS = 4096

# A compressed file larger than this is none: the default pixel limit at 24 bits a pixel is 270 MB.
MAX_INPUT_BYTES = 2**30

# Work that takes longer shows that it is going on.
_QUIET_SECONDS = 1.0


class CommandError(MlicError, ValueError):
    """The command line asks for something that must not be done."""


class SomeFailedError(MlicError, RuntimeError):
    """Some files of a folder could not be made; the others were."""


class ChildError(MlicError, RuntimeError):
    """A process that was started for part of the work failed; code: its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --device and --threads."""
    parser.add_argument("--model", metavar="NAME|FILE", help="weights: a model's name (`mlic-fast models`) or a path")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --threads."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default: CUDA if there is any)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: PyTorch's)")


def add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    """--max-pixels and --max-side."""
    group = parser.add_argument_group(
        "limits", "What is larger is refused before memory is taken for it (exit code 8)."
    )
    group.add_argument(
        "--max-pixels", type=_count, metavar="N", help="width × height; 0: no limit (default: Pillow's, 89,478,485)"
    )
    group.add_argument(
        "--max-side",
        type=positive_of(2**31),
        default=MAX_SIDE,
        metavar="N",
        help="width, height (default: %(default)s)",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="report as one JSON object")


@contextmanager
def limits(options: argparse.Namespace) -> Iterator[Limits]:
    """What --max-pixels and --max-side say. Within the block, Pillow's own limit is the same."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    if options.max_pixels is not None:
        # Pillow would refuse twice its own limit, whatever ours is.
        Image.MAX_IMAGE_PIXELS = options.max_pixels or None
    try:
        yield Limits(side=options.max_side)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def set_threads(options: argparse.Namespace) -> None:
    """Do what --threads says."""
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)


def read_input(name: str) -> bytes:
    """Contents of the file of that name, or of standard input for "-". Raises OSError, LimitError."""
    if name == STANDARD_STREAM:
        if sys.stdin is None:
            raise OSError("standard input is closed: name a file instead of -")
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            data = file.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise LimitError(f"{name} is larger than {MAX_INPUT_BYTES:,} bytes: no compressed picture is")
    return data


def try_output(name: str | None) -> None:
    """Raise now what `write_output` would raise when the work is done. Nothing for None."""
    if name is None:
        return
    if name != STANDARD_STREAM:
        try_file(name)
        return
    if sys.stdout is None:
        raise OSError("standard output is closed: name a file with -o")
    if sys.stdout.isatty():
        raise CommandError("binary data is not written to a terminal: redirect it, or name a file with -o")


def write_output(name: str, data: bytes) -> None:
    """Write a file whole or not at all, or to standard output for "-". Raises OSError."""
    if name != STANDARD_STREAM:
        write_whole(name, data)
        return
    try_output(name)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def report(options: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    """Print the facts as JSON or as text; on standard error where standard output carries the data."""
    output = getattr(options, "output", None)
    # to a pipe or device the data may go where the report would
    carries_data = output == STANDARD_STREAM or (output and not _is_plain(Path(output)))
    stream = sys.stderr if carries_data else sys.stdout
    try:
        print(json.dumps(facts) if options.json else printable(text), file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def warn(options: argparse.Namespace, text: str) -> None:
    """Say on standard error what is to be known beside the report."""
    if sys.stderr is not None:
        # in one piece, since several threads may have something to say
        sys.stderr.write(f"mlic-fast {options.command}: warning: {printable(text)}\n")


def _is_plain(path: Path) -> bool:
    return path.is_file() or path.is_dir() or not path.exists()


def refuse_same_file(source: str, target: str) -> None:
    """Raise CommandError if the output would replace the input."""
    if STANDARD_STREAM in (source, target) or not (Path(source).is_file() and Path(target).is_file()):
        return
    if Path(source).samefile(target):
        raise CommandError(f"{target} is the input itself, which would be lost: name another output")


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show on standard error, if it is a terminal, that something long is going on, and for how long."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    done = threading.Event()

    def show() -> None:
        if done.wait(_QUIET_SECONDS):
            return
        with tqdm(bar_format="{desc} … {elapsed}", desc=what, leave=False) as bar:
            while not done.wait(0.2):
                bar.refresh()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def positive_number(text: str) -> float:
    """An option's value that has to be a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite positive number")
    return value


def positive_of(largest: int) -> Callable[[str], int]:
    """For argparse: a whole number from 1 to `largest`."""

    def number(text: str) -> int:
        # not longer than what could be in range: int() takes its time over many digits
        digits = text.lstrip("0")
        value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= len(str(largest)) else 0
        if not 1 <= value <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {largest}")
        return value

    return number


# Of threads, or of pictures at once.
positive = positive_of(MAX_THREADS)


def _count(text: str) -> int:
    return 0 if text == "0" else positive_of(2**48)(text)


def message(error: BaseException) -> str:
    """What an exception says to people."""
    return printable(_said(error))


def printable(text: str) -> str:
    """The text without what would steer a terminal: files' names and contents may be anybody's."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _said(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller picture"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (MlicError, OSError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (an error of the program itself: please report it)"


def finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it (the PSNR of equal pictures is infinite)."""
    return value if value not in (float("inf"), float("-inf")) else None


def similarity_text(ms_ssim: float | None) -> str:
    """MS-SSIM as people read it."""
    return "not defined for so small a picture" if ms_ssim is None else f"{ms_ssim:.4f}"


def quality_lines(quality: Quality) -> list[str]:
    """Lines of a report about a decoded picture."""
    return [
        f"PSNR {quality.psnr:.2f} dB, MS-SSIM {similarity_text(quality.ms_ssim)}",
        f"as the official test computes them (truncated): PSNR {quality.psnr_official:.2f} dB, "
        f"MS-SSIM {similarity_text(quality.ms_ssim_official)}",
    ]
