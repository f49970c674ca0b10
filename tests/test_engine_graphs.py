# SPDX-License-Identifier: Apache-2.0
"""Calls on a device: recorded and replayed they give what they give launched one by one, whatever happens between.

The stand-in of recorded_operators.py records; tests/test_engine_cuda.py records CUDA graphs.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_codec import DELTA, FIXTURES, Codec
from recorded_operators import OperatorRecorder

from mlic_fast.engine.gpu.graphs import Parts
from mlic_fast.engine.gpu.recordings import RecordedPrograms
from mlic_fast.entropy.coders import Coded, Reader, Writer, code
from mlic_fast.entropy.moved_boundaries import GuardWriter
from mlic_fast.entropy.range_coder import Encoder
from mlic_fast.entropy.tables import coding_tables
from mlic_fast.errors import BitstreamError, GuardError, NonFiniteError

Images = Callable[..., torch.Tensor]
tiny, recorder, recorded, plain = FIXTURES


def per_channel(model: Any) -> torch.Tensor:
    """δ of each pass and channel."""
    generator = torch.Generator().manual_seed(1)
    return 5e-5 * (0.5 + torch.rand(2 * model.slice_num, model.slice_ch, generator=generator).double())


@pytest.mark.parametrize("guard", ["none", "one", "channels"])
def test_strings_are_those_of_coding_step_by_step(small_model: Any, test_image: Images, guard: str) -> None:
    deltas = {"none": None, "one": DELTA, "channels": per_channel(small_model)}[guard]
    codec, x = Codec(small_model, None), test_image(128, 64, 70, 2)
    coded, x_hat = codec.both(x, deltas)
    y, z = codec.engine.analyse(x)
    z_hat = torch.round(z - codec.entropy.medians()) + codec.entropy.medians()
    encoder = Encoder(coding_tables(small_model.gaussian_conditional))
    writer = None if deltas is None else GuardWriter(small_model.gaussian_conditional.scale_table, deltas)
    coder = Writer(encoder, small_model.gaussian_conditional, y, small_model.slice_num, writer)
    with torch.no_grad():
        y_hat = code(codec.engine.walk(z_hat), coder)
    assert coded.y == encoder.finish()
    assert coded.guard == (None if writer is None else writer.finish())
    assert torch.equal(x_hat, codec.engine.synthesise(y_hat))


def test_the_model_reads_them(small_model: Any, test_image: Images) -> None:
    x = test_image(64, 192, 71)
    codec = Codec(small_model, None)
    coded, x_hat = codec.both(x)
    expected = small_model.decompress([[coded.y], coded.z], (1, 3), guard=coded.guard)["x_hat"]
    assert (x_hat - expected).abs().max() <= 1e-4
    theirs = small_model.compress(x, guard=DELTA)
    own = Coded(theirs["strings"][0][0], theirs["strings"][1], theirs["guard"])
    assert (codec.decompress(own, x.shape) - expected).abs().max() <= 1e-4


def test_replays_equal_plain_launches(small_model: Any, test_image: Images, recorder: OperatorRecorder) -> None:
    recorded, plain = Codec(small_model, RecordedPrograms(recorder)), Codec(small_model, None)
    for number in range(3):
        x = test_image(64, 128, 72 + number)
        coded, x_hat = plain.both(x)
        own, own_x = recorded.both(x)
        assert own == coded
        assert torch.equal(own_x, x_hat)
    assert len(recorder.recordings) == 2


@pytest.mark.parametrize("guard", ["none", "one", "channels"])
def test_alternating_shapes(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images, guard: str
) -> None:
    deltas = {"none": None, "one": DELTA, "channels": per_channel(plain.model)}[guard]
    shapes = [(64, 64, 1), (64, 128, 1), (64, 64, 2)]
    for number in range(9):
        height, width, batch = shapes[number % 3]
        x = test_image(height, width, 80 + number, batch)
        coded, x_hat = plain.both(x, deltas)
        assert len(set(coded.z)) == batch  # they differ
        assert recorded.both(x, deltas)[0] == coded
        assert torch.equal(recorded.decompress(coded, x.shape), x_hat)
    assert len(recorder.recordings) == 6  # once for each shape and direction


def test_a_shape_that_occurs_once_is_not_recorded(
    recorded: Codec, recorder: OperatorRecorder, test_image: Images
) -> None:
    for width in (64, 128, 192):
        recorded.compress(test_image(64, width, 90))
    assert recorder.recordings == []
    recorded.compress(test_image(64, 128, 90))
    assert len(recorder.recordings) == 1


def test_results_are_the_caller_s(recorded: Codec, test_image: Images) -> None:
    pictures = [test_image(64, 64, 91 + number) for number in range(4)]
    coded = [recorded.compress(x) for x in pictures]
    decoded = [recorded.decompress(one, pictures[0].shape) for one in coded]
    again = [recorded.decompress(one, pictures[0].shape) for one in coded]
    assert all(torch.equal(a, b) for a, b in zip(decoded, again, strict=True))
    assert not torch.equal(decoded[2], decoded[3])


def test_threads(plain: Codec, recorder: OperatorRecorder, test_image: Images) -> None:
    recorded = Codec(plain.model, RecordedPrograms(recorder))
    pictures = [test_image(64, 64 * (1 + number % 2), 100 + number) for number in range(8)]
    expected = [plain.both(x) for x in pictures]
    failures: list[Any] = []
    together = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            torch.set_num_threads(2)
            together.wait(timeout=60)
            for step in range(2):
                own, own_x = recorded.both(pictures[(number + step) % 8])
                coded, x_hat = expected[(number + step) % 8]
                assert own == coded
                assert torch.equal(own_x, x_hat)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert recorded.instances is not None
    assert recorder.recordings
    assert recorded.instances.count(idle=True) == recorded.instances.count()


def test_symbols_beyond_16_bits(tiny: Any, recorder: OperatorRecorder, test_image: Images) -> None:
    model, x = copy.deepcopy(tiny), test_image(64, 64, 126)
    with torch.no_grad():
        model.g_a.analysis_transform[-1].weight.mul_(1e5)
    recorded, plain = Codec(model, RecordedPrograms(recorder)), Codec(model, None)
    coded, x_hat = plain.both(x)
    assert torch.equal(x_hat, model_decoded(model, coded))
    for _ in range(3):
        own, own_x = recorded.both(x)
        assert own == coded
        assert torch.equal(own_x, x_hat)


def model_decoded(model: Any, coded: Coded) -> torch.Tensor:
    """x̂ of strings of a 64 × 64 picture by the engine, coding step by step."""
    from mlic_fast.entropy.factorized import decode_hyper_latent
    from mlic_fast.entropy.moved_boundaries import GuardReader
    from mlic_fast.entropy.range_coder import Decoder

    own, gaussian = Codec(model, None).engine, model.gaussian_conditional
    assert coded.guard is not None
    reader = GuardReader(gaussian.scale_table, coded.guard)
    coder = Reader(Decoder(coding_tables(gaussian), coded.y), gaussian, reader)
    z_hat = decode_hyper_latent(model.entropy, coded.z, (1, 1))
    with torch.no_grad():
        return own.synthesise(code(own.walk(z_hat), coder))


def test_values_that_are_not_finite_are_refused(recorded: Codec, test_image: Images) -> None:
    good, bad = test_image(64, 64, 127), test_image(64, 64, 127)
    bad[0, 1, 3, 3] = torch.inf
    expected = recorded.compress(good)
    for _ in range(3):
        with pytest.raises(NonFiniteError):
            recorded.compress(bad)
        assert recorded.compress(good) == expected


def test_damaged_strings_do_no_harm(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images
) -> None:
    x = test_image(64, 128, 128)
    coded, x_hat = plain.both(x)
    assert coded.guard is not None
    wrong = bytes([coded.guard[0], coded.guard[1], coded.guard[2] ^ 255]) + coded.guard[3:]
    damaged = [coded._replace(y=coded.y[:-4]), coded._replace(y=coded.y + bytes(4)), coded._replace(guard=wrong)]
    errors = [BitstreamError, BitstreamError, GuardError]
    for _ in range(2):
        for one, error in zip(damaged, errors, strict=True):
            with pytest.raises(error):
                recorded.decompress(one, x.shape)
            assert torch.equal(recorded.decompress(coded, x.shape), x_hat)
    assert len(recorder.recordings) == 1


def test_inference_mode_and_its_absence(plain: Codec, recorded: Codec, test_image: Images) -> None:
    x = test_image(64, 64, 129)
    coded, x_hat = plain.both(x)
    for number in range(4):
        with torch.inference_mode(number % 2 == 0), torch.autocast("cpu", torch.bfloat16, enabled=number == 2):
            own, own_x = recorded.both(x)
        assert own == coded
        assert torch.equal(own_x, x_hat)
        assert not own_x.is_inference()


def test_the_stand_in_refuses_to_wait_and_spoils_what_was_computed(recorder: OperatorRecorder) -> None:
    a, kept = torch.ones(3), []

    def waiting() -> Parts:
        kept.append(a.sum().item())
        yield

    with pytest.raises(RuntimeError, match="waits"):
        recorder.record(waiting)
    out = torch.zeros(3)

    def start() -> Parts:
        kept.append(a * 2)
        yield
        out.copy_(kept[-1] + 1)
        yield

    recording = recorder.record(start)
    assert kept[-1].isnan().all()
    a.fill_(5)
    for _ in recording.replay():
        pass
    assert torch.equal(out, torch.full((3,), 11.0))
