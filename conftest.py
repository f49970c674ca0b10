# SPDX-License-Identifier: Apache-2.0
"""`pytest --benchmark` runs the speed comparison and nothing else; plain `pytest` runs everything but it."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark")
    group.addoption("--benchmark", action="store_true", help="run the speed comparison (bench/) instead of the tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--benchmark") or config.getoption("--benchmark-only", False)
    chosen, left_out = [], []
    for item in items:
        is_benchmark = "benchmark" in getattr(item, "fixturenames", ())
        (chosen if is_benchmark == bool(wanted) else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen
