# SPDX-License-Identifier: Apache-2.0
"""Encoding and decoding with the full-size model against the plain baseline.

    python bench/bench_model.py [--size 768x512] [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_model.py [--benchmark-size 768x512]      the same under pytest-benchmark

The baseline is bench/baseline.py. Before anything is timed, its strings and its picture must be those of
`compress` and `decompress` with exact=True, to the bit; the others' strings and pictures must be close to them.
Everyone decodes what it wrote itself. Weights: bench/full_size.py. The picture: the bundled photograph, mirrored as
often as the size asks for; it takes 0.69 bits per pixel.

The floor: floating-point operations that the contestant executed, counted, at the speed of a large convolution of
the same type that takes turns with the contestants. Pictures larger than 3840×2160 are decoded only, without the
baseline.
"""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import baseline
import common
import numpy as np
import torch
from arithmetic import Operations, convolution
from full_size import full_size_model, small_model
from PIL import Image
from torch import Tensor

from mlic_fast.engine import Options
from mlic_fast.model import MLICPlusPlus
from mlic_fast.pictures.image import open_image, pad_to_64, to_tensor

SIZES = ((768, 512), (1920, 1080), (3840, 2160))
SMOKE_SIZES = ((130, 64),)
LARGEST_WITH_BASELINE = 3840 * 2160
LARGEST_PLAIN = 1024 * 1024  # above it, the plain path is checked but not timed: it is the baseline without lists

# "engine" is what `mlic_fast.encode` calls.
ENGINES = {
    "engine, float32": Options(transform_dtype="float32"),
    "engine, bfloat16": Options(transform_dtype="bfloat16"),
    "engine": Options(),
}
GUARDED = ("engine",)
if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
    del ENGINES["engine, bfloat16"]  # processors that emulate it; a GPU's engine takes it anyway
# "drop-in" is `compress` and `decompress` with the official arguments alone, as the official test script calls them.
CONTESTANTS = ("baseline", "plain", *ENGINES, "drop-in")
OPERATIONS = ("encode", "decode")

# How far strings may be from the baseline's: a share of their bytes, or so many bytes.
_SHARE, _BYTES = 0.01, 64
# How far pictures may be from it, relative to its standard deviation. Something wrong is at a distance of 1 or more;
# the seeded weights enlarge what 16-bit transforms round, as trained ones do not.
_DISTANCE, _DISTANCE_16_BIT = 0.05, 0.5

# Bytes a pixel that the baseline takes at most, and that the others do, with something to spare.
_BYTES_OF_BASELINE, _BYTES_OF_OURS, _BYTES_OF_MODEL = 1200, 300, 2 * 2**30


@dataclass(frozen=True)
class Case:
    """One operation on one picture."""

    operation: str
    width: int
    height: int

    @classmethod
    def of(cls, name: str) -> Case:
        operation, size = name.split(", ")
        return cls(operation, *common.size_of(size))

    @property
    def pixels(self) -> int:
        return self.width * self.height


@functools.cache
def model_on(device: torch.device, small: bool) -> MLICPlusPlus:
    model = small_model() if small else full_size_model()
    return model if device.type == "cpu" else copy.deepcopy(model).to(device)


def picture(width: int, height: int) -> Tensor:
    """[1, 3, H, W], padded as files are."""
    with resources.files("mlic_fast").joinpath("data").joinpath("coffee.png").open("rb") as file:
        pixels = np.asarray(Image.open(file).convert("RGB"))
    below, beside = max(height - pixels.shape[0], 0), max(width - pixels.shape[1], 0)
    pixels = np.pad(pixels, ((0, below), (0, beside), (0, 0)), mode="symmetric")[:height, :width]
    return pad_to_64(to_tensor(open_image(np.ascontiguousarray(pixels))), "fade")


def compress(model: MLICPlusPlus, contestant: str, x: Tensor) -> dict[str, Any]:
    """As MLICPlusPlus.compress."""
    if contestant == "baseline":
        return baseline.compress(model, x)
    if contestant == "plain":
        return model.compress(x, exact=True)
    if contestant == "drop-in":
        model.engine_options = Options()
        return model.compress(x)
    model.engine_options = ENGINES[contestant]
    return model.compress(x, exact=False, guard=model.guard_deltas if contestant in GUARDED else None)


def decompress(model: MLICPlusPlus, contestant: str, coded: Mapping[str, Any]) -> Tensor:
    """x̂ of what `compress` returned."""
    strings, shape = coded["strings"], coded["shape"]
    x_hat: Tensor
    if contestant == "baseline":
        return baseline.decompress(model, strings, shape)
    if contestant == "drop-in":
        model.engine_options = Options()
        x_hat = model.decompress(strings, shape)["x_hat"]
        return x_hat
    if contestant in ENGINES:
        model.engine_options = ENGINES[contestant]
    exact = contestant not in ENGINES
    x_hat = model.decompress(strings, shape, exact=exact, guard=coded.get("guard"))["x_hat"]
    return x_hat


class ModelBenchmark(common.Benchmark):
    """Encoding and decoding of one picture; remembers what the last size's contestants wrote."""

    def __init__(self) -> None:
        super().__init__(
            operation="encoding and decoding with the full-size model",
            cases={},
            smoke={},
            contestants=CONTESTANTS,
            call_of=self._call_of,
            script=__file__,
            ours="engine",
            baseline="baseline",
            rounds=10,
            warm_calls=1,
        )
        self._small = False
        self._written: tuple[Any, dict[str, dict[str, Any]]] = (None, {})
        self._executed: dict[tuple[str, str, str], dict[torch.dtype, int]] = {}
        self._pace: dict[tuple[str, str], float] = {}  # seconds a pixel of everyone's first call

    def names(self, settings: common.Settings) -> list[str]:
        sizes = SMOKE_SIZES if settings.smoke else settings.sizes or SIZES
        return [
            f"{operation}, {width}×{height}"
            for width, height in sizes
            for operation in OPERATIONS
            if operation == "decode" or width * height <= LARGEST_WITH_BASELINE
        ]

    def of(self, name: str, settings: common.Settings) -> list[str]:
        pixels = Case.of(name).pixels
        left_out = {"baseline", "plain"} if pixels > LARGEST_WITH_BASELINE else set()
        if pixels > LARGEST_PLAIN:
            left_out.add("plain")
        return [contestant for contestant in CONTESTANTS if contestant not in left_out]

    def label(self, name: str) -> tuple[str, str]:
        operation, size = name.split(", ")
        return operation, size

    def prepare(self, name: str, device: torch.device, settings: common.Settings) -> Mapping[str, common.Call]:
        """Checks that everyone does the same, and counts what it executes, at the first call of each."""
        case, contestants = Case.of(name), self.of(name, settings)
        self._small = settings.smoke
        self._fits(case, device, settings, contestants)
        torch.backends.cudnn.benchmark = True
        if "baseline" in contestants and "plain" not in contestants:
            contestants = ["baseline", "plain", *contestants[1:]]
        start = time.perf_counter()
        written = self._strings(case, device, contestants)
        if case.operation == "decode":
            start = time.perf_counter()
            model = model_on(device, self._small)
            reference: Tensor | None = None
            for contestant in contestants:
                with Operations() as operations:
                    x_hat = decompress(model, contestant, written[contestant])
                self._executed[name, contestant, device.type] = executed = dict(operations.executed)
                reference = x_hat if reference is None else reference
                _check_picture(contestant, x_hat, reference, all(dtype.itemsize > 2 for dtype in executed))
        self._pace[case.operation, device.type] = (time.perf_counter() - start) / case.pixels
        return {c: self._call_of(case, c, device) for c in self.of(name, settings)}

    def probes(self, name: str, device: torch.device) -> Mapping[Any, common.Call]:
        counted = [found for (case, _, kind), found in self._executed.items() if (case, kind) == (name, device.type)]
        return {dtype: convolution(dtype, device)[0] for dtype in dict.fromkeys(d for found in counted for d in found)}

    def floor(self, name: str, contestant: str, device: torch.device, probes: Mapping[Any, float]) -> float | None:
        speeds, gflop = self.speeds(device, probes), self.gflop(name, contestant, device)
        return sum(count / speeds[dtype] for dtype, count in gflop.items())

    def gflop(self, name: str, contestant: str, device: torch.device) -> dict[str, float]:
        executed = self._executed[name, contestant, device.type]
        return {_short(dtype): count / 1e9 for dtype, count in executed.items()}

    def speeds(self, device: torch.device, probes: Mapping[Any, float]) -> dict[str, float]:
        return {_short(dtype): convolution(dtype, device)[1] / 1e9 / seconds for dtype, seconds in probes.items()}

    def peak(
        self, name: str, contestant: str, device: torch.device, call: common.Call, settings: common.Settings
    ) -> tuple[float | None, float | None]:
        """Beyond the loaded model: what the engine makes of the weights counts, and is what stays."""
        if settings.smoke:
            return common.peak_memory(call, device), None
        case = Case.of(name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "strings"
            coded = self._strings(case, device, [contestant])[contestant]
            path.write_bytes(pickle.dumps(coded))
            return common.peak_elsewhere(self.script, name, contestant, device, str(path))

    def peak_here(
        self, name: str, contestant: str, device: torch.device, settings: common.Settings, *files: str
    ) -> tuple[float | None, float | None]:
        case = Case.of(name)
        small = picture(64, 64).to(device)
        model = model_on(device, settings.smoke)
        if case.operation == "encode":
            x = picture(case.width, case.height).to(device)
            calls: list[common.Call] = [
                lambda: compress(model, contestant, small),
                lambda: compress(model, contestant, x),
            ]
        else:
            # on the plain path, which leaves nothing behind that belongs to an engine
            tiny = model.compress(small, exact=True, guard=model.guard_deltas if contestant in ENGINES else None)
            coded = pickle.loads(Path(files[0]).read_bytes())
            calls = [lambda: decompress(model, contestant, tiny), lambda: decompress(model, contestant, coded)]
        before = common.taken(device, forget=True)
        calls[0]()
        kept = common.taken(device)
        for _ in range(3 if device.type == "cuda" else 1):  # graphs are captured at a shape's second use
            calls[1]()
        common.synchronise(device)
        most = common.most_taken(device)
        if before is None or kept is None or most is None:
            return None, None
        return most - before, kept - before

    def _call_of(self, case: Case, contestant: str, device: torch.device) -> common.Call:
        model = model_on(device, self._small)
        if case.operation == "encode":
            x = picture(case.width, case.height).to(device)
            return lambda: compress(model, contestant, x)
        coded = self._strings(case, device, [contestant])[contestant]
        return lambda: decompress(model, contestant, coded)

    def _strings(self, case: Case, device: torch.device, contestants: list[str]) -> dict[str, dict[str, Any]]:
        """What each contestant writes, checked; kept until another picture is asked for."""
        key = case.width, case.height, device.type, self._small
        if self._written[0] != key:
            self._written = key, {}
        written = self._written[1]
        x = picture(case.width, case.height).to(device)
        for contestant in contestants:
            if contestant not in written:
                with Operations() as operations:
                    written[contestant] = compress(model_on(device, self._small), contestant, x)
                name = f"encode, {case.width}×{case.height}"
                self._executed[name, contestant, device.type] = dict(operations.executed)
                if "baseline" in written:
                    _check_strings(contestant, written[contestant], written["baseline"])
        return written

    def _fits(self, case: Case, device: torch.device, settings: common.Settings, contestants: list[str]) -> None:
        """Raises CannotRun where memory or time would run out."""
        a_pixel = _BYTES_OF_BASELINE if "baseline" in contestants else _BYTES_OF_OURS
        needed = _BYTES_OF_MODEL + a_pixel * case.pixels
        free = common.free_memory(device)
        if free is not None and free < needed:
            raise common.CannotRun(f"it takes up to {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
        pace = self._pace.get((case.operation, device.type))
        if pace is None or settings.sizes:  # who asks for a size gets it
            return
        # everyone's check, warm-up, three rounds, and a process to measure memory
        seconds = 6 * pace * case.pixels
        if seconds > settings.budget:
            raise common.CannotRun(f"it would take about {seconds:.0f} s, and a case may take {settings.budget:.0f}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_strings(contestant: str, coded: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    if contestant in ("baseline", "plain"):
        if coded["strings"] != reference["strings"]:
            raise RuntimeError("the baseline's strings are not those of compress(exact=True): nothing to compare with")
        return
    own, its = (sum(len(string) for part in c["strings"] for string in part) for c in (coded, reference))
    if abs(own - its) > max(_SHARE * its, _BYTES):
        raise RuntimeError(f"{contestant} writes {own} bytes, the baseline {its}: not the same thing")


def _check_picture(contestant: str, x_hat: Tensor, reference: Tensor, float32: bool) -> None:
    if contestant in ("baseline", "plain"):
        if not torch.equal(x_hat, reference):
            raise RuntimeError("the baseline's picture is not decompress(exact=True)'s: nothing to compare with")
        return
    distance = float((x_hat - reference).square().mean().sqrt() / reference.std())
    if not distance <= (_DISTANCE if float32 else _DISTANCE_16_BIT):
        raise RuntimeError(f"{contestant} decodes another picture: {distance:.2g} standard deviations away")


BENCHMARK = ModelBenchmark()


def test_model(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
