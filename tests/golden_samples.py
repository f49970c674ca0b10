# SPDX-License-Identifier: Apache-2.0
"""Where golden data are, and the module that fills models with their weights and makes their pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"

_spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
assert _spec is not None
assert _spec.loader is not None
golden_weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden_weights)
