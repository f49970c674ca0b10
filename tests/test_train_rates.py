# SPDX-License-Identifier: Apache-2.0
"""One model for all rates: λ and quantisation step of each sample, in the estimate, the losses and whole trainings."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_samples import SHORT, TINY, assert_same, contents, losses, one_thread, pictures, rows

import mlic_fast
from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.checkerboard import Parity, keep, pack, scatter
from mlic_fast.cli.main import build_parser, main
from mlic_fast.entropy.estimator import Estimator
from mlic_fast.errors import RecipeError
from mlic_fast.train.distributed import Processes
from mlic_fast.train.layers import install
from mlic_fast.train.loop import train
from mlic_fast.train.losses import ranged_rate_distortion, rate_distortion
from mlic_fast.train.noise import uniform_noise
from mlic_fast.train.optimizers import make_optimizers, parameters
from mlic_fast.train.rates import RateRange, sample_rates
from mlic_fast.train.recipe import read_settings, recipe_from
from mlic_fast.train.step import Trainee

__all__ = ["one_thread"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

LOW, HIGH = 0.0018, 0.0483
RANGE = RateRange(LOW, HIGH)
STEPS = torch.tensor([0.5, 1.0, 2.3])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture
def model() -> MLICPlusPlus:
    torch.manual_seed(0)
    return MLICPlusPlus(ModelConfig(**TINY))


def test_range() -> None:
    middle = math.sqrt(LOW * HIGH)
    assert RANGE.middle == pytest.approx(middle)
    for lmbda in (LOW, middle, 0.02):
        assert RANGE.step(lmbda) == pytest.approx((lmbda / middle) ** -0.5)
    ladder = RANGE.ladder(5)
    assert ladder[0] == LOW
    assert ladder[2] == pytest.approx(middle)
    assert ladder[4] == pytest.approx(HIGH)
    assert np.diff(np.log(ladder)) == pytest.approx(math.log(HIGH / LOW) / 4)


def test_draws_belong_to_the_sample() -> None:
    together = RANGE.draw(3, 7, range(8), 8)
    assert [RANGE.draw(3, 7, [sample], 8)[0] for sample in range(8)] == together
    assert RANGE.draw(4, 7, [0], 8) != together[:1]
    assert RANGE.draw(3, 8, [0], 8) != together[:1]


def test_draws_are_uniform_in_the_logarithm() -> None:
    places = np.log(np.array([RANGE.draw(0, step, range(4), 4) for step in range(2000)]) / LOW) / math.log(HIGH / LOW)
    assert places.min() >= 0
    assert places.max() <= 1
    # of each batch one in each quarter
    assert (np.sort(np.floor(places * 4 % 4), axis=1) == np.arange(4)).all()
    for sample in places.T:
        assert np.histogram(sample, 10, (0, 1))[0] == pytest.approx(np.full(10, 200), abs=70)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([0.05, 0.01], "low below high"),
        ([0.01, 0.01], "low below high"),
        ([0.01], "low below high"),
        ([0.01, 0.02, 0.03], "low below high"),
        ([0.0, 0.1], "lambda must be a number"),
        ([0.1, math.inf], "lambda must be a number"),
        (["0.1", "0.2"], "lambda must be a number"),
        ("0.1-0.2", "lambda must be a number"),
    ],
)
def test_refused_ranges(value: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe_from({"lambda": value})


def test_range_in_files_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text("lambda = [0.0018, 0.0483]\n")
    recipe = recipe_from(read_settings(tmp_path / "a.toml"))
    assert recipe.rates == RANGE
    (tmp_path / "a.json").write_text(json.dumps(recipe.as_dict()))
    assert recipe_from(read_settings(tmp_path / "a.json")) == recipe
    assert recipe_from({"lambda": 0.5}, recipe).rates is None

    def flag(text: str) -> argparse.Namespace:
        return build_parser().parse_args(["train", "data", "-o", "run", "--lambda", text])

    assert flag("0.0018-0.0483").lmbda == [LOW, HIGH]
    assert flag("1e-3-5e-2").lmbda == [1e-3, 5e-2]
    assert flag("1e-3").lmbda == 1e-3
    for wrong in ("1-2-3", "1-", "a-b", "0.1-nan"):
        with pytest.raises(SystemExit):
            flag(wrong)
        assert "--lambda" in capsys.readouterr().err


def _passes(step: Tensor | None, noise: Tensor | None, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Values and likelihoods of one slice."""
    torch.manual_seed(0)
    gaussian = MLICPlusPlus(ModelConfig(**TINY)).gaussian_conditional.eval()
    y, scales, means = inputs
    estimator = Estimator(gaussian, y, 1, noise, None if step is None else step.view(-1, 1, 1, 1))
    values = torch.zeros_like(y)
    for parity in Parity:
        estimator.begin(pack(scales, parity))
        scatter(values, estimator.finish(pack(means, parity)), parity)
    return values, estimator.likelihoods()


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    y, means = (torch.randn(3, 4, 6, 8, generator=random) * 5 for _ in range(2))
    scales = torch.rand(3, 4, 6, 8, generator=random) * 6
    return y.to(dtype), scales.to(dtype), means.to(dtype)


@pytest.mark.parametrize("noisy", [False, True], ids=["rounded", "noisy"])
def test_estimate_equals_its_formula_in_float64(noisy: bool) -> None:
    y, scales, means = inputs = _inputs()
    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) - 0.5 if noisy else None
    values, likelihoods = _passes(STEPS, noise, inputs)
    delta = STEPS.double().view(-1, 1, 1, 1)
    residual = (y.double() - means.double()) / delta
    symbols = residual.round()
    torch.testing.assert_close(values.double(), means.double() + delta * symbols, rtol=1e-6, atol=1e-5)
    place = (symbols if noise is None else residual + noise.double()).abs()
    normal = torch.distributions.Normal(0.0, (scales.double() / delta).clamp(min=0.11))
    expected = (normal.cdf(0.5 - place) - normal.cdf(-0.5 - place)).clamp(min=1e-9)
    torch.testing.assert_close(likelihoods.double(), expected, rtol=2e-4, atol=2e-7)


def test_estimate_of_scaled_inputs_is_that_with_a_step() -> None:
    inputs = _inputs(torch.float64)
    delta = STEPS.double().view(-1, 1, 1, 1)
    noise = torch.rand(inputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    for added in (noise, None):
        values, likelihoods = _passes(STEPS.double(), added, inputs)
        y, scales, means = (part / delta for part in inputs)
        scaled_values, scaled_likelihoods = _passes(None, added, (y, scales, means))
        torch.testing.assert_close(values, scaled_values * delta)
        torch.testing.assert_close(likelihoods, scaled_likelihoods, rtol=1e-9, atol=1e-12)


def test_rounding_passes_gradients_straight_through() -> None:
    y, scales, means = _inputs()
    y.requires_grad_()
    gaussian = MLICPlusPlus(ModelConfig(**TINY)).gaussian_conditional
    estimator = Estimator(gaussian, y, 1, y * 0, STEPS.view(-1, 1, 1, 1))
    estimator.begin(pack(scales, Parity.ANCHOR))
    values = estimator.finish(pack(means, Parity.ANCHOR))
    (gradient,) = torch.autograd.grad(values.sum(), y)
    torch.testing.assert_close(gradient, keep(torch.ones_like(y), Parity.ANCHOR))


def test_batch_is_its_samples(model: MLICPlusPlus) -> None:
    x = torch.rand(3, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    noise = uniform_noise(model.config, 0, 0, range(3), 64, 128)
    for given in (noise, None):
        model.train(given is not None)
        with torch.no_grad():
            together = model(x, given, step=STEPS)
            for i in range(3):
                own = None if given is None else (given[0][i : i + 1], given[1][i : i + 1])
                alone = model(x[i : i + 1], own, step=STEPS[i : i + 1])
                torch.testing.assert_close(alone["x_hat"], together["x_hat"][i : i + 1], rtol=1e-4, atol=1e-5)
                for name, likelihoods in alone["likelihoods"].items():
                    torch.testing.assert_close(
                        likelihoods, together["likelihoods"][name][i : i + 1], rtol=1e-3, atol=1e-5
                    )


def test_step_of_one_is_none(model: MLICPlusPlus) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = uniform_noise(model.config, 0, 0, range(2), 64, 64)
    for given in (noise, None):
        model.train(given is not None)
        with torch.no_grad():
            plain, stepped = model(x, given), model(x, given, step=torch.ones(2))
        assert torch.equal(plain["x_hat"], stepped["x_hat"])
        for name, likelihoods in plain["likelihoods"].items():
            torch.testing.assert_close(stepped["likelihoods"][name], likelihoods, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_losses(metric: Any, model: MLICPlusPlus) -> None:
    """Of samples with their own λ: the mean of what each has alone, times its weight."""
    x = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(x, uniform_noise(model.config, 0, 0, range(2), 192, 192))
    own = sample_rates(RANGE, [LOW, 0.03], CPU)
    found = ranged_rate_distortion(out, x, own, metric)
    total = 0.0
    for i, lmbda in enumerate((LOW, 0.03)):
        single = {
            "x_hat": out["x_hat"][i : i + 1],
            "likelihoods": {name: value[i : i + 1] for name, value in out["likelihoods"].items()},
        }
        alone = rate_distortion(single, x[i : i + 1], lmbda, metric)
        total += math.sqrt(RANGE.middle / lmbda) * float(alone.total) / 2
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    whole = rate_distortion(out, x, 1.0, metric)
    for name in ("distortion", "y_bpp", "z_bpp"):
        assert float(getattr(found, name)) == pytest.approx(float(getattr(whole, name)), rel=1e-5)


def test_single_lambda_is_plain_training(model: MLICPlusPlus) -> None:
    """Without a range a step is the model's forward, one loss, clipping and Adam, to the bit."""
    recipe = recipe_from(SHORT | {"lambda": 0.01, "micro_batch": 0})
    twin = MLICPlusPlus(model.config)
    twin.load_state_dict(model.state_dict())
    trainee = Trainee(model, recipe, Processes(0, 1, CPU))
    install(twin)
    optimizers = make_optimizers(twin.train(), recipe)
    main_parameters, auxiliary = parameters(twin)
    for number in range(4):
        patches = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(number)).to(torch.uint8)
        assert trainee.step(number, patches, recipe.lr).taken
        x = patches.float() / 255
        out = twin(x, uniform_noise(twin.config, recipe.seed, number, range(2), 64, 64))
        pixels = 2 * 64 * 64
        rate = [-value.log2().sum() / pixels for value in out["likelihoods"].values()]
        (0.01 * 255**2 * torch.nn.functional.mse_loss(out["x_hat"], x) + rate[0] + rate[1]).backward()
        for parameter in auxiliary:
            parameter.grad = None
        twin.aux_loss().backward()
        torch.nn.utils.clip_grad_norm_(main_parameters, recipe.clip)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    assert_same(dict(model.named_parameters()), dict(twin.named_parameters()))


RANGED = SHORT | {"lambda": [LOW, HIGH]}


def test_training_over_a_range(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", count=2, side=192)
    settings = RANGED | {"steps": 12, "lr": 3e-3, "validation_images": 0}
    train(data, tmp_path / "run", settings, device="cpu")
    found = losses(tmp_path / "run")
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:3])


def test_validation_at_five_rates(data: Path, tmp_path: Path) -> None:
    validation = pictures(tmp_path / "validation", count=2, side=170)
    outcome = train(data, tmp_path / "run", RANGED | {"validation_images": 2}, device="cpu", validation=validation)
    found = rows(tmp_path / "run" / "validation.csv")
    assert [row["step"] for row in found] == ["3"] * 5 + ["6"] * 5
    assert [float(row["lambda"]) for row in found[:5]] == pytest.approx(RANGE.ladder(5))
    assert [float(row["quantisation_step"]) for row in found[5:]] == pytest.approx(
        [RANGE.step(lmbda) for lmbda in RANGE.ladder(5)]
    )
    means = [
        np.mean([RANGE.weight(float(row["lambda"])) * float(row["loss"]) for row in part])
        for part in (found[:5], found[5:])
    ]
    assert outcome.best == pytest.approx(min(means))
    assert [row["best"] for row in found[:5]] == ["1"] * 5
    bits = [float(row["bpp"]) for row in found[5:]]
    assert bits == sorted(bits)  # finer steps cost more

    checkpoint = torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)
    assert checkpoint["mlic_fast"]["rates"] == {"lambda": [LOW, HIGH], "lambda_of_step_1": RANGE.middle}
    assert {"epoch", "state_dict", "loss", "optimizer", "aux_optimizer", "lr_scheduler"} <= set(checkpoint)

    # where the step is 1, files can be written: what was estimated is what they have
    model = mlic_fast.load(tmp_path / "run" / "last.pth.tar")
    model.name = ""
    sizes, psnrs = [], []
    for path in sorted(validation.iterdir()):
        coded = mlic_fast.encode(path, model)
        decoded = np.asarray(mlic_fast.decode(coded, model), dtype=float)
        original = np.asarray(_open(path), dtype=float)
        sizes.append(8 * len(coded) / original[..., 0].size)
        psnrs.append(10 * math.log10(255**2 / np.square(decoded - original).mean()))
    middle = found[7]
    assert float(middle["psnr"]) == pytest.approx(np.mean(psnrs), abs=0.02)
    header = 8 * 80 / (170 * 202)
    assert float(middle["bpp"]) * 0.98 < np.mean(sizes) < float(middle["bpp"]) * 1.05 + header


def _open(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.copy()


def test_resumed_over_a_range(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole", RANGED, device="cpu")
    train(data, tmp_path / "parts", RANGED | {"steps": 4}, device="cpu")
    train(data, tmp_path / "parts", {"steps": 6}, device="cpu", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (contents(tmp_path / run) for run in ("whole", "parts"))
    assert_same(parts["state_dict"], whole["state_dict"])


def test_micro_batches_over_a_range(data: Path, tmp_path: Path) -> None:
    for run, size in (("whole", 0), ("parts", 1)):
        train(data, tmp_path / run, RANGED | {"micro_batch": size, "steps": 3, "validation_images": 0}, device="cpu")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_command_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    options = ["--config", str(tmp_path / "model.json"), "--lambda", "0.0018-0.0483", "--steps", "2", "--batch", "2"]
    options += ["--patches", "64", "--validation-images", "0", "--device", "cpu"]
    assert main(["train", str(data), "-o", str(tmp_path / "run"), *options]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["lambda"] == [LOW, HIGH]
    assert main(["train", str(data), "-o", str(tmp_path / "run"), "--resume", "--steps", "3", "--device", "cpu"]) == 0
    checkpoint = torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)
    assert checkpoint["mlic_fast"]["recipe"]["lambda"] == [LOW, HIGH]
    assert checkpoint["mlic_fast"]["progress"]["step"] == 3
