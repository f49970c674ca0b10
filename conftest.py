# SPDX-License-Identifier: Apache-2.0
"""`pytest --benchmark` runs the speed comparison (bench/) and nothing else; plain `pytest` runs everything but it."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark")
    group.addoption("--benchmark", action="store_true", help="run the speed comparison (bench/) instead of the tests")
    group.addoption(
        "--benchmark-size",
        action="append",
        default=[],
        metavar="WxH",
        help="size of the picture for the whole model, 768x512 for instance; may be given several times "
        "(default: those of 768x512, 1920x1080 and 3840x2160 that fit the machine and the budget)",
    )
    group.addoption(
        "--benchmark-budget", type=float, default=900, metavar="SECONDS", help="time for one case (default: 900)"
    )
    group.addoption("--benchmark-threads", type=int, metavar="N", help="threads of the CPU (default: PyTorch's)")
    group.addoption(
        "--benchmark-results", metavar="FOLDER", help="where rows are written (default: bench/results/, tiny sizes not)"
    )
    group.addoption("--benchmark-smoke", action="store_true", help="tiny sizes and few rounds: only whether it runs")


def _wanted(config: pytest.Config) -> bool:
    return bool(config.getoption("--benchmark") or config.getoption("--benchmark-only", False))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # The tests switch Triton's interpreter on, which is none of a benchmark's contestants.
    if _wanted(config) and config.rootpath / "tests" in collection_path.parents:
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, left_out = [], []
    for item in items:
        is_benchmark = "benchmark" in getattr(item, "fixturenames", ())
        (chosen if is_benchmark == _wanted(config) else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen
