# SPDX-License-Identifier: Apache-2.0
"""Fingerprints are what the documentation says, and tell models apart."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from mlic_fast.checkpoint import fingerprint


def documented(arrays: dict[str, np.ndarray]) -> bytes:
    """The definition in the docstring, written down once more."""
    text = b"mlic-fast fingerprint 1\n"
    for name in sorted(arrays, key=lambda name: name.encode()):
        array = arrays[name]
        shape = "x".join(str(size) for size in array.shape)
        text += f"{name} {array.dtype.name} {shape}\n".encode() + array.astype(array.dtype.newbyteorder("<")).tobytes()
    return hashlib.sha256(text).digest()


ARRAYS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.table": np.array([-1, 65536], dtype=np.int32),
    "B.index": np.array([[3]], dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "scalar": np.array(2.5, dtype=np.float32),
}


def test_definition() -> None:
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    assert fingerprint(tensors) == documented(ARRAYS)
    assert fingerprint(tensors).hex() == "0687f66884185560eeb8354e4422b91d34fa9eabaaba5b3c2abeb12ffb93dcca"


def test_order_layout_and_gradients_do_not_matter() -> None:
    tensors = {name: torch.from_numpy(array) for name, array in reversed(ARRAYS.items())}
    tensors["b.weight"] = torch.nn.Parameter(tensors["b.weight"].t().contiguous().t())
    assert fingerprint(tensors) == documented(ARRAYS)


def test_everything_else_matters() -> None:
    seen = {documented(ARRAYS)}
    changes = [
        {"b.weight": torch.arange(6.0).reshape(3, 2)},
        {"b.weight": torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0))},
        {"a.table": torch.tensor([-1, 65535], dtype=torch.int32)},
        {"a.table": torch.tensor([-1, 65536])},
        {"a.other": torch.tensor([1.0])},
        {"empty": torch.zeros(4, 0)},
    ]
    for change in changes:
        seen.add(fingerprint({**{name: torch.from_numpy(array) for name, array in ARRAYS.items()}, **change}))
    assert len(seen) == 1 + len(changes)
