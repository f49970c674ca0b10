# SPDX-License-Identifier: Apache-2.0
"""The logger mlic_fast says why something slower than usual was done, to those who ask."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from device_codec import FIXTURES, Codec
from recorded_operators import OperatorRecorder

from mlic_fast.compute.backend import use_backend
from mlic_fast.engine import engine_for
from mlic_fast.engine.gpu.recordings import VARIABLE
from mlic_fast.errors import BitstreamError

Images = Callable[..., torch.Tensor]
tiny, recorder, recorded, plain = FIXTURES


@pytest.fixture(autouse=True)
def _listening(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLIC_FAST_BACKEND", raising=False)
    caplog.set_level(logging.DEBUG, "mlic_fast")


def test_why_there_is_no_engine(
    small_model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reason(model: Any) -> str:
        caplog.clear()
        assert engine_for(model) is None
        (record,) = caplog.records
        assert record.name.startswith("mlic_fast")
        return record.getMessage()

    with use_backend("torch"):
        assert "backend torch is named" in reason(small_model)
    model = copy.deepcopy(small_model)
    assert "training mode" in reason(model.train())
    assert "float32" in reason(model.eval().half())
    monkeypatch.setenv("MLIC_FAST_ENGINE", "off")
    assert "MLIC_FAST_ENGINE is off" in reason(small_model)


def test_an_engine_is_no_news(small_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert engine_for(small_model) is not None
    assert not caplog.records


def test_other_ways_after_a_failure(small_model: Any, test_image: Images, caplog: pytest.LogCaptureFixture) -> None:
    coded = small_model.compress(test_image(64, 64, 5))
    damaged = [[coded["strings"][0][0] + bytes(4)], coded["strings"][1]]
    with pytest.raises(BitstreamError):
        small_model.decompress(damaged, coded["shape"])
    told = [record.getMessage() for record in caplog.records if "other ways are tried" in record.getMessage()]
    assert told
    assert "by engine" in told[0]


def test_why_nothing_is_recorded(
    recorded: Codec,
    test_image: Images,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    recorded.compress(test_image(64, 64, 6))
    assert any(f"{VARIABLE} is 0" in record.getMessage() for record in caplog.records)


def test_why_a_recording_was_refused(
    recorded: Codec,
    recorder: OperatorRecorder,
    test_image: Images,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(start: Any) -> Any:
        raise RuntimeError("the driver says no")

    monkeypatch.setattr(recorder, "record", refuse)
    x = test_image(64, 64, 7)
    recorded.compress(x)
    with pytest.warns(RuntimeWarning, match="could not be recorded"):
        recorded.compress(x)
    assert any("the driver says no" in record.getMessage() for record in caplog.records)


def test_silence_unless_asked() -> None:
    code = "import numpy, mlic_fast; data = mlic_fast.encode(numpy.zeros((64, 64, 3), 'uint8')); mlic_fast.decode(data)"
    for engine in ("on", "off"):
        run = subprocess.run(
            [sys.executable, "-c", f"import os; os.environ['MLIC_FAST_ENGINE'] = {engine!r}; {code}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        )
        assert not run.stdout + run.stderr
