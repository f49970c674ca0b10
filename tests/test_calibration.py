# SPDX-License-Identifier: Apache-2.0
"""Calibration of the guard: deviations are measured where they are, and end up with the weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlic_fast.checkpoint.native import with_deltas
from mlic_fast.cli.main import main
from mlic_fast.entropy.guard import DEFAULT_DELTA, MAX_DELTA
from mlic_fast.errors import GuardError
from mlic_fast.evaluate import calibration
from mlic_fast.evaluate.calibration import Deviation, deltas_for


def _deviation(*largest: float) -> Deviation:
    return Deviation("picture", "way", torch.tensor([largest], dtype=torch.float64))


def test_delta_is_four_times_the_largest_of_each_channel_and_at_least_the_default() -> None:
    (deltas,) = deltas_for([_deviation(1e-6, 2e-5, 1e-4), _deviation(2e-6, 3e-5, 1e-6)])
    assert deltas == pytest.approx((DEFAULT_DELTA, 1.2e-4, 4e-4), abs=1.1e-7)


def test_arithmetic_that_is_too_unsteady_is_told() -> None:
    with pytest.raises(GuardError, match="Are the weights trained"):
        deltas_for([_deviation(MAX_DELTA / 3)])


def test_every_way_is_measured_and_is_float32(small_model: Any) -> None:
    picture = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    found = calibration.measure(small_model, [("noise", picture)])
    assert {one.way for one in found} >= {"plain", "plain, one thread", "C++ kernels", "engine"}
    for one in found:
        assert one.channels.shape == (6, 32)
        assert 1e-9 < one.largest < 1e-4


def test_a_way_that_is_off_in_one_channel_is_found_there(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = calibration.log_scales

    @contextmanager
    def plain() -> Iterator[None]:
        yield

    def off(model: Any, given: Any, *, engine: bool = False) -> list[torch.Tensor]:
        found = original(model, given)
        if model is small_model:
            found[3][:, 5] += 1e-3
        return found

    monkeypatch.setattr(calibration, "log_scales", off)
    monkeypatch.setattr(calibration, "ways", lambda device: {"off": calibration.Setting(plain)})
    (found,) = calibration.measure(small_model, [("grey", np.full((64, 64, 3), 128, np.uint8))])
    assert np.unravel_index(int(found.channels.argmax()), found.channels.shape) == (3, 5)
    assert 0.9e-3 < found.largest < 1e-2


def test_pictures_are_of_the_size_asked_for_and_differ() -> None:
    found = dict(calibration.pictures(height=40, width=70))
    assert len(found) >= 8
    assert all(picture.shape == (40, 70, 3) and picture.dtype == np.uint8 for picture in found.values())
    assert len({picture.tobytes() for picture in found.values()}) == len(found)


def test_the_command_stores_what_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import mlic_fast

    photograph, weights = tmp_path / "a.png", tmp_path / "calibrated.safetensors"
    Image.new("RGB", (30, 20), (200, 30, 90)).save(photograph)
    arguments = [
        "calibrate",
        "mlicpp-s-0.0067",
        str(photograph),
        "--size",
        "64x64",
        "--size",
        "64x128",
        "-o",
        str(weights),
        "--json",
    ]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {one["picture"] for one in facts["deviations"]} >= {"a.png", "noise 64x64", "white 64x128"}
    assert facts["delta"] == pytest.approx(max(map(max, facts["deltas"])))
    assert facts["delta"] >= 0.999 * max(DEFAULT_DELTA, 4 * facts["largest"])
    model = mlic_fast.load(weights)
    assert np.allclose(model.guard_deltas, facts["deltas"])


@pytest.mark.parametrize("size", ["huge", "64", "64x", "0x0", "8x8", "99999x64", "-64x64"])
def test_sizes_that_make_no_sense_are_refused(size: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(["calibrate", "mlicpp-s-0.0067", f"--size={size}"])
    assert error.value.code == 2


def test_native_weights_can_be_calibrated_in_place(tmp_path: Path) -> None:
    import mlic_fast
    from mlic_fast.codec import model_fingerprint
    from mlic_fast.registry import resolve

    weights = tmp_path / "weights.safetensors"
    deltas = ((MAX_DELTA,) * 32,) * 6
    with_deltas(resolve("mlicpp-s-0.0067"), weights, deltas)
    assert float(torch.as_tensor(mlic_fast.load(weights).guard_deltas).min()) == pytest.approx(MAX_DELTA)
    assert main(["calibrate", str(weights), "--size", "64x64", "--size", "64x128", "-o", str(weights)]) == 0
    after = mlic_fast.load(weights)
    assert float(torch.as_tensor(after.guard_deltas).max()) < MAX_DELTA / 2
    assert model_fingerprint(after) == model_fingerprint(mlic_fast.load("mlicpp-s-0.0067"))


def test_weights_are_not_written_over_themselves_by_another_kind(tmp_path: Path) -> None:
    assert main(["calibrate", "mlicpp-s-0.0067", "-o", str(tmp_path / "a.pth")]) == 2
