# SPDX-License-Identifier: Apache-2.0
"""Calibration of the guard: how far scales computed in different ways lie apart.

Symbols are given, so that one implementation is compared with another position by position: the reference computes
in float64, every other way in float32 as files are decoded. Deviations are of log-scales, divided by the share of δ
that counts there (`moved_boundaries.share`); scales that lie well below the first boundary of the scale table do not
count: their index is 0 whatever they are exactly.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlic_fast.checkpoint.native import Deltas
from mlic_fast.coding import Way
from mlic_fast.compute.backend import plain_path, use_backend
from mlic_fast.engine import engine_for
from mlic_fast.entropy.coders import code
from mlic_fast.entropy.factorized import encode_hyper_latent
from mlic_fast.entropy.guard import DEFAULT_DELTA, DELTA_UNIT, MAX_DELTA, delta_code
from mlic_fast.entropy.moved_boundaries import share
from mlic_fast.errors import BackendError, GuardError
from mlic_fast.nn.network import Network
from mlic_fast.passes import passes
from mlic_fast.pictures.image import pad_to_64, to_tensor
from mlic_fast.wrappers import unwrapped

# δ is at least this many times the largest deviation found in a pass and channel.
MARGIN = 4
# Scales below this share of the table's first boundary do not count.
_COUNTED = 0.9


class Setting(NamedTuple):
    """A way to compute scales: what to enter, and whether the compiled engine walks."""

    enter: Callable[[], AbstractContextManager[None]]
    engine: bool = False


@dataclass(frozen=True, eq=False)
class Deviation:
    """The largest deviations from float64 over a picture's scales, computed in one way, as δ is measured.

    channels: float64 [passes, C].
    """

    picture: str
    way: str
    channels: Tensor

    @property
    def largest(self) -> float:
        return float(self.channels.max())


@dataclass(frozen=True)
class GivenSymbols:
    """A picture's hyper-latent ẑ and symbols (packed, one array a pass), to be decoded without a stream."""

    z_hat: Tensor
    symbols: tuple[Tensor, ...]


def ways(device: torch.device) -> dict[str, Setting]:
    """The ways to compute scales that this machine has on that device, by name."""
    found = {"plain": Setting(plain_path)}
    if device.type == "cuda":
        kernels = Setting(lambda: use_backend("triton"))
        return found | {"Triton kernels": kernels, "engine": kernels._replace(engine=True)}
    kernels = Setting(lambda: use_backend("cpu"))
    return found | {
        "plain, one thread": Setting(lambda: on_threads(1)),
        "plain, without oneDNN": Setting(without_onednn),
        "C++ kernels": kernels,
        "engine": kernels._replace(engine=True),
    }


def pictures(*, height: int = 512, width: int = 768) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Pictures that try the arithmetic: flat ones (norms of vectors near zero), noise, edges, text-like."""
    generator = np.random.Generator(np.random.PCG64(7))
    shape = height, width, 3
    for name, value in (("black", 0), ("mid-grey", 128), ("white", 255)):
        yield name, np.full(shape, value, np.uint8)
    yield "noise", generator.integers(0, 256, shape, dtype=np.uint8)
    yield "faint noise", generator.integers(127, 130, shape, dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows * 255 // (height - 1), columns * 255 // (width - 1), (rows + columns) % 256], axis=-1)
    yield "ramps", ramp.astype(np.uint8)
    yield "checks", np.broadcast_to(((rows // 8 + columns // 8) % 2 * 255)[..., None], shape).astype(np.uint8)
    glyphs = generator.random((height // 12 + 1, width // 6 + 1)) < 0.4
    text = np.kron(glyphs, np.ones((12, 6), bool))[:height, :width] & (rows % 12 > 3) & (columns % 6 > 0)
    yield "text-like", np.broadcast_to(np.where(text, 20, 240)[..., None], shape).astype(np.uint8)


@torch.no_grad()
def given_symbols(model: nn.Module, picture: object) -> GivenSymbols:
    """What `model` would code for a picture (anything that `open_image` takes)."""
    from mlic_fast.pictures.image import open_image

    model = unwrapped(model)
    parameter = next(model.parameters())
    x = pad_to_64(to_tensor(open_image(picture)).to(parameter.device, parameter.dtype), "fade")
    y, z = model.analyse(x)
    z_hat = encode_hyper_latent(model.entropy, z)[1]
    quantizer = Quantizer(passes(y, model.slice_num))
    code(model.walk(z_hat), quantizer)
    return GivenSymbols(z_hat, tuple(quantizer.symbols))


class Quantizer:
    """Keeps the symbols of every pass."""

    def __init__(self, y: Iterator[Tensor]) -> None:
        self._y = y
        self.symbols: list[Tensor] = []

    def begin(self, scales: Tensor) -> None:
        pass

    def finish(self, means: Tensor) -> Tensor:
        rounded = torch.round(next(self._y) - means)
        self.symbols.append(rounded.to(torch.int32))
        return rounded + means


class _Listener:
    """Decodes given symbols and keeps the logarithms of the scales."""

    def __init__(self, model: Network, given: GivenSymbols) -> None:
        self._least = float(model.gaussian_conditional.get_buffer("scale_table")[0]) * _COUNTED
        self._given = given
        self.found: list[Tensor] = []

    def begin(self, scales: Tensor) -> None:
        self.found.append(scales.double().clamp_min(self._least).log_().cpu())

    def finish(self, means: Tensor) -> Tensor:
        return self._given.symbols[len(self.found) - 1].to(means) + means


@torch.no_grad()
def log_scales(model: nn.Module, given: GivenSymbols, *, engine: bool = False) -> list[Tensor]:
    """Logarithms of the scales of every pass while those symbols are decoded: float64 [B, C, h, w/2], on the CPU.

    engine: by the compiled engine. Raises BackendError where there is none.
    """
    model = unwrapped(model)
    listener = _Listener(model, given)
    z_hat = given.z_hat.to(next(model.parameters()))
    way: Way | None = engine_for(model) if engine else model
    if way is None:
        raise BackendError("there is no engine for this model here; is MLIC_FAST_ENGINE off?")
    code(way.walk(z_hat), listener)
    return listener.found


def in_float64(model: nn.Module) -> Network:
    """A copy of the model on the CPU that computes in float64: the reference."""
    return copy.deepcopy(unwrapped(model)).to("cpu", torch.float64)


def measure(
    model: nn.Module,
    chosen: Iterable[tuple[str, object]],
    *,
    tell: Callable[[Deviation], None] = lambda deviation: None,
) -> list[Deviation]:
    """Deviations from float64 of every way over these pictures (name, anything that `open_image` takes).

    tell: called with each as it is found. Raises what decoding raises, NonFiniteError among others.
    """
    with full_float32():
        return _measured(unwrapped(model), chosen, tell)


def _measured(
    model: Network,
    chosen: Iterable[tuple[str, object]],
    tell: Callable[[Deviation], None],
) -> list[Deviation]:
    reference = in_float64(model)
    device = next(model.parameters()).device
    first = math.log(float(model.gaussian_conditional.get_buffer("scale_table")[0]))
    found = []
    for name, picture in chosen:
        with plain_path():
            given = given_symbols(model, picture)
            expected = log_scales(reference, given)
        for name_of_way, way in ways(device).items():
            with way.enter():
                seen = log_scales(model, given, engine=way.engine)
            off = [(a - b).abs() / share(b, first) for a, b in zip(seen, expected, strict=True)]
            found.append(Deviation(name, name_of_way, torch.stack([each.amax(dim=(0, 2, 3)) for each in off])))
            tell(found[-1])
    return found


def deltas_for(deviations: Sequence[Deviation]) -> Deltas:
    """δ of each pass and channel for a model with these deviations: MARGIN times the largest, at least the default.

    Raises GuardError for a model whose arithmetic is too unsteady for the guard.
    """
    largest = torch.stack([deviation.channels for deviation in deviations]).amax(dim=0)
    codes = torch.ceil(largest * (MARGIN / DELTA_UNIT)).clamp_min(delta_code(DEFAULT_DELTA))
    if not float(codes.max()) <= delta_code(MAX_DELTA):
        raise GuardError(
            f"scales of this model differ by {float(largest.max()):.2g} between ways to compute them; the guard "
            f"allows for {MAX_DELTA / MARGIN:.2g} at most. Are the weights trained?"
        )
    return tuple(tuple(int(code) * DELTA_UNIT for code in channels) for channels in codes.tolist())


@contextmanager
def on_threads(count: int, *, plain: bool = True) -> Iterator[None]:
    """Within the block PyTorch takes so many threads, and the plain path if that is wanted."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with plain_path() if plain else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the block PyTorch's switches leave float32 as it is, in all threads.

    Under a switch the entropy path computes in float64, which deviates less than the float32 of machines without one.
    """
    mkldnn = torch.backends.mkldnn
    places: list[Any] = [torch.backends, *(getattr(mkldnn, operation, None) for operation in ("matmul", "conv", "rnn"))]
    # switches of single operations came with PyTorch 2.9
    before = [(place, place.fp32_precision) for place in places if hasattr(place, "fp32_precision")]
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # PyTorch refuses to tell beside a switch of the newer kind, which counts then
        precision = "highest"
    try:
        torch.set_float32_matmul_precision("highest")
        for place, _ in before:
            place.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for place, value in before:
            place.fp32_precision = value


@contextmanager
def without_onednn() -> Iterator[None]:
    """Within the block the plain path computes without oneDNN, in all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # about a flag that is set along with this one
        with torch.backends.mkldnn.flags(enabled=False), plain_path():
            yield
