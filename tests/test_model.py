# SPDX-License-Identifier: Apache-2.0
"""The model as its users meet it: forward, compress, decompress, update, loading, training."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import compressai
import pytest
import torch
from torch import Tensor

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.errors import BitstreamError, CodingError, ImageError, LimitError, NonFiniteError

Image = Callable[..., Tensor]

SIZES = [
    pytest.param(64, 64, 1, id="64x64"),
    pytest.param(64, 256, 1, id="64x256"),
    pytest.param(192, 128, 3, id="192x128-batch-3"),
]


@pytest.mark.parametrize("variant", ["new", "old"])
@pytest.mark.parametrize(("height", "width", "batch"), SIZES)
def test_decompress_gives_what_forward_gives(
    small_models: dict[str, Any],
    test_image: Image,
    variant: str,
    height: int,
    width: int,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLIC_FAST_ENGINE", "off")
    model, x = small_models[variant], test_image(height, width, 5, batch)
    coded = model.compress(x, exact=False)  # on the backend that forward takes
    decoded = model.decompress(coded["strings"], coded["shape"], exact=False)
    with torch.no_grad():
        estimated = model(x)
    assert decoded["x_hat"].shape == x.shape
    assert torch.equal(decoded["x_hat"], estimated["x_hat"])
    assert estimated["likelihoods"]["y_likelihoods"].shape == (batch, 96, height // 16, width // 16)
    assert estimated["likelihoods"]["z_likelihoods"].shape == (batch, 64, height // 64, width // 64)
    assert len(coded["strings"][1]) == batch
    assert coded["cost_time"] > 0
    assert decoded["cost_time"] > 0
    bits = sum(-torch.log2(p).sum().item() for p in estimated["likelihoods"].values())
    written = 8 * sum(len(string) for part in coded["strings"] for string in part)
    assert abs(written - bits) < 0.02 * bits + 8 * 16 * (batch + 1)


def test_an_item_of_a_batch_is_coded_as_alone(small_model: Any, test_image: Image) -> None:
    x = test_image(64, 128, 6, 2)
    both = small_model.compress(x)
    for item in range(2):
        alone = small_model.compress(x[item : item + 1])
        assert alone["strings"][1] == [both["strings"][1][item]]


def test_streams_are_those_of_compressai_on_the_same_symbols(
    small_model: Any, test_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlic_fast.entropy import range_coder

    pushed: list[tuple[Any, Any]] = []
    push = range_coder.Encoder.push

    def spy(self: Any, symbols: Any, indexes: Any) -> None:
        pushed.append((symbols.flatten().tolist(), indexes.flatten().tolist()))
        push(self, symbols, indexes)

    monkeypatch.setattr(range_coder.Encoder, "push", spy)
    x = test_image(128, 128, 7, 2)
    coded = small_model.compress(x, exact=True)
    gaussian, bottleneck = small_model.gaussian_conditional, small_model.entropy_bottleneck
    encoder = compressai.ans.BufferedRansEncoder()
    symbols = [value for part, _ in pushed for value in part]
    indexes = [value for _, part in pushed for value in part]
    tables = (gaussian._quantized_cdf.tolist(), gaussian._cdf_length.tolist(), gaussian._offset.tolist())
    encoder.encode_with_indexes(symbols, indexes, *tables)
    assert coded["strings"][0] == [encoder.flush()]
    with torch.no_grad():
        z = small_model.h_a(small_model.g_a(x))
    assert coded["strings"][1] == bottleneck.compress(z)


def test_damaged_strings_raise(small_model: Any, test_image: Image) -> None:
    coded = small_model.compress(test_image(64, 64, 8))
    (y,), (z,) = coded["strings"]
    shape = coded["shape"]
    for strings in (
        [[y[:-4]], [z]],
        [[y + b"\0\0\0\0"], [z]],
        [[y[:-1]], [z]],
        [[b""], [z]],
        [[y], [z[:-4]]],
        [[y], [z + z]],
        [[y], [b""]],
        [[z], [y]],
    ):
        with pytest.raises(BitstreamError):
            small_model.decompress(strings, shape)
    with pytest.raises(BitstreamError, match="shape"):
        small_model.decompress([[y], [z]], (0, 1))
    with pytest.raises(LimitError):
        small_model.decompress([[y], [z]], (1 << 20, 1 << 20))
    with pytest.raises(BitstreamError, match="strings"):
        small_model.decompress([[y, y], [z]], shape)
    with pytest.raises(BitstreamError):
        small_model.decompress([[y], [z]], (2, 1))
    flipped = 0
    for position in range(0, len(y), 37):
        damaged = y[:position] + bytes([y[position] ^ 4]) + y[position + 1 :]
        try:
            small_model.decompress([[damaged], [z]], shape)
        except BitstreamError:
            flipped += 1
    assert flipped == len(range(0, len(y), 37))


@pytest.mark.parametrize("shape", [(1, 3, 64, 65), (1, 3, 60, 64), (3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64)])
def test_wrong_input_is_refused(small_model: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="multiples of 64"):
        small_model.compress(torch.zeros(shape))


def test_non_finite_values_are_refused(small_model: Any, test_image: Image) -> None:
    x = test_image(64, 64, 9)
    x[0, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError):
        small_model.compress(x)
    broken = copy.deepcopy(small_model)
    with torch.no_grad():
        broken.entropy_parameters_anchor[1].fusion[6].bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="scales"):
        broken.compress(test_image(64, 64, 9))


def test_tables_are_asked_for(test_image: Image) -> None:
    model = MLICPlusPlus(ModelConfig(N=8, M=32, slice_num=1)).eval()
    with pytest.raises(CodingError, match="update"):
        model.compress(test_image(64, 64))
    assert model.update() is True
    assert model.update() is False
    coded = model.compress(test_image(64, 64))
    assert torch.isfinite(model.decompress(coded["strings"], coded["shape"])["x_hat"]).all()


def test_tables_are_handed_over_again_when_they_change(small_model: Any, test_image: Image) -> None:
    model, x = copy.deepcopy(small_model), test_image(64, 64, 10)
    before = model.compress(x)["strings"]
    with torch.no_grad():
        model.entropy_bottleneck.quantiles[:, :, 1] += 0.4
    model.update(force=True)
    after = model.compress(x)
    assert after["strings"] != before
    model.decompress(after["strings"], after["shape"])


def test_gradients_reach_every_parameter_in_training(test_image: Image) -> None:
    torch.manual_seed(0)
    model = MLICPlusPlus(ModelConfig(N=32, M=64, slice_num=2)).train()
    x = test_image(64, 64, 11)
    result = model(x)
    rate = sum(-torch.log2(p).sum() for p in result["likelihoods"].values()) / x[0, 0].numel()
    ((result["x_hat"] - x).square().mean() * 100 + rate).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None and not name.endswith("quantiles")]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.aux_loss().backward()
    assert model.entropy_bottleneck.quantiles.grad.abs().sum() > 0


def test_training_noise_changes_likelihoods_alone(small_model: Any, test_image: Image) -> None:
    model, x = copy.deepcopy(small_model).train(), test_image(64, 64, 12)
    with torch.no_grad():
        first, second = model(x), model(x)
    assert torch.equal(first["x_hat"], second["x_hat"])
    assert not torch.equal(first["likelihoods"]["y_likelihoods"], second["likelihoods"]["y_likelihoods"])


def test_load_state_dict_returns_keys_and_keeps_saved_tables(small_model: Any, test_image: Image) -> None:
    saved = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    model = MLICPlusPlus(SimpleNamespace(N=64, M=96, slice_num=3, context_window=5)).eval()
    result = model.load_state_dict(saved)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    x = test_image(64, 64, 13)
    assert model.compress(x)["strings"] == small_model.compress(x)["strings"]

    del saved["g_a.analysis_transform.0.conv1.bias"]
    saved["surplus"] = torch.zeros(1)
    result = model.load_state_dict(saved, strict=False)
    assert result.missing_keys == ["g_a.analysis_transform.0.conv1.bias"]
    assert result.unexpected_keys == ["surplus"]
    with pytest.raises(RuntimeError, match="surplus"):
        model.load_state_dict(saved)


def test_older_names_of_the_entropy_bottleneck_load(small_model: Any) -> None:
    older = {}
    for name, tensor in small_model.state_dict().items():
        for new, old in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
            name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}")
        older[name] = tensor
    model = MLICPlusPlus(ModelConfig(N=64, M=96, slice_num=3))
    result = model.load_state_dict(older)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(model.entropy_bottleneck.matrices[2], small_model.entropy_bottleneck.matrices[2])
    assert "entropy_bottleneck._matrix0" in older  # what was handed in is left alone


@pytest.mark.parametrize("variant", ["new", "old"])
def test_from_state_dict_finds_configuration_and_variant(
    small_models: dict[str, Any], test_image: Image, variant: str
) -> None:
    model = MLICPlusPlus.from_state_dict(small_models[variant].state_dict())
    assert model.config == small_models[variant].config
    assert not model.training
    x = test_image(64, 64, 14)
    assert model.compress(x)["strings"] == small_models[variant].compress(x)["strings"]


def test_copies_and_pickles(small_model: Any, test_image: Image) -> None:
    x = test_image(64, 64, 15)
    strings = small_model.compress(x)["strings"]
    assert copy.deepcopy(small_model).compress(x)["strings"] == strings
    assert pickle.loads(pickle.dumps(small_model)).compress(x)["strings"] == strings


def test_update_resolutions_is_accepted(small_model: Any) -> None:
    assert small_model.update_resolutions(16, 16) is None


def test_the_same_seed_gives_the_same_initial_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(MLICPlusPlus(ModelConfig(N=8, M=32, slice_num=1)))
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_channels_last_pictures_decode_to_what_was_encoded(small_model: Any, test_image: Image) -> None:
    x = test_image(128, 128, 16, 2).to(memory_format=torch.channels_last)
    latents: list[Tensor] = []
    hook = small_model.h_s.register_forward_hook(lambda _, __, output: latents.append(output))
    coded = small_model.compress(x, exact=True)
    small_model.decompress(coded["strings"], coded["shape"], exact=True)
    hook.remove()
    assert torch.equal(*latents)


def test_training_takes_channels_last_layout(test_image: Image) -> None:
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = MLICPlusPlus(ModelConfig(N=16, M=32, slice_num=1)).train().to(memory_format=layout)
        model(test_image(64, 64, 17).to(memory_format=layout))["x_hat"].square().sum().backward()
        gradients.append(model.g_a.analysis_transform[0].skip.weight.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-3 * gradients[0].abs().max()
