# SPDX-License-Identifier: Apache-2.0
"""What is computed for several slices at once is what is computed for each, and is taken within bounds of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_codec import DELTA, Codec
from recorded_operators import OperatorRecorder

from mlic_fast import MLICPlusPlus, ModelConfig
from mlic_fast.engine import hyper_parts
from mlic_fast.engine.budget import slices_ahead
from mlic_fast.engine.gpu.recordings import RecordedPrograms
from mlic_fast.engine.hyper_parts import FirstLayers, HyperParts
from mlic_fast.engine.layers import LAYOUT, Piece, compile_convolution

Images = Callable[..., torch.Tensor]


def first_layers(widths: list[int], inputs: int, kernel: int) -> tuple[FirstLayers, list[Piece]]:
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pieces = [Piece(random(width, inputs, kernel, kernel), random(width)) for width in widths]
    return FirstLayers(pieces), pieces


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("slices", [1, 2, 3, 5, 9], ids=lambda n: f"by-{n}")
def test_slices_get_their_own(kernel: int, slices: int) -> None:
    layers, pieces = first_layers([24, 20, 17, 16, 8], 6, kernel)  # the old residual prediction's widths differ
    x = torch.randn(2, 6, 4, 10, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=LAYOUT)
    found = HyperParts(layers, x, slices)
    for i, piece in enumerate(pieces):
        out = found.take(i)
        expected = compile_convolution(*piece)(x)
        assert out.is_contiguous(memory_format=LAYOUT)
        assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
        out.fill_(torch.nan)  # the caller's: the next slice must not see it


def test_the_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slices_ahead(10, 100, 8 * 350, True) == 3
    assert slices_ahead(10, 100, 8, True) == 1
    assert slices_ahead(10, 100, 2**40, True) == 10
    assert slices_ahead(10, 100, 2**40, False) == 1
    seen: list[int] = []

    def note(slices: int, of_a_slice: int, memory_budget: int, on_gpu: bool) -> int:
        seen.append(of_a_slice)
        return slices

    monkeypatch.setattr(hyper_parts, "slices_ahead", note)
    narrow, wide = first_layers([8, 16], 6, 1)[0], first_layers([24, 24], 5, 3)[0]
    hyper_parts.hyper_parts([narrow, wide], [torch.zeros(2, 6, 4, 5), torch.zeros(2, 5, 4, 10)], 2**30)
    assert seen == [4 * 2 * (16 * 20 + 24 * 40)]


@pytest.mark.parametrize("variant", ["new", "old"])
@pytest.mark.parametrize("slices", [2, 3], ids=lambda n: f"by-{n}")
def test_calls_on_a_device_in_groups(
    small_models: Any, test_image: Images, monkeypatch: pytest.MonkeyPatch, variant: str, slices: int
) -> None:
    x = test_image(64, 128, 75, 2)
    alone, x_hat = Codec(small_models[variant], None).both(x)
    monkeypatch.setattr(hyper_parts, "slices_ahead", lambda *_: slices)
    plain, recorded = (Codec(small_models[variant], one) for one in (None, RecordedPrograms(OperatorRecorder())))
    coded, own_x = plain.both(x)
    assert abs(len(coded.y) - len(alone.y)) <= 4
    assert (own_x - x_hat).abs().max() <= 1e-4
    for _ in range(2):  # the second time recorded, with the groups' maps alive between parts
        assert recorded.compress(x, DELTA) == coded
        assert torch.equal(recorded.decompress(coded, x.shape), own_x)


def test_memory_does_not_hold_groups_that_were_taken() -> None:
    layers, _ = first_layers([8, 8, 8], 4, 3)
    found = HyperParts(layers, torch.zeros(1, 4, 4, 4).contiguous(memory_format=LAYOUT), 2)
    for i in range(3):
        found.take(i)
    assert found._ready == {}


def test_one_slice_needs_no_copies_of_weights() -> None:
    model = MLICPlusPlus(ModelConfig(N=16, M=64, slice_num=2)).eval()
    from mlic_fast.engine.walk import CompiledSlices

    compiled = CompiledSlices(model, 64)
    weights = model.lrp_anchor[0].lrp_transform[0].weight
    own = compiled.of_hyper[2].convolution(0, 1)
    assert own._weight.joined().data_ptr() == weights.data_ptr()  # type: ignore[attr-defined]
