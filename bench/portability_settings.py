# SPDX-License-Identifier: Apache-2.0
"""500 guarded pictures: does what one setting of the codec writes decode in every other?

    python bench/portability_settings.py FOLDER… [--resume] [--write]

Settings are the plain path and the engine, its transforms' types, threads, strips, batches, and the path of GPUs with
its calls launched one by one or recorded and replayed (on the CPU, by the tests' stand-in for CUDA graphs). Weights are
full-size (the seeded filling of tests/golden). Of 500 pictures, crops of the photographs in FOLDER and made-up ones, 50
measure 768×512, the others 192×128 at most. Each is written in some settings and read in some, dealt so that every
ordered pair of settings occurs about equally often; every tenth also without the guard. Writing and reading are whole
calls, from picture to picture. A pair fails where the symbols differ, where an error is raised, or where reading had to
be tried in a second way. Finished pictures are kept in a file, from which --resume goes on.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trial_pictures
from full_size import full_size_model, small_model
from rows import RESULTS, commit, instructions, machine
from torch import Tensor
from trial_pictures import Trial

from mlic_fast import coding
from mlic_fast.engine import Options, engine_for
from mlic_fast.engine.gpu import programs
from mlic_fast.engine.gpu.recordings import RecordedPrograms
from mlic_fast.entropy.coders import Coded
from mlic_fast.entropy.guard import DEFAULT_DELTA
from mlic_fast.entropy.range_coder import CodingTables, Decoder, Encoder, RangeCoder
from mlic_fast.evaluate.calibration import on_threads
from mlic_fast.output import write_whole

ROOT = Path(__file__).resolve().parent.parent
PARTIAL = ROOT / ".benchmarks" / "portability_settings.jsonl"
RECORDINGS = 4  # that are kept at once

Symbols = list[np.ndarray[Any, Any]]  # one array a pass
FLOAT32, BFLOAT16 = Options("float32"), Options("bfloat16")
STRIPS = Options("float32", memory_budget=1)  # as low as they get: 16 rows


@dataclass(frozen=True)
class Setting:
    """A way to call the codec. options: the engine's; None: the plain path."""

    name: str
    threads: int
    options: Options | None = None
    device_path: bool = False
    recorded: bool = False


SETTINGS = (
    Setting("plain, one thread", 1),
    Setting("plain, two threads", 2),
    Setting("engine, float32, one thread", 1, FLOAT32),
    Setting("engine, float32, two threads", 2, FLOAT32),
    Setting("engine, bfloat16, one thread", 1, BFLOAT16),
    Setting("engine, bfloat16, two threads", 2, BFLOAT16),
    Setting("engine, strips of 16 rows", 2, STRIPS),
    Setting("GPU path, launched", 2, FLOAT32, device_path=True),
    # last, since large pictures do without: a stand-in's recording keeps all that was ever computed in a call
    Setting("GPU path, recorded", 2, FLOAT32, device_path=True, recorded=True),
)


@dataclass(frozen=True)
class Plan:
    """How much is tried. writers, readers: of each small picture; of each writer's file. A large one has one writer."""

    large: int = 50
    small: int = 450
    writers: int = 2
    readers: int = 2
    large_readers: int = 3
    smoke: bool = False

    def trials(self) -> list[Trial]:
        """The pictures, in order."""
        return trial_pictures.trials(self.large, self.small, (65, 129) if self.smoke else trial_pictures.LARGE)

    def pairs(self) -> list[list[tuple[int, list[int]]]]:
        """Of each picture, the numbers of its writers, each with those of its readers."""
        dealt: Counter[bool] = Counter()
        found = []
        for trial in self.trials():
            count = len(SETTINGS) - 1 if trial.large else len(SETTINGS)
            writers, readers = (1, self.large_readers) if trial.large else (self.writers, self.readers)
            of_this = []
            for _ in range(writers):
                rounds, writer = divmod(dealt[trial.large], count)
                of_this.append((writer, [(rounds * readers + i) % count for i in range(readers)]))
                dealt[trial.large] += 1
            found.append(of_this)
        return found


class Codec:
    """Full-size weights with what each setting needs of them."""

    def __init__(self, smoke: bool = False) -> None:
        self.model = small_model() if smoke else full_size_model()
        # the small filling was never calibrated
        self.deltas = 10 * DEFAULT_DELTA if smoke else self.model.guard_deltas
        self._entropy = self.model.entropy
        # a model keeps the engines of two options only, so each gets one of its own, which shares the weights
        self._models = {options: copy.copy(self.model) for options in {setting.options for setting in SETTINGS}}
        for options, model in self._models.items():
            if options is not None:
                model.engine_options = options
                if engine_for(model, options) is None:
                    sys.exit("there is no engine here: unset MLIC_FAST_ENGINE and MLIC_FAST_BACKEND, build the kernels")
        self._recorder = _recorder()
        self._recorder.on_run = self._replayed
        self._recorded = RecordedPrograms(self._recorder)
        self._replays = 0
        self._seen: set[tuple[str, tuple[int, ...], bool]] = set()

    def write(self, setting: Setting, x: Tensor, deltas: float | Tensor | None) -> tuple[Coded, Symbols]:
        """Strings and symbols of x [B, 3, H, W]. Raises MlicError."""
        attempts, coder = _watched()
        with on_threads(setting.threads, plain=setting.options is None):
            if setting.device_path:
                call = partial(self._write, x, deltas, coder)
                coded = self._on_device_path("write", setting, x.shape, deltas is not None, call)
            else:
                model, exact = self._models[setting.options], setting.options is None
                coded = coding.compress(model, x, exact=exact, deltas=deltas, coder=coder)
        return coded, attempts[-1]

    def read(self, setting: Setting, coded: Coded, z_shape: tuple[int, int]) -> Symbols:
        """Symbols of strings, read in one setting down to the picture. Raises MlicError."""
        attempts, coder = _watched()
        with on_threads(setting.threads, plain=setting.options is None):
            if setting.device_path:
                shape, call = (len(coded.z), *z_shape), partial(self._read, coded, z_shape, coder)
                x_hat = self._on_device_path("read", setting, shape, coded.guard is not None, call)
            else:
                model, exact = self._models[setting.options], setting.options is None
                x_hat = coding.decompress(model, coded, z_shape, exact=exact, coder=coder)
                if len(attempts) > 1:  # it tries other ways where the first one fails
                    raise RuntimeError("it was not read in the first way")
        wanted = (len(coded.z), 3, 64 * z_shape[0], 64 * z_shape[1])
        if tuple(x_hat.shape) != wanted or not bool(x_hat.isfinite().all()):
            raise RuntimeError(f"the picture is {list(x_hat.shape)}, not {list(wanted)}, or not finite")
        return attempts[-1]

    def _write(
        self, x: Tensor, deltas: float | Tensor | None, coder: RangeCoder, recorded: RecordedPrograms | None
    ) -> Coded:
        return programs.compress(self._engine(), self._entropy, x, deltas, recorded, coder)

    def _read(
        self, coded: Coded, z_shape: tuple[int, int], coder: RangeCoder, recorded: RecordedPrograms | None
    ) -> Tensor:
        strings = coded.y, coded.z, z_shape, coded.guard
        return programs.decompress(self._engine(), self._entropy, *strings, recorded, coder)

    def _engine(self) -> Any:
        return engine_for(self._models[FLOAT32], FLOAT32)

    def _on_device_path(
        self,
        what: str,
        setting: Setting,
        shape: Sequence[int],
        guarded: bool,
        call: Callable[[RecordedPrograms | None], Any],
    ) -> Any:
        if not setting.recorded:
            return call(None)
        key = what, tuple(shape), guarded
        if key not in self._seen:
            self._seen.add(key)
            call(self._recorded)  # the first call of a kind is not recorded
        before = self._replays
        result = call(self._recorded)
        if self._replays == before:
            raise RuntimeError("the call was not replayed")
        return result

    def _replayed(self, part: int) -> None:
        self._replays += 1


def _watched() -> tuple[list[Symbols], RangeCoder]:
    """A coder that keeps the symbols which pass it, and where they are kept: a list for each encoder or decoder."""
    attempts: list[Symbols] = []

    class SeenEncoder(Encoder):
        def __init__(self, tables: CodingTables) -> None:
            super().__init__(tables)
            attempts.append([])

        def push(self, symbols: Any, indexes: Any) -> None:
            attempts[-1].append(np.array(symbols, dtype=np.int32).ravel())
            super().push(symbols, indexes)

    class SeenDecoder(Decoder):
        def __init__(self, tables: CodingTables, data: Any) -> None:
            super().__init__(tables, data)
            attempts.append([])

        def decode(self, indexes: Any, out: Any = None, dtype: Any = np.int32) -> Any:
            found = super().decode(indexes, out, dtype)
            attempts[-1].append(np.array(found, dtype=np.int32).ravel())
            return found

    return attempts, RangeCoder(SeenEncoder, SeenDecoder)


def _recorder() -> Any:
    """The tests' stand-in for CUDA graphs."""
    path = ROOT / "tests" / "recorded_operators.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    each = 2**30  # taken for a recording's bytes, much more than its buffers; a quarter of the memory is used
    return module.OperatorRecorder(memory=4 * (RECORDINGS + 1) * each, each=each)


@lru_cache(maxsize=1)
def codec(smoke: bool) -> Codec:
    """Made once a process."""
    return Codec(smoke)


def try_picture(plan: Plan, paths: Sequence[Path], number: int) -> dict[str, Any]:
    """One picture's line: its name and its pairs, each writer, reader, whether guarded, and what went wrong or None."""
    own, trial, start = codec(plan.smoke), plan.trials()[number], time.process_time()
    x = trial_pictures.batch(trial, paths)
    z_shape = x.shape[2] // 64, x.shape[3] // 64
    pairs: list[tuple[str, str, bool, str | None]] = []
    for guarded in (True, False) if number % 10 == 0 else (True,):
        for writer, readers in plan.pairs()[number]:
            written: tuple[Coded, Symbols] | str
            try:
                written = own.write(SETTINGS[writer], x, own.deltas if guarded else None)
            except Exception as error:  # whatever it is, it is counted and told
                written = f"writing: {_told(error)}"
            for reader in readers:
                outcome = written if isinstance(written, str) else _outcome(own, SETTINGS[reader], z_shape, *written)
                pairs.append((SETTINGS[writer].name, SETTINGS[reader].name, guarded, outcome))
    return {
        "number": number,
        "name": trial.name,
        "batch": trial.batch,
        "large": trial.large,
        "seconds": round(time.process_time() - start, 2),
        "pairs": pairs,
    }


def _outcome(own: Codec, setting: Setting, z_shape: tuple[int, int], coded: Coded, symbols: Symbols) -> str | None:
    try:
        found = own.read(setting, coded, z_shape)
    except Exception as error:  # as above
        return _told(error)
    same = len(found) == len(symbols) and all(map(np.array_equal, found, symbols))
    return None if same else "other symbols"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts over pictures' lines."""
    sums: Counter[str] = Counter()
    tables: dict[str, dict[str, dict[str, list[int]]]] = {"guarded": {}, "unguarded": {}}
    batches: dict[str, list[int]] = {}
    told = []
    for line in lines:
        sums["pictures"] += 1
        sums["of them 768×512"] += line["large"]
        sums["in a batch"] += line["batch"] > 1
        for writer, reader, guarded, outcome in line["pairs"]:
            kind = "guarded" if guarded else "unguarded"
            cells = [tables[kind].setdefault(writer, {}).setdefault(reader, [0, 0])]
            if guarded:
                cells.append(batches.setdefault(str(line["batch"]), [0, 0]))
            for cell in cells:
                cell[0] += 1
                cell[1] += outcome is not None
            sums[f"{kind} pairs"] += 1
            sums[f"{kind} failures"] += outcome is not None
            if guarded and outcome is not None:
                told.append(f"{line['name']}: {writer} → {reader}: {outcome}")
    return {
        **sums,
        "processor seconds": round(sum(line["seconds"] for line in lines)),
        "guarded failures told": told,
        "guarded pairs and failures by batch": dict(sorted(batches.items())),
        "guarded pairs and failures by writer and reader": tables["guarded"],
        "unguarded pairs and failures by writer and reader": tables["unguarded"],
    }


def _finished(path: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the pictures that are in the file already. Exits where it belongs to another run."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    if not whole:
        return []
    first, *lines = map(json.loads, whole.split("\n"))
    if {**first, "commit": None} != {**head, "commit": None}:
        sys.exit(f"{path} was begun with other options, photographs, weights or PyTorch: start again without --resume")
    return lines


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _run(plan: Plan, paths: Sequence[Path], numbers: Sequence[int], jobs: int) -> Iterator[dict[str, Any]]:
    try_one = partial(try_picture, plan, paths)
    if jobs == 1:
        yield from map(try_one, numbers)
        return
    # spawned, not forked: PyTorch's thread pool does not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(try_one, numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the pictures that are not in the partial file yet; print the counts, and keep them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="photographs of 768×512 or more")
    for name, what in (
        ("large", "pictures of 768×512"),
        ("small", "smaller pictures"),
        ("writers", "settings that write a small picture"),
        ("readers", "settings that read each small file"),
        ("large-readers", "settings that read each large file"),
    ):
        default = getattr(Plan, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    parser.add_argument("--partial", type=Path, default=PARTIAL, metavar="FILE", help="where pictures are noted")
    parser.add_argument("--resume", action="store_true", help="go on where the partial file ends")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--smoke", action="store_true", help="small weights and pictures, to see that it runs")
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results/")
    options = parser.parse_args(arguments)
    if min(options.large, options.small) < 0 or options.large + options.small < 1:
        parser.error("there must be a picture at least")
    if min(options.writers, options.readers, options.large_readers, options.jobs) < 1:
        parser.error("there must be one writer, one reader and one job at least")
    if max(options.writers, options.readers) > len(SETTINGS) or options.large_readers >= len(SETTINGS):
        parser.error(f"there are {len(SETTINGS)} settings, one less for large pictures")
    if options.write and options.smoke:
        parser.error("a smoke run proves nothing that is to be kept")

    plan = Plan(
        options.large, options.small, options.writers, options.readers, options.large_readers, smoke=options.smoke
    )
    paths = trial_pictures.photographs(options.folders)
    head = {
        "machine": machine(torch.device("cpu")),
        "instructions": instructions(torch.device("cpu")),
        "torch": torch.__version__,
        "commit": commit(),
        "plan": asdict(plan),
        "photographs": [path.name for path in paths],
        "settings": [setting.name for setting in SETTINGS],
    }
    if options.partial.exists() and not options.resume:
        sys.exit(f"{options.partial} holds pictures of an earlier run: go on with --resume, or delete it")
    lines = _finished(options.partial, head)
    numbers = sorted(set(range(len(plan.trials()))) - {line["number"] for line in lines})
    options.partial.parent.mkdir(parents=True, exist_ok=True)
    # anew, without a line that was cut off
    write_whole(options.partial, "".join(_line(one) for one in [head, *lines]).encode())
    with options.partial.open("a", encoding="utf-8") as file:
        failures = Counter(guarded for line in lines for *_, guarded, outcome in line["pairs"] if outcome is not None)
        for line in _run(plan, paths, numbers, options.jobs):
            line["commit"] = head["commit"]
            file.write(_line(line))
            file.flush()
            lines.append(line)
            failures.update(guarded for *_, guarded, outcome in line["pairs"] if outcome is not None)
            print(
                f"{len(lines):3} of {len(plan.trials())}  {line['name']:34} {line['seconds']:6.1f} s   "
                f"failures so far: guarded {failures[True]}, unguarded {failures[False]}",
                flush=True,
            )
    commits = dict.fromkeys(line["commit"] for line in lines)
    result = {**head, "commit": ", ".join(commits), **summary(lines)}
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.write:
        path = RESULTS / "portability_settings.json"
        write_whole(path, (text + "\n").encode())
        print(f"written to {path}")
    if result["guarded failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
