# SPDX-License-Identifier: Apache-2.0
"""Fingerprint of weights and coding tables: what a compressed file names its model by."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlic_fast.contexts import Architecture, member_of

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of a fingerprint.
FINGERPRINT_SIZE = 32

_DOMAIN = "mlic-fast fingerprint 1\n"
_NAMED_DOMAIN = "mlic-fast fingerprint 2 {}\n"


def fingerprint(state_dict: Mapping[str, Tensor], architecture: Architecture = "mlicpp") -> bytes:
    """SHA-256 over a canonical state dict, 32 bytes; shown as hex.

    What is hashed, in order: the ASCII line "mlic-fast fingerprint 1\\n", or for members of the family beside MLIC++
    "mlic-fast fingerprint 2 <architecture>\\n", since MLIC+'s tensors have MLIC++'s names; then for each tensor, by
    name in ascending order of its UTF-8 bytes: the line "<name> <dtype> <shape>\\n" in UTF-8, where dtype
    is "float32", "int32" or "int64" and shape is the sizes in decimal joined by "x" ("" for a
    scalar); then its values in row-major order, each in little-endian bytes.

    `state_dict` holds canonical tensors as `read_checkpoint` returns them: every parameter and
    buffer of the model under its official name, floats as float32 (so half-precision files are hashed
    as what they load to), coding tables as int32 and included, since streams depend on them as much as on
    weights. Two models with one fingerprint code and decode the same streams.
    Raises ConfigError for an architecture that there is not.
    """
    import torch

    member_of(architecture)
    domain = _DOMAIN if architecture == "mlicpp" else _NAMED_DOMAIN.format(architecture)
    digest = hashlib.sha256(domain.encode())
    for name in sorted(state_dict, key=str.encode):
        tensor = state_dict[name].detach().to("cpu").contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {'x'.join(map(str, tensor.shape))}\n".encode())
        if tensor.numel():
            values = tensor.reshape(-1)
            if sys.byteorder == "big":
                values = values.view(torch.uint8).reshape(-1, tensor.element_size()).flip(1).reshape(-1)
            digest.update(values.numpy().data)
    return digest.digest()
