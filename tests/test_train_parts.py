# SPDX-License-Identifier: Apache-2.0
"""Parts of training, each on its own: recipes, losses, noise, moving average, logs."""

from __future__ import annotations

import json
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import pytorch_msssim
import torch
from training_samples import TINY, rows

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.cli.main import build_parser
from mlic_fast.errors import ConfigError, RecipeError
from mlic_fast.train.logs import STEPS, Logs, Table, duration
from mlic_fast.train.losses import ms_ssim, rate_distortion
from mlic_fast.train.noise import uniform_noise
from mlic_fast.train.optimizers import MovingAverage, make_optimizers, matrix_weights, parameters
from mlic_fast.train.recipe import Recipe, read_settings, recipe_from

CONFIG = ModelConfig(**TINY)


@pytest.fixture
def model() -> MLICPlusPlus:
    torch.manual_seed(0)
    return MLICPlusPlus(CONFIG)


def test_published_recipe() -> None:
    recipe = Recipe()
    assert recipe.model == ModelConfig(N=192, M=320, slice_num=10)
    assert (recipe.lr, recipe.aux_lr, recipe.clip, recipe.batch) == (1e-4, 1e-3, 1.0, 32)
    assert [recipe.patch_side(step) for step in (0, 1_199_999, 1_200_000)] == [256, 256, 512]
    assert (recipe.ema, recipe.time_limit, recipe.schedule, recipe.precision) == (0, 0, "constant", "float32")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"warmup_steps": 0}, [1e-4] * 5, id="constant"),
        pytest.param({"warmup_steps": 3}, [0.25e-4, 0.5e-4, 0.75e-4, 1e-4, 1e-4], id="warm-up"),
        pytest.param(
            {"schedule": "steps", "milestones": [[2, 3e-5], [4, 1e-5]]}, [1e-4, 1e-4, 3e-5, 3e-5, 1e-5], id="milestones"
        ),
        pytest.param({"schedule": "cosine", "lr_final": 2e-5}, [1e-4, 8.8284e-5, 6e-5, 3.1716e-5, 2e-5], id="cosine"),
    ],
)
def test_learning_rates(settings: dict[str, Any], expected: list[float]) -> None:
    recipe = recipe_from(settings)
    rates = [recipe.learning_rate(step, step / 4, max(recipe.warmup_steps, 0)) for step in range(5)]
    assert rates == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 1}, "unknown settings: learning_rate"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, muon"),
        ({"metric": "psnr"}, "metric must be one of mse, ms-ssim"),
        ({"lr": -1e-4}, "lr must be a number"),
        ({"lr": math.nan}, "lr must be a number"),
        ({"lr": "1e-4"}, "lr must be a number"),
        ({"batch": 0}, "batch must be a whole number from 1"),
        ({"batch": 1.5}, "batch must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"ema": 1.0}, "ema must be"),
        ({"patches": [[0, 100]]}, "multiple of 64"),
        ({"patches": [[0, 128.0]]}, "whole numbers, a multiple of 64 from 64 to 16384 pixels a side, not 128.0"),
        (
            {"patches": [[0, 64]], "metric": "ms-ssim"},
            "from 192 to 16384 pixels a side, not 64 .MS-SSIM",
        ),
        ({"patches": [[5, 128]]}, "begin at step 0"),
        ({"patches": [[0, 128], [0, 256]]}, "in order"),
        ({"patches": 128}, "list of pairs"),
        ({"metric": "ms-ssim", "patches": [[0, 128]]}, "161 pixels"),
        ({"milestones": [[3, 1e-5]]}, "go together"),
        ({"schedule": "steps"}, "go together"),
        ({"schedule": "steps", "milestones": [[3, 0]]}, "positive"),
        ({"model": "tiny"}, "no size of a model is called 'tiny'"),
        ({"model": {"N": 8, "width": 3}}, "a model is described by"),
        ({"compile": 1}, "true or false"),
    ],
)
def test_refused_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe_from(settings)


def test_impossible_model() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        recipe_from({"model": {"N": 8, "M": 64, "slice_num": 3}})


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_muon_moves_along_orthogonal_matrices(layout: torch.memory_format, model: MLICPlusPlus) -> None:
    """A first step is −lr · 0.2 · √(longer side) times the gradient with all its singular values made about one."""
    model.to(memory_format=layout)  # type: ignore[call-overload]
    optimizers = make_optimizers(model, recipe_from({"optimizer": "muon"}))
    weights = matrix_weights(model)
    trained = [parameter for one in optimizers.values() for group in one.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.parameters()}
    assert len(trained) == len(list(model.parameters()))
    before = [weight.detach().clone() for weight in weights]
    for index, weight in enumerate(weights):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
        weight.grad = gradient  # contiguous, whatever the weight is
    rate = 0.01
    optimizers["matrix_optimizer"].param_groups[0]["lr"] = rate
    optimizers["matrix_optimizer"].step()
    for weight, old in zip(weights, before, strict=True):
        moved = (old - weight.detach()).flatten(1).double() / (rate * 0.2 * math.sqrt(max(old.flatten(1).shape)))
        assert weight.grad is not None
        left, _, right = torch.linalg.svd(weight.grad.flatten(1).double(), full_matrices=False)
        # what Muon's iteration makes of singular values lies between 0.7 and 1.2
        along = torch.linalg.svdvals(moved)
        assert along.min() > 0.6
        assert along.max() < 1.3
        assert (moved * (left @ right)).sum() > 0.75 * min(moved.shape)


def test_muon_needs_its_pytorch(model: MLICPlusPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(RecipeError, match=r"has no Muon: take PyTorch 2\.9 or newer, or the optimizer adam"):
        make_optimizers(model, recipe_from({"optimizer": "muon"}))


def test_the_document_has_all_settings() -> None:
    document = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", document))
    missing = [name for name in Recipe().as_dict() if name not in named]
    assert missing == []
    parser = build_parser()
    for line in re.findall(r"^(?:torchrun .*--no-python )?mlic-fast (.*?)(?: +#.*)?$", document, re.MULTILINE):
        parser.parse_args(line.split())


def test_settings_files(tmp_path: Path) -> None:
    toml = tmp_path / "a.toml"
    toml.write_text(
        'lambda = 0.5\npatches = [[0, 64], [10, 128]]\n[model]\nN = 8\nM = 64\nslice_num = 2\nvariant = "old"\n'
    )
    recipe = recipe_from(read_settings(toml))
    assert recipe.lmbda == 0.5
    assert recipe.patches == ((0, 64), (10, 128))
    assert recipe.model == ModelConfig(**TINY, variant="old")
    file = tmp_path / "a.json"
    file.write_text(json.dumps(recipe.as_dict()))
    assert recipe_from(read_settings(file)) == recipe
    for name, text in (("b.toml", "lr = "), ("b.json", "{"), ("c.json", "[]"), ("d.json", "[" * 100_000)):
        (tmp_path / name).write_text(text)
        with pytest.raises(RecipeError, match=name):
            read_settings(tmp_path / name)


@pytest.mark.parametrize("shape", [(161, 161), (177, 230)])
def test_ms_ssim_is_the_usual_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, *shape, generator=generator)
    b = (a + 0.2 * torch.rand(2, 3, *shape, generator=generator)).clamp(0, 1)
    expected = pytorch_msssim.ms_ssim(a, b, data_range=1.0, size_average=False)
    torch.testing.assert_close(ms_ssim(a, b), expected, rtol=1e-5, atol=1e-6)


def test_ms_ssim_of_opposites_has_gradients() -> None:
    a = torch.rand(1, 3, 176, 176, generator=torch.Generator().manual_seed(0))
    b = (1 - a).requires_grad_()
    value = ms_ssim(b, a).sum()
    value.backward()
    assert 0 < value < 0.1
    assert b.grad is not None
    assert b.grad.isfinite().all()


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_losses(metric: Any) -> None:
    x = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    x_hat = (x + 0.1).to(torch.bfloat16)
    likelihoods = {"y_likelihoods": torch.full((2, 4, 12, 12), 0.5), "z_likelihoods": torch.full((2, 4, 3, 3), 0.25)}
    found = rate_distortion({"x_hat": x_hat, "likelihoods": likelihoods}, x, 0.01, metric)
    assert found.total.dtype == torch.float32
    assert float(found.y_bpp) == pytest.approx(4 * 144 / 192**2)
    assert float(found.z_bpp) == pytest.approx(4 * 9 * 2 / 192**2)
    if metric == "mse":
        assert float(found.distortion) == pytest.approx(0.01, rel=0.01)
    weight = 0.01 * (255**2 if metric == "mse" else 1)
    assert float(found.total) == pytest.approx(float(weight * found.distortion + found.y_bpp + found.z_bpp), rel=1e-6)


def test_noise_belongs_to_the_sample() -> None:
    together = uniform_noise(CONFIG, 3, 7, [0, 1, 2], 64, 128)
    assert [list(values.shape) for values in together] == [[3, 64, 4, 8], [3, 8, 1, 2]]
    for sample in range(3):
        alone = uniform_noise(CONFIG, 3, 7, [sample], 64, 128)
        assert all(torch.equal(values[sample : sample + 1], one) for values, one in zip(together, alone, strict=True))
    for other in (uniform_noise(CONFIG, 4, 7, [0], 64, 128), uniform_noise(CONFIG, 3, 8, [0], 64, 128)):
        assert not torch.equal(other[0], together[0][:1])
    y = uniform_noise(CONFIG, 0, 0, range(8), 256, 256)[0]
    assert -0.5 <= float(y.min()) < -0.499
    assert 0.499 < float(y.max()) < 0.5
    assert abs(float(y.mean())) < 0.005
    assert float(y.var()) == pytest.approx(1 / 12, rel=0.02)


def test_noise_given_is_noise_drawn(model: MLICPlusPlus) -> None:
    """With the noise that training mode would draw, forward gives what it gives in training mode, to the bit."""
    x = torch.rand(2, 3, 64, 128)
    model.train()
    torch.manual_seed(5)
    expected = model(x)
    torch.manual_seed(5)
    z = torch.empty(8, 1, 2 * 2).uniform_(-0.5, 0.5).reshape(8, 2, 1, 2).transpose(0, 1)
    y = torch.cat([torch.empty(2, 32, 4, 8).uniform_(-0.5, 0.5) for _ in range(2)], 1)
    for mode in (True, False):
        found = model.train(mode)(x, (y, z))
        assert torch.equal(found["x_hat"], expected["x_hat"])
        for name, likelihoods in expected["likelihoods"].items():
            assert torch.equal(found["likelihoods"][name], likelihoods)
            assert found["likelihoods"][name].is_contiguous()


def test_groups_of_parameters(model: MLICPlusPlus) -> None:
    main, auxiliary = parameters(model)
    assert [list(parameter.shape) for parameter in auxiliary] == [[8, 1, 3]]
    assert len(main) + 1 == len(list(model.parameters()))


def test_moving_average(model: MLICPlusPlus) -> None:
    average = MovingAverage(model, 0.5)
    (first, *_) = model.parameters()
    before = first.detach().clone()
    with torch.no_grad():
        first += 1
    average.update()  # the decay begins with 2 / 11
    torch.testing.assert_close(average.values[0], before + 9 / 11)
    for _ in range(20):
        average.update()
    torch.testing.assert_close(average.values[0], before + 1, rtol=0, atol=1e-5)
    with torch.no_grad():
        first += 1
    trained = first.detach().clone()
    with average.in_place():
        assert torch.equal(first, average.values[0])
    assert torch.equal(first, trained)


def test_table_drops_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / STEPS
    table = Table(path, ("step", "loss"), 0)
    for step in (1, 2, 3):
        table.add({"step": step, "loss": step / 2, "other": 1})
    with path.open("a") as file:
        file.write("4")  # a process was killed here
    Table(path, ("step", "loss"), 2)
    assert rows(path) == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": "1.0"}]


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            events.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            events.append((name, value, step))

        def flush(self) -> None:
            pass

        close = flush

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    written = Logs(tmp_path, 4)
    assert written.missing is None
    written.steps({"step": 5, "loss": 1.5, "psnr": None})
    written.validation({"step": 5, "bpp": 0.5})
    written.close()
    assert events == [(str(tmp_path / "tensorboard"), 5), ("train/loss", 1.5, 5), ("validation/bpp", 0.5, 5)]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    written = Logs(tmp_path, 0)
    assert written.missing is not None
    assert "pip install" in written.missing
    written.steps({"step": 1, "loss": 2.0})
    assert rows(tmp_path / STEPS)[0]["loss"] == "2.0"


def test_durations() -> None:
    assert [duration(seconds) for seconds in (5, 600, 36_000, 864_000)] == ["5 s", "10 min", "10 h 0 min", "10 days"]
