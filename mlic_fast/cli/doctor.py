# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast doctor`: versions, devices, weights, and which backends are in use and why."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import mlic_fast
from mlic_fast.cli import common
from mlic_fast.cli.streams import WAITING
from mlic_fast.errors import BackendError

DESCRIPTION = "Say what is installed, which devices and weights are there, and which backends are in use and why."

EPILOG = """examples:
  mlic-fast doctor
  mlic-fast doctor --json > report.json      # to go with a bug report

environment:
  MLIC_FAST_MODELS   files and folders of weights, separated as in PATH
  MLIC_FAST_BACKEND  torch, cpu, triton or auto (default: auto)
  MLIC_FAST_ENGINE   off: do without the compiled engine
  MLIC_FAST_ISA      generic, avx2 or avx512: the widest instructions that C++ kernels may use
"""

_PACKAGES = ("torch", "compressai", "numpy", "pillow", "safetensors", "triton", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subcommand."""
    common.add_json_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Look around and report."""
    facts: dict[str, Any] = {
        "mlic_fast": mlic_fast.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "extensions": {name: _extension(name) for name in ("_range_coder", "_cpu_kernels")},
        "devices": _guarded(_devices),
        "threads": _guarded(_threads),
        "backend": _guarded(_backend),
        "models": _guarded(_models),
    }
    lines = [f"mlic-fast {facts['mlic_fast']}, Python {facts['python']} on {facts['system']}"]
    for title in ("packages", "extensions", "devices", "threads", "backend", "models"):
        lines += [f"{title}:", *(f"  {name}: {value}" for name, value in facts[title].items())]
    common.report(options, facts, "\n".join(lines))


def _guarded(look: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `look` finds, or why it could not: an installation that is broken is what this command is for."""
    try:
        return look()
    except Exception as error:
        return {"cannot be told": f"{type(error).__name__}: {error}"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extension(name: str) -> str:
    try:
        module = importlib.import_module(f"mlic_fast.{name}")
    except (ImportError, OSError) as error:
        return f"missing ({error}): install with `pip install .` and a C++ compiler"
    return str(module.__file__)


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{os.cpu_count()} processors, PyTorch uses {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        built = torch.version.cuda or torch.version.hip
        devices["cuda"] = "none that PyTorch can use" if built else "none: this PyTorch is built without CUDA"
    return devices


def _threads() -> dict[str, str]:
    """How OpenMP's threads wait: spinning ones keep each other from processors that other processes want too."""
    told = [f"{name}={os.environ[name]}" for name in WAITING if name in os.environ]
    return {
        "waiting": ", ".join(told) or "OpenMP's default, which spins",
        "in Python": "set OMP_WAIT_POLICY=passive before PyTorch is imported where other processes want the processors",
    }


def _backend() -> dict[str, str]:
    import torch

    from mlic_fast.compute import backend

    facts: dict[str, str] = {}
    for name, why_not in backend.report().items():
        facts[name] = "can run here" if why_not is None else f"cannot run: {why_not}"
    asked_for = os.environ.get(backend.VARIABLE)
    reason = f"{backend.VARIABLE}={asked_for}" if asked_for else "chosen by itself"
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        try:
            chosen = backend.choose(torch.empty(1, device=device))
        except BackendError as error:
            facts[f"in use on {device}"] = f"none: {error}"
        else:
            facts[f"in use on {device}"] = f"{chosen} ({reason})"
    return facts


def _models() -> dict[str, str]:
    from mlic_fast.registry import available

    listing = available()
    models = {
        model.name: f"{model.fingerprint.hex()[:16]}, {model.config.member.title}, N={model.config.N}, "
        f"M={model.config.M}, {model.config.slice_num} slices, {model.config.variant}, {model.origin}: {model.path}"
        for model in listing.models
    }
    return models | {str(path): f"not usable: {problem}" for path, problem in listing.problems}
