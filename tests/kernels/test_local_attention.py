# SPDX-License-Identifier: Apache-2.0
"""Local window attention: twin, CPU and Triton kernels, and their gradients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import exp, sqrt
from typing import Any

import pytest
import torch
from mlic_fast.kernels.local_attention import local_attention_full, local_attention_ref, window_mask
from torch import Tensor

from mlic_fast.checkerboard import Parity, keep, pack
from mlic_fast.compute import backend
from mlic_fast.compute import triton_language as language
from mlic_fast.compute.triton_language import HAS_TRITON
from mlic_fast.errors import BackendError, ConfigError
from mlic_fast.nn.local_context import LocalContext
from mlic_fast.ops import local_attention as ops
from mlic_fast.ops.local_attention import local_attention, shared_mask
from mlic_fast.train.layers import TrainedLocalContext

NAMES = ("qkv", "position_table", "fusion_weight", "fusion_bias", "proj_weight", "proj_bias")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# batch, C, height, width, standard deviation of q, k and v
SHAPES = {
    "smallest-4x4": (1, 8, 4, 4, 1.0),
    "batch3-head-of-5": (3, 10, 4, 8, 1.0),
    "head-of-12-tall": (1, 24, 12, 4, 1.0),
    "published-8x8": (1, 32, 8, 8, 1.0),
    "peaked-softmax": (1, 8, 4, 8, 6.0),
}
# slices of more than 64 channels, where a program of the Triton kernel has some of the outputs only
WIDE_SHAPES = {"published-latents-in-2-slices-4x4": (1, 96, 4, 4, 1.0)}
# what the interpreter would take too long for
LARGE_SHAPES = {
    "vector-and-tail-of-4": (2, 32, 8, 40, 1.0),
    "tail-of-12": (1, 16, 12, 28, 1.0),
    "widest-head": (1, 64, 8, 12, 1.0),
    "narrowest-head": (1, 2, 8, 36, 1.0),
    "some-windows-far-below-their-row": (1, 32, 12, 16, 20.0),
}


@contextmanager
def runner(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One of triton, generic, avx2, avx512: the backend, and the CPU kernels' instruction set."""
    if name == "triton":
        with backend.use_backend("triton"):
            yield
        return
    monkeypatch.setenv("MLIC_FAST_ISA", name)
    try:
        backend.cpu_kernels.isa()
    except BackendError as error:
        pytest.skip(str(error))
    with backend.use_backend("cpu"):
        yield


RUNS = [
    pytest.param(
        name,
        shape,
        id=f"{name}-{shape}",
        marks=pytest.mark.skipif(name == "triton" and not HAS_TRITON, reason="Triton has packages for Linux only"),
    )
    for name in ("generic", "avx2", "avx512", "triton")
    for shape in ({**SHAPES, **WIDE_SHAPES} if name == "triton" else {**SHAPES, **LARGE_SHAPES})
]


@pytest.fixture(autouse=True)
def _holes_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated unset starts as NaN, so that an element that nobody writes fails a comparison."""
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", filled)


def arguments(batch: int, C: int, height: int, width: int, spread: float = 1.0, device: str = "cpu") -> list[Tensor]:
    """Inputs in the order of NAMES, such that outputs are of the order of 1."""
    random = torch.Generator().manual_seed(C * height + width)

    def normal(*shape: int, factor: float = 1.0) -> Tensor:
        return (factor * torch.randn(*shape, generator=random)).to(device)

    return [
        normal(batch, 3 * C, height, width, factor=spread),
        normal(81, 2, factor=0.5),
        normal(2 * C, C, 5, 5, factor=1 / sqrt(25 * C)),
        normal(2 * C),
        normal(2 * C, 2 * C, factor=1 / sqrt(2 * C)),
        normal(2 * C),
    ]


def with_gradients(attention: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and the six gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close_as_twin(found: list[Tensor], twin: list[Tensor], exact: list[Tensor]) -> None:
    """The 2 × rule: at most twice the float32 twin's largest and mean-square error, plus a floor of a few roundings."""
    for name, a, b, c in zip(("out", *NAMES), found, twin, exact, strict=False):
        assert a.shape == c.shape, name
        error, allowed = (a.double() - c).abs(), (b.double() - c).abs()
        floor = 4 * torch.finfo(torch.float32).eps * c.abs().max()
        assert error.max() <= 2 * allowed.max() + floor, name
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + floor / 4, name


def by_definition(qkv: Tensor, table: Tensor, C: int, height: int, width: int) -> Tensor:
    """Attended windows of one picture [C, 5, 5, height, width], by the formula, one number after the other."""
    maps = qkv.double().view(3, C // 2, 2, height, width)

    def inside(row: int, column: int) -> bool:
        return 0 <= row < height and 0 <= column < width

    def vector(part: int, head: int, row: int, column: int) -> Tensor:
        if inside(row, column):
            return maps[part, :, head, row, column]
        return torch.zeros(C // 2, dtype=torch.float64)

    def anchor(row: int, column: int) -> bool:
        return inside(row, column) and (row + column) % 2 == 1

    out = torch.empty(C, 5, 5, height, width, dtype=torch.float64)
    window = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    for row in range(height):
        for column in range(width):
            for head in range(2):
                for i, j in window:
                    query = (row + i, column + j)
                    weights, total = torch.zeros(C // 2, dtype=torch.float64), 0.0
                    for k, m in window:
                        key = (row + k, column + m)
                        score = float(vector(0, head, *query) @ vector(1, head, *key)) / sqrt(C // 2)
                        score += float(table[(i - k + 4) * 9 + j - m + 4, head])
                        if not (anchor(*query) and anchor(*key)):
                            score -= 100.0
                        weights = weights + exp(score) * vector(2, head, *key)
                        total += exp(score)
                    out[head * (C // 2) : (head + 1) * (C // 2), i + 2, j + 2, row, column] = weights / total
    return out


def test_twin_is_the_definition() -> None:
    C, height, width = 4, 4, 4
    inputs = [x.double() for x in arguments(1, C, height, width)]
    windows = by_definition(inputs[0], inputs[1], C, height, width)
    fused = torch.einsum("ocij,cijyx->yxo", inputs[2], windows) + inputs[3]
    expected = fused @ inputs[4].t() + inputs[5]
    full = local_attention_full(*inputs).view(height, width, 2 * C)
    torch.testing.assert_close(full, expected, rtol=1e-9, atol=1e-9)
    packed = local_attention_ref(*inputs)[0]
    for row in range(height):
        torch.testing.assert_close(packed[row], expected[row, row % 2 :: 2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "shape"), RUNS)
def test_kernel_is_as_close_as_the_twin(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arguments(*{**SHAPES, **WIDE_SHAPES, **LARGE_SHAPES}[shape], device=DEVICE if name == "triton" else "cpu")
    twin = local_attention_ref(*inputs)
    with runner(name, monkeypatch):
        found = local_attention(*inputs)
    assert_close_as_twin([found], [twin], [local_attention_ref(*(x.double() for x in inputs))])


# backend, (batch, C, height, width), rows of a block (0: as in use; twice the height: two pictures)
GRADIENT_RUNS = {
    "cpu-batch2-head-of-5": ("cpu", (2, 10, 8, 12), 0),
    "cpu-batch3-two-pictures-at-a-time": ("cpu", (3, 8, 4, 8), 8),
    "cpu-published-blocks-of-5": ("cpu", (1, 32, 12, 40), 5),
    "cpu-blocks-of-1": ("cpu", (1, 8, 4, 4), 1),
    "triton-published-4x4": ("triton", (1, 32, 4, 4), 0),
    "triton-batch2-blocks-of-3": ("triton", (2, 2, 4, 4), 3),
}


@pytest.mark.parametrize("run", GRADIENT_RUNS)
def test_gradients_are_as_close_as_the_twins(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, (batch, C, height, width), rows = GRADIENT_RUNS[run]
    if chosen == "triton" and not HAS_TRITON:
        pytest.skip("Triton has packages for Linux only")
    if rows:
        monkeypatch.setattr(ops, "BLOCK_FLOATS", rows * C * 25 * width // 2)
    inputs = arguments(batch, C, height, width, device=DEVICE if chosen == "triton" else "cpu")
    grad = torch.randn_like(local_attention_ref(*inputs))
    exact = with_gradients(local_attention_ref, [x.double() for x in inputs], grad.double())
    twin = with_gradients(local_attention_ref, inputs, grad)
    with backend.use_backend(chosen):
        found = with_gradients(local_attention, inputs, grad)
        assert_close_as_twin(found, twin, exact)
        if chosen == "triton" and language.INTERPRETED:
            return  # it does one thing after the other: two runs could not differ
        again = with_gradients(local_attention, inputs, grad)
    for name, a, b in zip(("out", *NAMES), found, again, strict=True):
        assert torch.equal(a, b), f"{name}: two runs differ"


@pytest.mark.parametrize("rows", [3, 8, 16], ids=["blocks-of-3-rows", "one-picture", "two-pictures"])
def test_a_pictures_gradients_in_a_batch_are_those_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "BLOCK_FLOATS", rows * 32 * 25 * 12 // 2)
    qkv, *parameters = arguments(3, 32, 8, 12)
    grad = torch.randn(3, 8, 6, 64, generator=torch.Generator().manual_seed(0))
    with backend.use_backend("cpu"):
        together = with_gradients(local_attention, [qkv, *parameters], grad)[1]
        for i in range(3):
            alone = with_gradients(local_attention, [qkv[i : i + 1], *parameters], grad[i : i + 1])[1]
            assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("chosen", ["cpu", "triton"])
def test_autocast_changes_nothing(chosen: str) -> None:
    if chosen == "triton" and not HAS_TRITON:
        pytest.skip("Triton has packages for Linux only")
    device = DEVICE if chosen == "triton" else "cpu"
    inputs = arguments(1, 2, 4, 4, device=device)
    grad = torch.randn_like(local_attention_ref(*inputs))
    with backend.use_backend(chosen):
        expected = with_gradients(local_attention, inputs, grad)
        with torch.autocast(device, dtype=torch.bfloat16):
            found = with_gradients(local_attention, inputs, grad)
    for name, a, b in zip(("out", *NAMES), found, expected, strict=True):
        assert a.dtype == torch.float32, name
        assert torch.equal(a, b), name


def test_cpu_kernel_is_not_given_what_it_cannot_read() -> None:
    # the checks of the operators' arguments come first for callers: these are the last ones before raw addresses
    for wrong in (torch.zeros(4, 4).bfloat16(), torch.zeros(4, 4).t()[:, :2], torch.zeros(4, 4, device="meta")):
        with pytest.raises(BackendError, match="backend cpu was given"):
            ops._address(wrong)


def test_gradients_in_every_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arguments(1, 12, 8, 20)
    grad = torch.randn_like(local_attention_ref(*inputs))
    exact = with_gradients(local_attention_ref, [x.double() for x in inputs], grad.double())
    twin = with_gradients(local_attention_ref, inputs, grad)
    widest = backend.cpu_kernels.isa()
    for name in ("generic", "avx2", "avx512"):
        with runner(name, monkeypatch):
            assert_close_as_twin(with_gradients(local_attention, inputs, grad), twin, exact)
        if name == widest:
            break


def test_twins_gradients_are_those_of_its_values() -> None:
    inputs = [x.double().requires_grad_() for x in arguments(1, 2, 4, 4)]
    assert torch.autograd.gradcheck(local_attention_ref, inputs, fast_mode=True)


def test_scores_so_low_that_a_shared_maximum_would_leave_nothing() -> None:
    # one key that a query sees by 95 more than all others, from windows with and without it
    inputs = arguments(1, 2, 8, 8)
    qkv = inputs[0].zero_()
    qkv[:, 0:2] = 1.0
    qkv[:, 2:4, 4, 5] = 95.0
    qkv[:, 4:6] = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))
    exact = local_attention_ref(*(x.double() for x in inputs))
    with backend.use_backend("cpu"):
        found = local_attention(*inputs)
    assert_close_as_twin([found], [local_attention_ref(*inputs)], [exact])


@pytest.mark.parametrize("advantage", [90.0, 100.0, 115.0])
@pytest.mark.parametrize("chosen", ["cpu", "triton"])
def test_mask_is_added_and_does_not_exclude(chosen: str, advantage: float) -> None:
    if chosen == "triton" and not HAS_TRITON:
        pytest.skip("Triton has packages for Linux only")
    # keys at non-anchors lead by about what the mask takes off for an anchor's query
    inputs = arguments(1, 2, 4, 4, device=DEVICE if chosen == "triton" else "cpu")
    qkv = inputs[0]
    qkv[:, 0:2] = 1.0
    nonanchors = keep(torch.ones_like(qkv[:, 2:4]), Parity.NONANCHOR) > 0
    qkv[:, 2:4] = torch.where(nonanchors, advantage, 0.01 * qkv[:, 2:4])
    exact = local_attention_ref(*(x.double() for x in inputs))
    with backend.use_backend(chosen):
        found = local_attention(*inputs)
    assert_close_as_twin([found], [local_attention_ref(*inputs)], [exact])


@pytest.mark.parametrize("chosen", ["cpu", "triton"])
def test_nan_reaches_the_windows_that_hold_it_and_no_others(chosen: str) -> None:
    if chosen == "triton" and not HAS_TRITON:
        pytest.skip("Triton has packages for Linux only")
    width = 8 if chosen == "cpu" else 6
    for part in range(3):
        inputs = arguments(1, 4, 4, width, device=DEVICE if chosen == "triton" else "cpu")
        inputs[0][0, 4 * part + 1, 0, 4] = float("nan")
        with backend.use_backend(chosen):
            found = local_attention(*inputs)
        holds = torch.zeros(1, 1, 4, width)
        holds[:, :, :3, 2:7] = 1.0
        expected = pack(holds, Parity.NONANCHOR)[0, 0] > 0
        assert torch.equal(found.isnan().all(-1)[0].cpu(), expected)
        assert torch.equal(found.isnan().any(-1)[0].cpu(), expected)


def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for batch in (1, 2):
                with backend.use_backend("cpu"):
                    results.append((batch, local_attention(*arguments(batch, 16, 12, 20))))
    finally:
        torch.set_num_threads(before)
    for batch, found in results:
        assert torch.equal(found, results[batch - 1][1])


@pytest.mark.parametrize("chosen", ["cpu", "triton"])
def test_a_picture_in_a_batch_gives_what_it_gives_alone(chosen: str) -> None:
    if chosen == "triton" and not HAS_TRITON:
        pytest.skip("Triton has packages for Linux only")
    size = (3, 6, 4, 12) if chosen == "cpu" else (3, 2, 4, 4)
    qkv, *parameters = arguments(*size, device=DEVICE if chosen == "triton" else "cpu")
    with backend.use_backend(chosen):
        together = local_attention(qkv, *parameters)
        for i in range(3):
            assert torch.equal(together[i : i + 1], local_attention(qkv[i : i + 1], *parameters))


@pytest.mark.parametrize("chosen", ["cpu", "triton"])
def test_strides_change_nothing(chosen: str) -> None:
    if chosen == "triton" and not HAS_TRITON:
        pytest.skip("Triton has packages for Linux only")
    qkv, *parameters = arguments(2, 4, 4, 8 if chosen == "cpu" else 2, device=DEVICE if chosen == "triton" else "cpu")
    wide = torch.cat([qkv, qkv], dim=1)
    views = {
        "channels-last": qkv.contiguous(memory_format=torch.channels_last),
        "slice of channels": wide[:, 12:],
        "transposed": qkv.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": qkv[:1].expand(2, -1, -1, -1),
    }
    table, fusion, *others = parameters
    turned = [table.t().contiguous().t(), fusion.contiguous(memory_format=torch.channels_last), *others]
    with backend.use_backend(chosen):
        expected = local_attention(qkv, *parameters)
        for name, view in views.items():
            found = local_attention(view, *turned)
            assert torch.equal(found, expected[[0, 0]] if name == "expanded" else expected), name


def test_registered_operator() -> None:
    inputs = [x.requires_grad_() for x in arguments(2, 4, 4, 8)]
    torch.library.opcheck(torch.ops.mlic_fast.local_attention, (*inputs, "cpu"))


@pytest.mark.parametrize("layout", ["contiguous", "turned"])
def test_registered_operator_of_the_gradients(layout: str) -> None:
    qkv, table, fusion, fusion_bias, proj, _ = arguments(2, 4, 4, 8)
    grad = torch.randn(2, 4, 4, 8)
    if layout == "turned":
        qkv, fusion = (x.contiguous(memory_format=torch.channels_last) for x in (qkv, fusion))
        table, proj, grad = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (table, proj, grad))
    operator = torch.ops.mlic_fast.local_attention_backward
    torch.library.opcheck(operator, (grad, qkv, table, fusion, fusion_bias, proj, "cpu"))
    for found in operator(grad, qkv, table, fusion, fusion_bias, proj, "cpu"):
        assert found.is_contiguous()


def test_compiles_into_one_graph() -> None:
    inputs = arguments(1, 4, 4, 8)
    grad = torch.randn(1, 4, 4, 8)

    def scaled(*tensors: Tensor) -> Tensor:
        return 2.0 * local_attention(*tensors)

    with backend.use_backend("cpu"):
        expected = with_gradients(scaled, inputs, grad)
        found = with_gradients(torch.compile(scaled, fullgraph=True, backend="aot_eager"), inputs, grad)
    for name, a, b in zip(("out", *NAMES), found, expected, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("qkv", lambda x: x[:, :9], ConfigError),
        ("qkv", lambda x: x[:, :, :, :7], ConfigError),
        ("qkv", lambda x: x[:0], ConfigError),
        ("qkv", lambda x: x[0], ConfigError),
        ("position_table", lambda x: x[:80], ConfigError),
        ("fusion_weight", lambda x: x[:, :, :3, :3], ConfigError),
        ("proj_weight", lambda x: x[:4], ConfigError),
        ("proj_bias", lambda x: x[:1], ConfigError),
        ("fusion_bias", lambda x: x.double(), BackendError),
        ("fusion_bias", lambda x: x.to("meta"), BackendError),
    ],
)
def test_what_does_not_fit_is_refused(name: str, change: Callable[[Tensor], Tensor], error: type[Exception]) -> None:
    inputs = dict(zip(NAMES, arguments(1, 4, 4, 8), strict=True))
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=name):
        local_attention(**inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_kernels_refuse_other_types(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in arguments(1, 4, 4, 8)]
    with backend.use_backend("cpu"), pytest.raises(BackendError, match="float32"):
        local_attention(*inputs)


def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIC_FAST_ISA", "avx1024")
    with backend.use_backend("cpu"), pytest.raises(BackendError, match=r"avx1024.*generic, avx2, avx512"):
        local_attention(*arguments(1, 4, 4, 8))


def test_local_context_of_training_is_the_plain_ones_nonanchors() -> None:
    torch.manual_seed(0)
    module = TrainedLocalContext(8)
    anchors = keep(torch.randn(2, 8, 4, 8), Parity.ANCHOR).requires_grad_()
    with backend.use_backend("torch"):
        plain = keep(module(anchors, window_mask(4, 8, anchors)), Parity.NONANCHOR)
        assert torch.equal(plain, keep(module(anchors), Parity.NONANCHOR))
        assert torch.equal(LocalContext.forward(module, anchors), module(anchors))
        assert shared_mask(anchors) is not None
    with backend.use_backend("cpu"):
        found = module(anchors)
        assert shared_mask(anchors) is None
        written_down = keep(LocalContext.forward(module, anchors), Parity.NONANCHOR)
    for one in (found, written_down):
        torch.testing.assert_close(one, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, keep(found, Parity.NONANCHOR))
    weights = [anchors, *module.parameters()]
    grad = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, weights, grad)
    for a, b in zip(torch.autograd.grad(found, weights, grad), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


_MEMORY = """
import sys
import torch
from mlic_fast.compute.backend import use_backend
from mlic_fast.ops.local_attention import local_attention

height, width, C = int(sys.argv[2]), int(sys.argv[3]), 32

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

def arguments(height, width):
    shapes = (1, 3 * C, height, width), (81, 2), (2 * C, C, 5, 5), (2 * C,), (2 * C, 2 * C), (2 * C,)
    return [torch.randn(*shape) / 8 for shape in shapes]

torch.set_num_threads(2)
with use_backend(sys.argv[1]), torch.no_grad():
    local_attention(*arguments(4, 4))
    inputs = arguments(height, width)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    local_attention(*inputs)
    print(status("VmHWM") - before)
"""


def extra_memory(chosen: str, height: int, width: int) -> float:
    """MiB that a process of its own takes at most beyond what it had, the result included."""
    run = subprocess.run(
        [sys.executable, "-c", _MEMORY, chosen, str(height), str(width)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return float(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_at_4k_latents() -> None:
    assert extra_memory("cpu", 136, 240) < 40


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_a_twentieth_of_the_unfold_form() -> None:
    assert extra_memory("cpu", 32, 48) <= extra_memory("torch", 32, 48) / 20
