# SPDX-License-Identifier: Apache-2.0
"""Linear attention: the kernels and their gradients against the plain twins, on the GPU or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mlic_fast.kernels import linear_attention as kernels
from mlic_fast.kernels.linear_attention_backward import backward
from torch import Tensor

from mlic_fast.compute.backend import use_backend
from mlic_fast.compute.triton_language import HAS_TRITON
from mlic_fast.errors import BackendError, ConfigError, DeviceError
from mlic_fast.ops import linear_attention as ops

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton has packages for Linux only")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
FORMS: dict[str, tuple[Attention, Attention]] = {
    "global": (ops.linear_attention, kernels.linear_attention_ref),
    "checkerboard": (ops.checkerboard_linear_attention, kernels.checkerboard_linear_attention_ref),
}

# batch, channels, height, width, heads
SHAPES = {
    "smallest-4x4": (1, 32, 4, 4, 1),
    "published-inter-2heads": (1, 64, 4, 12, 2),
    "published-intra-batch3": (3, 32, 4, 8, 2),
    "narrow-head-6": (1, 12, 8, 4, 2),
    "two-tiles-head-48": (1, 48, 4, 4, 1),
    "tail-after-block": (1, 16, 12, 12, 1),
}


@pytest.fixture(autouse=True)
def _holes_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated unset starts as NaN, so that an element that nobody writes fails a comparison."""
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", filled)
    torch.manual_seed(0)


def maps(batch: int, channels: int, height: int, width: int, spread: float = 3.0) -> list[Tensor]:
    """Queries and keys of a spread that makes softmaxes uneven, values and a gradient; [B, D, h, w] each."""
    queries, keys, values, grad = torch.randn(4, batch, channels, height, width).to(DEVICE).unbind()
    return [spread * queries, spread * keys, values, grad]


def results(attention: Attention, inputs: list[Tensor], heads: int, dtype: torch.dtype) -> list[Tensor]:
    """The result and the three gradients."""
    *three, grad = (x.to(dtype) for x in inputs)
    three = [x.detach().requires_grad_() for x in three]
    out = attention(*three, heads)
    return [out.detach(), *torch.autograd.grad(out, three, grad)]


def assert_close_as_twin(found: list[Tensor], twin: list[Tensor], exact: list[Tensor]) -> None:
    """The 2 × rule: at most twice the float32 twin's largest and mean-square error, plus a floor of a few roundings."""
    for name, a, b, c in zip(("out", "queries'", "keys'", "values'"), found, twin, exact, strict=True):
        assert a.shape == c.shape, name
        error, allowed = (a.double() - c).abs(), (b.double() - c).abs()
        floor = 4 * torch.finfo(torch.float32).eps * c.abs().max()
        assert error.max() <= 2 * allowed.max() + floor, name
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + floor / 4, name


@needs_triton
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_and_gradients_are_as_close_as_the_twin(form: str, shape: str) -> None:
    *size, heads = SHAPES[shape]
    operation, twin = FORMS[form]
    inputs = maps(*size)
    with use_backend("triton"):
        found = results(operation, inputs, heads, torch.float32)
    assert_close_as_twin(
        found, results(twin, inputs, heads, torch.float32), results(twin, inputs, heads, torch.float64)
    )


@needs_triton
def test_splits_are_combined() -> None:
    """More positions than one split has, the last one short; keys that grow, so that every maximum changes."""
    queries, keys, values, grad = maps(1, 16, 20, 20)
    keys += torch.linspace(-30, 30, 400, device=DEVICE).view(20, 20)
    assert kernels.split_work(queries, 1, False).splits > 2
    with use_backend("triton"):
        found = results(ops.linear_attention, [queries, keys, values, grad], 1, torch.float32)
    twin, exact = (
        results(kernels.linear_attention_ref, [queries, keys, values, grad], 1, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert_close_as_twin(found, twin, exact)


@needs_triton
@pytest.mark.parametrize("offset", [-1e4, 80.0, 1e4], ids=["far-below", "exp-overflows", "far-above"])
def test_softmaxes_do_not_overflow(offset: float) -> None:
    queries, keys, values, _ = maps(1, 16, 4, 4)
    with use_backend("triton"):
        out = ops.linear_attention(queries + offset, keys + offset, values, 1)
    exact = kernels.linear_attention_ref((queries + offset).double(), (keys + offset).double(), values.double(), 1)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@needs_triton
def test_nan_reaches_the_result() -> None:
    """A NaN is not swallowed by a maximum: it must be seen when scales are checked."""
    for poisoned in range(3):
        inputs = maps(1, 16, 4, 4)[:3]
        inputs[poisoned][0, 3, 1, 2] = float("nan")
        with use_backend("triton"):
            found = ops.linear_attention(*inputs, 1).isnan()
        assert torch.equal(found, kernels.linear_attention_ref(*inputs, 1).isnan())
        assert found.any()


@needs_triton
@pytest.mark.parametrize("form", FORMS)
def test_bits_repeat_and_do_not_depend_on_the_batch(form: str) -> None:
    operation = FORMS[form][0]
    inputs = maps(3, 16, 4, 8)
    with use_backend("triton"):
        together = results(operation, inputs, 2, torch.float32)
        again = results(operation, inputs, 2, torch.float32)
        alone = results(operation, [x[1:2] for x in inputs], 2, torch.float32)
    for first, second, one in zip(together, again, alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first[1:2], one)


@needs_triton
@pytest.mark.parametrize("form", FORMS)
def test_strides_do_not_matter(form: str) -> None:
    """Channels-last maps, slices of wider maps, and a gradient without memory of its own."""
    operation = FORMS[form][0]
    queries, keys, values, _ = maps(2, 16, 4, 8)
    grad = torch.ones(1, device=DEVICE).expand(2, 16, 4, 8)
    strided = [
        queries.to(memory_format=torch.channels_last),
        torch.cat([values, keys], dim=1)[:, 16:],
        torch.stack([values, keys], dim=4)[..., 0],
        grad,
    ]
    with use_backend("triton"):
        expected = results(operation, [queries, keys, values, grad.contiguous()], 1, torch.float32)
        found = results(operation, strided, 1, torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert a.is_contiguous()
        assert torch.equal(a, b)


def test_checkerboard_reads_and_writes_its_positions_alone() -> None:
    """Change what lies at unread positions: nothing changes; the result is zero at anchors, gradients where unread."""
    row, column = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
    anchor = ((row + column) % 2 == 1).to(DEVICE)
    queries, keys, values, grad = maps(1, 16, 4, 8)
    other = [
        torch.where(anchor, 7.0, queries),
        torch.where(anchor, keys, 7.0),
        torch.where(anchor, values, 7.0),
        torch.where(anchor, 7.0, grad),
    ]
    for backend in ("torch", "triton") if HAS_TRITON else ("torch",):
        with use_backend(backend):
            found = results(ops.checkerboard_linear_attention, [queries, keys, values, grad], 2, torch.float32)
            same = results(ops.checkerboard_linear_attention, other, 2, torch.float32)
        for a, b, zero in zip(found, same, (anchor, anchor, ~anchor, ~anchor), strict=True):
            assert torch.equal(a, b), backend
            assert not a[..., zero].any(), backend
            assert a[..., ~zero].all(), backend


def test_checkerboard_twin_is_attention_over_the_squeezed_maps() -> None:
    """The twin by its definition, one position at a time, in float64."""
    queries, keys, values, _ = (x.double().cpu() for x in maps(1, 4, 4, 4))
    positions = [(i, j) for i in range(4) for j in range(4)]
    anchors = [(i, j) for i, j in positions if (i + j) % 2]
    expected = torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    for head in (slice(0, 2), slice(2, 4)):
        k = torch.stack([keys[0, head, i, j] for i, j in anchors], dim=1).softmax(dim=1)
        v = torch.stack([values[0, head, i, j] for i, j in anchors], dim=1)
        for i, j in positions:
            if (i + j) % 2 == 0:
                expected[0, head, i, j] = (k @ v.T).T @ queries[0, head, i, j].softmax(dim=0)
    torch.testing.assert_close(kernels.checkerboard_linear_attention_ref(queries, keys, values, 2), expected)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_the_twin(form: str) -> None:
    inputs = [x.double().requires_grad_() for x in maps(1, 4, 4, 4)[:3]]
    assert torch.autograd.gradcheck(lambda *three: FORMS[form][1](*three, 2), inputs)


QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@needs_triton
@pytest.mark.parametrize(
    "checks",
    [
        pytest.param(QUICK_CHECKS, id="quick"),
        pytest.param(("test_aot_dispatch_dynamic",), id="dynamic", marks=pytest.mark.slow),
    ],
)
def test_operators_are_registered_well(checks: tuple[str, ...]) -> None:
    *three, grad = maps(1, 16, 4, 4)
    _, statistics, context = kernels.forward(*three, 1, True)
    plain = [x.detach() for x in (grad, *three, statistics, context)]
    forward = torch.ops.mlic_fast.linear_attention.default
    backward = torch.ops.mlic_fast.linear_attention_backward.default
    with use_backend("triton"):
        torch.library.opcheck(forward, (*(x.requires_grad_() for x in three), 1, True), test_utils=checks)
        torch.library.opcheck(backward, (*plain, 1, True), test_utils=checks)


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("form", FORMS)
def test_compiles_in_one_graph(form: str, backend: str) -> None:
    operation = FORMS[form][0]
    inputs = maps(1, 16, 4, 4)
    torch.compiler.reset()
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    with use_backend(backend):
        for found, expected in zip(
            results(compiled, inputs, 1, torch.float32), results(operation, inputs, 1, torch.float32), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_plain_path_is_the_twin_to_the_bit() -> None:
    queries, keys, values, _ = maps(1, 64, 8, 8)
    with use_backend("torch"):
        for operation, twin in FORMS.values():
            assert torch.equal(operation(queries, keys, values, 2), twin(queries, keys, values, 2))


WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "shapes-differ": (
        ConfigError,
        "one shape",
        lambda: ops.linear_attention(torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 8), 1),
    ),
    "no-map": (ConfigError, "one shape", lambda: ops.linear_attention(*torch.ones(3, 4, 4, 4), 1)),
    "empty": (ConfigError, "one shape", lambda: ops.linear_attention(*torch.ones(3, 0, 4, 4, 4), 1)),
    "heads": (ConfigError, "5 channels", lambda: ops.linear_attention(*torch.ones(3, 1, 5, 4, 4), 2)),
    "half": (ConfigError, "float32", lambda: ops.linear_attention(*torch.ones(3, 1, 4, 4, 4).half(), 1)),
    "odd-checkerboard": (
        ConfigError,
        "even",
        lambda: ops.checkerboard_linear_attention(*torch.ones(3, 1, 4, 4, 5), 1),
    ),
    "devices": (
        DeviceError,
        "meta",
        lambda: ops.linear_attention(*torch.ones(2, 1, 4, 4, 4), torch.ones(1, 4, 4, 4, device="meta"), 1),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_refused(case: str) -> None:
    kind, words, call = WRONG[case]
    with pytest.raises(kind, match=words):
        call()


@needs_triton
def test_kernels_refuse_float64() -> None:
    with use_backend("triton"), pytest.raises(BackendError, match="float32"):
        ops.linear_attention(*torch.ones(3, 1, 4, 4, 4, dtype=torch.float64, device=DEVICE), 1)


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 288, 32, 48, 9), (2, 288, 136, 240, 9), (1, 32, 136, 240, 2)], ids=str)
def test_full_size_on_a_gpu(form: str, size: tuple[int, ...]) -> None:
    *shape, heads = size
    operation, twin = FORMS[form]
    inputs = maps(*shape)
    found = results(operation, inputs, heads, torch.float32)
    assert_close_as_twin(
        found, results(twin, inputs, heads, torch.float32), results(twin, inputs, heads, torch.float64)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, results(operation, inputs, heads, torch.float32), strict=True))


@needs_triton
def test_backward_needs_no_more_than_statistics_and_contexts() -> None:
    """The kernels' interface: gradients from what `forward` returned beside the result."""
    queries, keys, values, grad = maps(1, 16, 4, 4)
    _, statistics, context = kernels.forward(queries, keys, values, 2, False)
    assert statistics.shape == (1, 16, 2)
    assert context.shape == (1, 16, 8)
    gradients = backward(grad, queries, keys, values, statistics, context, 2, False)
    expected = results(kernels.linear_attention_ref, [queries, keys, values, grad], 2, torch.float64)[1:]
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
