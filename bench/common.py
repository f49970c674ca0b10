# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: contestants in turns, their time and memory, this machine's floor, the program."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import rows
import torch
from rows import Row

MIB = 2**20

Call = Callable[[], object]

# Calls shorter than this get one that does not count before those that do: others had their turn in between.
_SHORT = 0.1  # seconds


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
class Settings:
    """How thoroughly to measure."""

    smoke: bool = False  # tiny sizes and two rounds, to see that everything runs
    budget: float = 900  # seconds that one case may take
    sizes: tuple[tuple[int, int], ...] = ()  # width, height of the pictures of the whole model; empty: the usual ones
    rounds: int | None = None  # None: the benchmark's own number
    peaks: bool = True  # whether to measure memory


class CannotRun(Exception):  # noqa: N818 - no error: says why a case is left out
    """This machine, or the time that was allowed, is too small for the case."""


@dataclass
class Benchmark:
    """Contestants that do the same at several sizes.

    operation: name in the table. cases, smoke: size's name → what `call_of` takes; a case has a method `work`.
    contestants: the baseline among them. script: the file, which has a `main`.
    call_of: (case, contestant, device) → one call of the contestant on inputs of its own.
    """

    operation: str
    cases: Mapping[str, Any]
    smoke: Mapping[str, Any]
    contestants: Sequence[str]
    call_of: Callable[[Any, str, torch.device], Call]
    script: str
    ours: str = "operation"
    baseline: str = "twin"
    rounds: int = 20
    on: Sequence[str] = ("cpu", "cuda")
    warm_calls: int = 2  # that do not count
    clock: Callable[[], float] = time.perf_counter

    @property
    def stem(self) -> str:
        """Name of the files with results."""
        return Path(self.script).stem.removeprefix("bench_")

    def names(self, settings: Settings) -> list[str]:
        """The cases to measure."""
        return list(self.smoke if settings.smoke else self.cases)

    def of(self, name: str, settings: Settings) -> list[str]:
        """Contestants of a case. What has to be compiled first is left out of a smoke test."""
        return [c for c in self.contestants if not (settings.smoke and c.startswith("compiled"))]

    def label(self, name: str) -> tuple[str, str]:
        """Operation and size of a case, for the table."""
        return self.operation, name

    def prepare(self, name: str, device: torch.device, settings: Settings) -> Mapping[str, Call]:
        """Contestant → call, checked where the tests do not do that. Raises CannotRun."""
        case = {**self.cases, **self.smoke}[name]
        return {contestant: self.call_of(case, contestant, device) for contestant in self.of(name, settings)}

    def probes(self, name: str, device: torch.device) -> Mapping[Any, Call]:
        """Further calls to time in turn with the contestants; `floor` gets their times."""
        return {}

    def floor(self, name: str, contestant: str, device: torch.device, probes: Mapping[Any, float]) -> float | None:
        """Seconds that this machine needs for the case at least; None where that is not known."""
        work = {**self.cases, **self.smoke}[name].work()
        return None if work is None else work.floor(device)

    def gflop(self, name: str, contestant: str, device: torch.device) -> dict[str, float] | None:
        """Operations executed, in 10⁹, by dtype; None where they are not counted."""
        return None

    def speeds(self, device: torch.device, probes: Mapping[Any, float]) -> dict[str, float] | None:
        """Operations of the probes in 10⁹ a second, by dtype; None where there are no probes."""
        return None

    def peak(
        self, name: str, contestant: str, device: torch.device, call: Call, settings: Settings
    ) -> tuple[float | None, float | None]:
        """MiB that a call takes beyond its inputs, and MiB of those that stay taken."""
        if settings.smoke or device.type == "cuda":
            return peak_memory(call, device), None
        return peak_elsewhere(self.script, name, contestant, device)

    def peak_here(
        self, name: str, contestant: str, device: torch.device, settings: Settings, *files: str
    ) -> tuple[float | None, float | None]:
        """What `peak_elsewhere` asks a process of its own for: the third call."""
        call = self.call_of({**self.cases, **self.smoke}[name], contestant, device)
        call()
        call()
        return peak_memory(call, device), None


# (before each round, one round of ours, rounds): how rounds are taken
Turns = Callable[[Callable[[], None], Callable[[], None], int], None]


def in_turns(before: Callable[[], None], ours: Callable[[], None], rounds: int) -> None:
    for _ in range(rounds):
        before()
        ours()


def measure(
    benchmark: Benchmark, name: str, device: torch.device, settings: Settings, turns: Turns = in_turns
) -> list[Row]:
    """Rows of all contestants of one case, which take turns, so that a machine that changes its pace is fair to all.

    Raises CannotRun.
    """
    calls = benchmark.prepare(name, device, settings)
    probes = benchmark.probes(name, device)
    everyone: dict[Any, Call] = {**calls, **probes}
    ours = benchmark.ours if benchmark.ours in calls else next(iter(calls))

    def seconds(key: Any) -> float:
        synchronise(device)
        start = benchmark.clock()
        everyone[key]()
        synchronise(device)
        return benchmark.clock() - start

    warm = {}
    for key in everyone:
        for _ in range(benchmark.warm_calls):
            warm[key] = seconds(key)
    found: dict[Any, list[float]] = {key: [] for key in everyone}

    def turn(key: Any) -> None:
        if warm[key] < _SHORT:
            seconds(key)

    def others() -> None:
        for key in everyone:
            if key != ours:
                turn(key)
                found[key].append(seconds(key))
        turn(ours)

    wanted = 2 if settings.smoke else settings.rounds or benchmark.rounds
    affordable = int(settings.budget / 2 / max(sum(warm.values()), 1e-9))
    turns(others, lambda: found[ours].append(seconds(ours)), max(2, min(wanted, max(affordable, 3))))

    rates = {key: median(found[key]) for key in probes}
    operation, size = benchmark.label(name)
    result = []
    for contestant, call in calls.items():
        middle = median(found[contestant])
        low, _, high = quantiles(found[contestant] * 2, n=4, method="inclusive")  # twice: there may be one only
        floor = benchmark.floor(name, contestant, device, rates)
        peak, kept = benchmark.peak(name, contestant, device, call, settings) if settings.peaks else (None, None)
        result.append(
            Row(
                operation=operation,
                case=size,
                contestant=contestant,
                baseline=benchmark.baseline,
                seconds=middle,
                spread=(high - low) / 2,
                rounds=len(found[contestant]),
                clock="wall" if benchmark.clock is time.perf_counter else "CPU time of the thread",
                floor_share=None if floor is None else floor / middle,
                gflop=benchmark.gflop(name, contestant, device),
                gflop_per_second=benchmark.speeds(device, rates),
                peak_mib=peak,
                kept_mib=kept,
                **rows.environment(device),
            )
        )
    return result


def devices(kinds: Sequence[str] = ("cpu", "cuda")) -> list[torch.device]:
    """The CPU, and the CUDA device where there is one."""
    present = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [torch.device(kind) for kind in present if kind in kinds]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(call: Call, device: torch.device) -> float | None:
    """MiB that one call takes at most beyond what is taken now; None on a CPU whose system does not tell.

    On a CPU it is resident memory of the whole process: nothing else may be running in it.
    """
    before = taken(device, forget=True)
    call()
    synchronise(device)
    most = most_taken(device)
    return None if before is None or most is None else max(most - before, 0.0)


def taken(device: torch.device, forget: bool = False) -> float | None:
    """MiB taken now; `forget`: `most_taken` starts again from here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if forget:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / MIB
    if sys.platform != "linux":
        return None
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def most_taken(device: torch.device) -> float | None:
    """MiB taken at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return _resident("VmHWM") if sys.platform == "linux" else None


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; None on a CPU whose system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        match = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def peak_elsewhere(
    script: str, case: str, contestant: str, device: torch.device, *more: str
) -> tuple[float | None, float | None]:
    """What `script --peak CASE CONTESTANT` prints as JSON, from a process of its own.

    There every large block goes back to the system when it is freed; else those of earlier calls would hide what
    a call takes.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    threads = ["--threads", str(torch.get_num_threads())]
    command = [sys.executable, script, "--device", device.type, *threads, "--peak", case, contestant, *more]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-3000:]}")
    peak, kept = json.loads(run.stdout.splitlines()[-1])
    return peak, kept


def _resident(name: str) -> float:
    match = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None, f"/proc/self/status has no {name}"
    return int(match[1]) / 1024


@functools.cache
def speeds(device_type: str) -> tuple[float, float]:
    """Bytes a second that a copy of 256 MiB reads and writes; operations a second of a float32 matrix product."""
    device = torch.device(device_type)

    def fastest(call: Call) -> float:
        found = []
        for _ in range(7):
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            found.append(time.perf_counter() - start)
        return min(found)

    source = torch.ones(64 * MIB, device=device)
    target = torch.empty_like(source)
    seconds = fastest(lambda: target.copy_(source))
    size = 8192 if device_type == "cuda" else 1024
    a = torch.ones(size, size, device=device)
    return 2 * source.numel() * 4 / seconds, 2 * size**3 / fastest(lambda: a @ a)


def size_of(text: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not match or min(found := (int(match[1]), int(match[2]))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 768x512, for instance")
    return found


def main(benchmark: Benchmark) -> list[Row]:
    """The program of a benchmark's file: prints its table; --write keeps it. Returns the rows."""
    parser = argparse.ArgumentParser(description=f"Measure {benchmark.operation}.")
    parser.add_argument("--rounds", type=int, help=f"turns of each contestant (default: {benchmark.rounds})")
    parser.add_argument("--case", default="", metavar="WORDS", help="only cases whose names have these words in them")
    parser.add_argument("--size", type=size_of, action="append", default=[], help="WIDTHxHEIGHT of the model's picture")
    kinds = [device.type for device in devices(benchmark.on)]
    parser.add_argument("--device", choices=kinds, help="default: every one there is")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: PyTorch's)")
    parser.add_argument("--budget", type=float, default=Settings.budget, help="seconds a case (default: %(default)g)")
    parser.add_argument("--no-memory", action="store_true", help="leave the peaks of memory out")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results/")
    parser.add_argument(
        "--peak", nargs="+", metavar="CASE CONTESTANT", help="print MiB that a call takes, and MiB that stay, as JSON"
    )
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    settings = Settings(
        smoke=chosen.smoke,
        budget=chosen.budget,
        sizes=tuple(chosen.size),
        rounds=chosen.rounds,
        peaks=not chosen.no_memory,
    )
    if chosen.peak:
        name, contestant, *files = chosen.peak
        device = torch.device(chosen.device or "cpu")
        print(json.dumps(benchmark.peak_here(name, contestant, device, settings, *files)))
        return []
    result: list[Row] = []
    for device in [torch.device(chosen.device)] if chosen.device else devices(benchmark.on):
        for name in benchmark.names(settings):
            if chosen.case not in name:
                continue
            try:
                result += measure(benchmark, name, device, settings)
            except CannotRun as reason:
                print(f"{name} on {device.type} left out: {reason}", file=sys.stderr)
    print("\n".join(rows.table(result)))
    if chosen.write:
        print("written to", *rows.keep(result, benchmark.stem))
    return result
