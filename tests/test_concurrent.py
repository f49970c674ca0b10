# SPDX-License-Identifier: Apache-2.0
"""Many pictures with one model: same results, in order, bounded, and nothing wedged by failures or an early end."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mlic_fast
from mlic_fast.concurrent import decode_many, encode_many, work_through
from mlic_fast.errors import BitstreamError, ConfigError, DeviceError, ImageError, LimitError, WrongWeightsError
from mlic_fast.limits import Limits


def picture(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mlic-fast")]


def test_the_same_results_in_order(small_model: Any) -> None:
    pictures = [picture(seed, 40 + 30 * (seed % 2)) for seed in range(4)]
    files = list(encode_many(iter(pictures), small_model, in_flight=3))
    assert files == [mlic_fast.encode(one, small_model) for one in pictures]
    decoded = list(decode_many(iter(files), small_model, in_flight=3))
    for one, file in zip(decoded, files, strict=True):
        assert not isinstance(one, Exception)
        assert one.tobytes() == mlic_fast.decode(file, small_model).tobytes()
    assert workers() == []


def test_a_bad_item_does_not_stop_the_others(small_model: Any) -> None:
    large, wrong = picture(2, 900, 900), np.zeros(3)
    pictures = [picture(0), "no/such/picture.png", picture(1), b"rubbish", large, wrong, picture(3)]
    results = list(encode_many(pictures, small_model, limits=Limits(pixels=500_000)))
    kinds = [bytes, FileNotFoundError, bytes, ImageError, LimitError, ImageError, bytes]
    assert [type(one) for one in results] == kinds
    assert results[6] == mlic_fast.encode(pictures[6], small_model)
    files = [results[0], b"rubbish", results[0][:-5], results[2]]
    decoded = list(decode_many(files, small_model))
    assert isinstance(decoded[1], BitstreamError)
    assert isinstance(decoded[2], BitstreamError)
    assert decoded[3].size == (50, 40)


def test_what_is_asked_for_reaches_the_encoder(small_model: Any) -> None:
    from PIL import Image

    source = io.BytesIO()
    Image.fromarray(picture(0)).save(source, "JPEG", comment=b"here")
    (plain,) = encode_many([source.getvalue()], small_model, metadata=False, guard=False)
    (full,) = encode_many([source.getvalue()], small_model, thumbnail=16)
    (official,) = encode_many([source.getvalue()], small_model, format="official")
    assert plain == mlic_fast.encode(source.getvalue(), small_model, metadata=False, guard=False)
    assert len(full) > len(plain)
    assert mlic_fast.decode(full, small_model).info["comment"] == b"here"
    assert "comment" not in mlic_fast.decode(plain, small_model).info
    assert official == mlic_fast.encode(source.getvalue(), small_model, format="official")


def test_weights_are_found_for_each_file() -> None:
    (file,) = encode_many([picture(0)])
    first, second = decode_many([file, file])
    assert first.tobytes() == second.tobytes() == mlic_fast.decode(file).tobytes()


def test_errors_of_the_model_come_at_once(small_model: Any) -> None:
    with pytest.raises(WrongWeightsError, match="absent"):
        encode_many([], "absent")
    with pytest.raises(WrongWeightsError, match="absent"):
        decode_many([], "absent")
    for many in (encode_many, decode_many):
        with pytest.raises(DeviceError, match="abacus"):
            many([], device="abacus")
        for wrong in (0, -1, 1.5, True, 10**6):
            with pytest.raises(ConfigError, match="in_flight"):
                many([], small_model, in_flight=wrong)
    assert list(encode_many([], small_model)) == []


def test_memory_is_bounded() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = work_through(lambda item: item, items(), in_flight=3)
    assert taken == 0
    for given in range(1, 50):
        assert next(results) == given
        assert taken <= given + 6
    results.close()
    assert workers() == []


def test_as_many_at_once_as_asked_for() -> None:
    together = threading.Barrier(3)

    def work(item: int) -> int:
        together.wait(timeout=30)  # breaks unless three are in flight
        return item

    assert list(work_through(work, range(9), in_flight=3)) == list(range(9))
    now, most, lock = 0, 0, threading.Lock()

    def count(item: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.005)
        with lock:
            now -= 1

    list(work_through(count, range(20), in_flight=2))
    assert most == 2


def test_each_thread_begins_on_its_own() -> None:
    begun, worked = [], set()

    def work(item: int) -> None:
        worked.add(threading.get_ident())
        time.sleep(0.005)

    list(work_through(work, range(12), in_flight=3, begin=lambda: begun.append(threading.get_ident())))
    assert worked
    assert worked <= set(begun)
    assert len(begun) == len(set(begun)) <= 3


def test_an_early_end_stops_the_work() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            go_on.wait(timeout=30)
        return item

    results = work_through(work, range(1000), in_flight=1)
    assert next(results) == 0
    threading.Timer(0.05, go_on.set).start()
    results.close()  # waits for the one that has begun, and begins no other
    assert begun in ([0], [0, 1])
    assert workers() == []


def test_an_error_of_the_source_comes_after_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the drive is gone")

    results = work_through(lambda item: 10 * item, items(), in_flight=4)
    assert [next(results), next(results)] == [10, 20]
    with pytest.raises(OSError, match="the drive is gone"):
        next(results)
    assert workers() == []


def test_failures_keep_no_pictures_alive() -> None:
    kept: list[weakref.ref[Any]] = []

    def work(item: int) -> None:
        large = np.zeros(1000)
        kept.append(weakref.ref(large))
        try:
            raise KeyError(item)
        except KeyError as error:
            raise ImageError("none") from error

    errors = list(work_through(work, range(3)))
    gc.collect()
    assert [type(error) for error in errors] == [ImageError] * 3
    assert [reference() for reference in kept] == [None] * 3
    assert errors[0].__traceback__ is not None


def test_an_iterator_left_behind_does_not_hang_the_interpreter() -> None:
    program = (
        "import itertools, time; from mlic_fast.concurrent import work_through\n"
        "results = work_through(lambda item: time.sleep(0.01), itertools.count())\n"
        "next(results); raise SystemExit(7)"
    )
    finished = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert finished.returncode == 7
