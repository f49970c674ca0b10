# SPDX-License-Identifier: Apache-2.0
"""MLICv2 as a whole: CompressAI's numbers with its predictor on, our own reading, and both coded by every way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from device_codec import Codec
from family_samples import SMALL, golden_model, peer_name
from PIL import Image
from recorded_operators import OperatorRecorder
from torch import Tensor

from mlic_fast import MLICPlusPlus, MLICv2, ModelConfig
from mlic_fast.checkerboard import Parity, unpack
from mlic_fast.checkpoint import checkpoint_from_state_dict
from mlic_fast.checkpoint.shapes import parameter_count
from mlic_fast.compute.backend import use_backend
from mlic_fast.contexts import Variant
from mlic_fast.engine import Options, engine_for
from mlic_fast.engine.gpu.recordings import RecordedPrograms
from mlic_fast.entropy.coders import code
from mlic_fast.entropy.factorized import decode_hyper_latent
from mlic_fast.entropy.range_coder import encode
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.errors import CheckpointError, ConfigError, WrongWeightsError
from mlic_fast.passes import Walk, send
from mlic_fast.train.layers import install
from mlic_fast.train.losses import rate_distortion
from mlic_fast.train.optimizers import matrix_weights

NAME = "family_mlicv2_64x128_b1"
PICTURE = (64, 128, 13)
VARIANTS: list[Variant] = ["new", "guided"]

# Of a tensor's largest value. Two right float32 implementations differ by some 1e-6.
TOLERANCE = 1e-5

Golden = Callable[[str], dict[str, np.ndarray]]


def model_of(variant: Variant) -> MLICv2:
    """The golden model, and one of our reading with weights like its."""
    model = golden_model("mlicv2", variant)
    assert isinstance(model, MLICv2)
    return model


def assert_close(actual: Tensor, expected: np.ndarray, name: str) -> None:
    assert actual.shape == expected.shape, name
    error = np.abs(actual.detach().numpy() - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, f"{name}: {error:.2e}"


@torch.no_grad()
def test_every_intermediate_with_the_predictor_on(golden: Golden, test_image: Any) -> None:
    model, data = model_of("new"), golden(NAME)
    seen: dict[str, Tensor] = {}
    passes = {f"latent_codec.y.latent_codec.y{i}.selective_predictor": ["anchor", "non_anchor"] for i in range(3)}

    def see(path: str, output: Tensor) -> None:
        name = path.removesuffix(".hgcp")
        seen[f"{name}.{passes[name].pop(0)}" if name in passes else name] = output

    hooks = [
        module.register_forward_hook(lambda _, __, output, path=path: see(peer_name(path), output))
        for path, module in model.named_modules()
        if peer_name(path).removesuffix(".hgcp") in data or peer_name(path) in passes
    ]
    hooks.append(model.g_s.register_forward_pre_hook(lambda _, inputs: seen.__setitem__("y_hat", inputs[0])))
    try:
        with use_backend("torch"):
            result = model(test_image(*PICTURE), selective=True)
    finally:
        for hook in hooks:
            hook.remove()
    seen |= {"x_hat": result["x_hat"], **result["likelihoods"]}
    others = {"symbols", "indexes", "y_string", "shape", "z_string.0"} | {f"coded.{number}" for number in range(6)}
    assert set(seen) == set(data) - others
    assert len(seen) > 40
    for path, tensor in seen.items():
        assert_close(tensor, data[path], path)


class _Golden:
    """A way to code a pass that takes the golden symbols where there are any, and remembers the indexes there."""

    def __init__(self, model: MLICv2, data: dict[str, np.ndarray]) -> None:
        self.indexes: list[np.ndarray] = []
        self._gaussian, self._data = model.gaussian_conditional, data
        self._coded = iter(data[f"coded.{number}"] for number in range(6))
        self._position = 0

    def begin(self, scales: Tensor) -> None:
        self._where = next(self._coded)
        self.indexes.append(self._gaussian.build_indexes(scales).numpy()[self._where])

    def finish(self, means: Tensor) -> Tensor:
        symbols = np.zeros(means.shape, np.int32)
        count = int(self._where.sum())
        symbols[self._where] = self._data["symbols"][self._position : self._position + count]
        self._position += count
        return means + torch.from_numpy(symbols)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_indexes_while_decoding_golden_symbols(golden: Golden, backend: Any) -> None:
    model, data = model_of("new"), golden(NAME)
    z_hat = decode_hyper_latent(model.entropy, [data["z_string.0"].tobytes()], tuple(data["shape"]))
    driver = _Golden(model, data)
    with use_backend(backend):
        y_hat = code(model.walk(z_hat, model.selection()), driver)
    indexes = np.concatenate(driver.indexes)
    assert (indexes != data["indexes"]).sum() <= 1
    assert_close(y_hat, data["y_hat"], "y_hat")
    stream = encode(coding_tables(model.gaussian_conditional), data["symbols"], data["indexes"])
    assert stream == data["y_string"].tobytes()


@torch.no_grad()
def test_what_is_left_out_is_the_mean_and_costs_nothing(golden: Golden, test_image: Any) -> None:
    model, data = model_of("new"), golden(NAME)
    x = test_image(*PICTURE)
    coded = torch.cat(
        [
            sum(unpack(torch.from_numpy(data[f"coded.{2 * i + n}"]).float(), parity) for n, parity in enumerate(Parity))
            for i in range(3)
        ],
        dim=1,
    )
    likelihoods = model(x, selective=True)["likelihoods"]["y_likelihoods"]
    assert (likelihoods[coded == 0] == 1).all()
    assert 0.2 < coded.mean() < 0.8
    whole = model(x)["likelihoods"]["y_likelihoods"]
    assert (whole < 1).all()
    with pytest.raises(ConfigError, match="predicts no symbols"):
        model_of("guided")(x, selective=True)
    with pytest.raises(ConfigError, match=r"MLIC\+\+.*predicts no symbols"):
        MLICPlusPlus(ModelConfig(**SMALL))(x, selective=True)


def test_counts_are_those_of_the_specification() -> None:
    full = ModelConfig.published("mlicv2")
    assert parameter_count(full) == 82_216_654
    small = ModelConfig(**SMALL, architecture="mlicv2")
    assert parameter_count(small) == sum(p.numel() for p in model_of("new").parameters()) == 10_613_005
    # our reading: queries and keys are rotated, and 19 contexts reweighted
    assert parameter_count(ModelConfig(architecture="mlicv2", variant="guided")) == 81_053_824 - 1_620 + 20


def engine_of(model: MLICv2, memory_budget: int | None = None) -> Any:
    engine = engine_for(model, Options("float32", memory_budget))
    assert engine is not None
    return engine


def walked(walk: Walk, count: int, symbols: Callable[[int, torch.Size], Tensor]) -> tuple[list[Tensor], Tensor]:
    """Scales and means of all passes, in turn, and ŷ, with symbols(number of the pass, shape)."""
    seen: list[Tensor] = []
    scales: Tensor | None = next(walk)
    y_hat: Tensor | None = None
    for number in range(count):
        assert scales is not None
        means = next(walk)
        seen += [scales, means]
        scales, y_hat = send(walk, means + symbols(number, means.shape))
    assert y_hat is not None
    return seen, y_hat


def drawn(number: int, shape: torch.Size) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(number)).float()


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 3), (1, 4, 2)], ids=["64×64", "batch 2, wide", "high"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_compiled_walk_is_the_walk_as_written_down(variant: Variant, size: tuple[int, int, int]) -> None:
    model = model_of(variant)
    z_hat = torch.randint(-3, 4, (size[0], 64, *size[1:]), generator=torch.Generator().manual_seed(7)).float()
    written, expected = walked(model.walk(z_hat), 6, drawn)
    compiled, y_hat = walked(engine_of(model).walk(z_hat), 6, drawn)
    for number, (a, b) in enumerate(zip(compiled, written, strict=True)):
        assert a.shape == b.shape
        assert a.is_contiguous()
        assert (a - b).abs().max() < 1e-5 * b.abs().max().clamp(min=1), (
            f"{'mean' if number % 2 else 'scale'} {number // 2}"
        )
    assert (y_hat - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("way", ["written", "compiled"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_pass_depends_on_a_later_one(variant: Variant, way: str) -> None:
    model = model_of(variant)
    z_hat = torch.randint(-3, 4, (1, 64, 1, 2), generator=torch.Generator().manual_seed(8)).float()
    network = model if way == "written" else engine_of(model)
    before, _ = walked(network.walk(z_hat), 6, drawn)
    for changed in range(6):

        def symbols(number: int, shape: torch.Size, changed: int = changed) -> Tensor:
            return drawn(number, shape) + (2 if number == changed else 0)

        after, _ = walked(network.walk(z_hat), 6, symbols)
        assert all(torch.equal(a, b) for a, b in zip(after[: 2 * changed + 2], before, strict=False))
        if changed < 5:
            assert any(
                not torch.equal(a, b) for a, b in zip(after[2 * changed + 2 :], before[2 * changed + 2 :], strict=True)
            )


@torch.no_grad()
def test_the_first_slice_is_told_by_the_hyper_parameters() -> None:
    """CompressAI's form tells the anchors more than the hyper-parameters at their own position do, ours the others."""
    z_hat = torch.zeros(1, 64, 1, 6)
    other = z_hat.clone()
    other[..., 5] = 3
    far = (slice(None), slice(None), slice(None), slice(0, 1))  # 20 positions away: beyond what h_s reaches
    changes = {}
    for variant in VARIANTS:
        model = model_of(variant)
        hyper, moved = model.h_s(z_hat), model.h_s(other)
        assert torch.equal(hyper[far], moved[far])
        a, b = (walked(model.walk(z), 6, lambda _, shape: torch.zeros(shape))[0] for z in (z_hat, other))
        changes[variant] = [not torch.equal(a[number][far], b[number][far]) for number in (0, 2)]
    assert changes == {"new": [True, True], "guided": [False, True]}


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 2**22, None], ids=["lowest strips", "strips", "whole"])
def test_transforms_in_strips(budget: int | None, test_image: Any) -> None:
    model, x = model_of("new"), test_image(192, 64, 3, 2)
    engine = engine_of(model, budget)
    y, z = engine.analyse(x)
    expected = model.g_a(x)
    assert_close(y, expected.numpy(), "y")
    assert_close(z, model.h_a(expected).numpy(), "z")
    assert_close(engine.synthesise(expected), model.g_s(expected).numpy(), "x_hat")


@torch.no_grad()
@pytest.mark.parametrize("exact", [True, False], ids=["plain", "engine"])
@pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(variant: Variant, guarded: bool, exact: bool, test_image: Any) -> None:
    model, x = model_of(variant), test_image(128, 64, 4, 2)
    coded = model.compress(x, exact=exact, guard=1e-4 if guarded else None)
    x_hat = model.decompress(coded["strings"], coded["shape"], exact=exact, guard=coded.get("guard"))["x_hat"]
    estimate = model(x)
    assert (x_hat - estimate["x_hat"]).abs().max() < 1e-4
    bits = -sum(likelihoods.log2().sum().item() for likelihoods in estimate["likelihoods"].values())
    size = 8 * sum(len(string) for strings in coded["strings"] for string in strings)
    assert size == pytest.approx(bits, rel=0.05, abs=500)


def test_our_reading_s_programs_are_recorded_and_replayed(test_image: Any) -> None:
    model = model_of("guided")
    codec, plain = Codec(model, RecordedPrograms(OperatorRecorder())), Codec(model, None)
    for seed in range(3):
        x = test_image(64, 128, seed)
        coded, x_hat = codec.both(x)
        expected, picture = plain.both(x)
        assert coded == expected
        assert torch.equal(x_hat, picture)


def test_a_file_of_one_form_is_refused_by_the_other(test_image: Any) -> None:
    from mlic_fast.bitstream import container
    from mlic_fast.codec import decode, encode

    picture = Image.fromarray((test_image(40, 50, 5)[0].permute(1, 2, 0) * 255).byte().numpy())
    for variant in VARIANTS:
        data = encode(picture, model_of(variant))
        file = container.read(data)
        assert (file.architecture, file.variant) == ("mlicv2", variant)
        assert decode(data, model_of(variant)).size == (50, 40)
        with pytest.raises(WrongWeightsError):
            decode(data, model_of("guided" if variant == "new" else "new"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_say_what_they_are(variant: Variant) -> None:
    model = model_of(variant)
    found = checkpoint_from_state_dict(model.state_dict())
    assert found.config == model.config
    again = MLICv2.from_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match=r"weights of an MLICv2 model, not of an MLIC\+\+ model"):
        MLICPlusPlus.from_state_dict(model.state_dict())


def test_compressais_names_are_understood() -> None:
    model = model_of("new")
    theirs = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("gaussian_conditional."):
            theirs |= {f"latent_codec.y.latent_codec.y{i}.y.{name}": tensor for i in range(3)}
        else:
            prefix = "latent_codec.z." if name.startswith("entropy_bottleneck.") else ""
            theirs[prefix + peer_name(name)] = tensor
    assert sum("selective_predictor" in name for name in theirs) == 3 * 10
    assert sum(".spatial_context_anchor.hgcp." in name for name in theirs) == 3 * 4 + 4 + 8
    again = MLICv2.from_state_dict(theirs)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    fresh = MLICv2(model.config)
    fresh.load_state_dict(theirs)
    assert torch.equal(fresh.selective_predictor[1].scale_slope, model.selective_predictor[1].scale_slope)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "old"}, "MLICv2 has no variant 'old', only 'new' and 'guided'"),
        ({"variant": "guided", "architecture": "mlicpp"}, r"MLIC\+\+ has no variant 'guided'"),
        ({"variant": "guided", "M": 102, "slice_num": 3}, "must be a multiple of 4"),
        ({"M": 48, "slice_num": 3}, "heads"),
    ],
)
def test_shapes_that_there_are_not(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**(SMALL | {"architecture": "mlicv2"} | settings))


@pytest.mark.parametrize("missing", ["global_hyper_context.0.proj.bias", "selective_predictor.2.step_bias"])
def test_missing_modules_are_named(missing: str) -> None:
    weights = dict(model_of("new").state_dict())
    del weights[missing]
    with pytest.raises(CheckpointError, match=missing.replace(".", r"\.")):
        checkpoint_from_state_dict(weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_reaches_every_weight_that_is_used(variant: Variant, test_image: Any) -> None:
    torch.manual_seed(6)
    model = MLICv2(ModelConfig(N=8, M=64, slice_num=2, architecture="mlicv2", variant=variant)).train()
    out = model(test_image(64, 128, 6))
    rate = -sum(likelihoods.log().sum() for likelihoods in out["likelihoods"].values())
    (rate + out["x_hat"].square().sum()).backward()
    for name, parameter in model.named_parameters():
        unused = "selective_predictor" in name or ".slice_values." in name
        assert (parameter.grad is None) == (unused or not parameter.requires_grad), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_what_training_puts_in_place_changes_nothing(test_image: Any) -> None:
    """Depth-wise convolutions, which the transforms of MLIC++ have not, are left as they are."""
    torch.manual_seed(9)
    model = MLICv2(ModelConfig(N=32, M=64, slice_num=2, architecture="mlicv2")).train()
    x = test_image(64, 64, 7)
    random = torch.Generator().manual_seed(4)
    noise = torch.rand(1, 64, 4, 4, generator=random) - 0.5, torch.rand(1, 32, 1, 1, generator=random) - 0.5

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        rate_distortion(model(x, noise), x, 0.013, "mse").total.backward()  # type: ignore[no-untyped-call]
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    with use_backend("torch"):
        plain = gradients()
    install(model)
    ours = gradients()
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        assert (ours[name] - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name
    # an optimiser of matrices has no use for weights [channels, 1, k, k]
    assert all(weight.shape[1] > 1 for weight in matrix_weights(model))
    assert len(matrix_weights(model)) == 7 * 2 * 4 + 6 * 3 + 2 + 5  # pairs, resampling blocks, last layers, h_a
