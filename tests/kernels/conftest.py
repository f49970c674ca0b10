# SPDX-License-Identifier: Apache-2.0
"""Without a CUDA device, Triton's kernels run in its interpreter: the switch must be set before they are defined."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a machine with a GPU every kernel test is one of `pytest -m cuda`: there the kernels run for real."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker("cuda")


if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    _language = sys.modules.get("mlic_fast.compute.triton_language")
    if _language is not None and _language.HAS_TRITON and not _language.INTERPRETED:
        raise pytest.UsageError(
            "kernels were imported before tests/kernels/conftest.py could switch Triton's interpreter on; "
            "run tests/kernels first, or with TRITON_INTERPRET=1"
        )
