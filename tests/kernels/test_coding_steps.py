# SPDX-License-Identifier: Apache-2.0
"""Coding steps: every backend gives CompressAI's indexes, symbols and values, and reports what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compressai import ans
from compressai.entropy_models import GaussianConditional
from mlic_fast.kernels import coding_steps as kernels
from mlic_fast.kernels.coding_steps import BAD_SCALE, BAD_VALUE, LARGE_SYMBOL, WIDE_LIMIT
from torch import Tensor

from mlic_fast.checkerboard import Parity, pack
from mlic_fast.compute import backend
from mlic_fast.compute.backend import use_backend
from mlic_fast.compute.triton_language import HAS_TRITON
from mlic_fast.entropy.coders import Reader, Writer
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.errors import CodingError, NonFiniteError
from mlic_fast.ops import coding_steps as ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# backends, and where their tensors lie
PLACES = {"torch": "cpu", "triton": DEVICE, "cpu": "cpu"}
MISSING = {"torch": False, "triton": not HAS_TRITON, "cpu": backend.cpu_kernels is None}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(MISSING[name], reason=f"backend {name} is not available here"))
    for name in PLACES
]

# batch, channels, height, width / 2: below, on and behind a program's block of 512 positions
SHAPES = {
    "one-position": (1, 1, 1, 1),
    "31-positions": (1, 1, 31, 1),
    "exactly-one-block": (1, 8, 8, 8),
    "one-behind-a-block": (1, 27, 19, 1),
    "batch3-odd-height": (3, 20, 7, 5),
}


@pytest.fixture(autouse=True)
def _holes_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated unset starts as NaN or 77, so that an element that nobody writes fails a comparison."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        original = getattr(owner, name)

        def filled(*args: Any, original: Any = original, **kwargs: Any) -> Tensor:
            x: Tensor = original(*args, **kwargs)
            return x.fill_(float("nan") if x.is_floating_point() else 77)

        monkeypatch.setattr(owner, name, filled)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def gaussian() -> GaussianConditional:
    """With the published scale table and coding tables."""
    module = GaussianConditional(None)
    module.update_scale_table(torch.exp(torch.linspace(math.log(0.11), math.log(256), 64)))
    return module


class Buffers:
    """What a step writes to, with room around it that must stay as it is."""

    def __init__(self, n: int, device: str = "cpu", dtype: torch.dtype = torch.int16) -> None:
        self._all = [
            torch.full((count + 8,), 77, dtype=kind, device=device)
            for count, kind in ((n, dtype), (n, torch.uint8), (ops.flag_count(n), torch.uint8))
        ]
        self.symbols, self.indexes, self.flags = self.written = [x[4:-4] for x in self._all]

    def intact(self) -> bool:
        return all((x[:4] == 77).all() and (x[-4:] == 77).all() for x in self._all)

    def met(self) -> int:
        return int(np.bitwise_or.reduce(self.flags.cpu().numpy()))


def maps(shape: tuple[int, ...], device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """y, scales and means, with scales below the bound, within the table and above it."""
    y, scales, means = torch.randn(3, *shape).unbind()
    return (20 * y).to(device), (3 * scales - 1).exp().to(device), (3 * means).to(device)


def tables(gaussian: GaussianConditional, device: str) -> tuple[Tensor, Tensor]:
    return gaussian.scale_table.to(device), gaussian.scale_bound.to(device)


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("wide", [False, True], ids=["int16", "int32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_the_official_sequence(shape: str, wide: bool, chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    y, scales, means = maps(SHAPES[shape], device)
    expected_indexes = gaussian.build_indexes(scales.cpu())
    expected_symbols = gaussian.quantize(y.cpu(), "symbols", means.cpu())
    expected_values = gaussian.dequantize(expected_symbols, means.cpu())
    kind = torch.int32 if wide else torch.int16
    written, found, read = (Buffers(y.numel(), device, kind) for _ in range(3))
    with use_backend(chosen):
        values = ops.encode_step(y, scales, means, *tables(gaussian, device), *written.written)
        ops.decode_indexes(scales, None, *tables(gaussian, device), found.indexes, found.flags)
        again = ops.decode_values(written.symbols, means, read.flags)
    assert torch.equal(written.symbols.cpu().int(), expected_symbols.flatten())
    assert torch.equal(written.indexes.cpu().int(), expected_indexes.flatten())
    assert torch.equal(values.cpu(), expected_values)
    assert torch.equal(found.indexes, written.indexes)
    assert torch.equal(again, values)
    for buffers in (written, found, read):
        assert buffers.intact()
        assert buffers.met() == 0
        assert not ops.check_flags(buffers.flags)


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_come_before_the_table(shape: str, chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    _, scales, _ = maps(SHAPES[shape], device)
    factors, out = torch.linspace(0.5, 1.5, scales.numel(), device=device), Buffers(scales.numel(), device)
    with use_backend(chosen):
        ops.decode_indexes(scales, factors, *tables(gaussian, device), out.indexes, out.flags)
    expected = gaussian.build_indexes((scales.flatten() * factors).cpu())
    assert torch.equal(out.indexes.cpu().int(), expected)
    assert out.met() == 0
    assert out.intact()


def edge_scales(table: Tensor) -> Tensor:
    """All boundaries, the values next to them, and what lies outside, [1, 1, 1, n]."""
    t = table.numpy()
    up, down = np.nextafter(t, np.float32(np.inf)), np.nextafter(t, np.float32(0))
    outside = np.array([-1e30, -1, -0.0, 0, 1e-45, 1e-20, 0.05, 0.11, 300, 3e38], np.float32)
    bound = np.nextafter(np.float32(0.11), np.array([0, 1], np.float32))
    return torch.from_numpy(np.concatenate([t, up, down, outside, bound]))[None, None, None]


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("bound", [0.11, 0.5], ids=["published-bound", "bound-inside-the-table"])
def test_indexes_at_the_boundaries(chosen: str, bound: float, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    other = GaussianConditional(gaussian.scale_table.tolist(), scale_bound=bound)
    assert torch.equal(other.scale_table, gaussian.scale_table)
    scales = edge_scales(other.scale_table).to(device)
    zeros, found, also = torch.zeros_like(scales), *(Buffers(scales.numel(), device) for _ in range(2))
    with use_backend(chosen):
        ops.decode_indexes(scales, None, *tables(other, device), found.indexes, found.flags)
        ops.encode_step(zeros, scales, zeros, *tables(other, device), *also.written)
    expected = other.build_indexes(scales.cpu()).flatten()
    assert torch.equal(found.indexes.cpu().int(), expected)
    assert torch.equal(also.indexes.cpu().int(), expected)
    assert expected.max() == 63
    assert expected.min() == int((other.scale_table < bound).sum())


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 37, 256])
def test_tables_of_any_length(chosen: str, rows: int) -> None:
    device = PLACES[chosen]
    table, bound = torch.linspace(0.11, 40, rows).to(device), torch.tensor([0.11]).to(device)
    scales, out = (torch.rand(1, 3, 6, 8) * 45).to(device), Buffers(144, device)
    with use_backend(chosen):
        ops.decode_indexes(scales, None, table, bound, out.indexes, out.flags)
    above = scales.flatten()[:, None] > table[:-1]
    assert torch.equal(out.indexes.int(), above.sum(-1).int())


@pytest.mark.parametrize("chosen", BACKENDS)
def test_ties_round_to_even(chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    values = torch.tensor(
        [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, -0.49999997, 8388607.5, -8388607.5, 4194304.5, 9e8]
    )
    y, out = values[None, None, None].to(device), Buffers(len(values), device, torch.int32)
    zeros = torch.zeros_like(y)
    with use_backend(chosen):
        ops.encode_step(y, zeros + 1, zeros, *tables(gaussian, device), *out.written)
    assert not ops.check_flags(out.flags)
    assert out.symbols.tolist() == torch.round(values).int().tolist()


@pytest.mark.parametrize("chosen", BACKENDS)
def test_large_symbols_saturate_and_are_reported(chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    for value in (32767.0, -32768.0, 32768.0, -32769.0, 1e9, -1e9, 1e12, -1e12, 2.0**31):
        y, scales, means = maps((1, 20, 8, 6), device)
        y[0, 17, 3, 4], means[0, 17, 3, 4] = value, 0  # in the second block
        for dtype, lowest, highest in (
            (torch.int16, -(2**15), 2**15 - 1),
            (torch.int32, -WIDE_LIMIT, WIDE_LIMIT),
        ):
            out, large = Buffers(y.numel(), device, dtype), not lowest <= value <= highest
            with use_backend(chosen):
                values = ops.encode_step(y, scales, means, *tables(gaussian, device), *out.written)
            assert out.met() == (LARGE_SYMBOL if large else 0)
            assert ops.check_flags(out.flags) == large
            symbol = int(min(max(value, lowest), highest))
            assert out.symbols.view(y.shape)[0, 17, 3, 4] == symbol
            assert values[0, 17, 3, 4] == symbol


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter, which meets the NaN
@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("place", [0, 700])
def test_what_is_not_finite_is_reported(chosen: str, bad: float, place: int, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    y, scales, means = maps((1, 1, 701, 1), device)
    out = Buffers(701, device)
    out.symbols.zero_()

    def spoilt(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[place] = bad
        return x

    steps: list[tuple[Callable[[], Any], int, str]] = [
        (lambda: ops.encode_step(spoilt(y), scales, means, *boundaries, *out.written), BAD_VALUE, "latents and means"),
        (lambda: ops.encode_step(y, spoilt(scales), means, *boundaries, *out.written), BAD_SCALE, "scales"),
        (lambda: ops.encode_step(y, scales, spoilt(means), *boundaries, *out.written), BAD_VALUE, "latents and means"),
        (lambda: ops.decode_indexes(spoilt(scales), None, *boundaries, *out.written[1:]), BAD_SCALE, "scales"),
        (lambda: ops.decode_values(out.symbols, spoilt(means), out.flags), BAD_VALUE, "latents and means"),
    ]
    with use_backend(chosen):
        for step, flag, what in steps:
            step()
            assert out.met() & (BAD_SCALE | BAD_VALUE) == flag
            with pytest.raises(NonFiniteError, match=what):
                ops.check_flags(out.flags)


@pytest.mark.skipif(MISSING["triton"], reason="Triton has packages for Linux only")
def test_the_kernels_are_their_twins_to_the_bit(gaussian: GaussianConditional) -> None:
    boundaries = tables(gaussian, DEVICE)
    y, scales, means = maps((1, 11, 20, 5), DEVICE)
    own, twin = Buffers(1100, DEVICE), Buffers(1100, DEVICE)
    values = kernels.encode_step(y, scales, means, *boundaries, *own.written)
    assert torch.equal(values, kernels.encode_step_ref(y, scales, means, *boundaries, *twin.written))
    assert torch.equal(own.symbols, twin.symbols)
    assert torch.equal(own.indexes, twin.indexes)
    assert own.met() == twin.met() == 0


def walked(shape: tuple[int, ...]) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """y [B, C, h, w] of one slice, and of both its passes y, scales and means, packed."""
    y, scales, means = maps(shape)
    return y, [(pack(y, parity), pack(scales, parity), pack(means, parity)) for parity in Parity]


def test_writer_and_reader_are_the_official_sequence(gaussian: GaussianConditional) -> None:
    """Through the range coder and back, one pass with a symbol that int16 cannot hold: CompressAI's bytes."""
    y, coded = walked((2, 4, 8, 6))
    y[1, 2, 3, 4] = 1e6
    coded[0] = pack(y, Parity.ANCHOR), *coded[0][1:]
    symbols, indexes, expected = [], [], []
    for packed_y, scales, means in coded:
        symbols.append(gaussian.quantize(packed_y, "symbols", means))
        indexes.append(gaussian.build_indexes(scales))
        expected.append(gaussian.dequantize(symbols[-1], means))
    flat = ([number for x in several for number in x.flatten().tolist()] for several in (symbols, indexes))
    buffers = gaussian.quantized_cdf, gaussian.cdf_length, gaussian.offset
    string = ans.RansEncoder().encode_with_indexes(*flat, *(buffer.tolist() for buffer in buffers))

    encoder = Encoder(coding_tables(gaussian))
    writer = Writer(encoder, gaussian, y, 1)
    written = []
    for _, scales, means in coded:
        writer.begin(scales)
        written.append(writer.finish(means))
    assert encoder.finish() == string

    decoder = Decoder(coding_tables(gaussian), string)
    reader, read = Reader(decoder, gaussian), []
    for _, scales, means in coded:
        reader.begin(scales)
        read.append(reader.finish(means))
    decoder.finish()
    for found in (written, read):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert expected[0].max() > 9e5


def test_writer_and_reader_refuse_what_cannot_be_coded(gaussian: GaussianConditional) -> None:
    y, coded = walked((1, 4, 8, 6))
    _, scales, means = coded[0]

    def writer(latent: Tensor) -> Writer:
        return Writer(Encoder(coding_tables(gaussian)), gaussian, latent, 1)

    def reader() -> Reader:
        string = Encoder(coding_tables(gaussian))
        string.push(torch.zeros(scales.shape, dtype=torch.int16), torch.zeros(scales.shape, dtype=torch.uint8))
        return Reader(Decoder(coding_tables(gaussian), string.finish()), gaussian)

    for far in (3e9, -3e9, 1e30):
        coder = writer(torch.full_like(y, far))
        coder.begin(scales)
        with pytest.raises(CodingError):
            coder.finish(means)
    for bad in (math.nan, math.inf, -math.inf):
        for one in (writer(y), reader()):
            spoilt = scales.clone()
            spoilt[0, 2, 5, 1] = bad
            with pytest.raises(NonFiniteError, match="scales"):
                one.begin(spoilt)
        latent, spoilt = y.clone(), means.clone()
        latent[0, 2, 5, 2] = spoilt[0, 2, 5, 1] = bad  # row + column is odd
        for one, of_it in ((writer(latent), means), (writer(y), spoilt)):
            one.begin(scales)
            with pytest.raises(NonFiniteError, match="latents and means"):
                one.finish(of_it)
        two = reader()
        two.begin(torch.zeros_like(scales))
        with pytest.raises(NonFiniteError, match="means"):
            two.finish(spoilt)
