# SPDX-License-Identifier: Apache-2.0
"""Layers that take a map strip by strip give what they give for the whole map."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlic_fast.engine import winograd_layers
from mlic_fast.engine.layers import LAYOUT, Convolution, compile_convolution, shuffle
from mlic_fast.engine.strips import (
    Block,
    ConvolutionRows,
    Normalised,
    Residual,
    RowLayer,
    Sequence,
    in_strips,
    strip_height,
    whole,
)
from mlic_fast.engine.transforms import steps_of
from mlic_fast.nn.token_mixing import token_mixing_pair


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    weight = 0.2 * torch.randn(out_channels, in_channels, kernel, kernel, generator=generator)
    return compile_convolution(weight, torch.randn(out_channels, generator=generator), stride=stride)


def pushed(layer: RowLayer, x: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """x pushed in strips that end at `cuts`."""
    rows, start = [], 0
    for end in [*cuts, x.shape[2]]:
        strip = x[:, :, start:end].contiguous(memory_format=LAYOUT)
        rows.append(layer.push(strip, end == x.shape[2]))
        start = end
    return torch.cat([piece for piece in rows if piece is not None], dim=2)


CUTS = [
    pytest.param([], id="whole"),
    pytest.param([1], id="first-row"),
    pytest.param([15], id="last-row"),
    pytest.param(list(range(1, 16)), id="every-row"),
    pytest.param([3, 4, 9], id="uneven"),
]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1)])
def test_convolutions(kernel: int, stride: int, cuts: list[int]) -> None:
    layer = convolution(5, 16, kernel, stride)
    x = torch.randn(1, 5, 16, 6, generator=torch.Generator().manual_seed(1))
    out = pushed(ConvolutionRows(layer, gelu=True), x, cuts)
    expected = layer(x.contiguous(memory_format=LAYOUT), gelu=True)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() < 1e-5


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("factor", [1, 2])
def test_kernels_that_take_rows_in_pieces(monkeypatch: pytest.MonkeyPatch, factor: int, cuts: list[int]) -> None:
    monkeypatch.setattr(winograd_layers, "MIN_POSITIONS", 1)
    generator = torch.Generator().manual_seed(2)
    weight = 0.1 * torch.randn(32 * factor**2, 32, 3, 3, generator=generator)
    layer = compile_convolution(weight, None, exact=False)
    x = torch.randn(1, 32, 16, 6, generator=generator)
    out = pushed(ConvolutionRows(layer, gelu=True, factor=factor), x, cuts)
    plain = torch.nn.functional.gelu(torch.nn.functional.conv2d(x, weight, padding=1))
    expected = shuffle(plain.contiguous(memory_format=LAYOUT), factor)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() < 1e-5


def block(kind: str) -> RowLayer:
    beta, gamma = torch.ones(8), 0.1 * torch.eye(8)
    if kind == "residual":
        return Residual(Sequence(*(ConvolutionRows(convolution(8, 8, 3, 1, seed)) for seed in (2, 3))))
    if kind == "widening":
        layers = Sequence(*(ConvolutionRows(convolution(8, 8, 3, 1, seed)) for seed in (2, 3)))
        return Residual(layers, ConvolutionRows(convolution(8, 8, 1, 1, 4)))
    if kind == "down":
        layers = Sequence(ConvolutionRows(convolution(8, 8, 3, 2, 5)), ConvolutionRows(convolution(8, 8, 3, 1, 6)))
        return Normalised(layers, ConvolutionRows(convolution(8, 8, 1, 2, 7)), beta, gamma, False)
    layers = Sequence(
        ConvolutionRows(convolution(8, 32, 3, 1, 8), factor=2), ConvolutionRows(convolution(8, 8, 3, 1, 9))
    )
    skip = ConvolutionRows(convolution(8, 32, 3, 1, 10), factor=2)
    return Normalised(layers, skip, beta, gamma, True)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("kind", ["residual", "widening", "down", "up"])
def test_blocks_and_their_skip_connections(kind: str, cuts: list[int]) -> None:
    x = torch.randn(1, 8, 16, 4, generator=torch.Generator().manual_seed(11))
    untouched = x.clone()
    expected = whole(Block(lambda: block(kind), 32), x)
    out = pushed(block(kind), x, cuts)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() < 1e-5
    assert torch.equal(x, untouched)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@torch.no_grad()
def test_token_mixing(dtype: torch.dtype, tolerance: float, cuts: list[int]) -> None:
    torch.manual_seed(12)
    module = token_mixing_pair(24)
    first, second = steps_of(module, dtype)
    x = torch.randn(1, 24, 16, 6)
    untouched = x.clone()
    expected = module(x)
    out = pushed(Sequence(first.make(), second.make()), x, cuts)
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() < tolerance
    assert (whole(first, x) - module[0](x)).abs().max() < tolerance
    assert torch.equal(x, untouched)


def test_a_map_lower_than_the_kernel() -> None:
    layer = convolution(4, 4, 5, 1)
    for height in (1, 2, 3):
        x = torch.randn(1, 4, height, 6, generator=torch.Generator().manual_seed(height))
        expected = layer(x.contiguous(memory_format=LAYOUT))
        for cuts in ([], list(range(1, height))):
            assert (pushed(ConvolutionRows(layer), x, cuts) - expected).abs().max() < 1e-5


def test_shuffle_is_pixel_shuffle_of_reordered_channels() -> None:
    x = torch.arange(2 * 12 * 3 * 5, dtype=torch.float32).view(2, 12, 3, 5)
    reordered = x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2).contiguous(memory_format=LAYOUT)
    assert torch.equal(shuffle(reordered, 2), torch.pixel_shuffle(x, 2))
    assert shuffle(x, 1) is x


def test_strips_fit_the_budget() -> None:
    a_row = 4 * 192 * 384  # bytes of one row of 192 values a position
    assert strip_height(256, 384, 192, 1) == 2
    assert strip_height(256, 384, 192, 16 * a_row) == 16
    assert strip_height(256, 384, 192, 2**40) == 256
    assert strip_height(30, 384, 192, 20 * a_row) == 16, "two strips of about the same height"
    assert strip_height(3, 384, 192, 2**40) == 4, "even, though the map ends before"


class Spy(ConvolutionRows):
    """Notes how many rows it is given at a time."""

    def __init__(self, layer: Convolution) -> None:
        super().__init__(layer)
        self.heights: list[int] = []

    def push(self, rows: torch.Tensor, last: bool) -> torch.Tensor | None:
        self.heights.append(rows.shape[2])
        return super().push(rows, last)


@pytest.mark.parametrize("height", [1, 2, 15, 64])
def test_rows_that_layers_owe_at_the_end_make_no_high_strips(height: int) -> None:
    layers = [convolution(8, 8, 3, 1, seed) for seed in range(12)]
    x = torch.randn(1, 8, height, 6, generator=torch.Generator().manual_seed(height))
    expected = x
    for layer in layers:
        expected = layer(expected)
    spies = [Spy(layer) for layer in layers]
    blocks = [(Block(lambda spy=spy: spy, 8), spy) for spy in spies]  # type: ignore[misc]
    out = torch.cat(list(in_strips(blocks, x, True, 4 * 8 * 6 * 4)), dim=2)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() < 1e-5
    assert max(max(spy.heights) for spy in spies) <= 4, "twelve layers of kernel 3 lag twelve rows behind"
    assert all(sum(spy.heights) == height for spy in spies)
