# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, at tiny sizes; they compare what they say, count what is executed, and keep what they find."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Name → module of bench/."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


@pytest.fixture
def model_benchmark(bench: Callable[[str], Any]) -> Any:
    """As if nothing had run before."""
    return bench("bench_model").ModelBenchmark()


def run_pytest(*arguments: str) -> str:
    # PYTEST_…: of this run alone
    left_out = "TRITON_INTERPRET", "PYTEST_"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-3000:]
    return run.stdout


def test_every_benchmark_runs_and_is_in_the_table(tmp_path: Path) -> None:
    out = run_pytest(
        "--benchmark", "--benchmark-smoke", "--benchmark-threads=2", f"--benchmark-results={tmp_path}", "bench"
    )
    table = out.partition("speed comparison")[2]
    stems = {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")}
    assert len(stems) == 9
    for stem in stems:
        (path,) = tmp_path.glob(f"{stem}.*.json")
        rows = json.loads(path.read_text())["rows"]
        assert str(path) in table
        cases = {(row["operation"], row["case"], row["device"]) for row in rows}
        for case in cases:
            found = {row["contestant"]: row for row in rows if (row["operation"], row["case"], row["device"]) == case}
            assert len(found) >= 2
            for name, row in found.items():
                assert row["baseline"] in found
                assert row["seconds"] > 0
                no_floor = {"compressai_coder", "range_coder", "startup", "training"}
                assert (stem in no_floor) == (row["floor_share"] is None)
                assert (stem == "model") == (row["gflop"] is not None)
                lines = [line for line in table.splitlines() if line.startswith(f"{case[0]} ") and f" {name} " in line]
                assert any(case[1] in line for line in lines) == (name != row["baseline"])
    assert {row["threads"] for row in rows} == {2}


def test_only_benchmarks_run_if_asked_for() -> None:
    files = "bench/bench_gdn.py", "tests/test_fingerprint.py"
    asked = run_pytest("--collect-only", "--benchmark-only", *files)
    assert "bench/bench_gdn.py::test_gdn" in asked
    assert "tests/test_fingerprint.py::" not in asked
    plain = run_pytest("--collect-only", *files)
    assert "bench/bench_gdn.py::test_gdn" not in plain
    assert "tests/test_fingerprint.py::" in plain


def test_a_process_of_its_own_measures_memory() -> None:
    command = [sys.executable, str(ROOT / "bench" / "bench_gdn.py"), "--smoke"]
    peak = subprocess.run(
        [*command, "--peak", "20×12, channels-last, forward", "operation"], capture_output=True, text=True, check=True
    )
    most, kept = json.loads(peak.stdout)
    assert kept is None
    assert most is None or 0 <= most < 100


def test_contestants_take_turns(bench: Callable[[str], Any]) -> None:
    common = bench("common")
    calls: list[str] = []
    now = [0.0]
    seconds = {"operation": 1.0, "twin": 3.0}

    class Case:
        def work(self) -> None:
            return None

    def call_of(case: Any, contestant: str, device: torch.device) -> Callable[[], None]:
        def call() -> None:
            calls.append(contestant)
            now[0] += seconds[contestant]

        return call

    benchmark = common.Benchmark(
        "name", {"case": Case()}, {}, ("twin", "operation"), call_of, "bench_it.py", clock=lambda: now[0]
    )
    settings = common.Settings(peaks=False, rounds=4)
    ours, twin = sorted(common.measure(benchmark, "case", CPU, settings), key=lambda row: row.seconds)
    assert calls == ["twin"] * 2 + ["operation"] * 2 + ["twin", "operation"] * 4
    assert (ours.contestant, ours.seconds, ours.spread, ours.rounds) == ("operation", 1, 0, 4)
    assert (twin.contestant, twin.seconds, twin.floor_share) == ("twin", 3, None)
    # half of ten seconds is enough for one round of four; three are taken all the same
    calls.clear()
    common.measure(benchmark, "case", CPU, common.Settings(peaks=False, rounds=9, budget=10))
    assert calls.count("operation") == 2 + 3


def test_operations_are_counted_as_pytorch_counts_them(bench: Callable[[str], Any], small_model: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from mlic_fast.compute.backend import plain_path

    Operations = bench("arithmetic").Operations
    x = torch.rand(1, 3, 64, 128)
    with torch.no_grad(), plain_path():
        with FlopCounterMode(display=False) as reference:
            small_model(x)
        with Operations() as plain:
            small_model(x)
        with torch.inference_mode(), Operations() as inference:
            small_model(x)
    assert dict(plain.executed) == {torch.float32: reference.get_total_flops()}
    assert dict(inference.executed) == dict(plain.executed)


def test_packed_operators_count_like_plain_ones(bench: Callable[[str], Any]) -> None:
    from mlic_fast.engine.layers import compile_convolution
    from mlic_fast.ops.gdn import gdn

    Operations = bench("arithmetic").Operations
    x = torch.rand(2, 8, 6, 10).contiguous(memory_format=torch.channels_last)
    for groups, stride, out in ((1, 1, 16), (8, 1, 8), (1, 2, 16)):
        weight = torch.rand(out, 8 // groups, 3, 3)
        with Operations() as operations, torch.no_grad():
            compile_convolution(weight, None, stride=stride, groups=groups)(x, gelu=True)
        assert operations.executed[torch.float32] == 2 * 2 * out * (60 // stride**2) * 9 * 8 // groups
    with Operations() as operations, torch.no_grad():
        convolution = compile_convolution(torch.rand(16, 8, 1, 1), None, dtype=torch.bfloat16, exact=False)
        convolution(x.bfloat16())
    assert dict(operations.executed) == {torch.bfloat16: 2 * 2 * 16 * 60 * 8}
    with Operations() as operations, torch.no_grad():
        convolution = compile_convolution(torch.rand(16, 8, 1, 1), None)
        convolution.add_to(torch.zeros(2, 16, 6, 10).contiguous(memory_format=torch.channels_last), x)
    assert dict(operations.executed) == {torch.float32: 2 * 2 * 16 * 60 * 8}
    with Operations() as operations, torch.no_grad():
        gdn(x, torch.rand(8) + 1, torch.rand(8, 8))
    assert dict(operations.executed) == {torch.float32: 2 * 2 * 60 * 8 * 8}


def test_softmax_attention_counts_like_its_formula(bench: Callable[[str], Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from mlic_fast.ops.softmax_attention import checkerboard_softmax_attention, softmax_attention

    formulas, Operations = bench("bench_softmax_attention"), bench("arithmetic").Operations
    maps = torch.rand(3, 2, 12, 4, 6)
    for operation, formula in (
        (softmax_attention, formulas.formula),
        (checkerboard_softmax_attention, formulas.checkerboard_formula),
    ):
        with FlopCounterMode(display=False) as reference:
            expected = formula(*maps, 3)
        with Operations() as operations:
            torch.testing.assert_close(operation(*maps, 3), expected)
        assert dict(operations.executed) == {torch.float32: reference.get_total_flops()}


def test_unknown_products_are_refused(bench: Callable[[str], Any]) -> None:
    @torch.library.custom_op("mlic_test::packed_matmul", mutates_args=())
    def packed_matmul(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    with pytest.raises(RuntimeError, match="packed_matmul is not counted"), bench("arithmetic").Operations():
        packed_matmul(torch.rand(3))


def test_the_baseline_must_be_the_model(
    bench: Callable[[str], Any], model_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline, settings = bench("baseline"), bench("common").Settings(smoke=True)
    honest = baseline.compress

    def damaged(model: Any, x: torch.Tensor) -> dict[str, Any]:
        coded = honest(model, x)
        return {**coded, "strings": [[coded["strings"][0][0][:-4]], coded["strings"][1]]}

    monkeypatch.setattr(baseline, "compress", damaged)
    with pytest.raises(RuntimeError, match="strings are not those of compress"):
        model_benchmark.prepare("encode, 64×64", CPU, settings)

    monkeypatch.setattr(baseline, "compress", honest)
    picture_of = baseline.decompress
    monkeypatch.setattr(baseline, "decompress", lambda *arguments: picture_of(*arguments) + 1e-6)
    with pytest.raises(RuntimeError, match="picture is not decompress"):
        bench("bench_model").ModelBenchmark().prepare("decode, 64×64", CPU, settings)


def test_what_does_not_fit_is_left_out(
    bench: Callable[[str], Any], model_benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = bench("common")
    assert [name for name in model_benchmark.names(common.Settings()) if "×1080" in name] == [
        "encode, 1920×1080",
        "decode, 1920×1080",
    ]
    huge = common.Settings(sizes=((7680, 4320),))
    assert model_benchmark.names(huge) == ["decode, 7680×4320"]
    assert "baseline" not in model_benchmark.of("decode, 7680×4320", huge)

    model_benchmark._pace["encode", "cpu"] = 1e-3
    with pytest.raises(common.CannotRun, match="it would take about 49766 s, and a case may take 900"):
        model_benchmark.prepare("encode, 3840×2160", CPU, common.Settings())
    monkeypatch.setattr(common, "free_memory", lambda device: 2**30)
    with pytest.raises(common.CannotRun, match=r"up to 11\.3 GiB, 1\.0 are free"):
        model_benchmark.prepare("encode, 3840×2160", CPU, common.Settings(sizes=((3840, 2160),)))


@pytest.mark.parametrize("operation", ["encode", "decode"])
def test_memory_of_the_model_is_measured(
    bench: Callable[[str], Any], model_benchmark: Any, tmp_path: Path, operation: str
) -> None:
    import pickle

    settings = bench("common").Settings(smoke=True)
    module = bench("bench_model")
    path = tmp_path / "strings"
    coded = module.compress(module.model_on(CPU, True), "engine", module.picture(130, 64))
    path.write_bytes(pickle.dumps(coded))
    most, kept = model_benchmark.peak_here(f"{operation}, 130×64", "engine", CPU, settings, str(path))
    if sys.platform == "linux":
        assert -1 <= kept <= most + 1  # the system counts in batches


def test_rows_replace_earlier_ones_of_their_name(bench: Callable[[str], Any], tmp_path: Path) -> None:
    from dataclasses import replace

    rows = bench("rows")
    row = rows.Row(
        operation="encode",
        case="1×1",
        contestant="engine",
        baseline="baseline",
        seconds=1.0,
        spread=0.1,
        rounds=3,
        clock="wall",
        floor_share=0.5,
        gflop={"float32": 10.0},
        gflop_per_second={"float32": 20.0},
        peak_mib=2000.0,
        kept_mib=None,
        **rows.environment(CPU),
    )
    other = replace(row, contestant="baseline", seconds=2.5)
    (path,) = rows.keep([row, other], "model", tmp_path)
    assert rows.keep([replace(row, seconds=1.25)], "model", tmp_path) == [path]
    kept = [rows.Row(**found) for found in json.loads(path.read_text())["rows"]]
    assert kept == [other, replace(row, seconds=1.25)]

    *_, heads, line = rows.table(kept)
    columns = "operation size device contestant baseline ours ratio of the floor peak memory of it stays"
    assert " ".join(heads.split()) == columns
    expected = "encode 1×1 cpu engine 2500.00 ±100.00 ms 1250.00 ±100.00 ms 2.00× 50.0% 1.95 GiB / 1.95 GiB –"
    assert line.split() == expected.split()
    assert "cpu: 20 GFLOP/s in a large convolution, float32" in rows.table(kept)


@pytest.mark.parametrize("text", ["", "768", "768x", "0x512", "-1x5", "768x512x3"])
def test_sizes_that_are_none(bench: Callable[[str], Any], text: str) -> None:
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        bench("common").size_of(text)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what passes for one."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    noise = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    Image.fromarray(noise.numpy()).resize((768, 512), Image.Resampling.BICUBIC).save(folder / "one.png")
    return folder


def test_settings_are_tried_and_an_interrupted_run_goes_on(
    bench: Callable[[str], Any],
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool, partial = bench("portability_settings"), tmp_path / "partial.jsonl"
    monkeypatch.setattr(bench("trial_pictures"), "HEIGHTS", (1, 33))
    monkeypatch.setattr(bench("trial_pictures"), "WIDTHS", (5, 61, 64))
    command = [str(photograph), "--smoke", "--large=1", "--small=5", "--writers=3", "--partial", str(partial)]

    def run(*more: str) -> dict[str, Any]:
        tool.main([*command, *more])
        text = capsys.readouterr().out
        result = json.loads(text[text.index("\n{") :])
        assert result.pop("processor seconds") > 0
        return result

    result = run()
    assert result["pictures"] == 6
    assert result["guarded pairs"] == 5 * 3 * 2 + 3
    assert result["unguarded pairs"] == 3 * 2
    assert result["guarded failures"] == 0, result["guarded failures told"]
    cells = [
        cell for row in result["guarded pairs and failures by writer and reader"].values() for cell in row.values()
    ]
    assert sum(count for count, _ in cells) == 33
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 7

    with pytest.raises(SystemExit, match="earlier run"):
        tool.main(command)
    with pytest.raises(SystemExit, match="other options"):
        tool.main([*command, "--readers=1", "--resume"])
    capsys.readouterr()
    partial.write_text("".join(lines[:4]) + lines[4][:30])  # the third picture is there, the fourth was being written
    assert run("--resume") == result
    again = [json.loads(line) for line in partial.read_text().splitlines()]
    for line, first in zip(again[1:], map(json.loads, lines[1:]), strict=True):
        assert {**line, "seconds": 0} == {**first, "seconds": 0}


def test_what_cannot_be_read_is_a_failure(
    bench: Callable[[str], Any],
    photograph: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlic_fast.entropy.coders import Reader

    honest = Reader.begin
    # scales far from the writer's, on the plain path and in the engine
    monkeypatch.setattr(Reader, "begin", lambda self, scales: honest(self, scales * 1.1))
    tool = bench("portability_settings")
    with pytest.raises(SystemExit) as exit_code:
        tool.main(
            [
                *(str(photograph), "--smoke", "--large=0", "--small=1", "--writers=1", "--readers=8"),
                f"--partial={tmp_path / 'partial.jsonl'}",
            ]
        )
    assert exit_code.value.code == 1
    text = capsys.readouterr().out
    result = json.loads(text[text.index("\n{") :])
    assert result["guarded pairs"] == 8
    told = result["guarded failures told"]
    assert len(told) == result["guarded failures"] == 7  # the readers of the GPU path are others
    assert all("GuardError" in one for one in told)
    (row,) = result["unguarded pairs and failures by writer and reader"].values()
    assert sum(failures for _, failures in row.values()) == 7


def test_every_ordered_pair_of_settings_occurs_equally_often(bench: Callable[[str], Any]) -> None:
    from collections import Counter

    tool = bench("portability_settings")
    plan = tool.Plan()
    seen: dict[bool, Counter[tuple[int, int]]] = {False: Counter(), True: Counter()}
    for trial, pairs in zip(plan.trials(), plan.pairs(), strict=True):
        seen[trial.large].update((writer, reader) for writer, readers in pairs for reader in readers)
    assert len(plan.trials()) == 500
    assert sum(trial.large for trial in plan.trials()) == 50
    for large, count in ((False, len(tool.SETTINGS)), (True, len(tool.SETTINGS) - 1)):
        assert len(seen[large]) == count**2
        assert max(seen[large].values()) - min(seen[large].values()) <= 1


def test_trial_pictures(bench: Callable[[str], Any], photograph: Path) -> None:
    from dataclasses import replace

    module = bench("trial_pictures")
    paths = module.photographs([photograph])
    trial = module.Trial(7, "noise", 65, 5, 3, False)
    for content in module.CONTENTS:
        one = replace(trial, content=content)
        pixels = module.picture(one, paths)
        assert pixels.shape == (65, 5, 3)
        assert pixels.dtype == "uint8"
        assert (pixels == module.picture(one, paths)).all()
        x = module.batch(one, paths)
        assert tuple(x.shape) == (3, 3, *one.padded()) == (3, 3, 128, 64)
        assert 0 <= x.min() <= x.max() <= 1
    with pytest.raises(SystemExit, match="768×512"):
        module.photographs([photograph / "nowhere"])


def test_the_engines_quality_is_compared_with_the_plain_paths(
    bench: Callable[[str], Any], photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from mlic_fast.compute.private_torch import has_bfloat16

    Image.open(photograph / "one.png").crop((0, 0, 250, 190)).save(tmp_path / "crop.png")
    tool = bench("engine_quality")
    tool.main([str(tmp_path), "--model", "mlicpp-s-0.0018"])
    head, picture, mean, largest = capsys.readouterr().out.splitlines()
    assert head.split() == ["mlicpp-s-0.0018", "float32", "bfloat16"]
    assert [line.split()[0] for line in (picture, mean, largest)] == ["crop.png", "mean", "largest"]
    assert picture.split()[1:] == mean.split()[1:] == largest.split()[1:]  # of one picture
    _, size, decibels, _, short_size, short_decibels, _ = picture.split()
    assert abs(float(size.rstrip("%"))) < 0.5
    assert abs(float(decibels)) < 0.005
    # without instructions for it, PyTorch's own convolutions round their sums to bfloat16, too
    assert abs(float(short_size.rstrip("%"))) < 5
    assert abs(float(short_decibels)) < (0.1 if has_bfloat16() else 0.5)
    (tmp_path / "crop.png").unlink()
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path)])
