# SPDX-License-Identifier: Apache-2.0
"""The full-size model for benchmarks, without trained weights, and a small one to try them with.

Its weights are the seeded filling of tests/golden (`gains_full.json`): every layer's output has a standard deviation
near one, and latents, means and scales look like a trained model's, most channels quiet and a few loud. A 768×512
photograph takes about 0.5 to 0.6 bits per pixel. Speed does not depend on training; bytes and portability do a little.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import torch

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.entropy.guard import DELTA_UNIT, delta_code

_GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"

# δ of each pass and channel of these weights, in units of 1e-7: what `python bench/full_size.py PICTURE…` measures.
_DELTAS = Path(__file__).resolve().parent / "full_size_deltas.json"


@cache
def full_size_model() -> MLICPlusPlus:
    """The published configuration, in evaluation mode, on the CPU, with coding tables."""
    model = _filled(ModelConfig(), "gains_full.json")
    if _DELTAS.exists():
        model.guard_deltas = torch.tensor(json.loads(_DELTAS.read_text()), dtype=torch.float64) * DELTA_UNIT
    return model


@cache
def small_model() -> MLICPlusPlus:
    """As `full_size_model`, but so small that times mean nothing."""
    return _filled(ModelConfig(N=64, M=96, slice_num=3), "gains_small.json")


def _filled(config: ModelConfig, gains: str) -> MLICPlusPlus:
    specification = importlib.util.spec_from_file_location("golden_weights", _GOLDEN / "weights.py")
    assert specification is not None
    assert specification.loader is not None
    weights = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(weights)
    model = MLICPlusPlus(config)
    weights.fill(model, json.loads((_GOLDEN / gains).read_text()))
    model.update(force=True)
    model.name = "seeded filling"
    return model.eval()


def main() -> None:
    """Calibrate the guard for these weights, with photographs that are named beside the made-up pictures."""
    from mlic_fast.evaluate import calibration

    photographs = [(Path(name).stem, name) for name in sys.argv[1:]]
    chosen = chain(calibration.pictures(), photographs)
    found = calibration.measure(
        full_size_model(),
        chosen,
        tell=lambda one: print(f"{one.picture:12} {one.way:22} {one.largest:.2e}", flush=True),
    )
    codes = [[delta_code(delta) for delta in channels] for channels in calibration.deltas_for(found)]
    _DELTAS.write_text("[\n" + ",\n".join(f" {json.dumps(channels)}" for channels in codes) + "\n]\n")


if __name__ == "__main__":
    main()
