# SPDX-License-Identifier: Apache-2.0
"""Pictures to strings and back, in one of two ways: on the compiled engine, or on the network as written down.

Both analyse, walk and synthesise (`Way`). The engine is taken where there is one; the network with the official
operators (backend torch) computes what the official code computes, to the bit, so that the official code decodes its
strings.
The environment variable MLIC_FAST_EXACT=1 makes that the default of a process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from mlic_fast.compute.backend import choose, is_named, plain_path
from mlic_fast.compute.defaults import cpu_by_default
from mlic_fast.compute.forks import settle
from mlic_fast.compute.precision import no_autocast
from mlic_fast.engine import Engine, engine_for, forget_all_engines, forget_engines
from mlic_fast.engine.gpu import programs
from mlic_fast.entropy.coders import Coded as Coded
from mlic_fast.entropy.coders import Reader, Writer, code
from mlic_fast.entropy.factorized import decode_hyper_latent, encode_hyper_latent
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter, forget_boundaries
from mlic_fast.entropy.range_coder import RangeCoder as RangeCoder
from mlic_fast.entropy.tables import coding_tables, forget_all_tables, forget_tables
from mlic_fast.errors import BackendError, BitstreamError, GuardError
from mlic_fast.nn.network import Network, fingerprints
from mlic_fast.passes import Walk

VARIABLE = "MLIC_FAST_EXACT"

_log = logging.getLogger(__name__)


class Way(Protocol):
    """How a picture is computed: `Network` as written down, and `Engine`."""

    def analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, 3, H, W] → y [B, M, H/16, W/16] and z [B, N, H/64, W/64]."""
        ...

    def walk(self, z_hat: Tensor) -> Walk:
        """The walk over the slices from ẑ."""
        ...

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """ŷ → x̂ [B, 3, H, W], not clamped."""
        ...


def is_exact(exact: bool | None) -> bool:
    """Whether strings are to be those of the official operators; None: as the environment says.

    Raises BackendError for a value of MLIC_FAST_EXACT that means nothing.
    """
    if exact is not None:
        return exact
    value = os.environ.get(VARIABLE) or "0"
    if value not in ("0", "1"):
        raise BackendError(f"{VARIABLE} is 0 or 1, not {value!r}")
    return value == "1"


@torch.no_grad()
def compress(
    network: Network,
    x: Tensor,
    *,
    exact: bool | None = None,
    deltas: float | Tensor | None = None,
    coder: RangeCoder = RangeCoder(),  # noqa: B008  # immutable
) -> Coded:
    """x float [B, 3, H, W] in [0, 1] on the network's device, sides multiples of 64 → strings.

    exact: as `is_exact` takes it. A backend named by MLIC_FAST_BACKEND goes before it.
    deltas: δ in log-scale, or one of each pass and channel [passes, C], for guarded strings; None: without a guard.
    Raises NonFiniteError where values are not finite, CodingError where tables are missing or a symbol is out of the
    coder's range, GuardError for a δ out of range, or not one of each pass and channel.
    """
    _check_deltas(network, deltas)
    settle(network.device)
    official = plain_path() if is_exact(exact) and not is_named() else nullcontext()
    with cpu_by_default(), official:
        engine = engine_for(network, network.engine_options)
        if engine is not None and x.device.type == "cuda":
            return programs.compress(engine, network.entropy, x, deltas, coder=coder)
        way: Way = network if engine is None else engine
        entropy = network.entropy
        guard = None if deltas is None else GuardWriter(entropy.gaussian.scale_table, deltas)
        y, z = way.analyse(x)
        with no_autocast(x.device):
            z_strings, z_hat = encode_hyper_latent(entropy, z)
            encoder = coder.encoder(coding_tables(entropy.gaussian))
            code(way.walk(z_hat), Writer(encoder, entropy.gaussian, y, network.slice_num, guard))
            return Coded(encoder.finish(), z_strings, None if guard is None else guard.finish())


@torch.no_grad()
def decompress(
    network: Network,
    coded: Coded,
    z_shape: tuple[int, int],
    *,
    exact: bool | None = None,
    coder: RangeCoder = RangeCoder(),  # noqa: B008  # immutable
) -> Tensor:
    """Strings of a picture whose z has this height and width → x̂ [B, 3, H, W], not clamped.

    exact: how they were written, as far as it is known: that way is tried first. Where it fails, perhaps they were
    written in another: a scale next to a table's boundary may come out on the boundary's other side there, and
    everything after it is different. So what is damaged costs up to three decodes.
    Raises BitstreamError unless the strings end as they must, GuardError, NonFiniteError.
    """
    device = network.device
    settle(device)

    def read(engine: Engine | None) -> Tensor:
        entropy = network.entropy
        if engine is not None and device.type == "cuda":
            return programs.decompress(engine, entropy, coded.y, coded.z, z_shape, coded.guard, coder=coder)
        way: Way = network if engine is None else engine
        with no_autocast(device):
            z_hat = decode_hyper_latent(entropy, coded.z, z_shape)
            decoder = coder.decoder(coding_tables(entropy.gaussian), coded.y)
            guard = None if coded.guard is None else GuardReader(entropy.gaussian.scale_table, coded.guard)
            y_hat = code(way.walk(z_hat), Reader(decoder, entropy.gaussian, guard))
            decoder.finish()
            if guard is not None:
                guard.finish()
        return way.synthesise(y_hat)

    Enter = Callable[[], AbstractContextManager[None]]
    plain: tuple[Enter, bool] = (plain_path, False)
    others: list[tuple[Enter, bool]] = [(nullcontext, True), (nullcontext, False)]
    failures: dict[str, BitstreamError] = {}
    for enter, compiled in [plain, *others] if is_exact(exact) and not is_named() else [*others, plain]:
        with cpu_by_default(), enter():
            engine = engine_for(network, network.engine_options) if compiled else None
            name = choose(network.entropy.medians()) if engine is None else "engine"
            if name in failures:
                continue
            try:
                return read(engine)
            except BitstreamError as error:
                _log.info("not decoded by %s, other ways are tried: %s", name, error)
                failures[name] = error
    raise next(iter(failures.values()))


def forget(network: Network) -> None:
    """Forget what was derived from a network's weights and tables."""
    fingerprints.forget(network)
    forget_engines(network)
    for entropy_model in network.entropy:
        forget_tables(entropy_model)


def forget_all() -> None:
    """Forget what was derived from any network's weights and tables, and return recorded programs' memory."""
    fingerprints.clear()
    forget_all_engines()
    forget_all_tables()
    forget_boundaries()
    programs.clear()


def _check_deltas(network: Network, deltas: float | Tensor | None) -> None:
    wanted = 2 * network.slice_num, network.slice_ch
    if isinstance(deltas, Tensor) and tuple(deltas.shape) != wanted:
        raise GuardError(
            f"the guard's δ have the shape {list(deltas.shape)}, not that of this model's passes and channels, "
            f"{list(wanted)}"
        )
