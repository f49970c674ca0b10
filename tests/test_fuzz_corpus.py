# SPDX-License-Identifier: Apache-2.0
"""The fuzzers' committed inputs, and what fuzzing found, without a fuzzer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("fuzz") / "corpus"


def inputs(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.fixture(autouse=True)
def _as_the_fuzzer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 2**16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str) -> None:
    assert inputs(target)
    for data in inputs(target):
        TARGETS[target](data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", TARGETS)
def test_corpus_with_accidents(target: str) -> None:
    """A little of what a fuzzer does, the same each time: bytes changed, taken out, doubled, cut off."""
    choose = random.Random(target)
    seeds = inputs(target)
    for _ in range(300):
        data = bytearray(choose.choice(seeds))
        for _ in range(choose.randrange(1, 4)):
            position = choose.randrange(len(data)) if data else 0
            what = choose.randrange(4)
            if what == 0 and data:
                data[position] = choose.choice((0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256)))
            elif what == 1:
                del data[position : position + choose.randrange(1, 9)]
            elif what == 2:
                data[position:position] = data[position : position + choose.randrange(1, 9)]
            elif choose.randrange(4) == 0:
                del data[position:]
        TARGETS[target](bytes(data))


def test_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 200 * 1024
