# SPDX-License-Identifier: Apache-2.0
"""What holds of every member of the family: parameters, names, order of coding, exact round trips in every way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_samples import as_compressai_model
from device_codec import Codec
from family_samples import ARCHITECTURES, SMALL, golden_model, tiny_model
from recorded_operators import OperatorRecorder

import mlic_fast
from mlic_fast import ModelConfig
from mlic_fast.checkerboard import Parity
from mlic_fast.checkpoint import expected_shapes, infer_config
from mlic_fast.checkpoint.shapes import parameter_count
from mlic_fast.coding import Way
from mlic_fast.compute.backend import use_backend
from mlic_fast.contexts import Architecture, contexts_of, member_of
from mlic_fast.engine import Options, engine_for
from mlic_fast.engine.gpu.recordings import RecordedPrograms
from mlic_fast.entropy.coders import code
from mlic_fast.evaluate.calibration import on_threads
from mlic_fast.model import class_of
from mlic_fast.nn.network import Network

Images = Callable[..., torch.Tensor]
each = pytest.mark.parametrize("architecture", ARCHITECTURES)
# MLICv2 has modules that the others lack, some of them without a gradient: tests/test_mlicv2.py has its own tests.
each_but_mlicv2 = pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mlicv2"])

# Trained parameters at the published size and at N=64, M=96, 3 slices, those of CompressAI's classes too.
PARAMETERS = {
    "mlicpp": (83_501_408, 10_499_586),
    "mlic+": (83_501_408, 10_499_586),
    "mlic": (41_885_452, 10_193_244),
    "mlicv2": (82_216_654, 10_613_005),
}

# Of MLIC at the published size, by part.
PARTS_OF_MLIC = {
    "g_a": 4_175_040,
    "g_s": 11_750_796,
    "local_context": 615_168,
    "channel_context": 2_674_880,
    "global_intra_context": 366_240,
    "entropy_parameters_anchor": 1_683_968,
    "entropy_parameters_nonanchor": 1_909_248,
}


def trained(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", ["published", "small"])
@pytest.mark.parametrize("architecture", PARAMETERS)
def test_parameters_by_table_and_by_module(architecture: Architecture, size: str) -> None:
    config = ModelConfig.published(architecture)
    if size == "small":
        config = ModelConfig(**SMALL, architecture=architecture)
    with torch.device("meta"):
        model = Network(config)
    expected = PARAMETERS[architecture][size == "small"]
    assert parameter_count(config) == trained(model) == expected
    if (architecture, size) == ("mlic", "published"):
        assert {name: trained(model.get_submodule(name)) for name in PARTS_OF_MLIC} == PARTS_OF_MLIC


@each
def test_the_default_is_the_published_size(architecture: Architecture) -> None:
    with torch.device("meta"):
        model = class_of(architecture)()
    member = member_of(architecture)
    assert (model.N, model.M, model.slice_num) == (member.N, member.M, member.slice_num)
    assert model.config == ModelConfig.published(architecture)
    assert model.config.architecture == architecture


@each
@pytest.mark.parametrize("size", [(8, 96, 3), (16, 32, 1), (64, 64, 2)], ids=str)
def test_names_and_shapes_are_the_tables(architecture: Architecture, size: tuple[int, int, int]) -> None:
    config = ModelConfig(*size, architecture=architecture)
    shapes = {name: tuple(tensor.shape) for name, tensor in class_of(architecture)(config).state_dict().items()}
    assert list(shapes.items()) == list(expected_shapes(config).items())
    assert infer_config(shapes, architecture) == config
    # without a word, the first member with these names
    first = next(other for other in ARCHITECTURES if set(expected_shapes(_as(config, other))) == set(shapes))
    assert infer_config(shapes) == _as(config, first)


def _as(config: ModelConfig, architecture: Architecture) -> ModelConfig:
    return ModelConfig(config.N, config.M, config.slice_num, architecture=architecture)


@pytest.mark.parametrize("width", [2, 6, 30, 40, 48])
def test_slices_of_other_widths_where_no_heads_have_to_divide(width: int, test_image: Images) -> None:
    config = ModelConfig(N=8, M=3 * width, slice_num=3, architecture="mlic")
    model = class_of("mlic")(config).eval()
    model.update()
    x = test_image(64, 64, 90)
    coded = model.compress(x)
    exact = model.compress(x, exact=True)
    for strings, plain in ((coded, False), (exact, True)):
        x_hat = model.decompress(strings["strings"], strings["shape"], exact=plain)["x_hat"]
        assert (x_hat - model(x)["x_hat"]).abs().max() <= 1e-4


class Replay:
    """Sends given values, and keeps every pass's scales and means."""

    def __init__(self, values: list[torch.Tensor]) -> None:
        self._values = values
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self, scales: torch.Tensor) -> None:
        self._scales = scales.clone()

    def finish(self, means: torch.Tensor) -> torch.Tensor:
        self.seen.append((self._scales, means.clone()))
        return self._values[len(self.seen) - 1].clone()


@contextmanager
def way_of(model: Any, name: str) -> Iterator[Way]:
    """The network on the plain path or with kernels, or the engine."""
    with use_backend("torch" if name == "plain" else "auto"):
        if name != "engine":
            yield model
            return
        engine = engine_for(model, Options("float32"))
        assert engine is not None
        yield engine


@torch.no_grad()
@pytest.mark.parametrize("way", ["plain", "kernels", "engine"])
@each
def test_nothing_depends_on_what_is_coded_later(architecture: Architecture, way: str) -> None:
    """A symbol moves the scales and means of every later pass, and of no pass before, nor of its own."""
    model = tiny_model(architecture)
    random = torch.Generator().manual_seed(3)
    count, shape = 2 * model.slice_num, (2, model.slice_ch, 8, 6)
    z_hat = torch.randint(-2, 3, (2, model.N, 2, 3), generator=random).float()
    values = [torch.randn(shape, generator=random) * 3 for _ in range(count)]
    with way_of(model, way) as found:
        first = Replay(values)
        code(found.walk(z_hat), first)
        for number in range(count):
            changed = [value.clone() for value in values]
            changed[number][0, number % shape[1], number % 8, number % 6] += 4
            again = Replay(changed)
            code(found.walk(z_hat), again)
            moved = {
                later
                for later, (one, other) in enumerate(zip(first.seen, again.seen, strict=True))
                if not all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
            }
            assert moved == set(range(number + 1, count))
            # the other item of the batch is another picture
            for one, other in zip(first.seen, again.seen, strict=True):
                assert all(torch.allclose(a[1], b[1], rtol=1e-4, atol=1e-6) for a, b in zip(one, other, strict=True))


@torch.no_grad()
@each
def test_estimates_depend_on_y_as_coding_does(architecture: Architecture, test_image: Images) -> None:
    """y at a pass's positions, perturbed: likelihoods of passes before stay what they were to the bit."""
    model = tiny_model(architecture)
    x = test_image(64, 128, 91)
    y, z = model.analyse(x)
    with use_backend("torch"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "analyse", lambda x: (y, z))
        before = model(x)["likelihoods"]["y_likelihoods"].chunk(model.slice_num, dim=1)
        rows, columns = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
        odd = ((rows + columns) % 2).bool()
        for i in range(model.slice_num):
            for parity in Parity:
                own = odd if parity is Parity.ANCHOR else ~odd
                other = y.clone()
                part = other[:, i * model.slice_ch : (i + 1) * model.slice_ch]
                part += own * 2.0
                patch.setattr(model, "analyse", lambda x, other=other: (other, z))
                after = model(x)["likelihoods"]["y_likelihoods"].chunk(model.slice_num, dim=1)
                for k in range(i):
                    assert torch.equal(before[k], after[k])
                if parity is Parity.NONANCHOR:
                    assert torch.equal(before[i][..., odd], after[i][..., odd])
                assert not torch.equal(before[i][..., own], after[i][..., own])


@torch.no_grad()
@each
def test_the_forms_reach_as_far_as_they_should(architecture: Architecture) -> None:
    """A far symbol of the first slice moves the next one's anchors through a global context between slices alone."""
    model = tiny_model(architecture)
    random = torch.Generator().manual_seed(4)
    values = [torch.randn((1, model.slice_ch, 16, 16), generator=random) * 3 for _ in range(2 * model.slice_num)]
    z_hat = torch.zeros(1, model.N, 4, 8)
    first, again = Replay(values), Replay([values[0].clone(), *values[1:]])
    again._values[0][0, 0, 0, 0] += 30
    with use_backend("torch"):
        code(model.walk(z_hat), first)
        code(model.walk(z_hat), again)
    # 3×3 convolutions of the residual prediction, its whole depth and the channel context's: none reaches the other end
    far = [[not torch.equal(a[..., -1, -1], b[..., -1, -1]) for a, b in zip(*pair, strict=True)]
           for pair in zip(first.seen, again.seen, strict=True)]  # fmt: skip
    names = {context.name for context in contexts_of(architecture)}
    assert any(far[2]) == ("global_inter_context" in names)
    assert any(far[3]) == bool(names & {"global_inter_context", "global_intra_context"})


PICTURES = [(64, 64, 1), (128, 64, 2), (64, 192, 1)]


@pytest.mark.parametrize("guard", [False, True], ids=["bare", "guarded"])
@pytest.mark.parametrize("exact", [True, False], ids=["plain", "engine"])
@each
def test_round_trips_are_exact(architecture: Architecture, exact: bool, guard: bool, test_image: Images) -> None:
    model = golden_model(architecture)
    for height, width, batch in PICTURES:
        x = test_image(height, width, height + width, batch)
        coded = model.compress(x, exact=exact, guard=model.guard_deltas if guard else None)
        x_hat = model.decompress(coded["strings"], coded["shape"], exact=exact, guard=coded.get("guard"))["x_hat"]
        with use_backend("torch"), torch.no_grad():
            expected = model(x)["x_hat"]
        assert sum(map(len, coded["strings"][0])) > 100
        assert (x_hat - expected).abs().max() <= (1e-6 if exact else 1e-3)


@each
def test_files_cross_ways_and_threads(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written in one way, with some threads, is read in every other, with others."""
    model = golden_model(architecture)
    picture = np.random.default_rng(5).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    pictures: list[np.ndarray] = []
    files: list[bytes] = []
    for threads, backend, engine in ((1, "torch", "off"), (2, "auto", "off"), (2, "auto", "on")):
        monkeypatch.setenv("MLIC_FAST_ENGINE", engine)
        with on_threads(threads, plain=False), use_backend(backend):
            files.append(mlic_fast.encode(picture, model))
    for threads, backend, engine in ((2, "torch", "off"), (1, "auto", "off"), (1, "auto", "on")):
        monkeypatch.setenv("MLIC_FAST_ENGINE", engine)
        with on_threads(threads, plain=False), use_backend(backend):
            for data in files:
                pictures.append(np.asarray(mlic_fast.decode(data, model)).astype(int))
    assert len({len(data) for data in files}) <= 3
    for first, *others in (pictures[0::3], pictures[1::3], pictures[2::3]):
        assert all(np.abs(first - other).max() <= 1 for other in others)


@each
def test_a_device_s_programs_are_recorded_and_replayed(architecture: Architecture, test_image: Images) -> None:
    model = tiny_model(architecture)
    codec, plain = Codec(model, RecordedPrograms(OperatorRecorder())), Codec(model, None)
    for seed in range(3):
        x = test_image(64, 128, 92 + seed)
        coded, x_hat = codec.both(x)
        expected, picture = plain.both(x)
        assert coded == expected
        assert torch.equal(x_hat, picture)
        theirs = model.decompress([[coded.y], coded.z], (1, 2), guard=coded.guard)["x_hat"]
        assert (x_hat - theirs).abs().max() <= 1e-4


@each_but_mlicv2
def test_compressai_s_own_names_load(architecture: Architecture) -> None:
    model = tiny_model(architecture)
    theirs = as_compressai_model(model.state_dict(), model.slice_num)
    assert sum(name.startswith("latent_codec.") for name in theirs) > len(theirs) / 2
    loaded = class_of(architecture).from_state_dict(theirs)
    assert loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@each_but_mlicv2
def test_gradients_reach_every_parameter(architecture: Architecture, test_image: Images) -> None:
    import copy

    model = copy.deepcopy(tiny_model(architecture)).train()
    out = model(test_image(64, 64, 95))
    rate = sum(-likelihoods.log2().sum() for likelihoods in out["likelihoods"].values())
    (rate + out["x_hat"].square().sum() * 100).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not bool((parameter.grad != 0).any())
    ]
    assert [name for name in without if not re.search(r"quantiles", name)] == []
