# SPDX-License-Identifier: Apache-2.0
"""Files of CompressAI's strings: everything comes back, nothing else is taken for one."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from mlic_fast.errors import BitstreamError, CodecRunError
from mlic_fast.evaluate.strings_file import Strings, read, write

CONTENTS: dict[str, tuple[Strings, int]] = {
    # bytes beside the strings, by hand: width, height; tag, count and two numbers; tags, counts and lengths
    "hyperprior": (Strings(97, 81, [[b"yy"], [b"zzzz"]], torch.Size([2, 3])), 2 + 6 + 2 + 2 * 4),
    "factorized": (Strings(1, 300, [[b"y"]], torch.Size([1, 19])), 3 + 6 + 2 + 4),
    "groups": (
        Strings(65, 64, [[b"a"], [b""], [b"b" * 200]], {"y": [torch.Size([16, 4, 8])], "hyper": torch.Size([1, 2])}),
        2 + (2 + 2 + 2 + 8) + (6 + 6) + 2 + (4 + 4 + 5),
    ),
    "nothing": (Strings(1, 1, [], ()), 2 + 2 + 2),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_everything_comes_back(name: str) -> None:
    content, beside = CONTENTS[name]
    data = write(content)
    assert read(data) == content
    assert len(data) == content.string_bytes + beside
    assert content.string_bytes == sum(len(one) for strings in content.strings for one in strings)


def test_lists_stay_lists_and_tuples_tuples() -> None:
    content = read(write(Strings(1, 1, [(b"a",), [b"b"]], ({"k": (1, [2])},))))
    assert content.strings == [(b"a",), [b"b"]]
    assert content.shape == ({"k": (1, [2])},)


@pytest.mark.parametrize(
    "bad", [1.5, None, True, -1, 2**32, torch.zeros(1), {1: 2}, [[[[[[[[[[1]]]]]]]]]], "text"], ids=repr
)
def test_what_no_file_holds(bad: Any) -> None:
    with pytest.raises(CodecRunError):
        write(Strings(4, 4, [b""], bad))


def test_damage() -> None:
    choose = random.Random(0)
    for content, _ in CONTENTS.values():
        data = write(content)
        for end in range(len(data)):
            with pytest.raises(BitstreamError):
                read(data[:end])
        with pytest.raises(BitstreamError, match="left over"):
            read(data + b"\0")
    for data in (b"\0\1\3\0\2\0", b"\1\1\5\0\2\0", b"\1\1\2\xff\xff\xff\xff\x0f", b"\x81\0\1\3\0\2\0", b"\xff" * 9):
        with pytest.raises(BitstreamError):
            read(data)
    twice = b"\1\1\4\2\1a\0\1\1a\0\1\2\0"
    with pytest.raises(BitstreamError, match="twice"):
        read(twice)
    for _ in range(2000):
        data = choose.randbytes(choose.randrange(40))
        try:
            content = read(data)
        except BitstreamError:
            continue
        assert write(content) == data
