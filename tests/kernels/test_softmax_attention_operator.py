# SPDX-License-Identifier: Apache-2.0
"""Softmax attention as an operator of PyTorch: registration, compilation, refusals, and what memory it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mlic_fast.kernels import softmax_attention as kernels
from mlic_fast.kernels.softmax_attention_backward import backward_ref
from softmax_attention_samples import FORMS, maps, on_triton, place_of, results
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlic_fast.compute.backend import use_backend
from mlic_fast.errors import BackendError, ConfigError, DeviceError
from mlic_fast.ops import softmax_attention as ops


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("name", ["torch", "cpu", on_triton])
@pytest.mark.parametrize(
    "checks",
    [
        pytest.param(QUICK_CHECKS, id="quick"),
        pytest.param(("test_aot_dispatch_dynamic",), id="dynamic", marks=pytest.mark.slow),
    ],
)
def test_operators_are_registered_well(checks: tuple[str, ...], name: str) -> None:
    *three, grad = maps(1, 16, 4, 4, name=name)
    forward, gradients = (
        torch.ops.mlic_fast.softmax_attention.default,
        torch.ops.mlic_fast.softmax_attention_backward.default,
    )
    options = (1, True, 2, name)
    saved = [x.detach() for x in forward(*three, *options)]
    torch.library.opcheck(gradients, (grad, *three, *saved, *options), test_utils=checks)
    torch.library.opcheck(forward, (*(x.requires_grad_() for x in three), *options), test_utils=checks)


@pytest.mark.parametrize("name", ["torch", "cpu", on_triton])
@pytest.mark.parametrize("form", FORMS)
def test_compiles_in_one_graph(form: str, name: str) -> None:
    operation = FORMS[form][0]
    inputs = maps(1, 16, 4, 4, name=name)
    torch.compiler.reset()
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    with use_backend(name):
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
        lambda: ops.softmax_attention(torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 4), torch.ones(1, 4, 4, 8), 1),
    ),
    "no-map": (ConfigError, "one shape", lambda: ops.softmax_attention(*torch.ones(3, 4, 4, 4), 1)),
    "empty": (ConfigError, "one shape", lambda: ops.softmax_attention(*torch.ones(3, 0, 4, 4, 4), 1)),
    "heads": (ConfigError, "5 channels", lambda: ops.softmax_attention(*torch.ones(3, 1, 5, 4, 4), 2)),
    "half": (ConfigError, "float32", lambda: ops.softmax_attention(*torch.ones(3, 1, 4, 4, 4).half(), 1)),
    "odd-checkerboard": (
        ConfigError,
        "even",
        lambda: ops.checkerboard_softmax_attention(*torch.ones(3, 1, 4, 4, 5), 1),
    ),
    "radius": (
        ConfigError,
        "radius of -1",
        lambda: ops.checkerboard_softmax_attention(*torch.ones(3, 1, 4, 4, 4), 1, -1),
    ),
    "devices": (
        DeviceError,
        "meta",
        lambda: ops.softmax_attention(*torch.ones(2, 1, 4, 4, 4), torch.ones(1, 4, 4, 4, device="meta"), 1),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_refused(case: str) -> None:
    kind, words, call = WRONG[case]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("name", ["cpu", on_triton])
def test_kernels_refuse_float64(name: str) -> None:
    three = torch.ones(3, 1, 4, 4, 4, dtype=torch.float64, device=place_of(name))
    with use_backend(name), pytest.raises(BackendError, match="float32"):
        ops.softmax_attention(*three, 1)


def test_cpu_kernel_is_not_given_what_it_cannot_read() -> None:
    # the checks of the operators' arguments come first for callers: these are the last ones before raw addresses
    good = torch.zeros(1, 4, 4, 4)
    for wrong in (good.bfloat16(), good[:, :2], good.to("meta")):
        with pytest.raises(BackendError, match="float32 maps of one shape on the CPU"):
            ops._on_cpu(good, good, wrong, 1, False, 0)


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operator returns within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_no_tensor_has_the_scores_of_all_queries() -> None:
    *three, grad = maps(1, 8, 48, 48)
    for checkerboard in (False, True):
        with _LargestTensor() as largest:
            if checkerboard:
                out = kernels.checkerboard_softmax_attention_ref(*three, 2)
            else:
                out = kernels.softmax_attention_ref(*three, 2)
            backward_ref(grad, *three, out, 2, checkerboard, 2)
        # scores of a block of queries, or which of all positions lie near them
        assert largest.elements == kernels.BLOCK_QUERIES * 48 * 48


_MEMORY = """
import sys
import torch
from mlic_fast.compute.backend import use_backend
from mlic_fast.ops.softmax_attention import checkerboard_softmax_attention, softmax_attention

attention = {"global": softmax_attention, "checkerboard": checkerboard_softmax_attention}[sys.argv[2]]
side, gradients = int(sys.argv[3]), sys.argv[4] == "gradients"

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

def run(side):
    three = [torch.randn(1, 32, side, side).requires_grad_(gradients) for _ in range(3)]
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    out = attention(*three, 1)
    if gradients:
        out.sum().backward()
    return status("VmHWM") - before

torch.set_num_threads(2)
with use_backend(sys.argv[1]):
    run(8)
    print(run(side))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "direction", "most"), [("cpu", "forward", 16), ("torch", "forward", 50), ("torch", "gradients", 120)]
)
def test_memory_does_not_grow_with_the_square_of_the_positions(
    form: str, name: str, direction: str, most: float
) -> None:
    """MiB, at some 9,200 positions that are attended to: all scores would be 324, a map is 1.1 (checkerboard: 2.3)."""
    side = "96" if form == "global" else "136"
    run = subprocess.run(
        [sys.executable, "-c", _MEMORY, name, form, side, direction], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout) < most
