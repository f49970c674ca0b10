# SPDX-License-Identifier: Apache-2.0
"""Softmax attention: twin, CPU and Triton kernels and their gradients, against the formula and against each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import sqrt
from typing import Any

import pytest
import torch
from mlic_fast.kernels import softmax_attention as kernels
from mlic_fast.kernels.softmax_attention_backward import backward, backward_ref
from softmax_attention_samples import DEVICE, FORMS, maps, needs_triton, on_triton, place_of, results
from torch import Tensor

from mlic_fast.compute import backend
from mlic_fast.compute import triton_language as language
from mlic_fast.compute.backend import use_backend
from mlic_fast.errors import BackendError
from mlic_fast.ops import softmax_attention as ops

# batch, channels, height, width, heads
SHAPES = {
    "smallest-2x2": (1, 32, 2, 2, 1),
    "all-excluded-for-some-4x4": (1, 32, 4, 4, 2),
    "published-inter-2heads": (1, 64, 4, 12, 2),
    "published-intra-batch3": (3, 32, 4, 8, 2),
    "narrow-head-6-tall": (1, 12, 10, 6, 2),
    "two-tiles-head-48": (1, 48, 4, 6, 1),
    "blocks-and-tail": (1, 16, 10, 14, 1),
}
# of any height and width, for attention over all positions
ODD_SHAPES = {"one-position": (1, 8, 1, 1, 1), "odd-3x5-batch2": (2, 12, 3, 5, 2), "one-row": (1, 8, 1, 7, 1)}
# what the interpreter would take too long for
LARGE_SHAPES = {
    "groups-and-tail": (2, 32, 12, 18, 1),
    "window-over-the-edge-of-a-block": (1, 16, 12, 44, 1),
    "head-33": (1, 33, 16, 20, 1),
    "several-heads-at-a-time": (3, 64, 8, 10, 4),
}
CPU_SETS = ("generic", "avx2", "avx512")


@pytest.fixture(autouse=True)
def _holes_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated unset starts as NaN, so that an element that nobody writes fails a comparison."""
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() and x.device.type != "meta" else x

    monkeypatch.setattr(torch, "empty", filled)
    torch.manual_seed(0)


@contextmanager
def runner(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A backend, or one of the CPU kernels' instruction sets."""
    if name not in CPU_SETS:
        with use_backend(name):
            yield
        return
    monkeypatch.setenv("MLIC_FAST_ISA", name)
    try:
        backend.cpu_kernels.isa()
    except BackendError as error:
        pytest.skip(str(error))
    with use_backend("cpu"):
        yield


def assert_close_as_twin(found: list[Tensor], twin: list[Tensor], exact: list[Tensor], times: int = 2) -> None:
    """The 2 × rule: at most twice the float32 twin's largest and mean-square error, plus a floor of a few roundings."""
    for name, a, b, c in zip(("out", "queries'", "keys'", "values'"), found, twin, exact, strict=False):
        assert a.shape == c.shape, name
        error, allowed = (a.double() - c).abs(), (b.double() - c).abs()
        floor = 4 * torch.finfo(torch.float32).eps * c.abs().max()
        assert error.max() <= times * allowed.max() + floor, name
        assert error.square().mean().sqrt() <= times * allowed.square().mean().sqrt() + floor / 4, name


def by_definition(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, checkerboard: bool, radius: int = 0
) -> Tensor:
    """The formula in float64, one query after the other."""
    batch, channels, height, width = queries.shape
    size = channels // heads
    places = [(row, column) for row in range(height) for column in range(width)]
    to = [(i, j) for i, j in places if not checkerboard or (i + j) % 2]
    out = torch.zeros_like(queries, dtype=torch.float64)
    for b in range(batch):
        for head in range(heads):
            q, k, v = (x[b, head * size : (head + 1) * size].double() for x in (queries, keys, values))
            value = torch.stack([v[:, i, j] for i, j in to])
            for row, column in places:
                if checkerboard and (row + column) % 2:
                    continue
                scores = torch.stack([q[:, row, column] @ k[:, i, j] / sqrt(size) for i, j in to])
                for n, (i, j) in enumerate(to):
                    if checkerboard and abs(i - row) <= radius and abs(j - column) <= radius:
                        scores[n] = -100.0
                out[b, head * size : (head + 1) * size, row, column] = scores.softmax(0) @ value
    return out


@pytest.mark.parametrize("block", [5, 128], ids=["blocks-of-5", "one-block"])
@pytest.mark.parametrize("shape", {**SHAPES, **ODD_SHAPES})
def test_twin_is_the_definition(shape: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK_QUERIES", block)
    *size, heads = {**SHAPES, **ODD_SHAPES}[shape]
    three = [x.double() for x in maps(*size)[:3]]
    torch.testing.assert_close(kernels.softmax_attention_ref(*three, heads), by_definition(*three, heads, False))
    if shape in ODD_SHAPES:
        return
    for radius in (0, 1, 2, 3, 20):
        found = kernels.checkerboard_softmax_attention_ref(*three, heads, radius)
        torch.testing.assert_close(found, by_definition(*three, heads, True, radius))
    assert torch.equal(
        kernels.checkerboard_softmax_attention_ref(*three, heads),
        kernels.checkerboard_softmax_attention_ref(*three, heads, 2),
    )


RUNS = [
    pytest.param(name, shape, id=f"{name}-{shape}", marks=[needs_triton] if name == "triton" else [])
    for name in (*CPU_SETS, "triton")
    for shape in ({**SHAPES, **ODD_SHAPES} if name == "triton" else {**SHAPES, **ODD_SHAPES, **LARGE_SHAPES})
]


@pytest.mark.parametrize(("name", "shape"), RUNS)
def test_kernel_is_as_close_as_the_twin(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *size, heads = {**SHAPES, **ODD_SHAPES, **LARGE_SHAPES}[shape]
    three = maps(*size, name=name)[:3]
    pairs = [FORMS["global"]]
    if shape not in ODD_SHAPES:
        pairs += [tuple(partial(f, radius=radius) for f in FORMS["checkerboard"]) for radius in (0, 1, 2, 5)]
    for operation, twin in pairs:
        with runner(name, monkeypatch):
            found = operation(*three, heads)
        assert found.is_contiguous()
        assert_close_as_twin([found], [twin(*three, heads)], [twin(*(x.double() for x in three), heads)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["cpu", on_triton])
def test_gradients_are_as_close_as_the_twins(name: str, shape: str, form: str) -> None:
    *size, heads = SHAPES[shape]
    operation, twin = FORMS[form]
    inputs = maps(*size, name=name)
    with use_backend(name):
        found = results(operation, inputs, heads, torch.float32)
    with use_backend("torch"):  # whose gradients come, as the kernels', from the result and not from all weights
        plain = results(operation, inputs, heads, torch.float32)
    # in the interpreter the scores' products are NumPy's, whose rounding differs between the forward and the backward
    # kernel's blocks, so that shares are not normalised to the last bit
    times = 4 if name == "triton" and language.INTERPRETED else 2
    assert_close_as_twin(found, plain, results(twin, inputs, heads, torch.float64), times)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_values(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd's of the twin, and those of the operation, which come block by block from scores computed anew."""
    monkeypatch.setattr(kernels, "BLOCK_QUERIES", 5)
    inputs = [x.double().requires_grad_() for x in maps(1, 4, 4, 6)[:3]]
    radius = {} if form == "global" else {"radius": 1}
    for attention in FORMS[form]:
        assert torch.autograd.gradcheck(lambda *three, f=attention: f(*three, 2, **radius), inputs)


@needs_triton
def test_backward_needs_no_more_than_the_result_and_statistics() -> None:
    """The kernels' interface, and the plain twin of the same."""
    *three, grad = maps(1, 16, 4, 6, name="triton")
    out, statistics = kernels.forward(*three, 2, True, 1)
    assert statistics.shape == (1, 2, 12, 2)
    found = backward(grad, *three, out, statistics, 2, True, 1)
    expected = backward_ref(*(x.double() for x in (grad, *three, out)), 2, True, 1)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


EVERY = ["torch", *CPU_SETS, on_triton]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("offset", [-1e4, -90.0, 90.0, 1e4], ids=["far-below", "below", "above", "far-above"])
def test_huge_scores_stay_finite(name: str, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores of that order, with differences that count; then scores of both signs that leave one key alone."""
    queries, keys, values, _ = maps(1, 16, 4, 6, name=name)
    queries[:, 0], keys[:, 0] = 4.0, offset
    with runner(name, monkeypatch):
        found = ops.softmax_attention(queries, keys, values, 1)
        near = ops.checkerboard_softmax_attention(queries, keys, values, 1)
        alone = ops.softmax_attention(100 * queries, 100 * keys, values, 1)
    exact = kernels.softmax_attention_ref(*(x.double() for x in (queries, keys, values)), 1)
    # a score of 10⁴ has an error of 10⁻³
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4 if abs(offset) < 100 else 1e-2)
    for out in (near, alone):
        assert out.isfinite().all()
        assert out.abs().max() <= values.abs().max() * 1.00001


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("side", [2, 4])
def test_queries_whose_keys_are_all_excluded_get_the_plain_mean(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, keys, values, _ = maps(1, 16, side, side, name=name)
    queries *= 1e4  # whatever the scores would be
    with runner(name, monkeypatch):
        out = ops.checkerboard_softmax_attention(queries, keys, values, 2)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    mean = values.double()[0, :, (rows + columns) % 2 == 1].mean(dim=1)
    for row, column in [(0, 0), (1, 1)] if side == 2 else [(1, 1), (2, 2)]:
        torch.testing.assert_close(out[0, :, row, column].double(), mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("score", [-130.0, -101.0, -99.0, -70.0])
def test_scores_are_replaced_and_not_lowered(name: str, score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys beyond the window that score about as little as the excluded ones, or less: then those have the say."""
    queries, keys, values, _ = maps(1, 16, 4, 10, name=name)
    queries.fill_(1.0)
    keys.fill_(score / 4)
    with runner(name, monkeypatch):
        found = ops.checkerboard_softmax_attention(queries, keys, values, 1)
    exact = by_definition(*(x.cpu() for x in (queries, keys, values)), 1, True, 2)
    torch.testing.assert_close(found.double().cpu(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cpu", on_triton])
@pytest.mark.parametrize("form", FORMS)
def test_nan_reaches_the_result(name: str, form: str) -> None:
    """A NaN is not swallowed by a maximum: it must be seen when scales are checked."""
    for poisoned in range(3):
        three = maps(1, 16, 6, 8, name=name)[:3]
        three[poisoned][0, 3, 1, 2 if poisoned else 3] = float("nan")  # a non-anchor's query, an anchor's key or value
        with use_backend(name):
            found = FORMS[form][0](*three, 1).isnan()
        assert torch.equal(found, FORMS[form][1](*three, 1).isnan())
        assert found.any()


@pytest.mark.parametrize("name", ["torch", "cpu", on_triton])
@pytest.mark.parametrize("form", FORMS)
def test_bits_repeat_and_do_not_depend_on_the_batch(name: str, form: str) -> None:
    operation = FORMS[form][0]
    inputs = maps(3, 16, 10, 14, name=name)
    with use_backend(name):
        together = results(operation, inputs, 2, torch.float32)
        again = results(operation, inputs, 2, torch.float32)
        alone = results(operation, [x[1:2] for x in inputs], 2, torch.float32)
    for first, second, one in zip(together, again, alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first[1:2], one)


@pytest.mark.parametrize("form", FORMS)
def test_threads_change_nothing(form: str) -> None:
    three = maps(2, 64, 12, 20)[:3]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with use_backend("cpu"):
                found.append(FORMS[form][0](*three, 2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, found[0]) for x in found)


@pytest.mark.parametrize("name", ["torch", "cpu", on_triton])
@pytest.mark.parametrize("form", FORMS)
def test_strides_do_not_matter(name: str, form: str) -> None:
    """Channels-last maps, slices of wider maps, and a gradient without memory of its own."""
    operation = FORMS[form][0]
    queries, keys, values, _ = maps(2, 16, 4, 8, name=name)
    grad = torch.ones(1, device=queries.device).expand(2, 16, 4, 8)
    strided = [
        queries.to(memory_format=torch.channels_last),
        torch.cat([values, keys], dim=1)[:, 16:],
        torch.stack([values, keys], dim=4)[..., 0],
        grad,
    ]
    with use_backend(name):
        expected = results(operation, [queries, keys, values, grad.contiguous()], 1, torch.float32)
        found = results(operation, strided, 1, torch.float32)
    for what, a, b in zip(("out", "queries'", "keys'", "values'"), found, expected, strict=True):
        assert a.is_contiguous()
        if name == "triton" or (name == "cpu" and what == "out"):
            assert torch.equal(a, b), what
        else:  # the rounding of PyTorch's matrix products may depend on the layout
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["torch", "cpu", on_triton])
def test_checkerboard_reads_and_writes_its_positions_alone(name: str) -> None:
    """Change what lies at unread positions: nothing changes; the result is zero at anchors, gradients where unread."""
    row, column = torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij")
    anchor = ((row + column) % 2 == 1).to(place_of(name))
    queries, keys, values, grad = maps(1, 16, 6, 8, name=name)
    other = [
        torch.where(anchor, float("nan"), queries),
        torch.where(anchor, keys, float("nan")),
        torch.where(anchor, values, float("nan")),
        torch.where(anchor, float("nan"), grad),
    ]
    with use_backend(name):
        found = results(ops.checkerboard_softmax_attention, [queries, keys, values, grad], 2, torch.float32)
        same = results(ops.checkerboard_softmax_attention, other, 2, torch.float32)
    for a, b, zero in zip(found, same, (anchor, anchor, ~anchor, ~anchor), strict=True):
        assert torch.equal(a, b)
        assert not a[..., zero].any()
        assert a[..., ~zero].all()


@pytest.mark.parametrize("name", ["torch", "cpu", on_triton])
def test_autocast_changes_nothing(name: str) -> None:
    inputs = maps(1, 16, 4, 6, name=name)
    with use_backend(name):
        expected = results(ops.softmax_attention, inputs, 1, torch.float32)
        with torch.autocast(place_of(name), dtype=torch.bfloat16):
            found = results(ops.softmax_attention, inputs, 1, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 288, 32, 48, 9), (2, 64, 68, 120, 2), (1, 32, 136, 240, 2)], ids=str)
def test_full_size_on_a_gpu(form: str, size: tuple[int, ...]) -> None:
    *shape, heads = size
    operation = FORMS[form][0]
    inputs = maps(*shape, name="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = results(operation, inputs, heads, torch.float32)
    # leaves, the result, three gradients, and a little for each query
    assert torch.cuda.max_memory_allocated() - before < 12 * inputs[0].nbytes
    with use_backend("torch"):  # whose gradients do not keep every softmax
        twins = [results(operation, inputs, heads, dtype) for dtype in (torch.float32, torch.float64)]
    assert_close_as_twin(found, *twins)
    assert all(torch.equal(a, b) for a, b in zip(found, results(operation, inputs, heads, torch.float32), strict=True))
