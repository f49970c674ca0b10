# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast`: finds the subcommand, runs it, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import mlic_fast
from mlic_fast import errors
from mlic_fast.cli import common, streams

# subcommand → (module of mlic_fast.cli, line of help)
_COMMANDS = {
    "encode": ("encode", "compress a picture to a file"),
    "decode": ("decode", "decompress a file to a picture"),
    "info": ("info", "say what a compressed file holds"),
    "demo": ("demo", "compress and decompress a bundled photograph"),
    "convert": ("convert", "convert a checkpoint to the native format"),
    "calibrate": ("calibrate", "measure how large the guard's δ has to be for a model"),
    "prepare-data": ("prepare_data", "make training pictures of a folder of pictures"),
    "eval": ("eval", "measure models and classical codecs over a folder of pictures"),
    "plot": ("plot", "draw rate-distortion curves and compare them"),
    "compare": ("compare", "measure pictures against a reference, and make a page to look at them"),
    "train": ("train", "train a model on a folder of pictures"),
    "models": ("models", "list the weights at hand"),
    "doctor": ("doctor", "say what is installed, and what is used and why"),
}

# The first that fits counts.
_EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (common.CommandError, 2),
    (common.SomeFailedError, 1),
    (errors.RecipeError, 2),
    (errors.TrainingError, 10),
    (errors.CurveError, 2),
    (errors.CodecError, 2),
    (errors.TargetError, 9),
    (errors.WrongWeightsError, 6),
    (errors.CheckpointError, 6),
    (errors.LimitError, 8),
    (errors.BitstreamError, 5),
    (errors.ImageError, 4),
    (errors.NonFiniteError, 6),
    (errors.DeviceError, 7),
    (errors.BackendError, 7),
    (MemoryError, 7),
    (errors.MlicError, 6),  # configuration and coding tables come from weights
    (OSError, 3),
)

# No narrower are lines of help made, as argparse has it.
_NARROWEST = 11

_EPILOG = """exit codes:
  0  done
  1  some files of a folder failed, which are listed; with a traceback: an error of the
     program itself, please report it
  2  the command line is wrong
  3  a file is missing, or cannot be read or written
  4  not a picture, or of a kind that is not supported; a folder without any
  5  not a compressed file, or a damaged one
  6  wrong, missing or damaged weights
  7  no such device, or out of memory
  8  larger than the limit
  9  no model at hand reaches the target
  10  a training that cannot go on
  130  interrupted (143: terminated)
"""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line's parser; command: the only one whose options are wanted, as far as it is known."""
    parser = argparse.ArgumentParser(
        prog="mlic-fast",
        description="Learned image compression with MLIC++ and its family. "
        "`mlic-fast COMMAND --help` tells all about a command.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mlic-fast {mlic_fast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, summary) in _COMMANDS.items():
        if command in _COMMANDS and command != name:
            commands.add_parser(name, help=summary)  # importing them all takes longer than `info` does
            continue
        module = importlib.import_module(f"mlic_fast.cli.{module_name}")
        one = commands.add_parser(
            name,
            help=summary,
            description=_wrapped(module.DESCRIPTION),
        )
        module.add_arguments(one)
        one.formatter_class = argparse.RawDescriptionHelpFormatter
        one.epilog = f"{module.EPILOG}\n{_EPILOG}"
        one.set_defaults(run=module.run)
    return parser


def _wrapped(text: str) -> str:
    """Paragraphs filled to the terminal's width, which argparse does for one only."""
    width = max(min(shutil.get_terminal_size().columns, 100) - 2, _NARROWEST)
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.strip().split("\n\n"))


def _let_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the caller has settled it or PyTorch is there already.

    They spin otherwise, and where other processes want the processors, keep them from the threads they wait for.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in streams.WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `arguments`: without the program's name; None: sys.argv's."""
    streams.prepare()
    _let_threads_sleep()
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        options = build_parser(given[0] if given else None).parse_args(given)
    except SystemExit:
        with contextlib.suppress(OSError):  # help that nobody reads to its end
            streams.finish()
        raise
    if any("\0" in word for word in given):
        print("mlic-fast: no name and no number has a NUL character in it", file=sys.stderr)
        return 2
    before = warnings.formatwarning
    warnings.formatwarning = partial(_warning, options.command, before)
    try:
        return _run(options)
    finally:
        warnings.formatwarning = before


def _warning(
    command: str,
    usual: Callable[..., str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning as a line of the command's; what other packages warn of is shown as ever."""
    if not Path(filename).is_relative_to(Path(mlic_fast.__file__).parent):
        return usual(message, category, filename, lineno, line)
    return f"mlic-fast {command}: warning: {common.printable(str(message))}\n"


def _run(options: argparse.Namespace) -> int:
    # CompressAI still calls what PyTorch deprecates; that is no news to whoever encodes a picture.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    # A terminated process cleans up after itself as an interrupted one does.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        options.run(options)
        streams.finish()
    except KeyboardInterrupt:
        print("mlic-fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone
        with contextlib.suppress(OSError):
            streams.finish()
        return 3
    except (errors.MlicError, OSError, MemoryError) as error:
        with contextlib.suppress(OSError):
            streams.finish()
        print(f"mlic-fast {options.command}: {common.message(error)}", file=sys.stderr)
        if isinstance(error, common.ChildError):
            return error.code
        return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))
    return 0
