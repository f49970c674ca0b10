# SPDX-License-Identifier: Apache-2.0
"""Recorded calls: each has an instance to itself, memory is bounded, and nothing is wedged by what goes wrong.

The stand-in of recorded_operators.py records.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_codec import FIXTURES, Codec
from recorded_operators import OperatorRecorder

from mlic_fast import MLICPlusPlus, ModelConfig, engine
from mlic_fast.engine import Engine
from mlic_fast.engine.gpu.recordings import VARIABLE, RecordedPrograms, graph_memory
from mlic_fast.entropy.coders import Coded
from mlic_fast.errors import ConfigError

Images = Callable[..., torch.Tensor]
tiny, recorder, recorded, plain = FIXTURES


def test_two_calls_at_once_have_instances_of_their_own(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images
) -> None:
    x = test_image(64, 64, 110)
    expected = plain.compress(x)
    recorded.compress(x)
    within: list[Coded] = []

    def once(number: int) -> None:
        recorder.on_run = lambda number: None
        within.append(recorded.compress(x))

    recorder.on_run = once
    assert recorded.compress(x) == expected  # while it runs, another call comes
    assert within == [expected]
    assert len(recorder.recordings) == 2


class Strike:
    """Raises when a part is run for the n-th time."""

    def __init__(self, error: BaseException, after: int) -> None:
        self._error, self._left = error, after

    def __call__(self, number: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error


@pytest.mark.parametrize("after", [1, 2, 5, 10])
def test_an_interrupt_gives_the_instance_back(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images, after: int
) -> None:
    x = test_image(64, 64, 111)
    coded, x_hat = plain.both(x)
    for _ in range(2):
        recorded.decompress(coded, x.shape)
    recorder.on_run = Strike(KeyboardInterrupt(), after)
    with pytest.raises(KeyboardInterrupt):
        recorded.decompress(coded, x.shape)
    recorder.on_run = lambda number: None
    assert torch.equal(recorded.decompress(coded, x.shape), x_hat)
    assert len(recorder.recordings) == 1
    assert recorded.instances is not None
    assert recorded.instances.count(idle=True) == 1
    assert recorder.waited[-1] is not None


def test_an_interrupt_while_recording(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images
) -> None:
    x = test_image(64, 64, 112)
    expected = plain.compress(x)
    recorded.compress(x)

    def fail() -> None:
        raise KeyboardInterrupt

    recorder.fail = fail
    with pytest.raises(KeyboardInterrupt):
        recorded.compress(x)
    recorder.fail = lambda: None
    assert recorded.compress(x) == expected  # the right to record was given back
    assert len(recorder.recordings) == 1


def test_a_lease_that_is_lost_is_over(recorded: Codec, recorder: OperatorRecorder, test_image: Images) -> None:
    x = test_image(64, 64, 113)
    recorded.compress(x)
    recorded.compress(x)
    instances = recorded.instances
    assert instances is not None
    (_, key, instance), *_ = list(instances._all())
    lease = instance.lease(10)
    assert instances.count(idle=True) == 0
    instance.begin()
    del lease  # as when an interrupt comes before anybody can give it back
    assert instances.count(idle=True) == 1
    recorded.compress(x)
    assert recorder.waited[-1] is None  # where its work ends is not known: wait for everything
    assert len(recorder.recordings) == 1
    assert key[0] == "encode"


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("CUDA error: out of memory")],
)
def test_out_of_memory_empties_the_cache_and_tries_again(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images, error: Exception
) -> None:
    x, other = test_image(64, 64, 114), test_image(64, 128, 114)
    coded, x_hat = plain.both(x)
    for _ in range(2):
        recorded.decompress(coded, x.shape)
        recorded.compress(other)
    instances = recorded.instances
    assert instances is not None
    assert instances.count() == 2
    recorder.on_run = Strike(error, 3)
    assert torch.equal(recorded.decompress(coded, x.shape), x_hat)
    assert instances.count() == 0
    assert recorder.given_back == 1
    recorder.on_run = lambda number: None
    assert torch.equal(recorded.decompress(coded, x.shape), x_hat)
    assert instances.count() == 1


def test_out_of_memory_while_recording(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images
) -> None:
    x = test_image(64, 64, 115)
    expected = plain.compress(x)
    recorded.compress(x)

    def fail() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    recorder.fail = fail
    assert recorded.compress(x) == expected
    assert recorder.given_back == 1


def test_out_of_memory_twice_is_raised(tiny: Any, recorded: Codec, test_image: Images, monkeypatch: Any) -> None:
    def fail(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "analyse", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        recorded.compress(test_image(64, 64, 116))


def test_what_cannot_be_recorded_is_launched(
    plain: Codec, recorded: Codec, recorder: OperatorRecorder, test_image: Images, monkeypatch: Any
) -> None:
    x = test_image(64, 64, 117)
    expected = plain.compress(x)
    analyse = Engine.analyse
    tries = 0

    def waiting(self: Engine, x: torch.Tensor) -> Any:
        nonlocal tries
        tries += 1
        y, z = analyse(self, x)
        assert y.sum().item() != 0.5
        return y, z

    monkeypatch.setattr(Engine, "analyse", waiting)
    assert recorded.compress(x) == expected
    with pytest.warns(RuntimeWarning, match="waits for the device"):
        assert recorded.compress(x) == expected
    before = tries
    assert recorded.compress(x) == expected
    assert tries == before + 1  # not tried again
    assert recorder.recordings == []


def test_memory_is_bounded(tiny: Any, test_image: Images) -> None:
    pictures = [test_image(64, 64 * (1 + number), 120) for number in range(4)]
    recorder = OperatorRecorder(memory=4 * 10 * 2**20, each=3 * 2**20)  # a quarter of it: three fit in
    codec = Codec(tiny, RecordedPrograms(recorder))
    instances = codec.instances
    assert instances is not None
    for x in (*pictures, *pictures):
        codec.compress(x)
        assert instances.nbytes() <= 10 * 2**20
    assert instances.count() == 3
    assert len(recorder.recordings) == 4
    assert len(recorder.finished) == 1  # whose memory was let go when the device was done with it
    codec.compress(pictures[3])
    codec.compress(pictures[1])
    assert len(recorder.recordings) == 4
    codec.compress(pictures[0])  # was used least recently, and dropped
    assert len(recorder.recordings) == 5


def test_what_is_in_use_is_not_dropped(tiny: Any, test_image: Images) -> None:
    recorder = OperatorRecorder(memory=4 * 4 * 2**20, each=3 * 2**20)  # one fits in
    codec, x, other = Codec(tiny, RecordedPrograms(recorder)), test_image(64, 64, 121), test_image(64, 128, 121)
    for one in (x, x, other):
        codec.compress(one)
    expected = Codec(tiny, None).compress(other)
    within: list[Coded] = []

    def once(number: int) -> None:
        recorder.on_run = lambda number: None
        within.append(codec.compress(other))

    recorder.on_run = once
    codec.compress(x)
    assert within == [expected]
    instances = codec.instances
    assert instances is not None
    assert instances.count() == 1
    codec.compress(x)
    assert len(recorder.recordings) == 2  # that of x is still there


def test_what_is_too_large_is_recorded_once(tiny: Any, test_image: Images) -> None:
    recorder = OperatorRecorder(memory=4 * 2**20, each=3 * 2**20)
    codec, x = Codec(tiny, RecordedPrograms(recorder)), test_image(64, 64, 122)
    results = [codec.compress(x) for _ in range(4)]
    assert all(one == results[0] for one in results)
    assert len(recorder.recordings) == 1
    instances = codec.instances
    assert instances is not None
    assert instances.count() == 0


@pytest.mark.parametrize(
    ("text", "bound"),
    [("", 2**38), ("0", 0), ("1000", 1000), ("2GiB", 2**31), ("1.5 MiB", 3 * 2**19), ("64kib", 2**16)],
)
def test_the_bound_can_be_set(monkeypatch: pytest.MonkeyPatch, text: str, bound: int) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert graph_memory(OperatorRecorder()) == bound


@pytest.mark.parametrize("text", ["much", "-1", "2GB", "1e9", "GiB"])
def test_a_bound_that_means_nothing(
    monkeypatch: pytest.MonkeyPatch, recorded: Codec, test_image: Images, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=VARIABLE):
        recorded.compress(test_image(64, 64, 123))


def test_recording_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, recorded: Codec, recorder: OperatorRecorder, test_image: Images
) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    for _ in range(3):
        recorded.compress(test_image(64, 64, 124))
    assert recorder.recordings == []


def test_recordings_follow_the_weights(tiny: Any, recorder: OperatorRecorder, test_image: Images) -> None:
    model, x = copy.deepcopy(tiny), test_image(64, 64, 125)
    recorded, plain = Codec(model, RecordedPrograms(recorder)), Codec(model, None)
    first = [recorded.compress(x) for _ in range(3)][-1]
    with torch.no_grad():
        model.g_a.analysis_transform[-1].weight.mul_(1.3)
    second = [recorded.compress(x) for _ in range(3)]
    assert second == [plain.compress(x)] * 3
    assert second[0].y != first.y
    engine.forget_engines(model)
    gc.collect()
    instances = recorded.instances
    assert instances is not None
    assert instances.count() == 0


def test_recordings_keep_neither_engine_nor_model_alive(recorder: OperatorRecorder) -> None:
    model = MLICPlusPlus(ModelConfig(N=16, M=64, slice_num=2)).eval()
    model.update()
    recorded = Codec(model, RecordedPrograms(recorder))
    for _ in range(2):
        recorded.both(torch.rand(1, 3, 64, 64))
    instances = recorded.instances
    assert instances is not None
    assert instances.count() == 2
    ghosts = weakref.ref(model), weakref.ref(recorded.engine)
    del model, recorded
    gc.collect()
    assert [ghost() for ghost in ghosts] == [None, None]
    assert instances.count() == 0
