# SPDX-License-Identifier: Apache-2.0
"""GDN: every backend and its gradients against the plain twin; the C++ kernel across instruction sets and threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from compressai.layers import GDN
from mlic_fast.kernels import gdn as kernels
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.compute.backend import use_backend
from mlic_fast.compute.triton_language import HAS_TRITON
from mlic_fast.errors import BackendError, DeviceError
from mlic_fast.nn import gdn as layer
from mlic_fast.ops.gdn import gdn, gdn_

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# backends with kernels of their own, and where their tensors lie
PLACES = {"triton": DEVICE, "cpu": "cpu"}
MISSING = {"triton": not HAS_TRITON, "cpu": backend.cpu_kernels is None}
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(MISSING[name], reason=f"backend {name} is not available here"))
    for name in PLACES
]
ALL_BACKENDS = ["torch", *BACKENDS]

# batch, channels, height, width
SHAPES = {
    "small-24ch-odd": (1, 24, 5, 7),
    "wide-64ch": (1, 64, 8, 9),
    "batch3-40ch-one-position": (3, 40, 1, 1),
    "96ch-4x4": (1, 96, 4, 4),
    "channels-70-behind-a-panel": (2, 70, 3, 5),
    "one-channel": (1, 1, 6, 70),
}


@pytest.fixture(autouse=True)
def _holes_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated unset starts as NaN, so that an element that nobody writes fails a comparison."""
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def filled(*args: Any, original: Any = original, **kwargs: Any) -> Tensor:
            x: Tensor = original(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        monkeypatch.setattr(torch, name, filled)
    torch.manual_seed(0)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, beta, gamma, residual and a gradient of y, exact in float32, like those of a trained model."""
    channels = shape[1]
    x, residual, grad = torch.randn(3, *shape).unbind()
    beta = torch.rand(channels) + 0.1
    gamma = 0.1 * torch.eye(channels) + 0.02 * torch.rand(channels, channels)
    return [t.to(dtype) for t in (3 * x, beta, gamma, residual, grad)]


def results(how: Any, tensors: list[Tensor], inverse: bool, dtype: torch.dtype, device: str) -> list[Tensor]:
    """y and the gradients of x, beta, gamma and residual; parameters stay wide."""
    x, beta, gamma, residual, grad = (t.to(device) for t in tensors)
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [x.to(dtype), beta.to(wide), gamma.to(wide), residual.to(dtype)]
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = how(*leaves, inverse)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]


def operation(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool) -> Tensor:
    return gdn(x, beta, gamma, residual, inverse=inverse)


def twin(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor | None, inverse: bool) -> Tensor:
    y: Tensor = kernels.gdn_ref(x, beta.to(x.dtype), gamma.to(x.dtype), residual, inverse)
    return y


RESULTS = ("y", "x'", "beta'", "gamma'", "residual'")


def assert_close_as_twin(
    found: Sequence[Tensor], by_twin: Sequence[Tensor], exact: Sequence[Tensor], names: Sequence[str] = RESULTS
) -> None:
    for name, a, b, c in zip(names, found, by_twin, exact, strict=True):
        assert a.shape == c.shape, name
        c = c.cpu()
        error, allowed = (a.cpu().double() - c).abs(), (b.cpu().double() - c).abs()
        floor = 4 * torch.finfo(torch.float32).eps * c.abs().max()
        assert error.max() <= 2 * allowed.max() + floor, name


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True], ids=["gdn", "inverse"])
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_are_as_close_as_the_twin(shape: str, inverse: bool, chosen: str) -> None:
    tensors = inputs(SHAPES[shape])
    with use_backend(chosen):
        found = results(operation, tensors, inverse, torch.float32, PLACES[chosen])
    by_twin = results(twin, tensors, inverse, torch.float32, "cpu")
    assert_close_as_twin(found, by_twin, results(twin, tensors, inverse, torch.float64, "cpu"))


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_short_formats(dtype: torch.dtype, chosen: str) -> None:
    tensors = [t.to(dtype).double() for t in inputs((2, 40, 3, 7))]
    with use_backend(chosen):
        found = results(operation, tensors, False, dtype, PLACES[chosen])
    assert found[0].dtype == found[1].dtype == dtype
    by_twin = results(twin, tensors, False, dtype, "cpu")
    assert_close_as_twin(found, by_twin, results(twin, tensors, False, torch.float64, "cpu"))


@pytest.mark.skipif(MISSING["triton"], reason="Triton has packages for Linux only")
def test_squares_beyond_float16_do_not_overflow() -> None:
    x, beta, gamma, *_ = inputs((1, 16, 4, 4))
    x = (500 * x.sign()).half()
    with use_backend("triton"):
        y = gdn(x.to(DEVICE), beta.float().to(DEVICE), gamma.float().to(DEVICE))
    exact = kernels.gdn_ref(x.double(), beta, gamma, None, False)
    torch.testing.assert_close(y.double().cpu(), exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("chosen", BACKENDS)
def test_layouts(chosen: str) -> None:
    """Channels-last and strided maps, each tensor in a layout of its own, and no residual."""
    x, beta, gamma, residual, _ = (t.float().to(PLACES[chosen]) for t in inputs((2, 40, 6, 5)))
    last = torch.channels_last
    with use_backend(chosen):
        expected = gdn(x, beta, gamma, residual)
        for a, b in ((x.to(memory_format=last), residual), (x, residual.to(memory_format=last))):
            y = gdn(a, beta, gamma, b)
            assert torch.equal(y, expected)
            assert y.is_contiguous(memory_format=last) == a.is_contiguous(memory_format=last)
        wide = torch.cat([x, residual], dim=1)
        assert torch.equal(gdn(wide[:, :40], beta, gamma.t().contiguous().t(), wide[:, 40:]), expected)
        torch.testing.assert_close(gdn(x, beta, gamma) + residual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chosen", BACKENDS)
def test_runs_batches_and_surroundings_do_not_matter(chosen: str) -> None:
    x, beta, gamma, residual, _ = (t.float().to(PLACES[chosen]) for t in inputs((3, 24, 5, 9)))
    with use_backend(chosen):
        batch = gdn(x, beta, gamma, residual, inverse=True)
        assert torch.equal(batch, gdn(x, beta, gamma, residual, inverse=True))
        for i in range(3):
            assert torch.equal(gdn(x[i : i + 1], beta, gamma, residual[i : i + 1], inverse=True), batch[i : i + 1])


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_instruction_sets_and_threads(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["generic", "avx2", "avx512"]
    if names.index(isa) > names.index(backend.cpu_kernels.isa()):
        pytest.skip(f"this processor has no {isa}")
    tensors = inputs((1, 70, 24, 17))
    x, beta, gamma, residual, _ = (t.float() for t in tensors)
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        y = gdn(x, beta, gamma, residual)
        last = gdn(x.to(memory_format=torch.channels_last), beta, gamma, residual)
        try:
            torch.set_num_threads(1)
            alone = gdn(x, beta, gamma, residual)
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(y, alone)
    assert torch.equal(y, last)
    exact = kernels.gdn_ref(*tensors[:4], False)
    by_twin = kernels.gdn_ref(x, beta, gamma, residual, False)
    assert (y - exact).abs().max() <= 2 * (by_twin - exact).abs().max() + 1e-6


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_gradients_across_instruction_sets_and_threads(
    isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dx depends neither on the layout nor on the threads; dbeta and dgamma, sums over positions, are repeatable."""
    names = ["generic", "avx2", "avx512"]
    if names.index(isa) > names.index(backend.cpu_kernels.isa()):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    x, beta, gamma, _, grad = inputs((2, 70, 24, 17))
    maps, weights = (grad.to(dtype), x.to(dtype)), (beta.float(), gamma.float())
    operator = torch.ops.mlic_fast.gdn_backward.default
    exact = kernels.gdn_backward_ref(*(t.double() for t in maps), beta, gamma, False)
    by_twin = kernels.gdn_backward_ref(*maps, *weights, False)
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found = operator(*maps, *weights, False, "cpu")
                last = operator(*(t.to(memory_format=torch.channels_last) for t in maps), *weights, False, "cpu")
                again = operator(*maps, *weights, False, "cpu")
                if count == 1:
                    dx = found[0]
                assert torch.equal(found[0], dx)
                assert all(torch.equal(a, b) for a, b in zip(found, last, strict=True))
                assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
                assert_close_as_twin(found, by_twin, exact, RESULTS[1:4])
        finally:
            torch.set_num_threads(threads)


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
def test_gradients_of_extremes() -> None:
    """Not-a-number stays where it is, in bfloat16 too, and what lies behind the last position is not taken for one."""
    x, beta, gamma, _, grad = (t.bfloat16() for t in inputs((1, 5, 3, 7)))
    grad[0, 2, 1, 3] = float("nan")
    beta, gamma = beta.float(), gamma.float()
    with use_backend("cpu"):
        dx, dbeta, dgamma = torch.ops.mlic_fast.gdn_backward(grad, x, beta, gamma, False, "cpu")
    by_twin = kernels.gdn_backward_ref(grad, x, beta, gamma, False)
    for a, b in zip((dx, dbeta, dgamma), by_twin, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=2e-2, atol=1e-3)
    none = torch.zeros(5)
    with use_backend("cpu"):
        dx, dbeta, dgamma = torch.ops.mlic_fast.gdn_backward(torch.ones_like(x), x, none, gamma, False, "cpu")
    assert all(t.isfinite().all() for t in (dx, dbeta, dgamma))


@pytest.mark.parametrize("inverse", [False, True], ids=["gdn", "inverse"])
def test_torch_backend_is_compressai(inverse: bool) -> None:
    torch.manual_seed(0)
    theirs, own = GDN(24, inverse=inverse), layer.GDN(24, inverse=inverse)
    assert {name: t.shape for name, t in own.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in own.state_dict().items())  # they begin alike
    with torch.no_grad():  # on both sides of the lower bounds
        theirs.beta.copy_(torch.randn(24))
        theirs.gamma.copy_(torch.randn(24, 24) / 10)
    own.load_state_dict(theirs.state_dict())
    x, residual, grad = torch.randn(3, 2, 24, 6, 5).unbind()
    with use_backend("torch"):
        results = [(own(x, residual), own), (theirs(x) + residual, theirs)]
        assert torch.equal(results[0][0], results[1][0])
        gradients = [torch.autograd.grad(y, [module.beta, module.gamma], grad) for y, module in results]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inverse", [False, True], ids=["gdn", "inverse"])
def test_twins_gradients(inverse: bool) -> None:
    """The twin's autograd by differences, and the plain backward by the twin's autograd, both in float64."""
    x, beta, gamma, residual, grad = inputs((1, 3, 2, 3))
    leaves = [t.requires_grad_() for t in (x, beta, gamma, residual)]
    assert torch.autograd.gradcheck(lambda *t: kernels.gdn_ref(*t, inverse), leaves)
    expected = torch.autograd.grad(kernels.gdn_ref(*leaves, inverse), leaves[:3], grad)
    for a, b in zip(kernels.gdn_backward_ref(grad, *leaves[:3], inverse), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("chosen", ["cpu", "torch"])
def test_in_place(chosen: str, inverse: bool) -> None:
    """The same bits as a result of its own, for every layout and also for rows of a map."""
    beta, gamma = torch.rand(24) + 0.5, torch.rand(24, 24)
    last = torch.channels_last
    with use_backend(chosen):
        for dtype in (torch.float32, torch.bfloat16):
            for layout in (torch.contiguous_format, last):
                x, residual = (torch.randn(2, 24, 7, 50).to(dtype).contiguous(memory_format=layout) for _ in "xr")
                for beside in (residual, None, residual.contiguous()):
                    wanted, found = gdn(x, beta, gamma, beside, inverse=inverse), x.clone()
                    assert gdn_(found, beta, gamma, beside, inverse=inverse) is found
                    assert torch.equal(found, wanted)
        x = torch.randn(1, 24, 9, 50).contiguous(memory_format=last)
        wanted, found = gdn(x, beta, gamma, inverse=inverse), x.clone()
        gdn_(found[:, :, 3:5], beta, gamma, inverse=inverse)
        assert torch.equal(found[:, :, 3:5], wanted[:, :, 3:5])
        assert torch.equal(found[:, :, :3], x[:, :, :3])
        assert torch.equal(found[:, :, 5:], x[:, :, 5:])
        across = x.clone()
        gdn_(across[..., 1::2], beta, gamma, inverse=inverse)
        torch.testing.assert_close(across[..., 1::2], wanted[..., 1::2])
        assert torch.equal(across[..., ::2], x[..., ::2])


def test_operator_is_registered_well() -> None:
    x, beta, gamma, residual, _ = (t.float().requires_grad_() for t in inputs((2, 6, 3, 4)))
    with use_backend("cpu"):
        for arguments in (
            (x, beta, gamma, residual, False, "cpu"),
            (x.to(memory_format=torch.channels_last), beta, gamma, None, True, "cpu"),
        ):
            torch.library.opcheck(torch.ops.mlic_fast.gdn.default, arguments)
            with torch.no_grad():
                plain = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
                torch.library.opcheck(torch.ops.mlic_fast.gdn_.default, plain)


@pytest.mark.parametrize("chosen", BACKENDS)
@pytest.mark.parametrize("x_last", [False, True], ids=["x-contiguous", "x-channels-last"])
@pytest.mark.parametrize("grad_last", [False, True], ids=["gradient-contiguous", "gradient-channels-last"])
def test_backward_operator_is_registered_well(grad_last: bool, x_last: bool, chosen: str) -> None:
    """Strides as the fake implementation tells them, in mixed layouts and with transposed weights."""
    x, beta, gamma, _, grad = (t.float().to(PLACES[chosen]) for t in inputs((2, 6, 3, 4)))
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    maps = grad.contiguous(memory_format=formats[grad_last]), x.contiguous(memory_format=formats[x_last])
    beta, gamma = torch.stack([beta, beta], dim=1)[:, 0], gamma.t()
    operator = torch.ops.mlic_fast.gdn_backward.default
    with use_backend(chosen):
        torch.library.opcheck(operator, (*maps, beta, gamma, True, chosen))
        dx, dbeta, dgamma = operator(*maps, beta, gamma, True, chosen)
        dense = operator(grad, x, beta.contiguous(), gamma.contiguous(), True, chosen)
    assert dx.is_contiguous(memory_format=formats[x_last])
    assert dbeta.is_contiguous()
    assert dgamma.is_contiguous()
    for a, b in zip((dx, dbeta, dgamma), dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
@pytest.mark.slow
def test_compiled_gradients_in_mixed_layouts() -> None:
    """Inductor plans strides from the fake implementation; the gradient of y is contiguous, x is channels-last."""
    x, beta, gamma, residual, weights = (t.float() for t in inputs((2, 16, 8, 8)))
    leaves = [x.to(memory_format=torch.channels_last), beta, gamma.t(), residual]
    leaves = [t.requires_grad_() for t in leaves]

    def loss(x: Tensor, beta: Tensor, gamma: Tensor, residual: Tensor) -> Tensor:
        return (gdn(torch.sin(x), beta, gamma, residual) * weights).sum()

    with use_backend("cpu"):
        expected = torch.autograd.grad(loss(*leaves), leaves)
        found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chosen", ALL_BACKENDS)
def test_autocast_makes_no_difference(chosen: str) -> None:
    """Neither around the operation nor around its gradients."""
    tensors = inputs((2, 24, 6, 7))
    device = PLACES.get(chosen, "cpu")
    with use_backend(chosen):
        expected = results(operation, tensors, False, torch.float32, device)
        with torch.autocast(device, dtype=torch.bfloat16):
            found = results(operation, tensors, False, torch.float32, device)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("chosen", ALL_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16], ids=["others-fp32", "others-bf16"])
def test_result_has_the_dtype_of_x(other: torch.dtype, dtype: torch.dtype, chosen: str) -> None:
    tensors = [t.to(torch.bfloat16) for t in inputs((1, 16, 3, 5))]
    x, beta, gamma, residual, _ = (t.to(PLACES.get(chosen, "cpu")) for t in tensors)
    leaves = [x.to(dtype), beta.to(other), gamma.to(other), residual.to(other)]
    leaves = [t.requires_grad_() for t in leaves]
    with use_backend(chosen):
        y = gdn(*leaves)
        gradients = torch.autograd.grad(y.sum(), leaves)
    assert y.dtype == dtype
    assert [t.dtype for t in gradients] == [dtype, other, other, other]
    exact = kernels.gdn_ref(*(t.double().cpu() for t in (x, beta, gamma, residual)), False)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(y.detach().double().cpu(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chosen", ALL_BACKENDS)
@pytest.mark.parametrize("which", ["beta", "gamma", "residual"])
def test_tensors_on_other_devices_are_refused(which: str, chosen: str) -> None:
    names = ("x", "beta", "gamma", "residual")
    tensors = dict(zip(names, (t.float().to(PLACES.get(chosen, "cpu")) for t in inputs((1, 6, 4, 4))), strict=False))
    tensors[which] = tensors[which].to("meta")
    with use_backend(chosen), pytest.raises(DeviceError, match=f"{which} on meta"):
        gdn(**tensors)


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
def test_addresses_are_handed_over_checked() -> None:
    """The operator itself, behind the checks of the public function."""
    x, beta, gamma, residual, _ = (t.float() for t in inputs((1, 6, 4, 4)))
    with use_backend("cpu"):
        for wrong in ((x, beta.double(), gamma, residual), (x, beta, gamma, residual.half())):
            with pytest.raises(BackendError, match="the kernel takes float32"):
                torch.ops.mlic_fast.gdn(*wrong, False, "cpu")


@pytest.mark.parametrize("inverse", [False, True], ids=["gdn", "inverse"])
def test_plain_backward_in_several_blocks(inverse: bool) -> None:
    """More positions than one block holds, the last block short, in both layouts."""
    x, beta, gamma, _, grad = inputs((2, 3, 31, 37))
    assert kernels.PLAIN_BLOCK < 31 * 37
    leaves = [t.requires_grad_() for t in (x, beta, gamma)]
    expected = torch.autograd.grad(kernels.gdn_ref(*leaves, None, inverse), leaves, grad)
    for format_ in (torch.contiguous_format, torch.channels_last):
        maps = grad.contiguous(memory_format=format_), x.detach().contiguous(memory_format=format_)
        for a, b in zip(kernels.gdn_backward_ref(*maps, beta, gamma, inverse), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.skipif(MISSING["cpu"], reason="the CPU kernels are not built")
def test_compiles_without_graph_breaks() -> None:
    x, beta, gamma, residual, _ = (t.float() for t in inputs((1, 6, 4, 4)))
    with use_backend("cpu"):
        compiled = torch.compile(lambda *t: gdn(torch.sin(t[0]), *t[1:]) * 2, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, beta, gamma, residual), gdn(torch.sin(x), beta, gamma, residual) * 2)


@pytest.mark.parametrize("chosen", BACKENDS)
def test_what_does_not_fit_is_refused(chosen: str) -> None:
    x, beta, gamma, residual, _ = (t.float().to(PLACES[chosen]) for t in inputs((1, 6, 4, 4)))
    with use_backend(chosen):
        with pytest.raises(BackendError, match=r"beta \[C\]"):
            gdn(x, beta[:5], gamma)
        with pytest.raises(BackendError, match="shape of x"):
            gdn(x, beta, gamma, residual[:, :, :3])
        with pytest.raises(BackendError, match="float64"):
            gdn(x.double(), beta, gamma)


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_published_size_on_the_gpu() -> None:
    tensors = inputs((1, 192, 64, 96))
    with use_backend("triton"):
        found = results(operation, tensors, False, torch.float32, "cuda")
    by_twin = results(twin, tensors, False, torch.float32, "cpu")
    assert_close_as_twin(found, by_twin, results(twin, tensors, False, torch.float64, "cpu"))
