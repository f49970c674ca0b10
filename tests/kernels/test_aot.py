# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiles for the GPUs we name, spills nothing and takes what the committed table says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import aot
import pytest

pytest.importorskip("triton", reason="Triton has packages for Linux only")

# What any supported GPU gives: 255 registers a thread, 99 KiB of shared memory a program (compute capability 8.6).
MOST_REGISTERS, MOST_SHARED = 255, 99 * 1024


def test_the_table_has_the_kernels_that_there_are() -> None:
    assert sorted(json.loads(aot.TABLE.read_text())["kernels"]) == aot.stems()


@pytest.mark.parametrize("stem", aot.stems())
def test_kernels_compile_and_take_what_the_table_says(stem: str) -> None:
    # a process of its own: this one's kernels may be interpreted
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, aot.__file__, stem], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    saved = json.loads(aot.TABLE.read_text())
    expected = saved["kernels"].get(stem, {})
    assert expected.keys() == found["kernels"][stem].keys(), f"run python tests/kernels/aot.py --write {stem}"
    for name, targets in found["kernels"][stem].items():
        assert targets.keys() == {f"sm_{capability}" for capability in aot.capabilities()}
        for target, usage in targets.items():
            # another version of Triton brings another assembler, which may put a value or two aside
            most_stack = 0 if found["triton"] == saved["triton"] else 64
            assert usage["stack"] <= most_stack, f"{name} spills registers on {target}"
            assert 0 < usage["registers"] <= MOST_REGISTERS, (name, target)
            assert usage["shared"] <= MOST_SHARED, (name, target)
            if found["triton"] == saved["triton"]:
                assert usage == expected[name][target], (name, target)
