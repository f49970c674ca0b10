# SPDX-License-Identifier: Apache-2.0
"""Rows of measurements: the table that is printed of them, and the files in bench/results/ that keep them."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mlic_fast.compute import backend
from mlic_fast.compute.private_torch import has_amx, has_avx512_bf16
from mlic_fast.errors import BackendError

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One measurement of one contestant. `machine` to `commit` say what it was taken on."""

    operation: str
    case: str
    device: str  # "cpu" or "cuda"
    contestant: str
    baseline: str  # the contestant of the same case that the others are compared with
    seconds: float  # median
    spread: float  # half the distance between the quartiles, seconds
    rounds: int
    clock: str  # "wall", or "CPU time of the thread"
    floor_share: float | None  # floor / seconds; None where there is no floor
    gflop: dict[str, float] | None  # executed, by dtype; None where they were not counted
    gflop_per_second: dict[str, float] | None  # of a large convolution in the same run, by dtype
    peak_mib: float | None  # memory that a call takes at most; None where it was not measured
    kept_mib: float | None  # of that, what stays taken for later calls; None where it was not measured
    machine: str
    instructions: str
    threads: int
    torch: str
    commit: str


def environment(device: torch.device) -> dict[str, Any]:
    """The fields of a row that say what it was taken on."""
    return {
        "device": device.type,
        "machine": machine(device),
        "instructions": instructions(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


@cache
def machine(device: torch.device) -> str:
    """Name of the GPU, or of the processor with its widest vectors: one name may stand for several generations."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    widest = {"AVX512": "AVX-512", "DEFAULT": "no vectors"}
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()} ({widest.get(capability, capability)})"


def _processor() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


@cache
def instructions(device: torch.device) -> str:
    """What PyTorch and the C++ kernels compute with: the GPU's compute capability, or sets of instructions."""
    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    found = [f"PyTorch {torch.backends.cpu.get_cpu_capability()}"]
    probes = {"AVX512-BF16": has_avx512_bf16, "AMX": has_amx}
    found += [name for name, probe in probes.items() if probe()]
    try:
        found.append(f"kernels {backend.cpu_kernels.isa()}" if backend.cpu_kernels else "no kernels")
    except BackendError as error:
        found.append(f"no kernels ({error})")
    return ", ".join(found)


@cache
def commit() -> str:
    """The checkout's commit, or "unknown" outside of one."""
    root = Path(__file__).resolve().parent.parent
    try:
        run = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    changes = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


_COLUMNS = (
    "operation",
    "size",
    "device",
    "contestant",
    "baseline",
    "ours",
    "ratio",
    "of the floor",
    "peak memory",
    "of it stays",
)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines: what the rows were taken on, then one line for each row that is no baseline."""
    lines = [
        f"{device}: {name} ({isa}), {threads} threads, PyTorch {version}, commit {at}"
        for device, name, isa, threads, version, at in dict.fromkeys(
            (row.device, row.machine, row.instructions, row.threads, row.torch, row.commit) for row in rows
        )
    ]
    speeds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for dtype, speed in (row.gflop_per_second or {}).items():
            speeds.setdefault((row.device, dtype), []).append(speed)
    for (device, dtype), found in speeds.items():
        lines.append(f"{device}: {median(found):.0f} GFLOP/s in a large convolution, {dtype}")
    baselines = {(row.operation, row.case, row.device): row for row in rows if row.contestant == row.baseline}
    cells: list[tuple[str, ...]] = [_COLUMNS]
    for row in rows:
        if row.contestant != row.baseline:
            cells.append(_cells(row, baselines.get((row.operation, row.case, row.device))))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        left = [text.ljust(width) for text, width in zip(line[:4], widths[:4], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[4:], widths[4:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return lines


def _cells(row: Row, baseline: Row | None) -> tuple[str, ...]:
    peak = "–" if row.peak_mib is None else _size(row.peak_mib)
    if baseline is not None and baseline.peak_mib is not None:
        peak += f" / {_size(baseline.peak_mib)}"
    return (
        row.operation,
        row.case,
        row.device,
        row.contestant,
        "–" if baseline is None else _time(baseline),
        _time(row),
        "–" if baseline is None else f"{baseline.seconds / row.seconds:.2f}×",
        "–" if row.floor_share is None else f"{row.floor_share:.1%}",
        peak,
        "–" if row.kept_mib is None else _size(row.kept_mib),
    )


def _time(row: Row) -> str:
    return f"{row.seconds * 1e3:.2f} ±{row.spread * 1e3:.2f} ms"


def _size(mib: float) -> str:
    return f"{mib:.1f} MiB" if mib < 1000 else f"{mib / 1024:.2f} GiB"


def keep(rows: Iterable[Row], stem: str, folder: Path = RESULTS) -> list[Path]:
    """Put rows into `folder`/<stem>.<machine>.json, in the place of earlier ones of the same name.

    Returns the files.
    """
    written = []
    rows = list(rows)
    for name in dict.fromkeys(row.machine for row in rows):
        path = folder / f"{stem}.{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.json"
        found = json.loads(path.read_text())["rows"] if path.exists() else []
        new = [asdict(row) for row in rows if row.machine == name]
        replaced = {_identity(row) for row in new}
        merged = [row for row in found if _identity(row) not in replaced] + new
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rows": merged}, indent=1, ensure_ascii=False) + "\n")
        written.append(path)
    return written


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("operation", "case", "device", "contestant", "threads"))
