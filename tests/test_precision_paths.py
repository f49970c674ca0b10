# SPDX-License-Identifier: Apache-2.0
"""No switch of PyTorch's reaches the scales on any way that leads to them: forward, coding, calibration, validation.

The hardware is emulated (`precision_switches`); every walk over the slices is watched, and compared with float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from precision_switches import ObedientHardware, permitted, switched
from training_samples import SHORT, pictures

from mlic_fast import MLICPlusPlus
from mlic_fast.compute.backend import plain_path
from mlic_fast.engine import Engine
from mlic_fast.evaluate import calibration
from mlic_fast.limits import Limits
from mlic_fast.nn.network import Network
from mlic_fast.train.distributed import Processes
from mlic_fast.train.recipe import recipe_from
from mlic_fast.train.step import Trainee
from mlic_fast.train.validation import Validator

# In log-scale: the most that right float32 implementations were seen to differ by, with room.
TOLERANCE = 2e-5


@dataclass
class Walked:
    """One walk: the network, ẑ, and each pass's scales and decoded values."""

    network: Network
    z_hat: torch.Tensor
    scales: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def difference(self) -> float:
        """The largest from what float64 gives for the same ẑ and values, in log-scale."""
        wide = copy.deepcopy(self.network).to("cpu", torch.float64)
        largest = 0.0
        with torch.no_grad(), plain_path():
            walk = wide.walk(self.z_hat.double())
            expected: Any = next(walk)
            for scales, values in zip(self.scales, self.values, strict=True):
                exact, seen = (each.double().clamp_min(0.11).log() for each in (expected, scales))
                largest = max(largest, float((exact - seen).abs().max()))
                next(walk)
                try:
                    expected = walk.send(values.double())
                except StopIteration:
                    break
        return largest


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[Walked]:
    """Every walk from here on, compiled or as written down, of float32."""
    found: list[Walked] = []

    def watch(kind: Any) -> None:
        original = kind.walk

        def walk(self: Any, z_hat: torch.Tensor, *others: Any) -> Any:
            network = self if isinstance(self, Network) else networks[id(self)]
            own = Walked(network, z_hat.detach().clone())
            if z_hat.dtype == torch.float32:
                found.append(own)
            inner = original(self, z_hat, *others)
            try:
                sent = None
                while True:
                    given = inner.send(sent)
                    if len(own.scales) == len(own.values):
                        own.scales.append(given.detach().clone())
                        sent = yield given
                    else:
                        sent = yield given
                        own.values.append(sent.detach().clone())
            except StopIteration as end:
                return end.value

        monkeypatch.setattr(kind, "walk", walk)

    networks: dict[int, Network] = {}
    make = Engine.__init__

    def remember(self: Any, network: Any, *arguments: Any, **settings: Any) -> None:
        networks[id(self)] = network
        make(self, network, *arguments, **settings)

    monkeypatch.setattr(Engine, "__init__", remember)
    watch(Network)
    watch(Engine)
    return found


def forward(model: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        model(x)


def forward_with_gradients(model: Any, x: torch.Tensor) -> None:
    sum(values.log().sum() for values in model(x)["likelihoods"].values()).backward()
    model.zero_grad()


def coding(exact: bool) -> Callable[[Any, torch.Tensor], None]:
    def run(model: Any, x: torch.Tensor) -> None:
        coded = model.compress(x, exact=exact)
        model.decompress(coded["strings"], coded["shape"], exact=exact)

    return run


def calibrating(model: Any, x: torch.Tensor) -> None:
    picture = (x[0] * 255).byte().permute(1, 2, 0).numpy()
    calibration.measure(model, [("a picture", picture)])


PATHS: dict[str, tuple[Callable[[Any, torch.Tensor], None], dict[str, str]]] = {
    "forward": (forward, {}),
    "forward, plain": (forward, {"MLIC_FAST_BACKEND": "torch"}),
    "forward with gradients": (forward_with_gradients, {}),
    "coding": (coding(exact=False), {}),
    "coding without the engine": (coding(exact=False), {"MLIC_FAST_ENGINE": "off"}),
    "coding exactly": (coding(exact=True), {}),
    "coding, plain": (coding(exact=False), {"MLIC_FAST_BACKEND": "torch"}),
    "calibration": (calibrating, {}),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["medium", "oneDNN convolutions"])
def test_scales(
    small_model: Any,
    test_image: Callable[..., torch.Tensor],
    walked: list[Walked],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    name: str,
) -> None:
    run, variables = PATHS[path]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    # a model of its own, whose engine is compiled within the test
    model, x = copy.deepcopy(small_model), test_image(64, 64, 31)
    with switched(name), ObedientHardware() as hardware:
        run(model, x)
        # in the transforms, where it may; calibration turns switches off
        assert (hardware.shortened > 0) == (path != "calibration")
    assert walked
    assert max(one.difference() for one in walked) < TOLERANCE


@pytest.mark.parametrize("name", ["medium", "all", "oneDNN convolutions"])
def test_calibration_measures_float32_whatever_is_set(
    small_model: Any, test_image: Callable[..., torch.Tensor], name: str
) -> None:
    """Not the float64 that takes its place under a switch, which would make δ too small for machines without."""
    picture = (test_image(64, 64, 32)[0] * 255).byte().permute(1, 2, 0).numpy()
    usual = calibration.measure(small_model, [("a picture", picture)])
    with switched(name), ObedientHardware():
        found = calibration.measure(small_model, [("a picture", picture)])
        assert permitted()
    assert [one.largest for one in found] == [one.largest for one in usual]
    assert max(one.largest for one in usual) > 0


def test_the_hardware_would_be_seen(
    small_model: Any, test_image: Callable[..., torch.Tensor], walked: list[Walked], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlic_fast.compute import precision
    from mlic_fast.engine import layers

    monkeypatch.setenv("MLIC_FAST_ENGINE", "off")
    for module in (precision, layers):
        monkeypatch.setattr(module, "is_lowered", lambda device: False)
    with switched("medium"), ObedientHardware():
        coding(exact=True)(copy.deepcopy(small_model), test_image(64, 64, 31))
    assert max(one.difference() for one in walked) > 20 * TOLERANCE


@pytest.mark.parametrize("lmbda", [0.0067, [0.0018, 0.0483]], ids=["one rate", "a range of rates"])
def test_validation(tmp_path: Path, walked: list[Walked], lmbda: Any) -> None:
    data = pictures(tmp_path / "data", 1)
    recipe = recipe_from(SHORT | {"lambda": lmbda})
    group = Processes(0, 1, torch.device("cpu"))
    trainee = Trainee(MLICPlusPlus(recipe.model), recipe, group)
    validator = Validator(recipe, data, data, group, Limits())
    with switched("medium"), ObedientHardware():
        found = validator.run(trainee)
    assert all(one.failed == 0 for one in found)
    assert walked
    assert max(one.difference() for one in walked) < TOLERANCE
