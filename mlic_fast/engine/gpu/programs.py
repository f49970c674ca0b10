# SPDX-License-Identifier: Apache-2.0
"""Whole calls on a GPU: symbols are found and used there, and the host waits once a pass, or once in all.

What the device does stands in `_encode` and `_decode`, generators whose every yield ends a part: there the host may
wait, fetch and send. Encoding is one part: everything from the picture to symbols, indexes and the guard's moves, which
the host fetches in one copy and codes afterwards. Decoding is two parts a pass. The first finds indexes, for which the
host waits; while it reads their symbols, the device computes the means to them in the second. Parts are recorded and
replayed, see mlic_fast.engine.gpu.graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mlic_fast.compute.backend import choose
from mlic_fast.compute.nonfinite import non_finite
from mlic_fast.compute.precision import no_autocast
from mlic_fast.engine.engine import Engine
from mlic_fast.engine.gpu.graphs import CudaRecorder, Parts, Start
from mlic_fast.engine.gpu.pinned import PinnedArrays
from mlic_fast.engine.gpu.recordings import Drive, ProgramT, RecordedPrograms, run_plain
from mlic_fast.entropy.coders import Coded, code
from mlic_fast.entropy.factorized import decode_hyper_symbols, encode_hyper_symbols
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter, MovePlanner
from mlic_fast.entropy.range_coder import Decoder, RangeCoder
from mlic_fast.entropy.tables import EntropyModels, GaussianTables, coding_tables
from mlic_fast.errors import BitstreamError, GuardError
from mlic_fast.ops.coding_steps import check_flags, decode_indexes, decode_values, encode_step, flag_count
from mlic_fast.passes import passes, send

Result = TypeVar("Result")

# Pixels of the picture to a side of y's and z's positions.
_Y_UNIT, _Z_UNIT = 16, 64


def compress(
    engine: Engine,
    entropy: EntropyModels,
    x: Tensor,
    deltas: float | Tensor | None,
    recorded: RecordedPrograms | None = None,
    coder: RangeCoder = RangeCoder(),  # noqa: B008  # immutable
) -> Coded:
    """x [B, 3, H, W] on the engine's device, sides multiples of 64 → strings.

    deltas: as for GuardWriter, or None for strings without a guard. recorded: None: the programs of the device.
    Raises NonFiniteError, CodingError, GuardError.
    """
    shape = tuple(x.shape)

    def make(wide: bool) -> EncodeProgram:
        return EncodeProgram(engine, entropy, shape, deltas, wide)

    def drive(program: EncodeProgram, parts: Parts, replayed: bool) -> Coded | None:
        program.x.copy_(x)
        next(parts)
        program.out.fetch()
        program.out.wait()
        return program.coded(entropy, deltas, coder)

    key = ("encode", shape, tuple(deltas.flatten().tolist()) if isinstance(deltas, Tensor) else deltas, choose(x))
    with _undisturbed(x.device):
        coded = _call(engine, key, x.device, partial(make, False), drive, recorded)
        if coded is None:  # too rare to be recorded
            coded = run_plain(partial(make, True), drive)
    assert coded is not None  # wide symbols always fit
    return coded


def decompress(
    engine: Engine,
    entropy: EntropyModels,
    y_string: bytes,
    z_strings: Sequence[bytes],
    z_shape: tuple[int, int],
    guard: bytes | None,
    recorded: RecordedPrograms | None = None,
    coder: RangeCoder = RangeCoder(),  # noqa: B008  # immutable
) -> Tensor:
    """Strings of a picture whose z has this height and width → x̂ float32 [B, 3, H, W], not clamped.

    Raises BitstreamError for damaged strings, GuardError, NonFiniteError.
    """
    device = entropy.medians().device
    shape = (len(z_strings), *z_shape)

    def make(wide: bool) -> DecodeProgram:
        return DecodeProgram(engine, entropy, shape, guard is not None, wide)

    def drive(program: DecodeProgram, parts: Parts, replayed: bool) -> Tensor:
        program.z.host["symbols"].copy_(z_symbols)
        x_hat = program.decode(parts, coder.decoder(coding_tables(entropy.gaussian), y_string), guard)
        return x_hat.clone() if replayed else x_hat

    with _undisturbed(device):
        z_symbols = decode_hyper_symbols(entropy.bottleneck, z_strings, z_shape)
        key = ("decode", shape, guard is not None, choose(entropy.medians()))
        try:
            return _call(engine, key, device, partial(make, False), drive, recorded)
        except GuardError:
            raise
        except BitstreamError:
            pass
        # perhaps it holds a symbol beyond 16 bits, which is too rare to be recorded
        return run_plain(partial(make, True), drive)


class EncodeProgram:
    """From a picture to everything that is to be coded, in one part."""

    def __init__(
        self, engine: Engine, entropy: EntropyModels, shape: tuple[int, ...], deltas: float | Tensor | None, wide: bool
    ) -> None:
        batch, _, height, width = shape
        device = entropy.medians().device
        self._passes = 2 * engine.slice_count
        self._packed = batch, engine.slice_width, height // _Y_UNIT, width // _Y_UNIT // 2
        n = torch.Size(self._packed).numel()
        self._table = entropy.gaussian.scale_table.cpu()
        planner = None if deltas is None else MovePlanner(self._table, deltas, device)
        z_shape = (batch, len(entropy.medians()), height // _Z_UNIT, width // _Z_UNIT)
        self.x = torch.zeros(shape, dtype=torch.float32, device=device)
        self.out = PinnedArrays(
            device,
            symbols=(torch.int32 if wide else torch.int16, (self._passes, n)),
            indexes=(torch.uint8, (self._passes, n)),
            flags=(torch.uint8, (self._passes, flag_count(n))),
            plans=(torch.int32, (self._passes, 0 if planner is None else planner.plan_size(n))),
            z=(torch.int32, z_shape),
            z_finite=(torch.bool, ()),
        )
        self.nbytes = self.out.nbytes + self.x.nbytes
        self.start: Start | None = partial(_encode, engine, entropy, planner, self.x, self.out.device)

    def coded(self, entropy: EntropyModels, deltas: float | Tensor | None, coder: RangeCoder) -> Coded | None:
        """What was fetched, coded; None if a symbol needs to be wide. Raises NonFiniteError, CodingError."""
        found = self.out.host
        if not found["z_finite"]:
            raise non_finite("hyper latents")
        if check_flags(found["flags"].flatten()) and found["symbols"].dtype == torch.int16:
            return None
        guard = None if deltas is None else GuardWriter(self._table, deltas)
        encoder = coder.encoder(coding_tables(entropy.gaussian))
        for number in range(self._passes):
            indexes = found["indexes"][number]
            if guard is not None:
                guard.note(found["plans"][number], len(indexes))
                guard.record(indexes)
            encoder.push(found["symbols"][number], indexes)
        z_strings = encode_hyper_symbols(entropy.bottleneck, found["z"])
        return Coded(encoder.finish(), z_strings, None if guard is None else guard.finish())


def _encode(
    engine: Engine, entropy: EntropyModels, planner: MovePlanner | None, x: Tensor, out: dict[str, Tensor]
) -> Parts:
    y, z = engine.analyse(x)
    medians = entropy.medians()
    rounded = torch.round(z - medians)
    out["z_finite"].copy_(torch.isfinite(rounded).all())
    out["z"].copy_(rounded)
    del z, rounded
    writer = _DeviceWriter(entropy.gaussian, passes(y, engine.slice_count), planner, out)
    code(engine.walk(out["z"] + medians), writer)
    yield


class _DeviceWriter:
    """A coder that leaves each pass's symbols, indexes, flags and moves on the device."""

    def __init__(
        self, gaussian: GaussianTables, y: Iterator[Tensor], planner: MovePlanner | None, out: dict[str, Tensor]
    ) -> None:
        """y: of each pass, packed. out: what is written, a row for each pass."""
        self._boundaries = gaussian.scale_table, gaussian.scale_bound
        self._planner, self._out = planner, out
        self._passes = enumerate(y)
        self._scales: Tensor | None = None  # of the pass that was begun

    def begin(self, scales: Tensor) -> None:
        self._number, self._y = next(self._passes)
        if self._planner is not None:
            scales, plan = self._planner.plan(self._number, scales)
            self._out["plans"][self._number].copy_(plan)
        self._scales = scales

    def finish(self, means: Tensor) -> Tensor:
        assert self._scales is not None  # begin came before
        written = [self._out[name][self._number] for name in ("symbols", "indexes", "flags")]
        return encode_step(self._y, self._scales, means, *self._boundaries, *written)


class DecodeProgram:
    """From z's symbols to a picture, the symbols of each pass coming in on the way."""

    def __init__(
        self, engine: Engine, entropy: EntropyModels, shape: tuple[int, ...], guarded: bool, wide: bool
    ) -> None:
        batch, height, width = shape
        device = entropy.medians().device
        unit = _Z_UNIT // _Y_UNIT
        n = batch * engine.slice_width * height * unit * (width * unit // 2)
        self.passes, self._n = 2 * engine.slice_count, n
        self.z = PinnedArrays(device, symbols=(torch.int32, (batch, len(entropy.medians()), height, width)))
        self._symbols = PinnedArrays(device, symbols=(torch.int32 if wide else torch.int16, (n,)))
        # two, so that the next pass's factors can be written while the last one's are under way
        self._factors = [PinnedArrays(device, factors=(torch.float32, (n,))) for _ in range(2)] if guarded else []
        self._found = PinnedArrays(device, indexes=(torch.uint8, (n,)), flags=(torch.uint8, (2, flag_count(n))))
        arrays = [self.z, self._symbols, *self._factors, self._found]
        self._table = entropy.gaussian.scale_table.cpu()
        # known to the parts and to this, so that neither needs the other
        self._result: dict[str, Tensor] = {}
        inputs = _Inputs(
            z=self.z.device["symbols"],
            symbols=self._symbols.device["symbols"],
            factors=[each.device["factors"] for each in self._factors],
        )
        self.start: Start | None = partial(_decode, engine, entropy, inputs, self._found.device, self._result)
        self.nbytes = sum(each.nbytes for each in arrays)

    def decode(self, parts: Parts, decoder: Decoder, guard: bytes | None) -> Tensor:
        """x̂, which the next run of a recorded program overwrites. Raises as `decompress` does."""
        reader = None if guard is None else GuardReader(self._table, guard)
        found = self._found.host

        def send_factors(number: int) -> None:
            if reader is not None and number < self.passes:
                arrays = self._factors[number % 2]
                arrays.host["factors"].copy_(torch.from_numpy(reader.factors(self._n)))
                arrays.send()

        self.z.send()
        send_factors(0)
        next(parts)  # the first pass's indexes
        self._found.fetch()
        for number in range(self.passes):
            next(parts)  # means, while the host reads the symbols
            send_factors(number + 1)
            self._found.wait()
            check_flags(found["flags"].flatten())
            if reader is not None:
                reader.check(found["indexes"])
            decoder.decode(found["indexes"], self._symbols.host["symbols"])
            self._symbols.send()
            next(parts)  # values, and the next pass's indexes
            self._found.fetch()
        next(parts)  # the picture
        self._found.wait()
        check_flags(found["flags"].flatten())
        decoder.finish()
        if reader is not None:
            reader.finish()
        return self._result["x_hat"]


class _Inputs(NamedTuple):
    """What the host sends to a DecodeProgram's parts: where it lies on the device."""

    z: Tensor
    symbols: Tensor  # of a pass
    factors: list[Tensor]  # of even and of odd passes; empty without a guard


def _decode(
    engine: Engine, entropy: EntropyModels, inputs: _Inputs, found: dict[str, Tensor], result: dict[str, Tensor]
) -> Parts:
    """found: written are indexes and flags of a pass, flags [0] of its scales, [1] of the means before them.

    result: x̂ is put there.
    """
    boundaries = entropy.gaussian.scale_table, entropy.gaussian.scale_bound
    found["flags"].zero_()
    walk = engine.walk(inputs.z + entropy.medians())
    scales: Tensor | None = next(walk)
    y_hat: Tensor | None = None
    number = 0
    while scales is not None:
        factors = inputs.factors[number % 2] if inputs.factors else None
        decode_indexes(scales, factors, *boundaries, found["indexes"], found["flags"][0])
        del scales
        yield
        means = next(walk)
        yield
        values = decode_values(inputs.symbols, means, found["flags"][1])
        del means
        scales, y_hat = send(walk, values)
        del values
        number += 1
    yield
    assert y_hat is not None  # a walk ends with it
    result["x_hat"] = engine.synthesise(y_hat)
    del y_hat
    yield


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Without gradients, autocast and inference mode, whose tensors could not be written to outside of it."""
    with torch.inference_mode(False), torch.no_grad(), no_autocast(device):
        yield


_of_devices: dict[torch.device, RecordedPrograms] = {}


def clear() -> None:
    """Forget the recorded programs of all devices that are not in use, and return their memory."""
    for recorded in list(_of_devices.values()):
        recorded.clear()


def _call(
    engine: Engine,
    key: Hashable,
    device: torch.device,
    make: Callable[[], ProgramT],
    drive: Drive[ProgramT, Result],
    recorded: RecordedPrograms | None,
) -> Result:
    if recorded is None and device.type == "cuda":
        recorded = _of_devices.get(device)
        if recorded is None:
            recorded = _of_devices.setdefault(device, RecordedPrograms(CudaRecorder(device)))
    return run_plain(make, drive) if recorded is None else recorded.call(engine, key, make, drive)
