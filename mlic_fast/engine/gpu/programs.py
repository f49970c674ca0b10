# SPDX-License-Identifier: Apache-2.0
"""Whole calls on a GPU: symbols are found and used there, and the host waits once a coding step, or once in all.

Encoding is one part: everything from the picture to symbols, indexes and the guard's moves, which the host fetches in
one copy and codes afterwards. Decoding is two parts a pass. The first finds indexes, for which the host waits; while it
reads their symbols, the device computes the means to them in the second. Parts are recorded and replayed, see
mlic_fast.engine.gpu.graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from torch import Tensor

from mlic_fast.checkerboard import Pass
from mlic_fast.compute.backend import choose
from mlic_fast.compute.nonfinite import non_finite
from mlic_fast.compute.precision import no_autocast
from mlic_fast.engine.engine import Engine
from mlic_fast.engine.gpu.graphs import CudaRecorder, Executor, Part
from mlic_fast.engine.gpu.pinned import Mailbox
from mlic_fast.engine.gpu.recordings import Instances, ProgramT, run_plain
from mlic_fast.engine.walk import Stages
from mlic_fast.entropy.factorized import decode_hyper_symbols, encode_hyper_symbols
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter, MovePlanner
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.errors import BitstreamError, GuardError
from mlic_fast.ops.coding_steps import check_flags
from mlic_fast.ops.packed_steps import encode_packed, flag_count, packed_indexes, packed_values

Result = TypeVar("Result")

# Pixels of the picture to a side of y's and z's positions.
_Y_UNIT, _Z_UNIT = 16, 64


class Entropy(NamedTuple):
    """A model's two entropy models."""

    gaussian: GaussianConditional
    bottleneck: EntropyBottleneck

    def medians(self) -> Tensor:
        """Of z's channels, [N, 1, 1]."""
        return self.bottleneck.get_parameter("quantiles").detach()[:, :, 1:2]


class Coded(NamedTuple):
    """What compressing gives: the y string, a z string for each item, and the guard if one was asked for."""

    y: bytes
    z: list[bytes]
    guard: bytes | None


def compress(
    engine: Engine, entropy: Entropy, x: Tensor, deltas: float | Tensor | None, instances: Instances | None = None
) -> Coded:
    """x [B, 3, H, W] on the engine's device, sides multiples of 64 → strings.

    deltas: as for GuardWriter, or None for strings without a guard. instances: None: those of the device.
    Raises NonFiniteError, CodingError, GuardError.
    """
    shape = tuple(x.shape)

    def make(wide: bool) -> EncodeProgram:
        return EncodeProgram(engine, entropy, shape, deltas, wide)

    def drive(program: EncodeProgram, executor: Executor) -> Coded | None:
        program.x.copy_(x)
        executor.run(0)
        program.out.fetch()
        program.out.wait()
        return program.coded(entropy, deltas)

    key = ("encode", shape, tuple(deltas.flatten().tolist()) if isinstance(deltas, Tensor) else deltas, choose(x))
    with _undisturbed(x.device):
        coded = _call(engine, key, x.device, partial(make, False), drive, instances)
        if coded is None:  # too rare to be recorded
            coded = run_plain(partial(make, True), drive)
    assert coded is not None  # wide symbols always fit
    return coded


def decompress(
    engine: Engine,
    entropy: Entropy,
    y_string: bytes,
    z_strings: Sequence[bytes],
    z_shape: tuple[int, int],
    guard: bytes | None,
    instances: Instances | None = None,
) -> Tensor:
    """Strings of a picture whose z has this height and width → x̂ float32 [B, 3, H, W], not clamped.

    Raises BitstreamError for damaged strings, GuardError, NonFiniteError.
    """
    device = entropy.medians().device
    shape = (len(z_strings), *z_shape)

    def make(wide: bool) -> DecodeProgram:
        return DecodeProgram(engine, entropy, shape, guard is not None, wide)

    def drive(program: DecodeProgram, executor: Executor) -> Tensor:
        program.z.host["symbols"].copy_(z_symbols)
        return program.decode(executor, Decoder(coding_tables(entropy.gaussian), y_string), guard)

    with _undisturbed(device):
        z_symbols = decode_hyper_symbols(entropy.bottleneck, z_strings, z_shape)
        key = ("decode", shape, guard is not None, choose(entropy.medians()))
        try:
            return _call(engine, key, device, partial(make, False), drive, instances)
        except GuardError:
            raise
        except BitstreamError:
            pass
        # perhaps it holds a symbol beyond 16 bits, which is too rare to be recorded
        return run_plain(partial(make, True), drive)


class EncodeProgram:
    """From a picture to everything that is to be coded, in one part."""

    def __init__(
        self, engine: Engine, entropy: Entropy, shape: tuple[int, ...], deltas: float | Tensor | None, wide: bool
    ) -> None:
        batch, _, height, width = shape
        device = entropy.medians().device
        self._passes = 2 * engine.slice_count
        self._packed = batch, engine.slice_width, height // _Y_UNIT, width // _Y_UNIT // 2
        n = torch.Size(self._packed).numel()
        self._table = entropy.gaussian.get_buffer("scale_table").cpu()
        planner = None if deltas is None else MovePlanner(self._table, deltas, device)
        z_shape = (batch, len(entropy.medians()), height // _Z_UNIT, width // _Z_UNIT)
        self.x = torch.zeros(shape, dtype=torch.float32, device=device)
        self.out = Mailbox(
            device,
            symbols=(torch.int32 if wide else torch.int16, (self._passes, n)),
            indexes=(torch.uint8, (self._passes, n)),
            flags=(torch.uint8, (self._passes, flag_count(n))),
            plans=(torch.int32, (self._passes, 0 if planner is None else planner.plan_size(n))),
            z=(torch.int32, z_shape),
            z_finite=(torch.bool, ()),
        )
        self.nbytes = self.out.nbytes + self.x.nbytes
        self.parts: list[Part] = [partial(_encode, engine, entropy, planner, self.x, self.out.device)]

    def coded(self, entropy: Entropy, deltas: float | Tensor | None) -> Coded | None:
        """What was fetched, coded; None if a symbol needs to be wide. Raises NonFiniteError, CodingError."""
        found = self.out.host
        if not found["z_finite"]:
            raise non_finite("hyper latents")
        if check_flags(found["flags"].flatten()) and found["symbols"].dtype == torch.int16:
            return None
        guard = None if deltas is None else GuardWriter(self._table, deltas)
        encoder = Encoder(coding_tables(entropy.gaussian))
        for number in range(self._passes):
            indexes = found["indexes"][number]
            if guard is not None:
                guard.note(found["plans"][number], len(indexes))
                guard.record(indexes)
            encoder.push(found["symbols"][number], indexes)
        z_strings = encode_hyper_symbols(entropy.bottleneck, found["z"])
        return Coded(encoder.finish(), z_strings, None if guard is None else guard.finish())


def _encode(engine: Engine, entropy: Entropy, planner: MovePlanner | None, x: Tensor, out: dict[str, Tensor]) -> None:
    y, z = engine.analyse(x)
    medians = entropy.medians()
    rounded = torch.round(z - medians)
    out["z_finite"].copy_(torch.isfinite(rounded).all())
    out["z"].copy_(rounded)
    engine.walk(out["z"] + medians, y, _DeviceWriter(entropy.gaussian, planner, out))


class _DeviceWriter:
    """PackedSteps that leave each pass's symbols, indexes, flags and moves on the device."""

    def __init__(self, gaussian: GaussianConditional, planner: MovePlanner | None, out: dict[str, Tensor]) -> None:
        self._boundaries = gaussian.scale_table, gaussian.scale_bound
        self._planner, self._out = planner, out
        self._number = 0
        self._scales: Tensor | None = None

    def begin(self, colour: Pass, scales: Tensor) -> None:
        if self._planner is not None:
            scales, plan = self._planner.plan(self._number, scales)
            self._out["plans"][self._number].copy_(plan)
        self._scales = scales

    def finish(self, colour: Pass, y: Tensor | None, means: Tensor) -> Tensor:
        assert y is not None
        assert self._scales is not None  # begin came before
        written = [self._out[name][self._number] for name in ("symbols", "indexes", "flags")]
        self._number += 1
        return encode_packed(y, self._scales, means, *self._boundaries, *written)


class DecodeProgram:
    """From z's symbols to a picture, the symbols of each pass coming in on the way.

    Part 0 finds the first pass's indexes. Of pass p, part 2p + 1 computes the means, part 2p + 2 takes the symbols
    and finds the next pass's indexes. The last part is the synthesis.
    """

    def __init__(self, engine: Engine, entropy: Entropy, shape: tuple[int, ...], guarded: bool, wide: bool) -> None:
        batch, height, width = shape
        device = entropy.medians().device
        unit = _Z_UNIT // _Y_UNIT
        self._packed = batch, engine.slice_width, height * unit, width * unit // 2
        n = torch.Size(self._packed).numel()
        self.passes, self._n = 2 * engine.slice_count, n
        self.z = Mailbox(device, symbols=(torch.int32, (batch, len(entropy.medians()), height, width)))
        self._symbols = Mailbox(device, symbols=(torch.int32 if wide else torch.int16, (n,)))
        # two, so that the next pass's factors can be written while the last one's are under way
        self._factors = [Mailbox(device, factors=(torch.float32, (n,))) for _ in range(2)] if guarded else []
        self._found = Mailbox(device, indexes=(torch.uint8, (n,)), flags=(torch.uint8, (2, flag_count(n))))
        boxes = [self.z, self._symbols, *self._factors, self._found]
        self._table = entropy.gaussian.get_buffer("scale_table").cpu()
        # kept by the parts and by this, so that neither needs the other
        self._result: dict[str, Tensor] = {}
        inputs = _Inputs(
            z=self.z.device["symbols"],
            symbols=self._symbols.device["symbols"],
            factors=[box.device["factors"] for box in self._factors],
        )
        walk = _DecodeWalk(engine, entropy, inputs, self._found.device, self._result)
        self.parts: list[Part] = [walk.start]
        for number in range(self.passes):
            self.parts += [partial(walk.means, number), partial(walk.values, number)]
        self.parts.append(walk.synthesise)
        self.nbytes = sum(box.nbytes for box in boxes)

    def decode(self, executor: Executor, decoder: Decoder, guard: bytes | None) -> Tensor:
        """x̂, which nobody else has. Raises as `decompress` does."""
        reader = None if guard is None else GuardReader(self._table, guard)
        found = self._found.host

        def send_factors(number: int) -> None:
            if reader is not None and number < self.passes:
                box = self._factors[number % 2]
                box.host["factors"].copy_(torch.from_numpy(reader.factors(self._n)))
                box.send()

        self.z.send()
        send_factors(0)
        executor.run(0)
        self._found.fetch()
        for number in range(self.passes):
            executor.run(2 * number + 1)
            send_factors(number + 1)
            self._found.wait()
            check_flags(found["flags"].flatten())
            if reader is not None:
                reader.check(found["indexes"])
            decoder.decode(found["indexes"], self._symbols.host["symbols"])
            self._symbols.send()
            executor.run(2 * number + 2)
            self._found.fetch()
        executor.run(2 * self.passes + 1)
        self._found.wait()
        check_flags(found["flags"].flatten())
        decoder.finish()
        if reader is not None:
            reader.finish()
        return self._result["x_hat"].clone() if executor.recorded else self._result.pop("x_hat")


class _Inputs(NamedTuple):
    """What the host sends to a DecodeProgram's parts: where it lies on the device."""

    z: Tensor
    symbols: Tensor  # of a pass
    factors: list[Tensor]  # of even and of odd passes; empty without a guard


class _DecodeWalk:
    """What the parts of a DecodeProgram do, and what lives between them on the device."""

    def __init__(
        self, engine: Engine, entropy: Entropy, inputs: _Inputs, found: dict[str, Tensor], result: dict[str, Tensor]
    ) -> None:
        """found: written are indexes and flags of a pass, flags [0] of its scales, [1] of the means before them.

        result: x̂ is put there.
        """
        self._engine, self._medians = engine, entropy.medians()
        self._boundaries = entropy.gaussian.scale_table, entropy.gaussian.scale_bound
        self._inputs, self._found, self._result = inputs, found, result
        self._stages: Stages | None = None
        self._means: Tensor | None = None

    def start(self) -> None:
        self._found["flags"].zero_()
        self._stages = self._engine.stages(self._inputs.z + self._medians)
        self._look_up(0, self._stages.open(0))

    def means(self, number: int) -> None:
        assert self._stages is not None  # `start` came before
        self._means = self._stages.means(number // 2, _colour(number)).contiguous()

    def values(self, number: int) -> None:
        assert self._stages is not None
        assert self._means is not None  # `means` came before
        values = packed_values(self._inputs.symbols, self._means, self._found["flags"][1])
        self._means = None
        i = number // 2
        if _colour(number) is Pass.ANCHOR:
            self._look_up(number + 1, self._stages.anchors(i, values))
        else:
            self._stages.close(i, values)
            if i + 1 < self._engine.slice_count:
                self._look_up(number + 1, self._stages.open(i + 1))

    def synthesise(self) -> None:
        assert self._stages is not None
        y_hat, self._stages = self._stages.y_hat, None
        self._result["x_hat"] = self._engine.synthesise(y_hat)

    def _look_up(self, number: int, scales: Tensor) -> None:
        factors = self._inputs.factors[number % 2] if self._inputs.factors else None
        written = self._found["indexes"], self._found["flags"][0]
        packed_indexes(scales.contiguous(), factors, *self._boundaries, *written)


def _colour(number: int) -> Pass:
    return (Pass.ANCHOR, Pass.NONANCHOR)[number % 2]


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Without gradients, autocast and inference mode, whose tensors could not be written to outside of it."""
    with torch.inference_mode(False), torch.no_grad(), no_autocast(device):
        yield


_instances: dict[torch.device, Instances] = {}


def _call(
    engine: Engine,
    key: Hashable,
    device: torch.device,
    make: Callable[[], ProgramT],
    drive: Callable[[ProgramT, Executor], Result],
    instances: Instances | None,
) -> Result:
    if instances is None and device.type == "cuda":
        instances = _instances.get(device)
        if instances is None:
            instances = _instances.setdefault(device, Instances(CudaRecorder(device)))
    return run_plain(make, drive) if instances is None else instances.call(engine, key, make, drive)
