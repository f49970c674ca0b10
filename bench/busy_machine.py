# SPDX-License-Identifier: Apache-2.0
"""Seconds of `mlic-fast encode` and `decode` alone and beside a process that wants all processors.

Each is run with OpenMP's threads spinning while they wait (OMP_WAIT_POLICY=active) and asleep (passive, which the
command line settles by itself). Prints the medians, and what the competitor costs: `python bench/busy_machine.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPH = ROOT / "mlic_fast" / "data" / "coffee.png"
POLICIES = ("active", "passive")


@contextmanager
def competitor(processes: int) -> Iterator[None]:
    """Within the block, so many processes compute without an end."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds(arguments: list[str], policy: str) -> float:
    """What the command says that coding took."""
    command = [sys.executable, "-m", "mlic_fast", *arguments, "--device", "cpu", "--json"]
    variables = {**os.environ, "OMP_WAIT_POLICY": policy, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["seconds"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=PHOTOGRAPH, help="(default: the bundled photograph)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--competitors", type=int, default=1, help="processes beside it (default: 1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        coded, decoded = str(Path(folder, "coded.mlic")), str(Path(folder, "decoded.png"))
        for title, arguments in (
            ("encode", ["encode", str(options.picture), "-o", coded]),
            ("decode", ["decode", coded, "-o", decoded]),
        ):
            for policy in POLICIES:
                alone = median(seconds(arguments, policy) for _ in range(options.rounds))
                with competitor(options.competitors):
                    beside = median(seconds(arguments, policy) for _ in range(options.rounds))
                print(f"{title}, {policy}: alone {alone:.2f} s, beside {beside:.2f} s, ratio {beside / alone:.1f}")


if __name__ == "__main__":
    main()
