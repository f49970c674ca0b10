# SPDX-License-Identifier: Apache-2.0
"""Whole processes of the command line, from start to end, against `import torch` alone.

    python bench/bench_startup.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_startup.py                the same under pytest-benchmark

The picture is the bundled photograph, mirrored to 768×512; the model is the default one. What the system reads from
disk is in its cache. Encode and decode are to take at most 1.5 times as long as `import torch`.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from bench_model import picture
from PIL import Image

from mlic_fast.pictures.image import to_pillow, to_pixels

IMPORT = "import torch"
COMMANDS = ("encode", "decode", "info", "--help")
ROOT = Path(__file__).resolve().parent.parent

SIZES = {"768×512": (768, 512)}
SMOKE_SIZES = {"130×64": (130, 64)}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def _files(size: tuple[int, int]) -> tuple[str, str, str]:
    """A picture, the picture compressed, and where to decode it to."""
    folder = Path(_folder().name)
    path = folder / f"{size[0]}x{size[1]}.png"
    image: Image.Image = to_pillow(to_pixels(picture(*size)[..., : size[1], : size[0]], "rgb"), None)
    image.save(path)
    coded, decoded = path.with_suffix(".mlic"), folder / "decoded.png"
    _process(["-m", "mlic_fast", "encode", str(path), "-o", str(coded), "--device", "cpu"])
    return str(path), str(coded), str(decoded)


def _process(arguments: list[str]) -> None:
    # an installed package has its bytecode
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{run.stderr[-3000:]}")


def call_of(size: tuple[int, int], contestant: str, device: torch.device) -> common.Call:
    """One process."""
    source, coded, decoded = _files(size)
    on = ["--device", device.type, "--threads", str(torch.get_num_threads())]
    arguments = {
        IMPORT: ["-c", IMPORT],
        "encode": ["-m", "mlic_fast", "encode", source, "-o", f"{coded}.again", *on],
        "decode": ["-m", "mlic_fast", "decode", coded, "-o", decoded, *on],
        "info": ["-m", "mlic_fast", "info", coded],
        "--help": ["-m", "mlic_fast", "--help"],
    }[contestant]
    return lambda: _process(arguments)


class StartBenchmark(common.Benchmark):
    """Memory is another process's, and there is no floor but `import torch`."""

    def floor(self, name: str, contestant: str, device: torch.device, probes: Any) -> None:
        return None

    def peak(self, *_: Any, **__: Any) -> tuple[None, None]:
        return None, None


BENCHMARK = StartBenchmark(
    "a whole process",
    SIZES,
    SMOKE_SIZES,
    (IMPORT, *COMMANDS),
    call_of,
    __file__,
    ours="encode",
    baseline=IMPORT,
    rounds=10,
    on=("cpu",),
    warm_calls=1,
)


def test_startup(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    found = common.main(BENCHMARK)
    base = {row.case: row.seconds for row in found if row.contestant == IMPORT}
    for row in found:
        if row.contestant != IMPORT:
            print(f"{row.contestant}, {row.case}: {row.seconds / base[row.case]:.2f} × `{IMPORT}`")
