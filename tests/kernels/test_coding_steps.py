# SPDX-License-Identifier: Apache-2.0
"""Coding steps: every backend gives CompressAI's indexes, symbols and values, and refuses what is not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from compressai.entropy_models import GaussianConditional
from mlic_fast.entropy.coding_steps import Reader, Writer
from mlic_fast.kernels import coding_steps as kernels
from mlic_fast.kernels.language import HAS_TRITON
from torch import Tensor

from mlic_fast.checkerboard import Parity, keep, pack, unpack
from mlic_fast.compute import backend
from mlic_fast.compute.backend import use_backend
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.errors import BackendError, CodingError, ConfigError, DeviceError, NonFiniteError
from mlic_fast.ops import coding_steps as ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# backends, and where their tensors lie
PLACES = {"torch": "cpu", "triton": DEVICE, "cpu": "cpu"}
MISSING = {"torch": False, "triton": not HAS_TRITON, "cpu": backend.cpu_kernels is None}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(MISSING[name], reason=f"backend {name} is not available here"))
    for name in PLACES
]
FAST_BACKENDS = BACKENDS[1:]
COLOURS = pytest.mark.parametrize("parity", Parity, ids=lambda parity: parity.name.lower())

# batch, channels, height, width
SHAPES = {
    "smallest-4x4": (1, 1, 4, 4),
    "tail-behind-a-block": (1, 9, 12, 20),
    "batch3-odd-height": (3, 5, 7, 6),
    "one-pair-of-columns": (2, 3, 5, 2),
    "exactly-one-block": (1, 8, 8, 16),
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


def maps(shape: tuple[int, ...], device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """y, scales and means, with scales below the bound, within the table and above it."""
    y, scales, means = torch.randn(3, *shape).unbind()
    return (20 * y).to(device), (3 * scales - 1).exp().to(device), (3 * means).to(device)


def tables(gaussian: GaussianConditional, device: str) -> tuple[Tensor, Tensor]:
    return gaussian.scale_table.to(device), gaussian.scale_bound.to(device)


@pytest.mark.parametrize("chosen", BACKENDS)
@COLOURS
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_the_official_sequence(
    shape: str, parity: Parity, chosen: str, gaussian: GaussianConditional
) -> None:
    device = PLACES[chosen]
    y, scales, means = maps(SHAPES[shape], device)
    boundaries = tables(gaussian, device)
    packed = [pack(x.cpu(), parity) for x in (y, scales, means)]
    expected_indexes = gaussian.build_indexes(packed[1])
    expected_symbols = gaussian.quantize(packed[0], "symbols", packed[2])
    expected_values = unpack(gaussian.dequantize(expected_symbols, packed[2]), parity)
    other = torch.randn_like(y)
    with use_backend(chosen):
        for wide in (False, True):
            values = torch.empty_like(y)
            symbols, indexes, flags = ops.encode_step(
                values, y, scales, means, parity, *boundaries, clear=True, wide=wide
            )
            assert symbols.dtype == (torch.int32 if wide else torch.int16)
            assert indexes.dtype == torch.uint8
            assert not ops.check_flags(flags)
            assert torch.equal(symbols.cpu().int(), expected_symbols)
            assert torch.equal(indexes.cpu().int(), expected_indexes)
            assert torch.equal(values.cpu(), expected_values)

            found, flags = ops.decode_indexes(scales, means, parity, *boundaries)
            assert torch.equal(found, indexes)
            assert not ops.check_flags(flags)
            again = torch.empty_like(y)
            ops.decode_values(again, symbols, means, parity, clear=True)
            assert torch.equal(again, values)
            # into a map that holds the other parity
            both = keep(other, Parity(1 - parity.value))
            expected_both = both.cpu() + expected_values
            ops.decode_values(both, symbols, means, parity, clear=False)
            assert torch.equal(both.cpu(), expected_both)
            both = keep(other, Parity(1 - parity.value))
            ops.encode_step(both, y, scales, means, parity, *boundaries, clear=False, wide=wide)
            assert torch.equal(both.cpu(), expected_both)


def edge_scales(table: Tensor) -> Tensor:
    """All boundaries, the values next to them, and what lies outside, [1, 1, 2, n]; every value at both parities."""
    t = table.numpy()
    up, down = np.nextafter(t, np.float32(np.inf)), np.nextafter(t, np.float32(0))
    outside = np.array([-1e30, -1, -0.0, 0, 1e-45, 1e-20, 0.05, 0.11, 300, 3e38], np.float32)
    bound = np.nextafter(np.float32(0.11), np.array([0, 1], np.float32))
    values = np.concatenate([t, up, down, outside, bound])
    return torch.from_numpy(np.repeat(values, 2)).expand(2, -1)[None, None].contiguous()


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("bound", [0.11, 0.5], ids=["published-bound", "bound-inside-the-table"])
def test_indexes_at_the_boundaries(chosen: str, bound: float, gaussian: GaussianConditional) -> None:
    other = GaussianConditional(gaussian.scale_table.tolist(), scale_bound=bound)
    assert torch.equal(other.scale_table, gaussian.scale_table)
    scales = edge_scales(other.scale_table).to(PLACES[chosen])
    zeros = torch.zeros_like(scales)
    for parity in Parity:
        expected = other.build_indexes(pack(scales.cpu(), parity))
        with use_backend(chosen):
            indexes, _ = ops.decode_indexes(scales, zeros, parity, *tables(other, PLACES[chosen]))
            _, also, _ = ops.encode_step(
                zeros.clone(), zeros, scales, zeros, parity, *tables(other, PLACES[chosen]), clear=True
            )
        assert torch.equal(indexes.cpu().int(), expected)
        assert torch.equal(also.cpu().int(), expected)
    assert expected.max() == 63
    assert expected.min() == int((other.scale_table < bound).sum())


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 37, 256])
def test_tables_of_any_length(chosen: str, rows: int) -> None:
    table = torch.linspace(0.11, 40, rows).to(PLACES[chosen])
    bound = torch.tensor([0.11]).to(PLACES[chosen])
    scales = (torch.rand(1, 3, 6, 8) * 45).to(PLACES[chosen])
    with use_backend(chosen):
        indexes, _ = ops.decode_indexes(scales, scales, Parity.ANCHOR, table, bound)
    above = pack(scales, Parity.ANCHOR)[..., None] > table[:-1]
    assert torch.equal(indexes.int(), above.sum(-1).int())


@pytest.mark.parametrize("chosen", BACKENDS)
def test_ties_round_to_even(chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    values = torch.tensor(
        [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, -0.49999997, 8388607.5, -8388607.5, 4194304.5, 9e8]
    )
    y = values.repeat_interleave(2).expand(1, 1, 2, -1).contiguous().to(device)
    zeros = torch.zeros_like(y)
    with use_backend(chosen):
        symbols, _, flags = ops.encode_step(
            zeros.clone(), y, zeros + 1, zeros, Parity.NONANCHOR, *tables(gaussian, device), clear=True, wide=True
        )
    assert not ops.check_flags(flags)
    assert symbols[0, 0, 0].tolist() == torch.round(values).int().tolist()


@pytest.mark.parametrize("chosen", BACKENDS)
def test_large_symbols_are_reported_and_done_again(chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    for value, large in ((32767.0, False), (-32768.0, False), (32768.0, True), (-32769.0, True), (3e9, True)):
        y, scales, means = maps((1, 2, 4, 6), device)
        means = means.round()
        y[0, 1, 3, 4], means[0, 1, 3, 4] = value, 0  # row + column is odd
        with use_backend(chosen):
            *_, flags = ops.encode_step(torch.empty_like(y), y, scales, means, Parity.ANCHOR, *boundaries, clear=True)
            assert ops.check_flags(flags) == large
            values = torch.empty_like(y)
            symbols, _, flags = ops.encode_step(
                values, y, scales, means, Parity.ANCHOR, *boundaries, clear=True, wide=True
            )
            assert ops.check_flags(flags) == (value > 2**30)
            assert symbols[0, 1, 3, 2] == min(value, 2**30)
            assert values[0, 1, 3, 4] == min(value, 2**30)
            # the other parity is not looked at
            *_, flags = ops.encode_step(
                torch.empty_like(y), y, scales, means, Parity.NONANCHOR, *boundaries, clear=True
            )
            assert not ops.check_flags(flags)


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("which", ["y", "scales", "means"])
def test_what_is_not_finite_is_refused(which: str, value: float, chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    tensors = dict(zip(("y", "scales", "means"), maps((1, 20, 8, 8), device), strict=True))
    tensors[which][0, 17, 2, 5] = value  # in the second block of 512 positions; row + column is odd
    y, scales, means = tensors.values()
    expected = "scales" if which == "scales" else "latents and means"
    with use_backend(chosen):
        *_, flags = ops.encode_step(torch.empty_like(y), y, scales, means, Parity.ANCHOR, *boundaries, clear=True)
        with pytest.raises(NonFiniteError, match=expected):
            ops.check_flags(flags)
        *_, flags = ops.encode_step(torch.empty_like(y), y, scales, means, Parity.NONANCHOR, *boundaries, clear=True)
        assert not ops.check_flags(flags)
        if which != "y":
            _, flags = ops.decode_indexes(scales, means, Parity.ANCHOR, *boundaries)
            with pytest.raises(NonFiniteError, match=expected):
                ops.check_flags(flags)
            _, flags = ops.decode_indexes(scales, means, Parity.NONANCHOR, *boundaries)
            assert not ops.check_flags(flags)


@pytest.mark.parametrize("chosen", FAST_BACKENDS)
@COLOURS
def test_residual_is_as_close_as_the_twin(parity: Parity, chosen: str) -> None:
    spread = torch.cat([torch.linspace(-20, 20, 500), torch.linspace(-1, 1, 500), torch.logspace(-30, 3, 200)])
    logits = spread.repeat_interleave(2).view(1, 5, 4, 120)
    for base in (torch.zeros_like(logits), torch.randn_like(logits)):
        exact, by_twin, found = base.double(), base.clone(), base.to(PLACES[chosen])
        kernels.residual_step_ref(exact, logits.double(), parity.value)
        kernels.residual_step_ref(by_twin, logits, parity.value)
        with use_backend(chosen):
            ops.residual_step(found, logits.to(PLACES[chosen]), parity)
        error, allowed = (found.cpu() - exact).abs(), (by_twin - exact).abs()
        assert error.max() <= 2 * allowed.max() + 1e-8
        # small ones relative to themselves, too
        assert bool((error <= 4e-7 * exact.abs() + 1e-37).all()) or base.any()
        assert torch.equal(keep(found.cpu(), Parity(1 - parity.value)), keep(base, Parity(1 - parity.value)))


@pytest.mark.parametrize("chosen", BACKENDS)
def test_residual_keeps_nan(chosen: str) -> None:
    logits = torch.full((1, 1, 2, 2), float("nan"), device=PLACES[chosen])
    values = torch.zeros_like(logits)
    with use_backend(chosen):
        ops.residual_step(values, logits, Parity.ANCHOR)
    assert values.isnan().tolist() == [[[[False, True], [True, False]]]]


@pytest.mark.parametrize("chosen", FAST_BACKENDS)
@COLOURS
def test_strided_maps(parity: Parity, chosen: str, gaussian: GaussianConditional) -> None:
    """Slices of channels, channels-last maps and a transposed one: read and written where they lie."""
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    whole = torch.cat(maps((2, 6, 8, 8), device), dim=1)
    for format_ in (torch.contiguous_format, torch.channels_last):
        y, scales, means = whole.contiguous(memory_format=format_).chunk(3, dim=1)
        means = means.transpose(2, 3)
        out = torch.zeros(2, 18, 8, 8, device=device).contiguous(memory_format=format_)
        with use_backend(chosen):
            found = ops.encode_step(out[:, 6:12], y, scales, means, parity, *boundaries, clear=True)
            values = torch.empty(2, 6, 8, 8, device=device)
            dense = [x.contiguous() for x in (y, scales, means)]
            expected = ops.encode_step(values, *dense, parity, *boundaries, clear=True)
            assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2], strict=True))
            assert torch.equal(out[:, 6:12], values)
            assert not out[:, :6].any()
            assert not out[:, 12:].any()
            assert torch.equal(ops.decode_indexes(scales, means, parity, *boundaries)[0], expected[1])
            ops.residual_step(out[:, 6:12], means, parity)
            ops.residual_step(values, dense[2], parity)
            assert torch.equal(out[:, 6:12], values)
            ops.decode_values(out[:, 6:12], expected[0], means, parity, clear=False)
            ops.decode_values(values, expected[0], dense[2], parity, clear=False)
            assert torch.equal(out[:, 6:12], values)


@pytest.mark.parametrize("chosen", FAST_BACKENDS)
def test_runs_and_batches_do_not_matter(chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    y, scales, means = maps((3, 7, 8, 12), device)
    with use_backend(chosen):

        def run(part: slice) -> list[Tensor]:
            values = torch.empty_like(y[part])
            step = ops.encode_step(values, y[part], scales[part], means[part], Parity.ANCHOR, *boundaries, clear=True)
            ops.residual_step(values, means[part], Parity.ANCHOR)
            return [values, *step[:2]]

        batch = run(slice(0, 3))
        assert all(torch.equal(a, b) for a, b in zip(batch, run(slice(0, 3)), strict=True))
        for i in range(3):
            assert all(torch.equal(a[i : i + 1], b) for a, b in zip(batch, run(slice(i, i + 1)), strict=True))


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_instruction_sets_and_threads(isa: str, monkeypatch: pytest.MonkeyPatch, gaussian: GaussianConditional) -> None:
    names = ["generic", "avx2", "avx512"]
    if names.index(isa) > names.index(backend.cpu_kernels.isa()):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    boundaries = tables(gaussian, "cpu")
    # more than one thread's worth of blocks, the last one short
    y, scales, means = maps((1, 33, 50, 50))
    scales[:, :3, :, : edge_scales(boundaries[0]).shape[3] // 8 * 2] = edge_scales(boundaries[0])[..., :50][:, :, :1]
    results = []
    threads = torch.get_num_threads()
    try:
        for chosen, count in (("torch", 2), ("cpu", 1), ("cpu", 2), ("cpu", 5)):
            torch.set_num_threads(count)
            with use_backend(chosen):
                values = torch.empty_like(y)
                step = ops.encode_step(values, y, scales, means, Parity.NONANCHOR, *boundaries, clear=True)
                results.append([values, *step[:2]])
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("chosen", BACKENDS)
def test_writer_and_reader(chosen: str, gaussian: GaussianConditional) -> None:
    """Through the range coder and back, one pass with symbols that int16 cannot hold; the same bytes everywhere."""
    device = PLACES[chosen]
    local = GaussianConditional(None)
    local.update_scale_table(gaussian.scale_table)
    local = local.to(device)
    y, scales, means = maps((2, 4, 8, 6), device)
    far = y.clone()
    far[1, 2, 3, 4] = 1e6
    with use_backend(chosen):
        encoder = Encoder(coding_tables(local))
        writer = Writer(encoder, local)
        written = [writer(Parity.ANCHOR, far, scales, means), writer(Parity.NONANCHOR, y, scales, means)]
        data = encoder.finish()
        decoder = Decoder(coding_tables(local), data)
        reader = Reader(decoder, local)
        read = [reader(parity, None, scales, means) for parity in (Parity.ANCHOR, Parity.NONANCHOR)]
        decoder.finish()
        assert all(torch.equal(a, b) for a, b in zip(written, read, strict=True))
        assert written[0][1, 2, 3, 4] > 9e5
        with pytest.raises(CodingError):
            Writer(Encoder(coding_tables(local)), local)(Parity.ANCHOR, far * 1e6, scales, means)
        for bad in (far * float("nan"), far * float("inf")):
            with pytest.raises(NonFiniteError):
                Writer(Encoder(coding_tables(local)), local)(Parity.ANCHOR, bad, scales, means)
            with pytest.raises(NonFiniteError):
                Reader(Decoder(coding_tables(local), data), local)(Parity.ANCHOR, None, scales, bad)
    with use_backend("torch"):
        encoder = Encoder(coding_tables(gaussian))
        writer = Writer(encoder, gaussian)
        writer(Parity.ANCHOR, far.cpu(), scales.cpu(), means.cpu())
        writer(Parity.NONANCHOR, y.cpu(), scales.cpu(), means.cpu())
        assert encoder.finish() == data


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
def test_operators_are_registered_well(gaussian: GaussianConditional) -> None:
    boundaries = tables(gaussian, "cpu")
    y, scales, means = maps((1, 2, 4, 6))
    symbols = torch.zeros(1, 2, 4, 3, dtype=torch.int16)
    mlic = torch.ops.mlic_fast
    with use_backend("cpu"):
        torch.library.opcheck(mlic.encode_step.default, (y.clone(), y, scales, means, *boundaries, 1, True, False))
        torch.library.opcheck(mlic.decode_indexes.default, (scales, means, *boundaries, 0))
        torch.library.opcheck(mlic.decode_values.default, (y.clone(), symbols, means, 1, False))
        torch.library.opcheck(mlic.residual_step.default, (y.clone(), means, 1))


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
def test_compiles_without_graph_breaks(gaussian: GaussianConditional) -> None:
    boundaries = tables(gaussian, "cpu")

    def steps(y: Tensor, scales: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = torch.zeros_like(y)
        symbols, indexes, _ = ops.encode_step(values, y * 2, scales, means, Parity.ANCHOR, *boundaries, clear=True)
        ops.residual_step(values, means, Parity.ANCHOR)
        ops.decode_values(values, symbols, means, Parity.NONANCHOR, clear=False)
        return symbols, indexes, values + 1

    tensors = maps((1, 3, 4, 6))
    with use_backend("cpu"):
        compiled = torch.compile(steps, fullgraph=True, backend="aot_eager")
        assert all(torch.equal(a, b) for a, b in zip(compiled(*tensors), steps(*tensors), strict=True))


@pytest.mark.parametrize("chosen", BACKENDS)
def test_what_does_not_fit_is_refused(chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    y, scales, means = maps((1, 2, 4, 6), device)
    with use_backend(chosen):
        with pytest.raises(CodingError, match="one shape"):
            ops.decode_indexes(scales, means[:, :1], Parity.ANCHOR, *boundaries)
        with pytest.raises(CodingError, match="even"):
            ops.residual_step(y[..., :5], means[..., :5], Parity.ANCHOR)
        with pytest.raises(CodingError, match="update"):
            ops.decode_indexes(scales, means, Parity.ANCHOR, boundaries[0][:0], boundaries[1])
        with pytest.raises(CodingError, match="symbols must be"):
            ops.decode_values(y, torch.zeros(1, 2, 4, 2, dtype=torch.int16), means, Parity.ANCHOR, clear=True)
        if chosen != "torch":
            with pytest.raises(BackendError, match="float32"):
                ops.decode_indexes(scales.double(), means.double(), Parity.ANCHOR, *boundaries)


@pytest.mark.parametrize("chosen", BACKENDS)
def test_tensors_on_other_devices_are_refused(chosen: str, gaussian: GaussianConditional) -> None:
    """Each tensor of each step in turn, before its address goes anywhere."""
    device = PLACES[chosen]
    table, bound = tables(gaussian, device)
    y, scales, means = maps((1, 2, 4, 6), device)
    named = {"values": y.clone(), "y": y, "scales": scales, "means": means, "logits": means}
    named |= {"table": table, "bound": bound, "symbols": torch.zeros(1, 2, 4, 3, dtype=torch.int16, device=device)}
    steps: list[tuple[Any, str, dict[str, bool]]] = [
        (ops.encode_step, "values y scales means table bound", {"clear": True}),
        (ops.decode_indexes, "scales means table bound", {}),
        (ops.decode_values, "values symbols means", {"clear": True}),
        (ops.residual_step, "values logits", {}),
    ]
    with use_backend(chosen):
        for step, arguments, options in steps:
            for elsewhere in arguments.split():
                tensors = {name: named[name] for name in arguments.split()}
                tensors[elsewhere] = tensors[elsewhere].to("meta")
                with pytest.raises(DeviceError, match=f"{elsewhere} on meta"):
                    step(**tensors, parity=Parity.ANCHOR, **options)


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (1, 0, 4, 4), (1, 2, 0, 4), (1, 2, 4, 0)], ids=str)
def test_empty_maps_are_refused(shape: tuple[int, ...], chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    x = torch.zeros(shape, device=device)
    symbols = torch.zeros(*shape[:3], shape[3] // 2, dtype=torch.int16, device=device)
    with use_backend(chosen):
        with pytest.raises(ConfigError, match="empty"):
            ops.encode_step(x, x, x, x, Parity.ANCHOR, *boundaries, clear=True)
        with pytest.raises(ConfigError, match="empty"):
            ops.decode_indexes(x, x, Parity.ANCHOR, *boundaries)
        with pytest.raises(ConfigError, match="empty"):
            ops.decode_values(x, symbols, x, Parity.ANCHOR, clear=True)
        with pytest.raises(ConfigError, match="empty"):
            ops.residual_step(x, x, Parity.ANCHOR)


@pytest.mark.parametrize("chosen", BACKENDS)
def test_expanded_values_are_not_written(chosen: str, gaussian: GaussianConditional) -> None:
    device = PLACES[chosen]
    boundaries = tables(gaussian, device)
    y, scales, means = maps((2, 3, 4, 4), device)
    symbols = torch.zeros(2, 3, 4, 2, dtype=torch.int16, device=device)
    with use_backend(chosen):
        for thin in (y[:1], y[:, :1], y[:, :, :1], y[..., :1]):
            values = thin.clone().expand(y.shape)
            with pytest.raises(ConfigError, match="expanded"):
                ops.encode_step(values, y, scales, means, Parity.ANCHOR, *boundaries, clear=True)
            with pytest.raises(ConfigError, match="expanded"):
                ops.decode_values(values, symbols, means, Parity.ANCHOR, clear=False)
            with pytest.raises(ConfigError, match="expanded"):
                ops.residual_step(values, means, Parity.ANCHOR)
        # dimensions of one element have no stride to speak of, and what is only read may be expanded
        values = torch.zeros(1, 1, 4, 4, device=device).as_strided((1, 1, 4, 4), (0, 0, 4, 1))
        ops.decode_values(values, symbols[:1, :1], means[:1, :1, :1].expand(1, 1, 4, 4), Parity.ANCHOR, clear=True)
        assert torch.equal(values[0, 0, 0, 1::2], means[0, 0, 0, 1::2])


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
def test_addresses_are_handed_over_checked(gaussian: GaussianConditional) -> None:
    """The operators themselves, behind the checks of the public functions."""
    table, bound = tables(gaussian, "cpu")
    y, scales, means = maps((1, 2, 4, 6))
    mlic = torch.ops.mlic_fast
    symbols = torch.zeros(1, 2, 4, 3, dtype=torch.int32)
    with use_backend("cpu"):
        with pytest.raises(BackendError, match="a kernel takes"):
            mlic.encode_step(y.clone(), y, scales.double(), means, table, bound, 1, True, False)
        with pytest.raises(BackendError, match="a kernel takes"):
            mlic.decode_indexes(scales, means, table.double(), bound, 1)
        for wrong in (symbols.long(), symbols.transpose(1, 2).contiguous().transpose(1, 2)):
            with pytest.raises(BackendError, match="a kernel takes"):
                mlic.decode_values(y.clone(), wrong, means, 1, True)
        with pytest.raises(BackendError, match="a kernel takes"):
            mlic.residual_step(y.clone(), means.half(), 1)
