# SPDX-License-Identifier: Apache-2.0
"""Residual addition: every backend adds 0.5·tanh at one parity, wherever maps lie, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlic_fast.checkerboard import Parity, keep
from mlic_fast.compute import backend
from mlic_fast.compute.backend import use_backend
from mlic_fast.compute.triton_language import HAS_TRITON
from mlic_fast.errors import BackendError, CodingError, ConfigError, DeviceError
from mlic_fast.ops.residual import add_residual

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# backends, and where their tensors lie
PLACES = {"torch": "cpu", "triton": DEVICE, "cpu": "cpu"}
MISSING = {"torch": False, "triton": not HAS_TRITON, "cpu": backend.cpu_kernels is None}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(MISSING[name], reason=f"backend {name} is not available here"))
    for name in PLACES
]
FAST_BACKENDS = BACKENDS[1:]
PARITIES = pytest.mark.parametrize("parity", Parity, ids=lambda parity: parity.name.lower())
WITH_CPU_KERNELS = pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")

# batch, channels, height, width
SHAPES = {
    "smallest": (1, 1, 1, 2),
    "tail-behind-a-block": (1, 9, 12, 20),
    "batch3-odd-height": (3, 5, 7, 6),
    "one-pair-of-columns": (2, 3, 5, 2),
    "exactly-one-block": (1, 8, 8, 16),
    "odd-half": (2, 3, 9, 14),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def other(parity: Parity) -> Parity:
    return Parity(1 - parity.value)


def expected(values: Tensor, logits: Tensor, parity: Parity) -> Tensor:
    """In float64, position by position: anchors are where row + column is odd."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in values.shape[2:]), indexing="ij")
    chosen = (rows + columns) % 2 == (1 if parity is Parity.ANCHOR else 0)
    return torch.where(chosen, values.double() + 0.5 * torch.tanh(logits.double()), values.double())


@pytest.mark.parametrize("chosen", BACKENDS)
@PARITIES
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: str, parity: Parity, chosen: str) -> None:
    values, logits = (3 * torch.randn(2, *SHAPES[shape])).unbind()
    found = values.to(PLACES[chosen], copy=True)
    with use_backend(chosen):
        add_residual(found, logits.to(PLACES[chosen]), parity)
    assert (found.cpu() - expected(values, logits, parity)).abs().max() <= 1e-6
    assert torch.equal(keep(found.cpu(), other(parity)), keep(values, other(parity)))


@pytest.mark.parametrize("chosen", FAST_BACKENDS)
@PARITIES
def test_as_close_to_float64_as_the_twin(parity: Parity, chosen: str) -> None:
    spread = torch.cat([torch.linspace(-20, 20, 500), torch.linspace(-1, 1, 500), torch.logspace(-30, 3, 200)])
    logits = spread.repeat_interleave(2).view(1, 5, 4, 120)
    for base in (torch.zeros_like(logits), torch.randn_like(logits)):
        exact, by_twin, found = expected(base, logits, parity), base.clone(), base.to(PLACES[chosen], copy=True)
        with use_backend("torch"):
            add_residual(by_twin, logits, parity)
        with use_backend(chosen):
            add_residual(found, logits.to(PLACES[chosen]), parity)
        error, allowed = (found.cpu() - exact).abs(), (by_twin - exact).abs()
        assert error.max() <= 2 * allowed.max() + 1e-8
        # small ones relative to themselves, too
        assert bool((error <= 4e-7 * exact.abs() + 1e-37).all()) or base.any()


def test_the_twin_takes_float64() -> None:
    values, logits = torch.randn(2, 1, 2, 4, 6, dtype=torch.float64).unbind()
    exact = expected(values, logits, Parity.ANCHOR)
    add_residual(values, logits, Parity.ANCHOR)  # no backend is named: kernels have no float64
    assert torch.equal(values, exact)


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter, which meets the NaN
@pytest.mark.parametrize("chosen", BACKENDS)
def test_what_is_not_finite(chosen: str) -> None:
    """NaN stays NaN, infinite logits add a half; at the other parity nothing is read."""
    nan, infinite = float("nan"), float("inf")
    logits = torch.tensor([[[[nan, infinite, nan, nan], [-infinite, nan, nan, nan]]]], device=PLACES[chosen])
    values = torch.zeros_like(logits)
    with use_backend(chosen):
        add_residual(values, logits, Parity.ANCHOR)
    torch.testing.assert_close(
        values.cpu(), torch.tensor([[[[0, 0.5, 0, nan], [-0.5, 0, nan, 0]]]]), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("chosen", BACKENDS)
@PARITIES
def test_strided_maps(parity: Parity, chosen: str) -> None:
    """Slices of channels, channels-last maps, a transposed and an expanded one: read and written where they lie."""
    device = PLACES[chosen]
    given = torch.randn(2, 18, 9, 8, device=device)
    logits = torch.randn(2, 18, 8, 9, device=device)
    with use_backend(chosen):
        for layout in (torch.contiguous_format, torch.channels_last):
            whole = given.clone(memory_format=torch.contiguous_format).contiguous(memory_format=layout)
            for each in (logits[:, 3:9].transpose(2, 3), logits[:1, :1].transpose(2, 3).expand(2, 6, 9, 8)):
                whole.copy_(given)
                dense = given[:, 6:12].contiguous()
                add_residual(dense, each.contiguous(), parity)
                add_residual(whole[:, 6:12], each, parity)
                assert torch.equal(whole[:, 6:12], dense)
                assert torch.equal(whole[:, :6], given[:, :6])
                assert torch.equal(whole[:, 12:], given[:, 12:])
                assert not torch.equal(dense, given[:, 6:12])


@pytest.mark.parametrize("chosen", FAST_BACKENDS)
def test_runs_and_batches_do_not_matter(chosen: str) -> None:
    values, logits = torch.randn(2, 3, 7, 8, 12, device=PLACES[chosen]).unbind()

    def run(part: slice) -> Tensor:
        found = values[part].clone()
        add_residual(found, logits[part], Parity.ANCHOR)
        return found

    with use_backend(chosen):
        batch = run(slice(0, 3))
        assert torch.equal(batch, run(slice(0, 3)))
        for i in range(3):
            assert torch.equal(batch[i : i + 1], run(slice(i, i + 1)))


@WITH_CPU_KERNELS
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_instruction_sets_and_threads(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["generic", "avx2", "avx512"]
    if names.index(isa) > names.index(backend.cpu_kernels.isa()):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    # more than one thread's worth of blocks, the last one short
    values, logits = (4 * torch.randn(2, 1, 33, 51, 50)).unbind()
    exact = expected(values, logits, Parity.NONANCHOR)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(values.clone())
            with use_backend("cpu"):
                add_residual(results[-1], logits, Parity.NONANCHOR)
    finally:
        torch.set_num_threads(threads)
    assert (results[0] - exact).abs().max() <= 2e-6
    assert torch.equal(keep(results[0], Parity.ANCHOR), keep(values, Parity.ANCHOR))
    assert all(torch.equal(found, results[0]) for found in results)


@WITH_CPU_KERNELS
def test_the_operator_is_registered_well() -> None:
    values, logits = torch.randn(2, 1, 2, 4, 6).unbind()
    torch.library.opcheck(torch.ops.mlic_fast.add_residual.default, (values, logits, 1, "cpu"))


@WITH_CPU_KERNELS
def test_it_compiles_without_graph_breaks() -> None:
    def both(values: Tensor, logits: Tensor) -> Tensor:
        values = values * 2
        for parity in Parity:
            add_residual(values, logits, parity)
        return values + 1

    tensors = torch.randn(2, 1, 3, 4, 6).unbind()
    with use_backend("cpu"):
        compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*tensors), both(*tensors))


@pytest.mark.parametrize("chosen", BACKENDS)
def test_what_does_not_fit_is_refused(chosen: str) -> None:
    device = PLACES[chosen]
    values, logits = torch.randn(2, 1, 2, 4, 6, device=device).unbind()
    with use_backend(chosen):
        for a, b in (
            (values, logits[:, :1]),
            (values[0], logits[0]),
            (values[..., :5], logits[..., :5]),
            (values, logits.transpose(2, 3)),
        ):
            with pytest.raises(CodingError, match="one shape, w even"):
                add_residual(a, b, Parity.ANCHOR)
        for shape in ((0, 2, 4, 4), (1, 0, 4, 4), (1, 2, 0, 4), (1, 2, 4, 0)):
            with pytest.raises(ConfigError, match="empty"):
                add_residual(torch.zeros(shape, device=device), torch.zeros(shape, device=device), Parity.ANCHOR)
        for a, b in ((values.to("meta"), logits), (values, logits.to("meta"))):
            with pytest.raises(DeviceError, match="on meta"):
                add_residual(a, b, Parity.ANCHOR)
        for thin in (values[:, :1], values[:, :, :1], values[..., :1]):
            with pytest.raises(ConfigError, match="expanded"):
                add_residual(thin.clone().expand(values.shape), logits, Parity.ANCHOR)
        if chosen != "torch":
            for a, b in ((values.double(), logits.double()), (values, logits.half())):
                with pytest.raises(BackendError, match="float32"):
                    add_residual(a, b, Parity.ANCHOR)
            huge = torch.zeros(2048, device=device).as_strided((2**10, 2**7, 2**7, 2**7), (1, 1, 1, 1))
            with pytest.raises(BackendError, match="too large"):
                add_residual(huge, huge, Parity.ANCHOR)
        # dimensions of one element have no stride to speak of
        single = torch.zeros(1, 1, 4, 4, device=device).as_strided((1, 1, 4, 4), (0, 0, 4, 1))
        add_residual(single, torch.ones(1, 1, 4, 4, device=device), Parity.ANCHOR)
        assert (single[0, 0, 0, 1::2] > 0.3).all()


@WITH_CPU_KERNELS
def test_addresses_are_handed_over_checked() -> None:
    """The operator itself, behind the checks of the public function."""
    values, logits = torch.randn(2, 1, 2, 4, 6).unbind()
    for a, b in ((values, logits.half()), (values.double(), logits)):
        with pytest.raises(BackendError, match="the kernel takes"):
            torch.ops.mlic_fast.add_residual(a, b, 1, "cpu")
