# SPDX-License-Identifier: Apache-2.0
"""mlic_fast.release() lets go of everything that is kept, and what is kept is bounded."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import mlic_fast
from mlic_fast import codec, registry
from mlic_fast.codec import open_model
from mlic_fast.engine import engine_for

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_models_and_engines_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLIC_FAST_BACKEND", raising=False)
    data = mlic_fast.encode(PICTURE)
    network = open_model()
    kept = [weakref.ref(network), weakref.ref(engine_for(network))]
    del network
    gc.collect()
    assert all(thing() is not None for thing in kept)
    mlic_fast.release()
    assert all(thing() is None for thing in kept)
    assert not registry._read
    assert np.asarray(mlic_fast.decode(data)).shape == PICTURE.shape


def test_a_model_that_somebody_holds_works_on() -> None:
    model = mlic_fast.load("mlicpp-s-0.0018")
    before = mlic_fast.encode(PICTURE, model)
    mlic_fast.release()
    assert mlic_fast.encode(PICTURE, model) == before


def test_models_beyond_the_bound_go(monkeypatch: pytest.MonkeyPatch) -> None:
    mlic_fast.release()
    small = codec._size_of(open_model("mlicpp-s-0.0018"))
    monkeypatch.setattr(codec, "MOST_KEPT", 2 * small + small // 2)
    first, second = open_model("mlicpp-s-0.0018"), open_model("mlicpp-s-0.0067")
    assert open_model("mlicpp-s-0.0018") is first
    open_model("mlicpp-s-0.0483")  # in the place of the one that was used longest ago
    assert open_model("mlicpp-s-0.0018") is first
    assert open_model("mlicpp-s-0.0067") is not second
    monkeypatch.setattr(codec, "MOST_KEPT", 1)
    assert open_model("mlicpp-s-0.0483") is open_model("mlicpp-s-0.0483")
    assert len(codec._loaded) == 1


def test_files_beyond_the_bound_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    mlic_fast.release()
    monkeypatch.setattr(registry, "_MOST_READ", 2)
    assert len(registry.available().models) >= 3
    assert len(registry._read) == 2


_MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
import mlic_fast
from mlic_fast.codec import open_model
from mlic_fast.engine import engine_for

def taken():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

picture = np.zeros((64, 64, 3), np.uint8)
mlic_fast.encode(picture)
mlic_fast.release()
empty = taken()
for name in ("mlicpp-s-0.0018", "mlicpp-s-0.0067", "mlicpp-s-0.0483"):
    mlic_fast.encode(picture, name)
full = taken()
mlic_fast.release()
print(empty, full, taken())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_memory_comes_back() -> None:
    run = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    empty, full, after = map(float, re.findall(r"[\d.]+", run.stdout))
    assert full - empty > 80  # MiB: three models of 37, and their engines
    assert after - empty < 0.3 * (full - empty)


def test_nothing_is_imported_for_it() -> None:
    code = "import sys, mlic_fast; mlic_fast.release(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
