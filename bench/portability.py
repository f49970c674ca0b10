# SPDX-License-Identifier: Apache-2.0
"""Every way to compute scales against every other: does what the one writes decode with the other?

    python bench/portability.py FOLDER [--quick] [--jobs N] [--write]

FOLDER holds at least ten photographs of 768×512 pixels or more; those (cut to that size) are coded with full-size
weights (the seeded filling of tests/golden), others with the bundled model. Each picture is written once by each
way, with the guard (and every fourth picture without it too), and read by each. A pair fails where the symbols differ,
or where decoding raises an error. Analysis and synthesis are left out: they cannot change an index. Triton's kernels
run in its interpreter, and on small pictures only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # must be set before Triton is imported

import numpy as np
import torch
from full_size import full_size_model
from rows import RESULTS, commit, machine
from torch import Tensor

from mlic_fast import MlicError
from mlic_fast.codec import open_model
from mlic_fast.compute.backend import plain_path, use_backend
from mlic_fast.engine import engine_for
from mlic_fast.entropy.coders import Coder, Reader, Writer, code
from mlic_fast.entropy.factorized import encode_hyper_latent
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter, share
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.evaluate.calibration import in_float64, on_threads, pictures, without_onednn
from mlic_fast.nn.network import Network
from mlic_fast.nn.walk import walk
from mlic_fast.passes import Walk
from mlic_fast.pictures.image import open_image, pad_to_64, to_tensor

NOISE = 1e-5  # relative, in every mean and decoded latent
SMALL = 64 * 64  # pixels, for what is interpreted

Deltas = float | Tensor


@dataclass(frozen=True)
class Way:
    """One way to compute: what to enter, and what to do to the model, the hyper-parameters and the coder."""

    name: str
    enter: Callable[[], AbstractContextManager[None]]
    float64: bool = False
    channels_last: bool = False
    noise: bool = False
    engine: bool = False
    small_only: bool = False


@dataclass
class Sample:
    """A picture as the entropy path gets it."""

    name: str
    model: Network
    y: Tensor
    z_hat: Tensor
    pixels: int


WAYS = (
    Way("plain, two threads", lambda: on_threads(2)),
    Way("plain, one thread", lambda: on_threads(1)),
    Way("plain, without oneDNN", without_onednn),
    Way("plain, channels-last", lambda: on_threads(2), channels_last=True),
    Way("C++ kernels", lambda: use_backend("cpu")),
    Way("engine, two threads", lambda: on_threads(2, plain=False), engine=True),
    Way("engine, one thread", lambda: on_threads(1, plain=False), engine=True),
    Way("float64", plain_path, float64=True),
    Way("noise", plain_path, noise=True),
    Way("Triton", lambda: use_backend("triton"), small_only=True),
)


class _Noise:
    """Wraps a coder: noise of up to δ/2 in every log-scale, of NOISE relative in every mean and decoded value."""

    def __init__(self, coder: Coder, model: Network, deltas: Deltas, seed: int) -> None:
        self._coder, self._passes = coder, 0
        self._deltas = torch.as_tensor(deltas, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(seed)
        self._first = float(np.log(float(model.gaussian_conditional.get_buffer("scale_table")[0])))

    def begin(self, scales: Tensor) -> None:
        logs = scales.double().clamp_min(1e-300).log()
        delta = self._deltas[self._passes].view(1, -1, 1, 1) if self._deltas.dim() else self._deltas
        self._passes += 1
        self._coder.begin(
            (scales.double() * (self._uniform(scales) * delta / 2 * share(logs, self._first)).exp()).float()
        )

    def finish(self, means: Tensor) -> Tensor:
        values = self._coder.finish(means * (1 + NOISE * self._uniform(means)).float())
        return values * (1 + NOISE * self._uniform(values)).float()

    def _uniform(self, like: Tensor) -> Tensor:
        return 2 * torch.rand(like.shape, generator=self._generator, dtype=torch.float64) - 1


class _SeenSymbols:
    """Stands before an encoder or a decoder and keeps the symbols that pass."""

    def __init__(self, coder: Any) -> None:
        self._coder = coder
        self.symbols: list[np.ndarray[Any, Any]] = []

    def push(self, symbols: Tensor, indexes: Tensor) -> None:
        self.symbols.append(np.asarray(symbols, dtype=np.int32).ravel())
        self._coder.push(symbols, indexes)

    def decode(self, indexes: Tensor) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._coder.decode(indexes)
        self.symbols.append(found.astype(np.int32).ravel())
        return found


class Models:
    """The variants of a model that ways need, made once."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], Network] = {}

    def of(self, model: Network, way: Way) -> Network:
        if way.float64:
            return self._made.setdefault((id(model), "float64"), in_float64(model))
        return model


def write(model: Network, sample: Sample, way: Way, deltas: Deltas | None) -> tuple[bytes, bytes | None, list[Any]]:
    """y string, guard and symbols of a picture, written in one way."""
    gaussian: Any = model.gaussian_conditional
    encoder = Encoder(coding_tables(gaussian))
    seen = _SeenSymbols(encoder)
    guard = None if deltas is None else GuardWriter(gaussian.scale_table.float(), deltas)
    y = sample.y.to(next(model.parameters()))
    writer: Coder = Writer(seen, gaussian, y, model.slice_num, guard)  # type: ignore[arg-type]
    if way.noise:
        writer = _Noise(writer, model, model.guard_deltas if deltas is None else deltas, seed=1)
    code(_walk(model, sample, way), writer)
    return encoder.finish(), None if guard is None else guard.finish(), seen.symbols


def read(model: Network, sample: Sample, way: Way, string: bytes, data: bytes | None, deltas: Deltas) -> list[Any]:
    """Symbols of a y string, read in one way. Raises MlicError."""
    gaussian: Any = model.gaussian_conditional
    decoder = Decoder(coding_tables(gaussian), string)
    seen = _SeenSymbols(decoder)
    guard = None if data is None else GuardReader(gaussian.scale_table.float(), data)
    reader: Coder = Reader(seen, gaussian, guard)  # type: ignore[arg-type]
    if way.noise:
        reader = _Noise(reader, model, deltas, seed=2)
    code(_walk(model, sample, way), reader)
    decoder.finish()
    if guard is not None:
        guard.finish()
    return seen.symbols


def _walk(model: Network, sample: Sample, way: Way) -> Walk:
    z_hat = sample.z_hat.to(next(model.parameters()))
    if way.engine:
        engine = engine_for(model)
        assert engine is not None, "the engine is off"
        return engine.walk(z_hat)
    if way.channels_last:
        layout = torch.channels_last
        return walk(model, model.h_s(z_hat.contiguous(memory_format=layout)).contiguous(memory_format=layout))
    return model.walk(z_hat)


def samples(folder: Path, quick: bool) -> Iterator[Callable[[], Sample]]:
    """The set of pictures; each is made when it is called for."""
    photographs = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".webp"})
    full, small = full_size_model(), open_model(None, "cpu")
    made = list(pictures())
    for path in photographs[: 2 if quick else 10]:
        pixels = open_image(path).pixels
        upright = np.rot90(pixels) if pixels.shape[0] > pixels.shape[1] else pixels
        yield partial(_sample, f"{path.stem}, full size", full, upright[:512, :768])
    for name, pixels in made[: 1 if quick else len(made)]:
        yield partial(_sample, f"{name}, 768×512", small, pixels)
    for number, path in enumerate(photographs[: 1 if quick else 12]):
        pixels = open_image(path).pixels
        yield partial(_sample, f"{path.stem}, 250×311", small, pixels[100:411, 200:450])
        if number < 6:
            yield partial(_sample, f"{path.stem}, 64×64", small, pixels[200:264, 300:364])
    for name, pixels in pictures(height=70, width=129):
        yield partial(_sample, f"{name}, 129×70", small, pixels)


def _sample(name: str, model: Network, pixels: Any) -> Sample:
    x = pad_to_64(to_tensor(open_image(pixels)), "fade")
    y, z = model.analyse(x)
    z_hat = encode_hyper_latent(model.entropy, z)[1]
    return Sample(name, model, y, z_hat, pixels.shape[0] * pixels.shape[1])


@torch.no_grad()
def compare(folder: Path, quick: bool, part: int, parts: int) -> dict[str, Any]:
    """Every pair of ways over every `parts`-th picture; without the guard over a quarter of those."""
    models, failures = Models(), Counter[str]()
    sums: Counter[str] = Counter()
    told: list[str] = []
    for number, make in enumerate(samples(folder, quick)):
        if number % parts != part:
            continue
        start = time.perf_counter()
        sample = make()
        sums["pictures"] += 1
        ways = [way for way in WAYS if not way.small_only or sample.pixels <= SMALL]
        for kind in ("guarded", "unguarded") if number % 4 == 0 else ("guarded",):
            deltas = sample.model.guard_deltas
            for writer, reader, outcome in _pairs(models, sample, ways, deltas if kind == "guarded" else None):
                sums[f"{kind} pairs"] += 1
                if outcome is not None:
                    sums[f"{kind} failures"] += 1
                    failures[f"{kind}: {writer.name} → {reader.name}"] += 1
                    if kind == "guarded":
                        told.append(f"{sample.name}: {writer.name} → {reader.name}: {outcome}")
        print(
            f"{number + 1:3} {sample.name:26} {time.perf_counter() - start:6.1f} s   failures so far: guarded "
            f"{sums['guarded failures']} of {sums['guarded pairs']}, unguarded {sums['unguarded failures']} of "
            f"{sums['unguarded pairs']}",
            flush=True,
        )
    return {"sums": sums, "failures": failures, "told": told}


def _pairs(
    models: Models, sample: Sample, ways: list[Way], deltas: Deltas | None
) -> Iterator[tuple[Way, Way, str | None]]:
    """Writers, readers and what went wrong: None if nothing did."""
    noise = sample.model.guard_deltas
    for writer in ways:
        with writer.enter():
            written = write(models.of(sample.model, writer), sample, writer, deltas)
        for reader in ways:
            yield writer, reader, _outcome(models.of(sample.model, reader), sample, reader, written, noise)


def main() -> None:
    """Print, and keep if asked to, how many pairs failed with the guard and without it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few pictures only")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results/")
    options = parser.parse_args()

    # spawned, not forked: PyTorch's thread pool does not survive a fork
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        calls = [
            pool.submit(compare, options.folder, options.quick, part, options.jobs) for part in range(options.jobs)
        ]
        found = [call.result() for call in calls]
    result = {
        "machine": machine(torch.device("cpu")),
        "torch": torch.__version__,
        "commit": commit(),
        "ways": [way.name for way in WAYS],
        **sum((one["sums"] for one in found), Counter()),
        "failed pairs": sum((one["failures"] for one in found), Counter()),
        "guarded failures told": [text for one in found for text in one["told"]],
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if options.write:
        path = RESULTS / "portability.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"written to {path}")
    if result.get("guarded failures"):
        sys.exit(1)


def _outcome(
    model: Network, sample: Sample, reader: Way, written: tuple[bytes, bytes | None, list[Any]], deltas: Deltas
) -> str | None:
    string, data, symbols = written
    try:
        with reader.enter():
            found = read(model, sample, reader, string, data, deltas)
    except MlicError as error:
        return str(error)
    same = len(found) == len(symbols) and all(map(np.array_equal, found, symbols))
    return None if same else "wrong"


if __name__ == "__main__":
    main()
