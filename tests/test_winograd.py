# SPDX-License-Identifier: Apache-2.0
"""Winograd's convolution: as exact as the direct one, gradients too, for every layout, block and instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.compute.backend import use_backend
from mlic_fast.engine.layers import shuffle
from mlic_fast.ops import winograd
from mlic_fast.ops.winograd import coefficients_of, conv3x3, convolve, fits

pytestmark = pytest.mark.skipif(backend.report()["cpu"] is not None, reason="the C++ kernels are not built")

ROWS = [
    pytest.param(1, 32, 32, 2, 2, id="one-tile"),
    pytest.param(1, 32, 96, 2, 66, id="one-row"),
    pytest.param(3, 96, 32, 10, 6, id="batch-3"),
    pytest.param(2, 32, 64, 34, 36, id="wider"),
    pytest.param(1, 192, 96, 12, 8, id="narrower"),
    pytest.param(2, 48, 48, 14, 12, id="panels-of-16"),
    pytest.param(1, 48, 112, 10, 8, id="uneven-sums"),
    pytest.param(1, 32, 224, 26, 8, id="an odd number of panels"),
]


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(winograd, "MIN_POSITIONS", 1)
    with use_backend("cpu"):
        yield


def inputs(batch: int, in_channels: int, out_channels: int, height: int, width: int) -> list[Tensor]:
    """x, weight, bias and the result's gradient."""
    random = torch.Generator().manual_seed(0)
    shapes = (
        (batch, in_channels, height, width),
        (out_channels, in_channels, 3, 3),
        (out_channels,),
        (batch, out_channels, height, width),
    )
    return [torch.randn(shape, generator=random) for shape in shapes]


def direct(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, gelu: bool) -> list[Tensor]:
    """The result and all gradients, by PyTorch's own operators in the dtype of x."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = F.conv2d(F.gelu(leaves[0]) if gelu else leaves[0], *leaves[1:], padding=1)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def ours(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, gelu: bool) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = conv3x3(*leaves, gelu=gelu)  # type: ignore[arg-type]
    assert y.is_contiguous(memory_format=torch.channels_last)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def check(found: list[Tensor], given: list[Tensor | None], gelu: bool) -> None:
    """Errors are at most twice those of PyTorch's convolution, both against float64."""
    x, weight, bias, grad = given
    wide = [None if t is None else t.double() for t in given]
    reference = direct(*wide, gelu)  # type: ignore[arg-type]
    plain = direct(x, weight, bias, grad, gelu)  # type: ignore[arg-type]
    assert len(found) == len(reference)
    for one, other, exact in zip(found, plain, reference, strict=True):
        assert one.shape == exact.shape
        allowed = 2 * float((other - exact).abs().max()) + 2e-6 * float(exact.abs().max())
        assert float((one - exact).abs().max()) <= allowed


@pytest.mark.parametrize("gelu", [False, True], ids=["plain", "gelu"])
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize(("batch", "in_channels", "out_channels", "height", "width"), ROWS)
def test_result_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    isa: str,
    gelu: bool,
    batch: int,
    in_channels: int,
    out_channels: int,
    height: int,
    width: int,
) -> None:
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    if backend.report()["cpu"] is not None:
        pytest.skip("this processor has no such instructions")
    given = inputs(batch, in_channels, out_channels, height, width)
    check(ours(*given, gelu), [*given], gelu)


@pytest.mark.parametrize("pad_rows", [True, False], ids=["padded", "margins"])
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize(("height", "width", "batch"), [(3, 2, 1), (4, 6, 2), (9, 10, 3), (14, 50, 2), (31, 4, 1)])
def test_transformed_weights(
    monkeypatch: pytest.MonkeyPatch, isa: str, pad_rows: bool, height: int, width: int, batch: int
) -> None:
    """Heights may be odd, and rows above and below may be there already."""
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    if backend.report()["cpu"] is not None:
        pytest.skip("this processor has no such instructions")
    x, weight, bias, _ = inputs(batch, 64, 96, height, width)
    for offset in (bias, None):
        found = convolve([x], coefficients_of(weight), offset, pad_rows=pad_rows)
        assert found.is_contiguous(memory_format=torch.channels_last)
        plain, exact = (
            F.conv2d(*(None if t is None else t.to(dtype) for t in (x, weight, offset)), padding=(int(pad_rows), 1))  # type: ignore[arg-type]
            for dtype in (torch.float32, torch.float64)
        )
        assert found.shape == exact.shape
        allowed = 2 * float((plain - exact).abs().max()) + 2e-6 * float(exact.abs().max())
        assert float((found - exact).abs().max()) <= allowed


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_gelu_in_the_same_pass(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    """As exact as PyTorch's, which is within 4e-7 of x, also far out and at what is not finite."""
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    if backend.report()["cpu"] is not None:
        pytest.skip("this processor has no such instructions")
    values = torch.linspace(-12, 12, 128 * 1024).view(1, 32, 64, 64)
    extreme = torch.tensor([1e-30, -1e-30, 1e20, -1e20, torch.inf, -torch.inf, torch.nan, 0.0]).repeat(4)
    identity = torch.zeros(32, 32, 3, 3)
    identity[:, :, 1, 1] = torch.eye(32)
    coefficients = coefficients_of(identity)
    found = convolve([values], coefficients, None, gelu=True)
    # tiles are sums of neighbours: GELU of what comes out without it
    plain = convolve([values], coefficients, None)
    error = (found.double() - F.gelu(plain.double())).abs()
    assert float((error / plain.abs().clamp(min=1e-9)).max()) < 4e-7
    # a bias alone, so that nothing is added to the values
    found = convolve([torch.zeros_like(values)], coefficients, extreme, gelu=True)[0, :, 5, 7]
    exact = extreme * (1 + torch.erf(extreme / 2**0.5)) / 2
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("pad_rows", [True, False], ids=["padded", "margins"])
@pytest.mark.parametrize("heights", [(1, 6, 1), (2, 5), (3,), (1, 1, 1, 9)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pieces_and_pixel_shuffle(
    monkeypatch: pytest.MonkeyPatch, isa: str, pad_rows: bool, heights: tuple[int, ...], factor: int
) -> None:
    """The same bits as without: only places in memory differ."""
    monkeypatch.setenv("MLIC_FAST_ISA", isa)
    if backend.report()["cpu"] is not None:
        pytest.skip("this processor has no such instructions")
    x, weight, bias, _ = inputs(1, 32, 32 * factor**2, sum(heights), 10)
    coefficients = coefficients_of(weight)
    pieces = [
        piece.contiguous(memory_format=torch.channels_last) if n % 2 else piece
        for n, piece in enumerate(torch.split(x, list(heights), dim=2))
    ]
    found = convolve(pieces, coefficients, bias, pad_rows=pad_rows, gelu=True, factor=factor)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, shuffle(convolve([x], coefficients, bias, pad_rows=pad_rows, gelu=True), factor))


def test_pixel_shuffle_of_a_batch() -> None:
    x, weight, bias, _ = inputs(3, 32, 128, 6, 4)
    coefficients = coefficients_of(weight)
    found = convolve([x], coefficients, bias, factor=2)
    assert torch.equal(found, shuffle(convolve([x], coefficients, bias), 2))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_blocks_of_tiles_and_threads_make_no_difference(threads: int) -> None:
    """105 tiles are some blocks with a shorter last one; the same number of threads gives the same bits."""
    before = torch.get_num_threads()
    given = inputs(3, 32, 64, 14, 10)
    one = ours(*given, True)
    torch.set_num_threads(threads)
    try:
        first, second = ours(*given, True), ours(*given, True)
    finally:
        torch.set_num_threads(before)
    check(first, [*given], True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # each tile of a result is computed by one thread, whichever it is
    assert torch.equal(first[0], one[0])
    assert torch.equal(first[1], one[1])


def test_layouts_make_no_difference() -> None:
    x, weight, bias, grad = inputs(2, 32, 64, 8, 6)
    wanted = ours(x, weight, bias, grad, False)
    wide = torch.zeros(2, 40, 9, 6)
    wide[:, 2:34, 1:] = x
    last = torch.channels_last
    for maps in (
        (x.contiguous(memory_format=last), weight, bias, grad.contiguous(memory_format=last)),
        (wide[:, 2:34, 1:], weight.contiguous(memory_format=last), bias, grad),
        (x, weight.transpose(0, 1).contiguous().transpose(0, 1), bias, grad.sum(1, keepdim=True).expand(grad.shape)),
    ):
        found = ours(*maps, False)
        assert torch.equal(found[0], wanted[0])
        check(found, [*maps], False)


def test_without_bias_and_without_gradients_of_x() -> None:
    x, weight, _, grad = inputs(2, 32, 64, 8, 6)
    check(ours(x, weight, None, grad, False), [x, weight, None, grad], False)
    leaf = weight.clone().requires_grad_()
    (weight_grad,) = torch.autograd.grad(conv3x3(x, leaf), leaf, grad)
    assert torch.equal(weight_grad, ours(x, weight, None, grad, False)[2])


def test_every_value_is_written_and_what_is_not_finite_shows() -> None:
    x, weight, bias, _ = inputs(1, 32, 32, 8, 8)
    x[0, 3, 4, 4] = torch.nan
    y = conv3x3(x, weight, bias)
    assert y[0, :, 3:6, 3:6].isnan().all()
    # a tile's four values are formed of the same numbers, so its neighbours may be lost with it, others may not
    assert y[0, :, :2].isfinite().all()
    assert y[0, :, :, :2].isfinite().all()


def test_what_it_is_not_for_goes_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, _ = inputs(2, 32, 64, 8, 6)
    assert fits(x, weight)
    assert not fits(x.double(), weight.double())
    assert not fits(x.bfloat16(), weight.bfloat16())
    assert not fits(x[:, :, 1:], weight)
    assert not fits(x[..., 1:], weight)
    assert not fits(x[:, :24], weight[:, :24])
    assert not fits(x, weight[:40])
    assert not fits(x, weight[:, :, 1:2, 1:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fits(x, weight)
        assert conv3x3(x, weight, bias).dtype == torch.bfloat16
    monkeypatch.setattr(winograd, "MIN_POSITIONS", 2 * 8 * 6 + 1)
    assert not fits(x, weight)
    assert torch.equal(conv3x3(x, weight, bias, gelu=True), F.conv2d(F.gelu(x), weight, bias, padding=1))
    monkeypatch.setattr(winograd, "MIN_POSITIONS", 1)
    with use_backend("torch"):
        assert not fits(x, weight)
        assert torch.equal(conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1))


def test_the_operator_is_registered_as_pytorch_wants_it() -> None:
    x, weight, bias, _ = (t.requires_grad_() for t in inputs(2, 32, 64, 4, 6))
    for arguments in ((x, weight, bias, True), (x, weight, None, False)):
        torch.library.opcheck(torch.ops.mlic_fast.conv3x3.default, arguments)
    x, weight, bias, _ = inputs(2, 32, 64, 5, 6)
    for pad_rows in (True, False):
        y = torch.empty(2, 64, 5 if pad_rows else 3, 6).contiguous(memory_format=torch.channels_last)
        arguments = [x], coefficients_of(weight), bias, pad_rows, pad_rows, 1, y
        torch.library.opcheck(torch.ops.mlic_fast.winograd_conv3x3.default, arguments)


def test_kernels_refuse_what_would_leave_the_maps() -> None:
    kernels = backend.cpu_kernels
    for shape, outputs in (
        ((1, 4, 3, 32), 32),
        ((1, 4, 4, 24), 32),
        ((1, 4, 4), 32),
        ((1, 4, 4, 32), 40),
        ((1, 4, 4, 32), 0),
    ):
        with pytest.raises(ValueError, match=r"even|outputs|shape"):
            kernels.winograd_convolve([(0, 4)], shape, 0, outputs, 32, 0, 0, True, False, 1, 1)
        with pytest.raises(ValueError, match=r"even|outputs|shape"):
            kernels.winograd_weights(0, shape, 0, outputs, 0, 1)
    with pytest.raises(ValueError, match="height must be even"):
        kernels.winograd_weights(0, (1, 3, 4, 32), 0, 32, 0, 1)
    with pytest.raises(ValueError, match="margins"):
        kernels.winograd_convolve([(0, 1)], (1, 1, 4, 32), 0, 32, 32, 0, 0, False, False, 1, 1)
    with pytest.raises(ValueError, match="as many rows"):
        kernels.winograd_convolve([(0, 3), (0, 2)], (1, 4, 4, 32), 0, 32, 32, 0, 0, True, False, 1, 1)
    for factor in (0, 2):
        with pytest.raises(ValueError, match="shuffle"):
            kernels.winograd_convolve([(0, 4)], (1, 4, 4, 32), 0, 32, 32, 0, 0, True, False, factor, 1)
