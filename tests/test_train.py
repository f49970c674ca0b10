# SPDX-License-Identifier: Apache-2.0
"""Whole trainings of tiny models: they learn, go on exactly, survive what is not finite, and leave usable weights."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_samples import SHORT, TINY, assert_same, contents, losses, one_thread, pictures, rows

import mlic_fast
from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.cli.main import main
from mlic_fast.errors import CheckpointError, NoPicturesError, NotAModelError, RecipeError, TrainingError
from mlic_fast.train import step as step_module
from mlic_fast.train.distributed import Processes
from mlic_fast.train.loop import train
from mlic_fast.train.recipe import Recipe, recipe_from
from mlic_fast.train.step import StepResult, Trainee

__all__ = ["one_thread"]  # a fixture

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")
ALONE = Processes(0, 1, torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """(step, signal): this process gets the signal while the step is computed."""

    def at(number: int, which: int) -> None:
        whole = Trainee.step

        def step(self: Trainee, current: int, *arguments: Any) -> StepResult:
            if current == number:
                os.kill(os.getpid(), which)
            return whole(self, current, *arguments)

        monkeypatch.setattr(Trainee, "step", step)

    return at


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int], str], None]:
    """(steps, "loss" or "gradient"): what is not finite in those steps."""

    def at(numbers: set[int], what: str) -> None:
        whole, honest = Trainee.step, step_module.rate_distortion
        current = -1

        def step(self: Trainee, number: int, *arguments: Any) -> StepResult:
            nonlocal current
            current = number
            return whole(self, number, *arguments)

        def losses_of(out: Any, *arguments: Any) -> Any:
            found = honest(out, *arguments)
            if current in numbers and what == "loss":
                object.__setattr__(found, "total", found.total * torch.inf)
            elif current in numbers:
                found.total.register_hook(lambda gradient: gradient * torch.nan)
            return found

        monkeypatch.setattr(Trainee, "step", step)
        monkeypatch.setattr(step_module, "rate_distortion", losses_of)

    return at


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="mse"),
        pytest.param({"metric": "ms-ssim", "lambda": 16.64, "patches": [[0, 192]]}, id="ms-ssim"),
        pytest.param({"model": TINY | {"variant": "old"}}, id="old"),
        pytest.param({"precision": "bf16", "ema": 0.9}, id="bf16"),
        pytest.param({"channels_last": "yes"}, id="channels-last"),
        pytest.param({"optimizer": "muon"}, id="muon", marks=NEEDS_MUON),
        pytest.param({"optimizer": "muon", "channels_last": "yes"}, id="muon channels-last", marks=NEEDS_MUON),
    ],
)
def test_learns(changes: dict[str, Any], tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", count=2, side=192)
    settings = SHORT | {"steps": 12, "lr": 3e-3, "lambda": 0.01, "validation_images": 0} | changes
    outcome = train(data, tmp_path / "run", settings, device="cpu")
    assert (outcome.steps, outcome.skipped, outcome.stopped_by) == (12, 0, None)
    found = losses(tmp_path / "run")
    assert len(found) == 12
    assert np.mean(found[-3:]) < (0.99 if "metric" in changes else 0.7) * np.mean(found[:3])
    assert mlic_fast.load(tmp_path / "run" / "last.pth.tar").config == recipe_from(settings).model


def test_what_a_run_leaves(data: Path, tmp_path: Path) -> None:
    validation = pictures(tmp_path / "validation", count=2, side=170)
    outcome = train(data, tmp_path / "run", SHORT | {"validation_images": 2}, device="cpu", validation=validation)
    run = tmp_path / "run"
    log, validations = rows(run / "steps.csv"), rows(run / "validation.csv")
    assert [row["step"] for row in log] == ["1", "2", "3", "4", "5", "6"]
    assert [row["epoch"] for row in log] == ["0", "0", "0", "1", "1", "1"]
    assert [float(row["learning_rate"]) for row in log[:3]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert [(row["step"], row["images"], row["failed"]) for row in validations] == [("3", "2", "0"), ("6", "2", "0")]
    best = min(range(2), key=lambda index: float(validations[index]["loss"]))
    assert outcome.best == float(validations[best]["loss"])
    assert recipe_from(json.loads((run / "recipe.json").read_text())) == recipe_from(SHORT | {"validation_images": 2})
    # official structure, and the numbers of the log are those of real files
    checkpoint = torch.load(run / "best.pth.tar", weights_only=True)
    assert {"epoch", "state_dict", "loss", "optimizer", "aux_optimizer", "lr_scheduler"} <= set(checkpoint)
    assert checkpoint["epoch"] == best
    model = mlic_fast.load(run / "best.pth.tar")
    model.name = ""  # which would be in the files
    sizes, errors = [], []
    for path in sorted(validation.iterdir()):
        coded = mlic_fast.encode(path, model)
        decoded, original = (np.asarray(image, dtype=float) for image in (mlic_fast.decode(coded, model), _open(path)))
        sizes.append(8 * len(coded) / original[..., 0].size)
        errors.append(np.square(decoded - original).mean())
    assert float(validations[best]["bpp"]) == pytest.approx(np.mean(sizes))
    assert float(validations[best]["psnr"]) == pytest.approx(np.mean(10 * np.log10(255**2 / np.array(errors))))
    assert outcome.best == pytest.approx(np.mean(0.013 * np.array(errors) + np.array(sizes)))


def _open(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.copy()


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        pytest.param({}, signal.SIGINT, id="plain"),
        pytest.param(
            {"ema": 0.99, "schedule": "cosine", "precision": "bf16", "micro_batch": 1, "log_steps": 4},
            signal.SIGTERM,
            id="with all extras",
        ),
        pytest.param({"optimizer": "muon"}, signal.SIGTERM, id="muon", marks=NEEDS_MUON),
    ],
)
def test_interrupted_and_resumed(
    changes: dict[str, Any], number: int, data: Path, tmp_path: Path, interrupt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption in the middle of an epoch makes no difference to the last bit."""
    settings = SHORT | changes
    train(data, tmp_path / "whole", settings, device="cpu")
    with monkeypatch.context():
        interrupt(4, number)
        before = signal.getsignal(number)
        outcome = train(data, tmp_path / "parts", settings, device="cpu")
    monkeypatch.undo()
    assert (outcome.steps, outcome.stopped_by) == (5, number)
    assert signal.getsignal(number) == before
    outcome = train(data, tmp_path / "parts", device="cpu", resume=True)
    assert (outcome.steps, outcome.stopped_by) == (6, None)
    for name in ("last.pth.tar", "best.pth.tar"):
        assert_same(contents(tmp_path / "parts", name), contents(tmp_path / "whole", name))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    validations = [[row["loss"] for row in rows(tmp_path / run / "validation.csv")] for run in ("parts", "whole")]
    assert validations[0] == validations[1]


def test_micro_batches_are_the_batch(data: Path, tmp_path: Path) -> None:
    for run, size in (("whole", 0), ("parts", 1)):
        train(data, tmp_path / run, SHORT | {"micro_batch": size, "steps": 3, "validation_images": 0}, device="cpu")
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_larger_patches_later(tmp_path: Path) -> None:
    wide = pictures(tmp_path / "wide", side=128)
    train(wide, tmp_path / "run", SHORT | {"patches": [[0, 64], [2, 128]], "validation_images": 0}, device="cpu")
    assert [row["patch"] for row in rows(tmp_path / "run" / "steps.csv")] == ["64"] * 2 + ["128"] * 4


def test_time_limit(data: Path, tmp_path: Path) -> None:
    settings = SHORT | {"time_limit": 0.04, "schedule": "cosine", "warmup_steps": 0, "validation_images": 0}
    outcome = train(data, tmp_path / "run", settings, device="cpu")
    assert outcome.seconds >= 2.4
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "run" / "steps.csv")]
    assert rates[0] == 1e-3
    assert all(later < earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_step_that_is_not_finite(
    what: str, data: Path, tmp_path: Path, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainee = Trainee(MLICPlusPlus(ModelConfig(**TINY)), recipe_from(SHORT | {"ema": 0.9}), ALONE)
    patches = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert trainee.step(0, patches, 1e-3).taken
    weights = {name: value.clone() for name, value in trainee.model.state_dict().items()}
    optimizers = {name: json.dumps(str(one.state_dict())) for name, one in trainee.optimizers.items()}
    spoil({1, 3}, what)
    assert not trainee.step(1, patches, 1e-3).taken
    assert_same(dict(trainee.model.state_dict()), weights)
    assert {name: json.dumps(str(one.state_dict())) for name, one in trainee.optimizers.items()} == optimizers
    assert trainee.step(2, patches, 1e-3).taken
    outcome = train(data, tmp_path / "run", SHORT | {"validation_images": 0}, device="cpu")
    assert outcome.skipped == 2
    assert [row["skipped"] for row in rows(tmp_path / "run" / "steps.csv")] == ["0", "1", "2", "2"]
    assert "step 2 skipped" in capsys.readouterr().err


def test_persistent_failure_keeps_the_last_checkpoint(data: Path, tmp_path: Path, spoil: Any) -> None:
    run = tmp_path / "run"
    train(data, run, SHORT | {"steps": 3}, device="cpu")
    before = (run / "last.pth.tar").read_bytes()
    spoil(set(range(3, 100)), "loss")
    with pytest.raises(TrainingError, match=r"not finite in 5 steps in a row, up to step 8"):
        train(data, run, {"steps": 50, "max_bad_steps": 5, "epoch_patches": 400}, device="cpu", resume=True)
    assert (run / "last.pth.tar").read_bytes() == before


def test_pictures_that_cannot_be_coded(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validation = pictures(tmp_path / "validation", count=1)
    (validation / "z.png").write_bytes(b"no picture")
    settings = SHORT | {"steps": 3, "validation_images": 2}
    outcome = train(data, tmp_path / "run", settings, device="cpu", validation=validation)
    assert outcome.best == float("inf")
    (row,) = rows(tmp_path / "run" / "validation.csv")
    assert (row["images"], row["failed"], row["loss"], row["best"]) == ("1", "1", "inf", "0")
    assert "z.png" in capsys.readouterr().err
    assert not (tmp_path / "run" / "best.pth.tar").exists()


def test_start_from(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = SHORT | {"steps": 3, "validation_images": 0}
    train(data, run, settings, device="cpu")
    weights = mlic_fast.load(run / "last.pth.tar").state_dict()
    options = ["--steps", "1", "--batch", "1", "--patches", "64", "--lr", "1e-30", "--aux-lr", "1e-30"]
    options += ["--validation-images", "0", "--device", "cpu", "--start-from", str(run / "last.pth.tar")]
    assert main(["train", str(data), "-o", str(tmp_path / "more"), *options]) == 0
    found = mlic_fast.load(tmp_path / "more" / "last.pth.tar")
    assert_same(dict(found.state_dict()), dict(weights))
    assert main(["train", str(data), "-o", str(tmp_path / "other"), *options, "--config", "small"]) == 2
    with pytest.raises(RecipeError, match="make them equal"):
        train(data, tmp_path / "other", device="cpu", initial=found)


def test_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags go before the file, the file before the defaults."""
    (tmp_path / "recipe.toml").write_text("lambda = 0.5\nbatch = 8\nsteps = 2\nvalidation_images = 0\nlog_steps = 1\n")
    (tmp_path / "model.toml").write_text("N = 8\nM = 64\nslice_num = 2\n")
    arguments = ["train", str(data), "-o", str(tmp_path / "run"), "--recipe", str(tmp_path / "recipe.toml")]
    arguments += [
        "--config",
        str(tmp_path / "model.toml"),
        "--variant",
        "old",
        "--batch",
        "2",
        "--patches",
        "64,128@1000",
    ]
    arguments += ["--milestones", "5e-5@1", "--device", "cpu", "--epoch-patches", "100", "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["steps"], facts["skipped"], facts["best_loss"], facts["finished"]) == (2, 0, None, True)
    recipe = recipe_from(json.loads((tmp_path / "run" / "recipe.json").read_text()))
    assert recipe == Recipe(
        model=ModelConfig(**TINY, variant="old"), lmbda=0.5, batch=2, steps=2, validation_images=0, log_steps=1,
        patches=((0, 64), (1000, 128)), schedule="steps", milestones=((1, 5e-5),), epoch_patches=100,
    )  # fmt: skip
    assert [float(row["learning_rate"]) for row in rows(tmp_path / "run" / "steps.csv")] == [1e-4, 5e-5]
    # what a run is resumed with may be changed
    assert main(["train", str(data), "-o", str(tmp_path / "run"), "--resume", "--steps", "3", "--lambda", "1"]) == 0
    assert [row["step"] for row in rows(tmp_path / "run" / "steps.csv")] == ["1", "2", "3"]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    train(data, run, SHORT | {"steps": 1, "validation_images": 0}, device="cpu")
    return run


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["DATA", "-o", "DONE"], 2, "holds a training already: --resume", id="folder in use"),
        pytest.param(["EMPTY", "-o", "NEW"], 4, "no pictures", id="no pictures"),
        pytest.param(["MISSING", "-o", "NEW"], 3, "No such file", id="no folder"),
        pytest.param(["DATA", "-o", "NEW", "--patches", "256"], 4, "smaller", id="small pictures"),
        pytest.param(["DATA", "-o", "NEW", "--resume"], 3, "start without --resume", id="nothing to resume"),
        pytest.param(["DATA", "-o", "DONE", "--resume", "--config", "full"], 2, "own model", id="another size"),
        pytest.param(["DATA", "-o", "NEW", "--start-from", "MISSING"], 3, "MISSING", id="no such weights"),
        pytest.param(["DATA", "-o", "NEW", "--config", "huge"], 3, "huge", id="no such size"),
        pytest.param(["DATA", "-o", "NEW", "--recipe", "WRONG"], 2, "unknown settings: rate", id="unknown setting"),
        pytest.param(["DATA", "-o", "NEW", "--metric", "ms-ssim", "--patches", "128"], 2, "161", id="MS-SSIM"),
        pytest.param(["DATA", "-o", "NEW", "--batch", "4", "--micro-batch", "3"], 2, "does not divide", id="parts"),
        pytest.param(
            ["DATA", "-o", "NEW", "--channels-last", "yes", "--precision", "bf16"], 2, "not supported", id="layout"
        ),
        pytest.param(["DATA", "-o", "NEW", "--device", "cuda:99"], 7, "cuda:99", id="no such device"),
    ],
)  # fmt: skip
def test_wrong_inputs(
    arguments: list[str], code: int, said: str, data: Path, finished: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.toml").write_text("rate = 3")
    places = {"DATA": data, "DONE": finished, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty"}
    places |= {"MISSING": tmp_path / "MISSING", "WRONG": tmp_path / "wrong.toml"}
    options = [] if "--config" in arguments or "--resume" in arguments else ["--config", str(tmp_path / "tiny.json")]
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    options += [] if "--device" in arguments else ["--device", "cpu"]
    assert main(["train", *(str(places.get(argument, argument)) for argument in arguments), *options]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "flag", [["--lr", "fast"], ["--lr", "nan"], ["--patches", "a"], ["--milestones", "1e-5"], ["--steps", "1.5"]]
)
def test_wrong_flags(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "data", "-o", "run", *flag])
    assert caught.value.code == 2
    assert flag[0] in capsys.readouterr().err


def test_batch_that_does_not_divide(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="does not divide among 2 processes"):
        train(data, tmp_path / "run", SHORT | {"batch": 3}, device="cpu")


def test_two_trainings_in_one_folder(data: Path, finished: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (finished / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RecipeError, match="another process is training"):
            train(data, finished, {"steps": 2}, device="cpu", resume=True)


def test_other_checkpoints_are_not_resumed(data: Path, finished: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(finished / "last.pth.tar", weights_only=True)
    without = {name: value for name, value in checkpoint.items() if name != "mlic_fast"}
    damaged = checkpoint | {"optimizer": {"state": {}}}
    for name, broken, said in (("a", without, "use --start-from"), ("b", damaged, "does not fit")):
        (tmp_path / name).mkdir()
        torch.save(broken, tmp_path / name / "last.pth.tar")
        with pytest.raises(CheckpointError, match=said):
            train(data, tmp_path / name, {"steps": 2}, device="cpu", resume=True)


def test_the_model_to_begin_with_may_be_wrapped(data: Path, tmp_path: Path) -> None:
    model = MLICPlusPlus(ModelConfig(**TINY))
    settings = SHORT | {"steps": 1, "validation_images": 0}
    assert train(data, tmp_path / "run", settings, device="cpu", initial=torch.nn.DataParallel(model)).steps == 1  # type: ignore[arg-type]
    weights = contents(tmp_path / "run")["state_dict"]
    assert torch.equal(weights["entropy_bottleneck.quantiles"], model.entropy_bottleneck.quantiles)
    for what in ("a name", torch.nn.Conv2d(1, 1, 1)):
        with pytest.raises(NotAModelError):
            train(data, tmp_path / "other", settings, device="cpu", initial=what)  # type: ignore[arg-type]


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(NoPicturesError):
        train(tmp_path, tmp_path / "run", SHORT, device="cpu")


@pytest.mark.slow
def test_compiled(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # traced with its gradients as ever, but not turned into C++, which takes minutes
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    for run, compiled in (("plain", False), ("compiled", True)):
        settings = SHORT | {"steps": 2, "compile": compiled, "validation_images": 1}
        train(data, tmp_path / run, settings, device="cpu")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    names = [list(contents(tmp_path / run)["state_dict"]) for run in ("plain", "compiled")]
    assert names[0] == names[1]
