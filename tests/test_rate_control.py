# SPDX-License-Identifier: Apache-2.0
"""Rate control: which models are chosen among, which one is taken, and what is said about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import one_thread
from PIL import Image

from mlic_fast import rate_control, registry
from mlic_fast.checkpoint.labels import RELEASED_LAMBDAS
from mlic_fast.config import ModelConfig
from mlic_fast.errors import TargetError, WrongWeightsError
from mlic_fast.pictures.image import Picture, open_image
from mlic_fast.rate_control import Hit, Target, Trial, choose_by_quality, encode_to_target, ladder

__all__ = ["one_thread"]

ALL_BUNDLED = registry.bundled_folder

# That of the default model.
LAMBDA = 0.0067

# Factors on the latent of the default model, by λ: the smaller they are, the less is left to code.
SCALES = {0.001: 0.6, 0.002: 0.75, 0.004: 0.9}


@pytest.fixture(scope="module", autouse=True)
def one_bundled_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the bundled models the default one alone, so that these tests say what there is beside it."""
    folder = tmp_path_factory.mktemp("bundled")
    path = registry.resolve(registry.DEFAULT_MODEL)
    (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "bundled_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def no_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.ENVIRONMENT, raising=False)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory, one_bundled_model: None) -> Path:
    """A folder with models of the bundled one's shape that make smaller files, named so that names do not sort them."""
    from mlic_fast.checkpoint import read_checkpoint, write_native

    folder = tmp_path_factory.mktemp("models")
    source = read_checkpoint(registry.resolve(registry.DEFAULT_MODEL))
    for position, (lmbda, scale) in enumerate(SCALES.items()):
        state = dict(source.state_dict)
        for name in ("weight", "bias"):
            key = f"g_a.analysis_transform.6.{name}"
            state[key] = state[key] * scale
        path = folder / f"{(position + 2) % 3}.safetensors"
        write_native(path, state, source.config, name=f"scaled-{scale}", lmbda=lmbda, metric="mse")
    return folder


@pytest.fixture(scope="module")
def picture() -> Picture:
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        image = Image.open(file).convert("RGB").crop((200, 150, 328, 246))
    image.info = {}  # it has a resolution, which arrays do not have
    return open_image(image)


@pytest.fixture(scope="module")
def measured(scaled: Path, picture: Picture) -> dict[str, tuple[bytes, float]]:
    """Name → file and PSNR with each model of the ladder, by rising λ."""
    from mlic_fast import decode, encode
    from mlic_fast.evaluate.metrics import psnr

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.ENVIRONMENT, str(scaled))
        found = {}
        for model in ladder():
            data = encode(picture, model.path)
            found[model.name] = (data, psnr(picture.pixels, open_image(decode(data)).pixels))
    return found


def model_of(lmbda: float | None, **changes: Any) -> registry.KnownWeights:
    given = {
        "name": f"model {lmbda}",
        "metric": "mse",
        "origin": "MLIC_FAST_MODELS",
        "config": ModelConfig(),
        **changes,
    }
    return registry.KnownWeights(
        path=Path(f"{given['name']}.safetensors"), fingerprint=bytes(32), lmbda=lmbda, guard_delta=None, size=1, **given
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "not nothing"),
        ({"bpp": 1.0, "psnr": 30.0}, "not bpp and psnr"),
        ({"bpp": 0.0}, "positive number, not 0.0"),
        ({"bpp": float("nan")}, "positive number"),
        ({"psnr": float("inf")}, "positive number"),
        ({"psnr": "30"}, "positive number, not '30'"),
        ({"bytes": 1000.5}, "positive whole number"),
        ({"bytes": True}, "positive whole number"),
        ({"bytes": -1}, "positive whole number"),
    ],
    ids=str,
)
def test_targets_that_make_no_sense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(TargetError, match=words):
        Target(**values)


def test_the_ladder_at_hand(scaled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [model.name for model in ladder()] == ["mlicpp-s-0.0067"]
    monkeypatch.setenv(registry.ENVIRONMENT, str(scaled))
    assert [model.lmbda for model in ladder()] == [*SCALES, LAMBDA]
    with pytest.raises(TargetError, match=r"ms-ssim .*convert --lambda"):
        ladder(metric="ms-ssim")


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ([model_of(0.1), model_of(0.01), model_of(None)], ["model 0.01", "model 0.1"]),
        ([model_of(0.1), model_of(2.4, metric="ms-ssim"), model_of(0.01, metric=None)], ["model 0.1"]),
        # the larger family, then the wider one, which is what the published weights are beside a small model
        (
            [model_of(0.3, config=ModelConfig(M=640)), model_of(0.1), model_of(0.2)],
            ["model 0.1", "model 0.2"],
        ),
        ([model_of(0.1, config=ModelConfig(N=64, M=96, slice_num=3)), model_of(0.2)], ["model 0.2"]),
        # both variants were published as one family
        ([model_of(0.1, config=ModelConfig(variant="old")), model_of(0.2)], ["model 0.1", "model 0.2"]),
        # copies of a model make no family
        (
            [model_of(0.1), model_of(0.1, name="copy"), model_of(0.2, config=ModelConfig(M=640))],
            ["model 0.2"],
        ),
        ([model_of(0.1, name="mine"), model_of(0.1, origin="bundled", name="theirs")], ["mine"]),
        ([model_of(0.1, origin="bundled", name="theirs"), model_of(0.1, name="mine")], ["mine"]),
        (
            [*(model_of(lmbda, origin="bundled", config=ModelConfig(N=48)) for lmbda in (0.1, 0.2)), model_of(0.3)],
            ["model 0.3"],
        ),
        (
            [*(model_of(lmbda, origin="bundled") for lmbda in (0.1, 0.2)), model_of(0.3)],
            ["model 0.1", "model 0.2", "model 0.3"],
        ),
    ],
    ids=[
        "order",
        "metric",
        "largest",
        "widest",
        "variants",
        "copies",
        "own first",
        "own first, listed last",
        "own family",
        "joined",
    ],
)
def test_families(models: list[registry.KnownWeights], names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_control, "available", lambda: registry.Listing(tuple(models), ()))
    assert [model.name for model in ladder()] == names


def test_named_models(scaled: Path) -> None:
    paths = [scaled / f"{number}.safetensors" for number in range(3)]
    assert [model.lmbda for model in ladder([*map(str, paths), registry.DEFAULT_MODEL])] == [*SCALES, LAMBDA]
    assert ladder([model_of(None, metric=None)])[0].lmbda is None
    with pytest.raises(TargetError, match=r"model None: λ is not known"):
        ladder([model_of(None), model_of(0.1)])
    with pytest.raises(TargetError, match=r"different metrics \(ms-ssim, mse\)"):
        ladder([model_of(8.73, metric="ms-ssim"), model_of(0.1)])
    with pytest.raises(TargetError, match="at least one"):
        ladder([])
    with pytest.raises(WrongWeightsError, match="absent"):
        ladder(["absent"])


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_quality_stands_for_a_lambda(metric: Any) -> None:
    released = RELEASED_LAMBDAS[metric]
    models = [model_of(lmbda, metric=metric) for lmbda in released]
    for step, lmbda in enumerate(released):
        for quality in (20 * step - 9, 20 * step, 20 * step + 9):
            if 0 <= quality <= 100:
                assert choose_by_quality(quality, models=models).lmbda == lmbda
    # a model more takes its own part of the scale and moves no other one
    between = model_of((released[2] * released[3]) ** 0.5, metric=metric)
    assert choose_by_quality(50, models=[*models, between]) == between
    assert choose_by_quality(40, models=[*models, between]).lmbda == released[2]


def test_the_bundled_ladder(monkeypatch: pytest.MonkeyPatch, picture: Picture) -> None:
    """Rate control means something without further weights."""
    monkeypatch.setattr(registry, "bundled_folder", ALL_BUNDLED)
    assert [model.lmbda for model in ladder()] == [0.0018, 0.0067, 0.0483]
    assert [choose_by_quality(quality).lmbda for quality in (0, 40, 100)] == [0.0018, 0.0067, 0.0483]
    hits = [encode_to_target(picture, Target(psnr=least)) for least in (1, 99)]
    assert [hit.lmbda for hit in hits] == [0.0018, 0.0483]
    assert 1.5 * hits[0].bpp < hits[1].bpp
    assert encode_to_target(picture, Target(bpp=hits[0].bpp)).lmbda == 0.0018


def test_quality_with_few_models() -> None:
    assert choose_by_quality(0).name == choose_by_quality(100.0).name == registry.DEFAULT_MODEL
    assert choose_by_quality(75, models=[model_of(None)]).lmbda is None
    for wrong in (-1, 101, float("nan"), True, "75", None):
        with pytest.raises(TargetError, match="from 0 to 100"):
            choose_by_quality(wrong)  # type: ignore[arg-type]


def test_choosing_needs_no_torch() -> None:
    program = (
        "import sys; from mlic_fast.rate_control import Target, choose_by_quality, ladder, encode_to_target; "
        "ladder(); choose_by_quality(75); Target(bpp=1); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("count", range(1, 8))
def test_the_search_finds_what_trying_all_finds(count: int, monkeypatch: pytest.MonkeyPatch, picture: Picture) -> None:
    models = [model_of(index + 1.0) for index in range(count)]
    sizes, qualities = [100 * (index + 1) for index in range(count)], [20.0 + index for index in range(count)]

    def attempt(picture: Picture, target: Target, model: registry.KnownWeights, device: Any, options: Any) -> Hit:
        index = models.index(model)
        psnr = qualities[index] if target.psnr else None
        reached = psnr >= target.psnr if psnr and target.psnr else sizes[index] <= (target.bytes or 0)
        return Hit(target, bytes([index]), model.name, model.lmbda, sizes[index], 1.0, psnr, reached, ())

    monkeypatch.setattr(rate_control, "_attempt", attempt)
    for wanted in (50, *(size + near for size in sizes for near in (-1, 0, 1))):
        hit = encode_to_target(picture, Target(bytes=wanted), models=models)
        fitting = [index for index in range(count) if sizes[index] <= wanted]
        assert hit.reached == bool(fitting)
        assert hit.data[0] == (fitting[-1] if fitting else 0)
        assert len(hit.tried) <= count.bit_length()
    for least in (50.0, *(quality + near for quality in qualities for near in (-0.1, 0.0, 0.1))):
        hit = encode_to_target(picture, Target(psnr=least), models=models)
        fitting = [index for index in range(count) if qualities[index] >= least]
        assert hit.reached == bool(fitting)
        assert hit.data[0] == (fitting[0] if fitting else count - 1)
        assert len(hit.tried) <= count.bit_length()


def test_files_of_a_target(
    scaled: Path, picture: Picture, measured: dict[str, tuple[bytes, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT, str(scaled))
    names, sizes = list(measured), [len(data) for data, _ in measured.values()]
    qualities = [psnr for _, psnr in measured.values()]
    assert sizes == sorted(sizes)
    assert qualities == sorted(qualities)

    hit = encode_to_target(picture, Target(bytes=sizes[2]))
    assert (hit.model, hit.lmbda, hit.bytes, hit.reached, hit.psnr) == (names[2], 0.004, sizes[2], True, None)
    assert hit.data == measured[names[2]][0]
    assert hit.summary() == f"at most {sizes[2]:,} bytes: {sizes[2]:,} bytes, {hit.bpp:.4f} bpp with {names[2]}"
    # the array is what any caller may give instead; one byte less is the next smaller model's
    hit = encode_to_target(picture.pixels, Target(bytes=sizes[2] - 1))
    assert (hit.model, hit.data) == (names[1], measured[names[1]][0])

    bpp = 8 * sizes[3] / (128 * 96)
    hit = encode_to_target(picture, Target(bpp=bpp))
    assert (hit.model, hit.bpp) == (names[3], bpp)
    assert [trial.model for trial in hit.tried] == names[1:]
    assert hit.tried[-1] == Trial(names[3], LAMBDA, sizes[3], bpp, None)

    hit = encode_to_target(picture, Target(psnr=qualities[1] - 0.01))
    assert (hit.model, hit.psnr, hit.reached) == (names[1], qualities[1], True)
    assert f"{qualities[1]:.2f} dB" in hit.summary()


def test_targets_that_are_missed(
    scaled: Path, picture: Picture, measured: dict[str, tuple[bytes, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT, str(scaled))
    names = list(measured)
    hit = encode_to_target(picture, Target(bytes=20))
    assert (hit.reached, hit.model, hit.data) == (False, names[0], measured[names[0]][0])
    assert "no model at hand reaches at most 20 bytes" in hit.summary()
    assert "smallest λ" in hit.summary()
    hit = encode_to_target(picture, Target(psnr=99.0))
    assert (hit.reached, hit.model, hit.data) == (False, names[-1], measured[names[-1]][0])
    assert "largest λ" in hit.summary()
    # one model named: nothing to choose, but still told whether it fits
    hit = encode_to_target(picture, Target(bytes=20), models=[registry.DEFAULT_MODEL])
    assert (hit.reached, hit.model, len(hit.tried)) == (False, registry.DEFAULT_MODEL, 1)


def test_options_reach_the_encoder(picture: Picture) -> None:
    import io

    from mlic_fast.errors import LimitError
    from mlic_fast.limits import Limits

    target = Target(bpp=8.0)
    plain = encode_to_target(picture, target)
    official = encode_to_target(picture, target, format="official", device="cpu")
    assert official.bytes < plain.bytes
    content = io.BytesIO()
    Image.fromarray(picture.pixels).save(content, "PNG")
    content.seek(0)
    assert encode_to_target(content, target).data == plain.data  # a file object is read once
    content.seek(0)
    with pytest.raises(LimitError, match="12,288 pixels"):
        encode_to_target(content, target, limits=Limits(pixels=1000))


def test_a_tie_between_folders_is_no_matter(scaled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.ENVIRONMENT, os.pathsep.join([str(scaled), str(scaled / "0.safetensors")]))
    before = ladder()
    assert len(before) == 4
    monkeypatch.setattr(
        rate_control, "available", lambda: registry.Listing((*before, replace(before[0], path=Path("copy"))), ())
    )
    assert ladder() == before
