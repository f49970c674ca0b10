# SPDX-License-Identifier: Apache-2.0
"""Memory of maps that are gone is taken again, never that of one that is still there; no more is kept than allowed."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from mlic_fast.engine import map_memory
from mlic_fast.engine.map_memory import MapMemory, shared_map_memory

MIB = 2**20


def map_of(mebibytes: int, height: int = 4) -> tuple[int, int, int, int]:
    return 1, 32, height, mebibytes * MIB // (4 * 32 * height)


def test_a_map_is_channels_last_and_can_be_written() -> None:
    x = MapMemory().empty((2, 3, 64, 1024))
    assert x.shape == (2, 3, 64, 1024)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.data_ptr() % 64 == 0
    x.fill_(1)
    assert float(x.sum()) == x.numel()


def test_small_maps_are_pytorchs() -> None:
    kept = MapMemory()
    small = kept.empty((1, 4, 3, 5))
    assert small.is_contiguous(memory_format=torch.channels_last)
    del small
    assert kept.kept() == 0


def test_memory_is_taken_again_once_the_last_view_is_gone() -> None:
    kept = MapMemory()
    x = kept.empty(map_of(4))
    place, view = x.data_ptr(), x[:, :, 1:].permute(0, 2, 3, 1)
    del x
    assert kept.kept() == 0
    other = kept.empty(map_of(4))
    assert other.data_ptr() != place
    del view
    assert kept.kept() == 4 * MIB
    smaller = kept.empty(map_of(3))
    assert smaller.data_ptr() == place
    assert kept.kept() == 0


def test_much_smaller_and_larger_maps_have_blocks_of_their_own() -> None:
    kept = MapMemory()
    del_me = kept.empty(map_of(4))
    place = del_me.data_ptr()
    del del_me
    for mebibytes in (1, 5):
        assert kept.empty(map_of(mebibytes)).data_ptr() != place


def test_no_more_is_kept_than_allowed_and_the_latest_stay() -> None:
    kept = MapMemory(10 * MIB)
    maps = [kept.empty(map_of(4)) for _ in range(4)]
    places = [x.data_ptr() for x in maps]
    while maps:
        del maps[0]
    assert kept.kept() == 8 * MIB
    found = [kept.empty(map_of(4)), kept.empty(map_of(4))]
    assert [x.data_ptr() for x in found] == [places[3], places[2]]
    assert kept.kept() == 0


def test_what_waits_can_be_released_and_what_is_used_stays() -> None:
    kept = MapMemory()
    x, other = kept.empty(map_of(4)).fill_(5), kept.empty(map_of(4))
    del other
    assert kept.kept() == 4 * MIB
    kept.release()
    assert kept.kept() == 0
    assert float(x.mean()) == 5
    del x
    assert kept.kept() == 4 * MIB


def test_maps_outlive_their_blocks() -> None:
    kept = MapMemory()
    x = kept.empty(map_of(1)).fill_(7)
    gone = weakref.ref(kept)
    del kept
    gc.collect()
    assert gone() is None
    assert float(x.sum()) == 7 * x.numel()


def test_shared_for_as_long_as_somebody_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_memory, "_shared", None)
    first = shared_map_memory()
    assert shared_map_memory() is first
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert isinstance(shared_map_memory(), MapMemory)


def test_in_inference_mode_and_out_of_it() -> None:
    kept = MapMemory()
    with torch.inference_mode():
        x = kept.empty(map_of(2)).fill_(1)
    del x
    with torch.no_grad():
        assert float(kept.empty(map_of(2)).fill_(2).mean()) == 2


def test_threads_never_share_a_map() -> None:
    kept, wrong = MapMemory(8 * MIB), []

    def work(number: int) -> None:
        for turn in range(100):
            x = kept.empty(map_of(1 + turn % 3)).fill_(number)
            other = kept.empty(map_of(1)).fill_(-number)
            if not (bool((x == number).all()) and bool((other == -number).all())):
                wrong.append((number, turn))

    workers = [threading.Thread(target=work, args=(number + 1,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert kept.kept() <= 8 * MIB
