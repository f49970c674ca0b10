# SPDX-License-Identifier: Apache-2.0
"""MLICv2's own modules compute what CompressAI's computed, each from inputs that the golden file itself holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from family_samples import fill
from golden_samples import golden_weights
from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, keep, unpack
from mlic_fast.nn.blocks import DownsamplingBlock, UpsamplingBlock, conv, subpixel_conv
from mlic_fast.nn.global_context import GlobalInterContext, GlobalIntraContext
from mlic_fast.nn.hyper_context import HyperContext, heads_of
from mlic_fast.nn.refined_context import RefinedContext
from mlic_fast.nn.reweighting import Reweighting
from mlic_fast.nn.rotation import AxialRotation, Rotation
from mlic_fast.nn.selective import SelectivePredictor
from mlic_fast.nn.token_mixing import TokenMixing, token_mixing_pair

# The model of the golden file.
N, M, C = 64, 96, 32
LEAF = "latent_codec.y.latent_codec.y{}"
INTER = "latent_codec.y.channel_context.y{}.global_inter_part"

# Of a tensor's largest value. Two right float32 implementations differ by some 1e-6.
TOLERANCE = 1e-5


def filled(module: nn.Module, prefix: str) -> Any:
    """The module with the golden weights of what CompressAI's model has under this name."""
    fill({f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}, "gains_family_mlicv2")
    return module.eval()


@pytest.fixture(scope="module")
def data(golden: Callable[[str], dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in golden("family_mlicv2_64x128_b1").items()}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{error:.2e}"


def slices(data: dict[str, Tensor], count: int) -> Tensor:
    return data["y_hat"][:, : count * C]


def anchors(data: dict[str, Tensor], i: int) -> Tensor:
    return keep(data["y_hat"][:, i * C : (i + 1) * C], Parity.ANCHOR)


@torch.no_grad()
def test_analysis_of_token_mixing(data: dict[str, Tensor]) -> None:
    pairs = [layer for _ in range(3) for layer in (None, token_mixing_pair(N))]
    layers = [DownsamplingBlock(3 if k == 0 else N, N) if pair is None else pair for k, pair in enumerate(pairs)]
    module = filled(nn.Sequential(*layers, conv(N, M, stride=2)), "g_a.analysis_transform")
    assert_close(module(golden_weights.test_image(64, 128, 13)), data["g_a"])


@torch.no_grad()
def test_synthesis_of_token_mixing(data: dict[str, Tensor]) -> None:
    layers = [token_mixing_pair(M), UpsamplingBlock(M, N)]
    layers += [layer for _ in range(2) for layer in (token_mixing_pair(N), UpsamplingBlock(N, N))]
    layers += [token_mixing_pair(N), subpixel_conv(N, 3, 2)]
    module = filled(nn.Sequential(*layers), "g_s.synthesis_transform")
    assert_close(module(data["y_hat"]), data["x_hat"])


@torch.no_grad()
@pytest.mark.parametrize("i", [1, 2])
def test_context_between_slices(data: dict[str, Tensor], i: int) -> None:
    name = INTER.format(i)
    module = filled(RefinedContext(GlobalInterContext(i * C, C, "linear attention"), C), name)
    decoded = slices(data, i)
    assert_close(module.context(decoded), data[f"{name}.context"])
    assert_close(module.rope(data[f"{name}.context"]), data[f"{name}.rope"])
    assert_close(module.reweighting(data[f"{name}.rope"]), data[name])
    assert_close(module(decoded), data[name])


@torch.no_grad()
@pytest.mark.parametrize("i", [1, 2])
def test_context_within_a_slice(data: dict[str, Tensor], i: int) -> None:
    name = LEAF.format(i) + ".intra_channel_context_nonanchor"
    module = filled(RefinedContext(GlobalIntraContext(C, "linear attention"), C), name)
    previous, own = data["y_hat"][:, (i - 1) * C : i * C], anchors(data, i)
    assert_close(module.context(previous, own), data[f"{name}.context"])
    assert_close(module(previous, own), data[name])


@torch.no_grad()
def test_context_of_the_hyper_parameters(data: dict[str, Tensor]) -> None:
    name = LEAF.format(0) + ".spatial_context_anchor"
    module = filled(HyperContext(M, C), f"{name}.hgcp")
    assert_close(module(data["latent_codec.h_s"]), data[name])


@torch.no_grad()
@pytest.mark.parametrize("parity", list(Parity))
@pytest.mark.parametrize("i", [0, 1, 2])
def test_selective_predictor(data: dict[str, Tensor], i: int, parity: Parity) -> None:
    leaf = LEAF.format(i)
    hyper = data["latent_codec.h_s"]
    side = [hyper]
    if i:
        parts = (INTER.format(i), f"latent_codec.y.channel_context.y{i}.channel_part")
        side += [slices(data, i), *(data[part] for part in parts)]
    width = sum(part.shape[1] for part in side)
    module = filled(SelectivePredictor(width, C), f"{leaf}.selective_predictor")
    is_anchor = parity is Parity.ANCHOR
    parameters = data[f"{leaf}.entropy_parameters_{'anchor' if is_anchor else 'nonanchor'}"]
    scales, means = parameters.chunk(2, dim=1)
    worth = module(torch.cat(side, dim=1), scales, means, parity)
    assert_close(worth, data[f"{leaf}.selective_predictor.{'anchor' if is_anchor else 'non_anchor'}"])
    coded = unpack(data[f"coded.{2 * i + (not is_anchor)}"].float(), parity) > 0
    assert torch.equal(keep((worth >= 0.5).float(), parity) > 0, coded)


def test_rotation_turns_by_the_angles_of_the_formula() -> None:
    module = Rotation(12)
    with torch.no_grad():
        module.theta_x.fill_(-30.0)  # counts as 30
        module.theta_y.fill_(0.5)  # counts as 1
    x = torch.randn(2, 12, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = module.double()(x)
    for j in range(6):
        for row in range(3):
            for column in range(5):
                angle = column * 30.0 ** (-2 * j / 12) + row
                turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                expected = x[:, 2 * j : 2 * j + 2, row, column] @ turn.T
                # the exponents are kept as float32
                assert (out[:, 2 * j : 2 * j + 2, row, column] - expected).abs().max() < 1e-5
    out.sum().backward()
    assert module.theta_x.grad is not None
    assert module.theta_x.grad.abs() > 0


@torch.no_grad()
def test_axial_rotation_makes_products_depend_on_distances_alone() -> None:
    module = AxialRotation(16).double()
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 8, 2, generator=generator, dtype=torch.float64)  # 8 elements, 2 heads
    everywhere = torch.cat([query.flatten(), key.flatten()])[None, :, None, None].expand(1, 32, 9, 11)
    q, k = module(everywhere).view(2, 8, 2, 9, 11)

    def scores(head: int, row: int, column: int) -> Tensor:
        """Of a query at this position, with the keys of the window around it."""
        window = k[:, head, row - 2 : row + 3, column - 2 : column + 3]
        return torch.einsum("e,eij->ij", q[:, head, row, column], window)

    for head in range(2):
        assert (scores(head, 2, 2) - scores(head, 6, 8)).abs().max() < 1e-12
        flat = scores(head, 4, 4).flatten()
        assert len(torch.unique(flat.round(decimals=9))) == 25  # and every distance has its own
        # nothing of the other head is mixed in
        assert ((q[:, head] ** 2).sum(dim=0) - (query[:, head] ** 2).sum()).abs().max() < 1e-12
    assert torch.equal(module(everywhere)[:, :, 0, 0], everywhere[:, :, 0, 0])


@torch.no_grad()
def test_reweighting_is_one_of_each_item() -> None:
    torch.manual_seed(3)
    module = Reweighting(24).eval()
    x = torch.randn(3, 24, 4, 6)
    apart = torch.cat([module(item[None]) for item in x])
    assert (module(x) - apart).abs().max() < 1e-5


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(4)
    x = torch.randn(1, 8, 4, 6)
    for module in (TokenMixing(8), Reweighting(8), Rotation(8)):
        module(x).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_heads_divide_the_width() -> None:
    assert [heads_of(width) for width in (4, 32, 64, 80, 98, 100, 128)] == [1, 1, 2, 2, 2, 2, 4]
