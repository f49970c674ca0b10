# SPDX-License-Identifier: Apache-2.0
"""Compressed files and pictures that are damaged or made to do harm: an error of ours, soon, and no memory wasted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_samples import one_thread
from fuzz.targets import repaired
from hostile_inputs import PICTURES, files
from PIL import Image, ImageCms

import mlic_fast
from mlic_fast import coding
from mlic_fast.bitstream import container, official
from mlic_fast.errors import BitstreamError, LimitError, MlicError, WrongWeightsError
from mlic_fast.limits import Limits

__all__ = ["one_thread"]

# What a damaged header may turn a picture into, before it is refused: so that no decoding takes long.
LIMITS = Limits(pixels=2**13)
MODES = {"grey": "L", "grey-alpha": "LA", "rgb": "RGB", "rgb-alpha": "RGBA"}
# Far above what a small picture takes on a busy machine, far below a hang.
SECONDS = 30.0
MLIC_KINDS = ["grey", "everything", "unguarded"]


@pytest.fixture(scope="module")
def model() -> Any:
    return mlic_fast.load("mlicpp-s-0.0067")


@pytest.fixture(scope="module")
def coded(model: Any) -> dict[str, bytes]:
    """Small files that together have every feature."""
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        photograph = Image.open(file).convert("RGB")
    small, other = photograph.crop((300, 200, 364, 264)), photograph.crop((100, 100, 170, 150))
    everything = small.copy()
    everything.putalpha(small.convert("L"))
    exif = Image.Exif()
    exif[271] = "maker"
    everything.info.update(
        icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        exif=exif.tobytes(),
        xmp=b"<x:xmpmeta/>",
        comment=b"a comment",
    )
    return {
        "grey": mlic_fast.encode(other.convert("L"), model),
        "everything": mlic_fast.encode(everything, model, thumbnail=16),
        "unguarded": mlic_fast.encode(other, model, guard=False),
        "official": mlic_fast.encode(small, model, format="official"),
    }


def flips(data: bytes, masks: tuple[int, ...], positions: Any = None) -> Iterator[bytes]:
    """The data with one byte changed."""
    for position in range(len(data)) if positions is None else positions:
        for mask in masks:
            yield data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def decoded_or_refused(data: bytes, model: Any) -> bool:
    """Decode; true if there is a picture, which then is as the file says. Errors that are not ours fail the test."""
    start = time.perf_counter()
    try:
        picture = mlic_fast.decode(data, model, limits=LIMITS)
    except MlicError:
        picture = None
    assert time.perf_counter() - start < SECONDS
    if picture is None:
        return False
    if data.startswith(container.MAGIC):
        file = container.read(data)
        assert (picture.size, picture.mode) == ((file.width, file.height), MODES[file.mode])
    else:
        plain = official.read(data)
        assert (picture.size, picture.mode) == ((plain.width, plain.height), "RGB")
    return True


def test_the_files_have_every_feature(coded: dict[str, bytes], model: Any) -> None:
    assert all(decoded_or_refused(data, model) for data in coded.values())
    file = container.read(coded["everything"])
    assert file.guard
    assert file.alpha is not None
    assert len(file.alpha) > 1
    kinds = {chunk.kind for chunk in file.metadata}
    assert kinds == {kind for kind in container.ChunkKind if kind >= 0x80}
    assert container.read(coded["unguarded"]).guard is None


@pytest.mark.parametrize("kind", [*MLIC_KINDS, "official"])
def test_every_prefix_is_refused(coded: dict[str, bytes], model: Any, kind: str) -> None:
    data = coded[kind]
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            mlic_fast.decode(data[:length], model, limits=LIMITS)


@pytest.mark.parametrize("kind", MLIC_KINDS)
def test_every_flipped_byte_is_noticed(coded: dict[str, bytes], model: Any, kind: str) -> None:
    for damaged in flips(coded[kind], (0x01, 0x20, 0x80, 0xFF)):
        with pytest.raises(BitstreamError):
            mlic_fast.decode(damaged, model, limits=LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MLIC_KINDS)
def test_every_flipped_byte_is_noticed_whatever_the_flip(coded: dict[str, bytes], model: Any, kind: str) -> None:
    for damaged in flips(coded[kind], tuple(range(1, 256))):
        with pytest.raises(BitstreamError):
            container.read(damaged)


def forged(data: bytes, count: int | None) -> Iterator[bytes]:
    """The file with a byte of its streams, guard or alpha changed and its checksums right.

    That is what somebody who means harm sends. count: this many of each part, chosen once and for all;
    None: every byte, by two masks.
    """
    file = container.read(data)
    choose = random.Random(7)
    for content in (file.z, file.y, file.guard, file.alpha):
        if content is None:
            continue
        start = data.rindex(content)
        positions = range(start, start + len(content))
        chosen = positions if count is None else [choose.choice(positions) for _ in range(count)]
        masks = (0x01, 0x80) if count is None else (choose.randrange(1, 256),)
        for damaged in flips(data, masks, chosen):
            whole = repaired(damaged)
            assert whole is not None
            yield whole


@pytest.mark.parametrize("kind", MLIC_KINDS)
def test_forged_files(coded: dict[str, bytes], model: Any, kind: str) -> None:
    """With the checksums right only the coder's end and the guard can tell; if they do not, the size is right."""
    outcomes = [decoded_or_refused(data, model) for data in forged(coded[kind], 12)]
    assert not all(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MLIC_KINDS)
def test_all_forged_files(coded: dict[str, bytes], model: Any, kind: str) -> None:
    outcomes = [decoded_or_refused(data, model) for data in forged(coded[kind], None)]
    # a stream that a byte was changed in hardly ever ends as it must, with every pass's checksum right
    assert sum(outcomes) <= 0.2 * len(outcomes)


def test_forged_headers(coded: dict[str, bytes], model: Any) -> None:
    """Every byte of the header changed, with the checksums right."""
    data = coded["everything"]
    for position in range(6, 40):
        damaged = repaired(data[:position] + bytes([data[position] ^ 0x03]) + data[position + 1 :])
        if damaged is not None:
            decoded_or_refused(damaged, model)


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
def test_flipped_bytes_of_the_official_layout(coded: dict[str, bytes], model: Any, full: bool) -> None:
    """It has no checksums: an error, or a picture."""
    data = coded["official"]
    positions = range(len(data)) if full else [*range(24), *random.Random(3).sample(range(24, len(data)), 24)]
    for damaged in flips(data, (0x01, 0x80) if full else (0x41,), positions):
        decoded_or_refused(damaged, model)


@pytest.mark.parametrize("name", files())
def test_files_refused_before_anything_is_decoded(name: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("decoding began")

    monkeypatch.setattr(coding, "decompress", fail)
    with pytest.raises((LimitError, BitstreamError, WrongWeightsError)):
        mlic_fast.decode(files()[name], model)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space as Linux counts it")
def test_no_input_takes_much_memory_or_time() -> None:
    """All of them in a process that has 128 MiB to spare."""
    program = Path(__file__).with_name("hostile_inputs.py")
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert results.pop("control")["outcome"].startswith("not ours: MemoryError")
    assert len(results) > 25
    refused = {*PICTURES, *files()}
    for name, result in results.items():
        assert result["seconds"] < SECONDS, name
        assert "not ours" not in result["outcome"], (name, result)
        assert name not in refused or result["outcome"] != "taken", name


STRINGS_MESSAGE = "strings must be"
SHAPE_MESSAGE = "shape must be z's height and width, two positive integers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": None}, SHAPE_MESSAGE),
        ({"shape": 5}, SHAPE_MESSAGE),
        ({"shape": "ab"}, SHAPE_MESSAGE),
        ({"shape": ("1", "1")}, SHAPE_MESSAGE),
        ({"shape": (1.5, 1)}, SHAPE_MESSAGE),
        ({"shape": (float("nan"), 1)}, SHAPE_MESSAGE),
        ({"shape": (1,)}, SHAPE_MESSAGE),
        ({"shape": (1, 1, 1)}, SHAPE_MESSAGE),
        ({"shape": (0, 1)}, SHAPE_MESSAGE),
        ({"shape": (-1, 1)}, SHAPE_MESSAGE),
        ({"shape": (10**30, 1)}, "a side may have"),
        ({"shape": (2**31, 1)}, "a side may have"),
        ({"shape": (150, 150)}, "the limit is 89,478,485"),
        ({"z": 100_000}, "100000 times 64 x 64, 409,600,000 pixels"),
        ({"z": 3, "shape": (100, 100)}, "3 times 6400 x 6400"),
        ({"strings": None}, STRINGS_MESSAGE),
        ({"strings": [[b""]]}, STRINGS_MESSAGE),
        ({"strings": [[], []]}, STRINGS_MESSAGE),
        ({"strings": [["text"], ["text"]]}, STRINGS_MESSAGE),
        ({"strings": {"y": b"", "z": b""}}, STRINGS_MESSAGE),
        ({"strings": [[b""], [b""]]}, "at least 8"),
        ({"strings": [[bytes(9)], [bytes(9)]]}, "multiple of 4 bytes"),
        ({"strings": [[bytes(4000)], [bytes(4000)]]}, "state that an encoder leaves"),
        ({"shape": (2, 2)}, "damaged stream"),
    ],
    ids=str,
)
def test_hostile_arguments_of_decompress(
    coded: dict[str, bytes], model: Any, change: dict[str, Any], message: str
) -> None:
    file = official.read(coded["official"])
    strings, shape = [[file.y], [file.z]], change.get("shape", (1, 1))
    if "z" in change:
        strings = [strings[0], strings[1] * change["z"]]
    with pytest.raises(MlicError, match=message):
        model.decompress(change.get("strings", strings), shape)


def test_memory_that_is_not_contiguous(model: Any) -> None:
    strings = [[memoryview(np.zeros(64, np.uint8))[::2]], [bytes(8)]]
    with pytest.raises(MlicError):
        model.decompress(strings, (1, 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_refused_by_encode(name: str, model: Any) -> None:
    with pytest.raises(MlicError):
        mlic_fast.encode(PICTURES[name](), model)
