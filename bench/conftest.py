# SPDX-License-Identifier: Apache-2.0
"""The benchmarks under pytest-benchmark: a test for each case and device, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# This file is read even when only tests run, some of which want to be first to import the package: so it is
# imported where it is needed.
if TYPE_CHECKING:
    import torch
    from common import Benchmark, Settings
    from rows import Row

_measured = pytest.StashKey[dict[str, list["Row"]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_measured] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "compare" in metafunc.fixturenames:
        import common

        benchmark = metafunc.module.BENCHMARK
        metafunc.parametrize("case", benchmark.names(_settings(metafunc.config)))
        metafunc.parametrize("device", common.devices(benchmark.on), ids=str)


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Benchmark, str, torch.device], None]:
    """Measures one case of a benchmark: ours are pytest-benchmark's rounds, the others take their turns in between."""
    import common
    import torch

    config = request.config
    threads = config.getoption("--benchmark-threads")
    if threads:
        torch.set_num_threads(threads)

    def run(what: Benchmark, case: str, device: torch.device) -> None:
        def turns(others: Callable[[], None], ours: Callable[[], None], rounds: int) -> None:
            benchmark.pedantic(ours, setup=others, rounds=rounds)

        benchmark.group = what.operation
        try:
            found = common.measure(what, case, device, _settings(config), turns)
        except common.CannotRun as reason:
            pytest.skip(str(reason))
        for row in found:
            benchmark.extra_info[row.contestant] = {"seconds": row.seconds, "peak MiB": row.peak_mib}
        config.stash[_measured].setdefault(what.stem, []).extend(found)

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    measured = config.stash[_measured]
    if not measured:
        return
    import rows

    terminalreporter.section("speed comparison")
    for line in rows.table([row for found in measured.values() for row in found]):
        terminalreporter.write_line(line)
    folder = config.getoption("--benchmark-results") or (None if _settings(config).smoke else rows.RESULTS)
    if folder is not None:
        for stem, found in measured.items():
            for path in rows.keep(found, stem, Path(folder)):
                terminalreporter.write_line(f"rows written to {path}")


def _settings(config: pytest.Config) -> Settings:
    import argparse

    import common

    try:
        sizes = tuple(common.size_of(text) for text in config.getoption("--benchmark-size"))
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"--benchmark-size: {error}") from None
    return common.Settings(
        smoke=config.getoption("--benchmark-smoke"), budget=config.getoption("--benchmark-budget"), sizes=sizes
    )
