# SPDX-License-Identifier: Apache-2.0
"""`mlic-fast eval --compressai`: CompressAI's models through their own methods, with the numbers of its eval_model."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_samples import one_thread
from compressai_samples import seeded_model
from PIL import Image
from safetensors.torch import save_file

from mlic_fast.cli.main import main
from mlic_fast.errors import CheckpointError, CodecError, CodecRunError
from mlic_fast.evaluate import compressai_models, strings_file
from mlic_fast.evaluate.compressai_models import Weights, contestants_of, load, points_of
from mlic_fast.evaluate.dataset import colours_of
from mlic_fast.pictures.image import open_image

__all__ = ["one_thread"]

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"N": 32, "M": 48}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two colour pictures of odd sizes, and a grey one."""
    folder = tmp_path_factory.mktemp("photographs")
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        photograph = Image.open(file).convert("RGB")
    photograph.crop((200, 150, 397, 333)).save(folder / "a.png")
    photograph.crop((60, 50, 231, 246)).save(folder / "b.png")
    photograph.convert("L").crop((100, 90, 165, 150)).save(folder / "grey.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of seeded weights with their coding tables, beside other things that are saved with weights."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for seed, (name, sizes) in enumerate(
        [
            ("bmshj2018-hyperprior", {}),
            ("mbt2018-mean", SMALL),
            ("cheng2020-anchor", {"N": 32}),
            ("elic2022-official", {"N": 32}),
        ]
    ):
        found[name] = folder / f"{name}-{seed}.pth.tar"
        state = seeded_model(name, seed, **sizes).state_dict()
        torch.save({"epoch": 7, "state_dict": state, "optimizer": {"state": {0: {"step": 1}}}}, found[name])
    return found


@pytest.fixture
def _settings_kept() -> Iterator[None]:
    """eval_model sets PyTorch to one thread and to deterministic kernels when it is imported."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    yield
    torch.set_num_threads(before[0])
    torch.backends.cudnn.deterministic = before[1]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("_settings_kept")
@pytest.mark.parametrize("fast", [False, True], ids=["own coder", "fast coder"])
@pytest.mark.parametrize("name", ["bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-anchor"])
def test_eval_model_finds_the_same(
    name: str, fast: bool, photographs: Path, weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressai.utils.eval_model.__main__ import main as eval_model

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in ("a.png", "b.png"):  # eval_model makes grey ones RGB
        (pictures / picture).write_bytes((photographs / picture).read_bytes())
    monkeypatch.chdir(tmp_path)
    eval_model(
        ["checkpoint", "pictures", "-a", name, "--no-update", "-d", ".", "-o", "theirs", "-p", str(weights[name])]
    )
    theirs = json.loads((tmp_path / "theirs.json").read_text())["results"]

    arguments = [
        "eval",
        "pictures",
        "--compressai",
        name,
        "--checkpoint",
        str(weights[name]),
        "--no-model",
        "-o",
        "out",
    ]
    assert main([*arguments, *(["--fast-coder"] if fast else [])]) == 0
    data = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    ours = data["results"]
    assert ours["bpp-strings"] == pytest.approx(theirs["bpp"], rel=1e-12)
    assert ours["psnr-rgb"] == pytest.approx(theirs["psnr-rgb"], abs=1e-3)
    assert ours["ms-ssim-rgb"] == pytest.approx(theirs["ms-ssim-rgb"], abs=1e-5)
    assert set(theirs) <= set(ours)
    assert data["points"] == [weights[name].name.removesuffix(".pth.tar")]
    assert ("mlic_fast's range coder" in data["description"]) == fast


def test_sizes_are_those_of_files_that_decode_alone(
    photographs: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    name = "elic2022-official"
    arguments = [
        "eval",
        str(photographs),
        "--compressai",
        f"ELIC={name}",
        "--checkpoint",
        str(weights[name]),
        "--no-model",
    ]
    assert main([*arguments, "-o", str(tmp_path / "out"), "--keep", str(tmp_path / "kept")]) == 0
    rows = rows_of(tmp_path / "out" / "pictures.csv")
    assert [row["picture"] for row in rows] == ["a.png", "b.png", "grey.png"]
    model: Any = load(Weights(name, weights[name]))
    for row in rows:
        assert row["curve"] == "ELIC"
        file = tmp_path / "kept" / "ELIC" / row["point"] / f"{row['picture']}.strings"
        data = file.read_bytes()
        content = strings_file.read(data)
        assert int(row["bytes"]) == len(data)
        strings = [one for group in content.strings for one in group]
        assert int(row["bytes_strings"]) == sum(map(len, strings))
        assert len(strings) == 11
        # lengths and tags of 11 strings, and the sizes of latents
        assert len(strings) * 4 < len(data) - int(row["bytes_strings"]) < 200
        with torch.no_grad():
            x_hat = model.decompress(content.strings, content.shape)["x_hat"]
        height, width = x_hat.shape[-2:]
        top, left = (height - content.height) // 2, (width - content.width) // 2
        x_hat = x_hat[0, :, top : top + content.height, left : left + content.width]
        original = np.asarray(Image.open(photographs / row["picture"]), np.float64)
        planes = x_hat.mean(0) if original.ndim == 2 else x_hat.permute(1, 2, 0)
        decoded = (planes * 255).round().numpy()
        psnr = 10 * np.log10(255**2 / ((original - decoded) ** 2).mean())
        assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-6)


def test_curves_beside_others(
    photographs: Path, weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    state = {
        f"module.{key}": value.contiguous()
        for key, value in seeded_model("mbt2018-mean", 9, **SMALL).state_dict().items()
    }
    save_file(state, other)
    arguments = ["eval", str(photographs), "--json", "--classical", "jpeg", "-o", str(tmp_path / "out")]
    arguments += ["--compressai", "Mean=mbt2018-mean", "--checkpoint", str(weights["mbt2018-mean"])]
    arguments += ["--checkpoint", str(other), "--pad-to", "128"]
    arguments += ["--compressai", "bmshj2018-hyperprior", "--checkpoint", str(weights["bmshj2018-hyperprior"])]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    curves = [point["curve"] for point in facts["averages"]]
    assert list(dict.fromkeys(curves)) == ["mlicpp-s-0.0067", "Mean", "bmshj2018-hyperprior", "JPEG"]
    assert sorted(point["label"] for point in facts["averages"] if point["curve"] == "Mean") == [
        "mbt2018-mean-1",
        "other",
    ]
    assert "mbt2018-mean in CompressAI" in facts["settings"]["Mean"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| mlicpp-s-0.0067 |" in report
    assert "- Mean: mbt2018-mean in CompressAI" in report
    plot = [
        "plot",
        str(tmp_path / "out" / "Mean.json"),
        str(tmp_path / "out" / "JPEG.json"),
        "-o",
        str(tmp_path / "p.svg"),
    ]
    assert main([*plot, "--anchor", "JPEG"]) == 0
    assert "Mean" in (tmp_path / "p.svg").read_text()


def test_zoo_weights_come_from_torchs_cache(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names under which torch keeps downloads; nothing is downloaded."""
    from compressai.zoo.image import model_urls

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for quality in (1, 3):
        url = model_urls["bmshj2018-hyperprior"]["mse"][quality]
        torch.save(seeded_model("bmshj2018-hyperprior", quality).state_dict(), cache / url.rpartition("/")[2])
    arguments = ["eval", str(photographs), "--compressai", "bmshj2018-hyperprior", "--no-model", "--json"]
    assert main([*arguments, "--quality", "3,1"]) == 0
    printed = capsys.readouterr()
    assert "CompressAI's own weights" in printed.err
    labels = [point["label"] for point in json.loads(printed.out)["averages"]]
    assert sorted(labels) == ["quality 1", "quality 3"]

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    assert main([*arguments, "--quality", "2"]) == 6
    assert "quality 2, cannot be had: OSError: no network" in capsys.readouterr().err


@pytest.mark.parametrize("own_step", [False, True], ids=["y alone", "z too"])
def test_variable_rate(own_step: bool, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = seeded_model("mbt2018-mean-vbr", **SMALL, vr_entbttlnck=own_step)
    path = tmp_path / "vbr.pth"
    torch.save(model.state_dict(), path)
    arguments = ["eval", str(photographs), "--compressai", "mbt2018-mean-vbr", "--checkpoint", str(path), "--no-model"]
    assert main([*arguments, "--quality", "0,4,7", "--json"]) == 0
    averages = json.loads(capsys.readouterr().out)["averages"]
    assert [point["label"] for point in averages] == ["vbr, quality 0", "vbr, quality 4", "vbr, quality 7"]
    rates = [point["bpp_strings"] for point in averages]
    assert rates[0] < rates[1] < rates[2]
    assert len(points_of("mbt2018-mean-vbr", [path])) == 8


def test_files_of_every_kind_give_the_same_model(tmp_path: Path) -> None:
    model = seeded_model("cheng2020-anchor-checkerboard", N=16)
    state = model.state_dict()
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    contents: dict[str, Any] = {
        "bare": state,
        "wrapped": wrapped,
        "average": {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}},
        "nested": {
            "args": {"lr": 0.1},
            "network": {"weights": state},
            "aux_optimizer": {"state": {}, "param_groups": []},
        },
    }
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.compress(x)["strings"]
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        loaded: Any = load(Weights("cheng2020-anchor-checkerboard", tmp_path / f"{name}.pth"))
        with torch.no_grad():
            assert loaded.compress(x)["strings"] == expected
    torch.save({"one": state, "two": state}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match="several models in it, under 'one' and under 'two'"):
        load(Weights("cheng2020-anchor-checkerboard", tmp_path / "two.pth"))
    torch.save({**state, **wrapped}, tmp_path / "twice.pth")
    with pytest.raises(CheckpointError, match="there twice"):
        load(Weights("cheng2020-anchor-checkerboard", tmp_path / "twice.pth"))


def test_tables_are_kept_or_computed(tmp_path: Path) -> None:
    model = seeded_model("mbt2018-mean", **SMALL)
    computed = {key: value.clone() for key, value in model.state_dict().items()}
    model.update(scale_table=[0.5, 9.0], force=True)
    kept = model.state_dict()
    tables = [key for key in kept if key.endswith(("_quantized_cdf", "_cdf_length", "_offset"))]
    missing = {
        key: value.new_empty(0) if key in tables or "scale_table" in key else value for key, value in kept.items()
    }
    assert len(tables) == 6
    for state, expected in ((kept, kept), (missing, computed)):
        torch.save(state, tmp_path / "w.pth")
        found = load(Weights("mbt2018-mean", tmp_path / "w.pth")).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in tables)


def test_names_of_older_releases(tmp_path: Path) -> None:
    state = seeded_model("bmshj2018-hyperprior").state_dict()
    plural = {"matrices": "_matrices", "biases": "_biases", "factors": "_factors"}
    older = {}
    for key, value in state.items():
        room, _, rest = key.partition(".")
        part, _, number = rest.partition(".")
        older[f"{room}.{plural[part]}.{number}" if room == "entropy_bottleneck" and part in plural else key] = value
    assert older.keys() != state.keys()
    torch.save(older, tmp_path / "older.pth")
    loaded = load(Weights("bmshj2018-hyperprior", tmp_path / "older.pth"))
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


class OfElsewhere(torch.nn.Module):
    """A class with CompressAI's interface that divides pictures by 96, and fails at the second picture's size."""

    mood = "well"

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> OfElsewhere:
        model = cls()
        model.load_state_dict(state_dict)
        return model

    def update(self) -> None:
        pass

    def compress(self, x: torch.Tensor) -> dict[str, Any]:
        if self.mood == "raises" and x.shape[-1] == 192:
            raise AssertionError("192 columns are too many")
        small = torch.nn.functional.avg_pool2d(x, 96 if self.mood == "well" else 64)
        return {
            "strings": [[(small * 255).round().to(torch.uint8).numpy().tobytes()]],
            "shape": tuple(small.shape[-2:]),
        }

    def decompress(self, strings: Any, shape: Any) -> dict[str, Any]:
        assert isinstance(shape, tuple)
        small = torch.frombuffer(bytearray(strings[0][0]), dtype=torch.uint8).reshape(1, 3, *shape)
        return {"x_hat": torch.nn.functional.interpolate(small / 255, scale_factor=96)}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Weights:
    torch.save(OfElsewhere().state_dict(), tmp_path / "e.pth")
    sys.modules.setdefault("test_compressai_models", sys.modules[__name__])
    return Weights("test_compressai_models:OfElsewhere", tmp_path / "e.pth")


def test_a_class_of_elsewhere(elsewhere: Weights, photographs: Path, tmp_path: Path) -> None:
    (contestant,) = contestants_of("mine", points_of(elsewhere.name, [tmp_path / "e.pth"]), tmp_path, pad_to=96)
    picture = colours_of(open_image(Image.open(photographs / "a.png")))
    coded = contestant.code(picture, Path("a.png"))
    # 197 × 183 pixels are 3 × 2 squares of 96
    assert coded.string_bytes == 18
    assert coded.bytes == 18 + (2 + 2) + 6 + 2 + 2 + 2
    assert coded.quality.psnr > 10
    with pytest.raises(CodecError, match="OfElsewhere has neither"):
        contestants_of("mine", [elsewhere], tmp_path, fast_coder=True)


def test_failures_are_named(
    elsewhere: Weights, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(OfElsewhere, "mood", "raises")
    arguments = [
        "eval",
        str(photographs),
        "--compressai",
        f"mine={elsewhere.name}",
        "--checkpoint",
        str(elsewhere.checkpoint),
    ]
    assert main([*arguments, "--no-model", "--json", "--pad-to", "64"]) == 1
    printed = capsys.readouterr()
    failures = {one["picture"]: one for one in json.loads(printed.out)["failures"]}
    assert failures["b.png"]["error"] == (
        "mine cannot compress 171 x 196 pixels: AssertionError: 192 columns are too many"
    )
    assert failures["b.png"]["codec"] == "mine, e"
    # it decompresses to multiples of 96 what was padded to multiples of 64
    assert "decompresses to [1, 3, 288, 384] where [1, 3, 192, 256] was compressed" in failures["a.png"]["error"]
    assert "--pad-to" in failures["a.png"]["error"]


def test_padding_follows_the_model(photographs: Path, tmp_path: Path) -> None:
    assert compressai_models._multiple(seeded_model("bmshj2018-factorized", **SMALL)) == 16
    assert compressai_models._multiple(seeded_model("mbt2018-mean", **SMALL)) == 64
    assert compressai_models._multiple(seeded_model("cheng2020-anchor-checkerboard", N=16)) == 64


@pytest.mark.parametrize(
    ("name", "files", "qualities", "words"),
    [
        ("mbt2019", [], None, "no model 'mbt2019': use one of bmshj2018-factorized, "),
        ("ssf2020", [], None, "takes no pictures"),
        ("elic2022-official", [], None, "no weights of its own for elic2022-official"),
        ("mbt2018-mean", [], [9], "mbt2018-mean has no quality 9: it has 1, 2, 3, 4, 5, 6, 7, 8"),
        ("mbt2018-mean", ["a.pth"], [1], "one rate a file"),
        ("mbt2018-mean", ["a.pth", "b/a.pth"], None, "two points of mbt2018-mean are called 'a'"),
        ("mbt2018-mean", [], [1, 1], "two points of mbt2018-mean are called 'quality 1'"),
        ("mbt2018-vbr", ["a.pth"], [8], "has no quality 8"),
        ("no_such_module:Model", ["a.pth"], None, "cannot be imported: ModuleNotFoundError"),
        ("json:Nothing", ["a.pth"], None, "cannot be imported: AttributeError"),
        ("json:__name__", ["a.pth"], None, "neither a class nor a function"),
        ("json:loads", [], None, "no weights of its own"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_choices_that_make_no_sense(
    name: str, files: list[str], qualities: list[int] | None, words: str, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    for file in files:
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(CodecError, match=words):
        points_of(name, [tmp_path / file for file in files], qualities)


def test_weights_that_do_not_fit(weights: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights file"):
        points_of("mbt2018-mean", [tmp_path / "absent.pth"])
    for name, path, words in (
        ("elic2022-official", weights["mbt2018-mean"], "are not those of elic2022-official: "),
        ("mbt2018-mean", weights["elic2022-official"], "are not those of mbt2018-mean: "),
        ("json:dumps", weights["mbt2018-mean"], "are not those of json:dumps: TypeError"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load(Weights(name, path))
    with pytest.raises(CodecError, match="gives a set, which has no compress"):
        load(Weights("builtins:set", weights["mbt2018-mean"]))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(weights["mbt2018-mean"].read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="damaged"):
        load(Weights("mbt2018-mean", damaged))
    with pytest.raises(CodecError, match="multiples of 1 to 4096, not 0"):
        contestants_of("x", [], tmp_path, pad_to=0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--compressai", "nothing"], 2, "no model 'nothing'"),
        (["--checkpoint", "x.pth"], 2, "belongs to a --compressai"),
        (["--compressai", "mbt2018", "--quality", "a"], 2, "not a whole number"),
        (["--compressai", "mbt2018", "--pad-to", "5000"], 2, "not a whole number from 1 to 4096"),
        (["--compressai", "=mbt2018"], 2, "no name for a curve"),
        (["--compressai", "mbt2018", "--checkpoint", "absent.pth"], 3, "no weights file absent.pth"),
        (["--compressai", "mbt2018", "--checkpoint", "empty.pth"], 6, "empty.pth is empty"),
        (["--fast-coder", "--classical", "jpeg"], 2, "--fast-coder is for"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused(
    arguments: list[str],
    code: int,
    words: str,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pth").write_bytes(b"")
    found: int | str | None
    try:
        found = main(["eval", str(photographs), "--no-model", *arguments])
    except SystemExit as error:
        found = error.code
    assert found == code
    assert words in capsys.readouterr().err


def test_two_curves_of_one_name(
    photographs: Path, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["--compressai", "mbt2018-mean", "--checkpoint", str(weights["mbt2018-mean"])]
    assert main(["eval", str(photographs), "--no-model", *one, *one]) == 2
    assert "give one another with NAME=" in capsys.readouterr().err


def test_strings_that_a_file_cannot_hold(
    elsewhere: Weights, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (contestant,) = contestants_of("mine", [elsewhere], tmp_path, pad_to=96)
    picture = colours_of(open_image(Image.open(photographs / "a.png")))
    before = OfElsewhere.compress
    monkeypatch.setattr(OfElsewhere, "compress", lambda self, x: {**before(self, x), "shape": 1.5})
    with pytest.raises(CodecRunError, match="gives a float"):
        contestant.code(picture, Path("a.png"))
