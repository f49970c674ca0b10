# SPDX-License-Identifier: Apache-2.0
"""CompressAI's models with this package's range coder (`use_range_coder`) and with their own: the same strings.

    python bench/bench_compressai_coder.py [--rounds N] [--write]     a table; --write keeps it in bench/results/
    pytest --benchmark bench/bench_compressai_coder.py                the same under pytest-benchmark

`y` is `compress` and `decompress` of a GaussianConditional alone, for the 491,520 symbols of `bench_range_coder.py`.
The others are `compress` and `decompress` of whole models of the zoo's lowest quality, their transforms included, on
the bundled photograph. cheng2020-anchor codes position by position, so its picture is small; what its coder takes grows
with the picture as everything else does.

Weights are seeded. Latents and scales are made to look like trained ones: a channel's standard deviation is between
0.05 and 3, and its scales are about that. Before anything is timed, strings and pictures of both are compared.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import bench_range_coder
import common
import torch
from bench_model import picture
from compressai.entropy_models import GaussianConditional
from compressai.zoo import image_models
from torch import Tensor, nn

from mlic_fast.entropy.compressai_coder import use_range_coder

# Standard deviations of the quietest and the loudest channel.
_QUIET, _LOUD = 0.05, 3.0


class Work(NamedTuple):
    """Two equal models, of which one has the range coder, and what both make of the picture."""

    models: dict[str, Any]
    x: Tensor
    coded: dict[str, Any]


class Case(NamedTuple):
    """What to do; name: of the zoo's model, or "y"; size: the picture's width and height."""

    name: str
    encode: bool
    size: tuple[int, int] = (768, 512)

    def work(self) -> None:
        """There is no floor: nothing else does the same."""


CASES = {
    "y, encode": Case("y", True),
    "y, decode": Case("y", False),
    "bmshj2018-hyperprior, 768×512, compress": Case("bmshj2018-hyperprior", True),
    "bmshj2018-hyperprior, 768×512, decompress": Case("bmshj2018-hyperprior", False),
    "mbt2018-mean, 768×512, compress": Case("mbt2018-mean", True),
    "mbt2018-mean, 768×512, decompress": Case("mbt2018-mean", False),
    "cheng2020-anchor, 192×128, compress": Case("cheng2020-anchor", True, (192, 128)),
    "cheng2020-anchor, 192×128, decompress": Case("cheng2020-anchor", False, (192, 128)),
}
SMOKE = {
    "mbt2018-mean, 64×64, compress": Case("mbt2018-mean", True, (64, 64)),
    "cheng2020-anchor, 64×64, decompress": Case("cheng2020-anchor", False, (64, 64)),
}
CONTESTANTS = ("mlic_fast", "compressai")


class _Gaussian(nn.Module):
    """An entropy model alone, under the methods of a whole one."""

    def __init__(self) -> None:
        super().__init__()
        self.gaussian_conditional = GaussianConditional(bench_range_coder.scale_table().tolist())
        self.gaussian_conditional.update()
        shape = (1, 320, 32, 48)
        self.indexes = bench_range_coder.make_work().indexes.to(torch.int32).reshape(shape)

    def compress(self, y: Tensor) -> dict[str, Any]:
        return {"strings": self.gaussian_conditional.compress(y, self.indexes), "shape": None}

    def decompress(self, strings: list[bytes], shape: None) -> dict[str, Any]:
        return {"x_hat": self.gaussian_conditional.decompress(strings, self.indexes)}


@torch.no_grad()
def seeded_model(name: str, x: Tensor) -> Any:
    """The zoo's model of quality 1 whose latents of this picture, and scales, spread as a trained model's do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = image_models[name](quality=1, pretrained=False).eval()
    last: Any = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
    y = model.g_a(x)
    channels = y.shape[1]
    wanted = torch.logspace(torch.tensor(_QUIET).log10(), torch.tensor(_LOUD).log10(), channels)
    spread = wanted / y.std(dim=(0, 2, 3))
    last.bias.copy_((last.bias - y.mean(dim=(0, 2, 3))) * spread)
    last.weight.mul_(spread[:, None, None, None])
    parameters = getattr(model, "entropy_parameters", model.h_s)
    scales: Any = [layer for layer in parameters if isinstance(layer, nn.Conv2d)][-1]
    scales.weight.mul_(0.1)
    scales.bias.zero_()[:channels].copy_(wanted)
    model.update()
    return model


@functools.cache
@torch.no_grad()
def make_work(name: str, size: tuple[int, int]) -> Work:
    """Both models must make the same strings and the same picture of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "y":
            x = bench_range_coder.make_work().symbols.float().reshape(1, 320, 32, 48)
            theirs: Any = _Gaussian()
        else:
            x = picture(*size)
            theirs = seeded_model(name, x)
    ours = copy.deepcopy(theirs)
    use_range_coder(ours)
    coded = theirs.compress(x)
    if ours.compress(x)["strings"] != coded["strings"]:
        raise RuntimeError("the two coders' strings differ: nothing to compare")
    x_hat = theirs.decompress(coded["strings"], coded["shape"])["x_hat"]
    if not torch.equal(ours.decompress(coded["strings"], coded["shape"])["x_hat"], x_hat):
        raise RuntimeError("the two coders' pictures differ: nothing to compare")
    return Work({"mlic_fast": ours, "compressai": theirs}, x, coded)


def call_of(case: Case, contestant: str, device: torch.device) -> Callable[[], Any]:
    work = make_work(case.name, case.size)
    model = work.models[contestant]

    @torch.no_grad()
    def encode() -> Any:
        return model.compress(work.x)

    @torch.no_grad()
    def decode() -> Any:
        return model.decompress(work.coded["strings"], work.coded["shape"])

    return encode if case.encode else decode


class CompressaiCoder(common.Benchmark):
    """On the CPU, where all coders run. Memory is that of the transforms, which are the same."""

    def peak(self, *_: Any) -> tuple[None, None]:
        return None, None


BENCHMARK = CompressaiCoder(
    operation="CompressAI's models",
    cases=CASES,
    smoke=SMOKE,
    contestants=CONTESTANTS,
    call_of=call_of,
    script=__file__,
    ours="mlic_fast",
    baseline="compressai",
    rounds=10,
    on=("cpu",),
    warm_calls=1,
)


def test_compressai_coder(compare: Any, case: str, device: torch.device) -> None:
    compare(BENCHMARK, case, device)


if __name__ == "__main__":
    common.main(BENCHMARK)
