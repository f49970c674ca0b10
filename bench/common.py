# SPDX-License-Identifier: Apache-2.0
"""What the kernels' benchmarks share: time, peak extra memory, this machine's floor, and where results are kept."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

RESULTS = Path(__file__).resolve().parent / "results"
MIB = 2**20

Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What an operation cannot do without: bytes read and written once each, and floating-point operations."""

    bytes: int
    flops: int

    def floor(self, device: torch.device) -> float:
        """Seconds that this machine needs for it at least: at its own speed of copying and of matrix products."""
        copy, product = speeds(device.type)
        return max(self.bytes / copy, self.flops / product)


@dataclass(frozen=True)
class Row:
    """One measurement of one contestant."""

    case: str
    contestant: str
    seconds: float  # median
    spread: float  # half the distance between the quartiles, seconds
    peak_mib: float | None  # memory beyond the inputs, the result included; None where it cannot be told
    floor_share: float  # floor / seconds


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def durations(call: Call, device: torch.device, rounds: int) -> list[float]:
    """Seconds of each of `rounds` calls, after two that do not count."""
    for _ in range(2):
        call()
    found = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return found


def peak_memory(call: Call, device: torch.device) -> float | None:
    """MiB that one call takes at most beyond what is taken now; None on a CPU whose system does not tell.

    On a CPU it is resident memory of the whole process: nothing else may be running in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        taken = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - taken) / MIB
    if sys.platform != "linux":
        return None
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def peak_elsewhere(script: str, case: str, contestant: str) -> float | None:
    """peak_memory of a contestant's third call in a process of its own: `script --peak CASE CONTESTANT` prints it.

    There every large block goes back to the system when it is freed; else those of earlier calls would hide what
    a call takes.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, script, "--peak", case, contestant]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = run.stdout.split()[-1]
    return None if found == "None" else float(found)


def _resident(name: str) -> float:
    match = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None, f"/proc/self/status has no {name}"
    return int(match[1]) / 1024


@functools.cache
def speeds(device_type: str) -> tuple[float, float]:
    """Bytes a second that a copy of 256 MiB reads and writes; operations a second of a float32 matrix product."""
    device = torch.device(device_type)
    source = torch.ones(64 * MIB, device=device)
    target = torch.empty_like(source)
    seconds = min(durations(lambda: target.copy_(source), device, 5))
    size = 8192 if device_type == "cuda" else 1024
    a = torch.ones(size, size, device=device)
    product_seconds = min(durations(lambda: a @ a, device, 5))
    return 2 * source.numel() * 4 / seconds, 2 * size**3 / product_seconds


def measure(
    case: str,
    contestant: str,
    call: Call,
    work: Work,
    device: torch.device,
    rounds: int = 20,
    script: str | None = None,
) -> Row:
    """Time and memory of one contestant; `script`: the benchmark's file, if it has the option --peak."""
    found = sorted(durations(call, device, rounds))
    if device.type == "cuda" or script is None:
        peak = peak_memory(call, device)
    else:
        peak = peak_elsewhere(script, case, contestant)
    middle = median(found)
    spread = (found[3 * len(found) // 4] - found[len(found) // 4]) / 2
    return Row(case, contestant, middle, spread, peak, work.floor(device) / middle)


def machine(device: torch.device) -> str:
    """Name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


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


def show(rows: list[Row], device: torch.device) -> None:
    """Print a table; × is a contestant's speed against that of its case's plain twin."""
    print(f"{machine(device)}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, commit {commit()}")
    twin = {row.case: row.seconds for row in rows if row.contestant == "twin"}
    for row in rows:
        peak = "        –" if row.peak_mib is None else f"{row.peak_mib:9.1f}"
        ratio = f"{twin[row.case] / row.seconds:6.1f}×" if row.case in twin else ""
        print(
            f"{row.case:42} {row.contestant:14} {row.seconds * 1e3:9.2f} ±{row.spread * 1e3:6.2f} ms {ratio:>8} "
            f"{peak} MiB {row.floor_share:7.1%} of the floor's speed"
        )


def keep(rows: list[Row], stem: str, device: torch.device) -> Path:
    """Write rows to results/<stem>.<machine>.json."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", machine(device)).strip("-")
    path = RESULTS / f"{stem}.{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "rows": [vars(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


class Case(Protocol):
    """One size to measure at."""

    def work(self) -> Work: ...


def time_case(benchmark: Any, call: Call, script: str, case: str, contestant: str, device: torch.device) -> None:
    """One row of pytest-benchmark's table, with the peak of memory beside it."""

    def synchronised() -> None:
        call()
        synchronise(device)

    synchronised()
    benchmark.extra_info["peak MiB"] = (
        peak_memory(call, device) if device.type == "cuda" else peak_elsewhere(script, case, contestant)
    )
    benchmark.pedantic(synchronised, rounds=5, warmup_rounds=1)


def run(
    stem: str,
    cases: Mapping[str, Case],
    contestants: Sequence[str],
    call_of: Callable[[Any, str], Call],
    device: torch.device,
    script: str,
    rounds: int,
) -> None:
    """The program of a benchmark file: prints its table; --write keeps it; --peak is what `peak_elsewhere` asks for."""
    parser = argparse.ArgumentParser(description=f"Measure {stem.replace('_', ' ')}.")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"calls of each contestant (default: {rounds})")
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results/")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTESTANT"), help="print MiB that one call takes")
    chosen = parser.parse_args()
    if chosen.peak:
        call = call_of(cases[chosen.peak[0]], chosen.peak[1])
        call()
        call()
        print(peak_memory(call, device))
        return
    rows = [
        measure(name, contestant, call_of(case, contestant), case.work(), device, chosen.rounds, script)
        for name, case in cases.items()
        for contestant in contestants
    ]
    show(rows, device)
    if chosen.write:
        print(f"written to {keep(rows, stem, device)}")
