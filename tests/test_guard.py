# SPDX-License-Identifier: Apache-2.0
"""The guard: its bits, its arithmetic under noise, and what a decoder says that is too far off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlic_fast.compute.backend import plain_path, use_backend
from mlic_fast.entropy import guard
from mlic_fast.entropy.guard import MAX_DELTA, MIN_DELTA, MoveReader, MoveWriter
from mlic_fast.entropy.moved_boundaries import LEAST_SHARE, GuardReader, GuardWriter, share
from mlic_fast.errors import BitstreamError, GuardError
from mlic_fast.nn.network import Network
from mlic_fast.passes import Walk, send

TABLE = torch.exp(torch.linspace(np.log(0.11), np.log(256), 64))
DELTA = 5e-5


def indexes_of(scales: torch.Tensor) -> torch.Tensor:
    """Table indexes as CompressAI finds them: how many boundaries lie below."""
    return torch.searchsorted(TABLE[:-1].contiguous(), scales.clamp_min(float(TABLE[0]))).to(torch.uint8)


def guarded(scales: list[torch.Tensor], delta: float = DELTA) -> tuple[list[torch.Tensor], bytes]:
    """Indexes of the passes as an encoder finds them, and the guard."""
    writer = GuardWriter(TABLE, delta)
    found = []
    for each in scales:
        found.append(indexes_of(writer.move(each)))
        writer.record(found[-1])
    return found, writer.finish()


def read_back(scales: list[torch.Tensor], data: bytes) -> list[torch.Tensor]:
    """Indexes as a decoder with these scales finds them. Raises GuardError."""
    reader = GuardReader(TABLE, data)
    found = []
    for each in scales:
        found.append(indexes_of(reader.move(each)))
        reader.check(found[-1])
    reader.finish()
    return found


def tolerance(scales: torch.Tensor, delta: float) -> torch.Tensor:
    return delta * share(scales.double().clamp_min(1e-300).log(), float(np.log(0.11)))


def disturbed(scales: torch.Tensor, delta: float, seed: int) -> torch.Tensor:
    """Every scale off by nearly all that δ allows, up or down."""
    sign = torch.randint(0, 2, scales.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (scales.double() * torch.exp(0.999 * sign * tolerance(scales, delta))).float()


def _random(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 1.5 - 1.5).exp()


def _steps(count: int) -> torch.Tensor:
    """Scales a little apart, from one boundary to the next: they exclude as many moves as can be."""
    step = float(np.log(TABLE[11] / TABLE[10]))
    return float(TABLE[10]) * torch.exp(torch.arange(count, dtype=torch.float64) * step / count).float()


SCALES = {
    "random": _random(20_000, 1),
    "one": torch.tensor([0.110001]),
    "on the boundaries": TABLE.repeat(200),
    "all on one boundary": TABLE[5].repeat(9000),
    "next to boundaries": torch.cat([TABLE * (1 + 3e-5), TABLE * (1 - 3e-5)]).repeat(70),
    "evenly between two boundaries": _steps(5000),
    "as dense as can be": _steps(200_000),
    "tiny, zero, negative": torch.tensor([0.0, -1.0, 1e-30, -0.11, 0.11, 0.1099999]).repeat(999),
    "huge": torch.tensor([256.0, 255.9, 1e30, 300.0, 226.4]).repeat(999),
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("delta", [MIN_DELTA, DELTA, 1.6e-4, MAX_DELTA])
def test_decoders_within_the_tolerance_find_the_same_indexes(name: str, delta: float) -> None:
    scales = SCALES[name]
    found, data = guarded([scales], delta)
    for seed in range(3):
        (again,) = read_back([disturbed(scales, delta, seed)], data)
        assert torch.equal(again, found[0])


def test_without_the_guard_the_same_noise_changes_indexes() -> None:
    scales = SCALES["random"]
    assert not torch.equal(indexes_of(disturbed(scales, DELTA, 0)), indexes_of(scales))


def test_indexes_move_by_one_at_most_and_seldom() -> None:
    scales = SCALES["random"]
    found, _ = guarded([scales])
    change = (found[0].int() - indexes_of(scales).int()).abs()
    assert int(change.max()) <= 1
    assert float((change > 0).float().mean()) < 0.05


def test_a_guard_for_a_photograph_is_small() -> None:
    # 20 passes of 24,576 scales, a quarter of them above the first boundary, as full-size models have
    passes = [_random(24_576, seed) * 0.5 for seed in range(20)]
    assert 0.2 < float((torch.cat(passes) > TABLE[0]).float().mean()) < 0.8
    _, data = guarded(passes)
    assert len(data) < 90


def test_quiet_passes_cost_little() -> None:
    _, data = guarded([torch.full((24_576,), 0.02)] * 20)
    assert len(data) <= 2 + 20 * (1 + 3 * 3 / 8) + 1


def test_batches_and_shapes_are_those_of_the_pass() -> None:
    scales = SCALES["random"][: 2 * 3 * 4 * 5].view(2, 3, 4, 5)
    writer = GuardWriter(TABLE, DELTA)
    assert writer.move(scales).shape == scales.shape


def test_several_passes_of_several_sizes() -> None:
    passes = [_random(count, count) for count in (1, 8191, 8192, 8193, 16384, 20_001)]
    found, data = guarded(passes)
    for a, b in zip(read_back([disturbed(each, DELTA, 5) for each in passes], data), found, strict=True):
        assert torch.equal(a, b)


def test_a_decoder_that_is_too_far_off_is_told_which_pass_it_was() -> None:
    passes = [_random(5000, seed) for seed in range(4)]
    _, data = guarded(passes)
    passes[3] = passes[3] * 1.01
    with pytest.raises(GuardError, match=r"slice 1, nonanchor positions.*δ = 5e-05.*--device cpu"):
        read_back(passes, data)


def test_values_that_are_not_finite_are_left_to_whoever_looks_them_up() -> None:
    scales = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    moved = GuardWriter(TABLE, DELTA).move(scales)
    assert torch.isnan(moved[0])
    assert torch.isinf(moved[1:3]).all()


@pytest.mark.parametrize("delta", [0.0, -1e-5, float("nan"), float("inf"), 0.02, 1.9e-5])
def test_impossible_deltas_are_refused(delta: float) -> None:
    with pytest.raises(GuardError, match="δ must be"):
        GuardWriter(TABLE, delta)


def test_an_impossible_delta_of_one_channel_is_refused() -> None:
    deltas = torch.full((2, 3), DELTA, dtype=torch.float64)
    deltas[1, 2] = MIN_DELTA / 2
    with pytest.raises(GuardError, match="δ must be"):
        GuardWriter(TABLE, deltas)


def test_a_delta_too_large_for_the_table_is_refused() -> None:
    dense = torch.exp(torch.linspace(-2, -1.9, 200))
    with pytest.raises(GuardError, match="too large for a scale table"):
        GuardWriter(dense, MAX_DELTA)


def test_share_falls_from_the_first_boundary_on() -> None:
    scales = torch.tensor([0.01, 0.11, 0.22, 0.44, 10.0], dtype=torch.float64)
    expected = torch.tensor([1, 1, 1 / 2, 1 / 4, LEAST_SHARE], dtype=torch.float64)
    assert torch.allclose(share(scales.log(), float(np.log(0.11))), expected)


# ---- bits ----

MOVES = st.lists(st.one_of(st.none(), st.integers(0, 60_000)), max_size=60)


@given(st.lists(st.tuples(st.integers(0, 255), MOVES), max_size=12), st.floats(MIN_DELTA, MAX_DELTA))
def test_bits_come_back(passes: list[tuple[int, list[int | None]]], delta: float) -> None:
    writer = MoveWriter(delta)
    for value, moves in passes:
        writer.checksum(value)
        for move in moves:
            if move is None:
                writer.split()
            else:
                writer.move(move)
    reader = MoveReader(writer.finish())
    assert reader.delta == writer.delta
    assert delta * (1 - 1e-9) <= reader.delta <= delta + guard.DELTA_UNIT
    for value, moves in passes:
        assert reader.checksum() == value
        assert [reader.move() for _ in moves] == moves
    reader.finish()


@given(st.binary(max_size=40))
def test_rubbish_is_refused_or_read(data: bytes) -> None:
    scales = SCALES["random"][:3000]
    try:
        read_back([scales, scales], data)
    except GuardError:
        return


def test_every_prefix_and_every_longer_guard_is_refused() -> None:
    passes = [_random(9000, seed) for seed in range(3)]
    _, data = guarded(passes)
    for length in range(len(data)):
        with pytest.raises(GuardError):
            read_back(passes, data[:length])
    with pytest.raises(GuardError, match="goes on after the last pass"):
        read_back(passes, data + b"\0")


def test_endless_splits_and_zeros_end() -> None:
    header = guard.delta_code(DELTA).to_bytes(2, "little")
    for body in (b"\0" * 500, b"\x00" + b"\xb6\xdb\x6d" * 5000):  # 0xb6db6d: "101" over and over, splits
        with pytest.raises(GuardError):
            read_back([SCALES["random"]], header + body)


def test_describe_needs_the_first_bytes_only() -> None:
    _, data = guarded([SCALES["random"]])
    assert guard.describe(data) == {"kind": "moved-boundaries", "delta": pytest.approx(DELTA), "bytes": len(data)}
    with pytest.raises(GuardError, match="too few"):
        guard.describe(b"\1")
    with pytest.raises(GuardError, match="δ is 0"):
        guard.describe(bytes(9))


# ---- in a model ----


@contextmanager
def _scales_off(monkeypatch: pytest.MonkeyPatch, factor: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within the block the model's scales are multiplied before they are used."""
    original = Network.walk

    def walk(self: Network, z_hat: torch.Tensor) -> Walk:
        own = original(self, z_hat)
        scales: torch.Tensor | None = next(own)
        while scales is not None:
            yield scales * factor(scales)
            values = yield next(own)
            scales, y_hat = send(own, values)
        return y_hat

    with monkeypatch.context() as patch:
        patch.setattr(Network, "walk", walk)
        patch.setenv("MLIC_FAST_ENGINE", "off")
        yield


@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_reads_what_it_wrote_elsewhere(
    small_model: Any, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    x = test_image(128, 192, 3, batch)
    delta = 2e-4  # so large that without a guard there is always an index that differs
    coded = small_model.compress(x, guard=delta)
    expected = small_model.decompress(coded["strings"], coded["shape"], guard=coded["guard"])["x_hat"]
    unguarded = small_model.compress(x)
    noise = torch.Generator().manual_seed(4)

    def factor(scales: torch.Tensor) -> torch.Tensor:
        uniform = 2 * torch.rand(scales.shape, generator=noise, dtype=torch.float64) - 1
        return torch.exp(0.9 * uniform * tolerance(scales, delta)).float()

    with _scales_off(monkeypatch, factor):
        there = small_model.decompress(coded["strings"], coded["shape"], guard=coded["guard"])["x_hat"]
        with pytest.raises(BitstreamError):
            small_model.decompress(unguarded["strings"], unguarded["shape"])
    assert torch.allclose(there, expected, atol=1e-4)


def test_deltas_that_are_not_those_of_the_models_passes_and_channels_are_refused(
    small_model: Any, test_image: Callable[..., torch.Tensor]
) -> None:
    for shape in ((6, 31), (5, 32), (32,), ()):
        with pytest.raises(GuardError, match="not that of this model's passes"):
            small_model.compress(test_image(64, 64, 5), guard=torch.full(shape, DELTA))


def test_a_model_that_is_too_far_off_raises_before_it_decodes(
    small_model: Any, test_image: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = small_model.compress(test_image(128, 128, 5), guard=DELTA)
    with (
        _scales_off(monkeypatch, lambda scales: torch.full_like(scales, 1.01)),
        pytest.raises(GuardError, match="slice 0, anchor positions"),
    ):
        small_model.decompress(coded["strings"], coded["shape"], guard=coded["guard"])


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_backends_read_each_others_guarded_strings(
    small_models: dict[str, Any], test_image: Callable[..., torch.Tensor], backend: Any
) -> None:
    for model in small_models.values():
        with use_backend(backend):
            coded = model.compress(test_image(64, 128, 6), guard=DELTA)
        for other in ("torch", "cpu"):
            with use_backend(other):
                model.decompress(coded["strings"], coded["shape"], guard=coded["guard"])


def test_strings_without_a_guard_are_the_official_ones(
    small_model: Any, test_image: Callable[..., torch.Tensor]
) -> None:
    with plain_path():
        x = test_image(64, 64, 8)
        assert "guard" not in small_model.compress(x)
        coded = small_model.compress(x, guard=DELTA)
        size = sum(len(string) for part in small_model.compress(x)["strings"] for string in part)
    assert abs(sum(len(string) for part in coded["strings"] for string in part) - size) <= 0.01 * size + 8
