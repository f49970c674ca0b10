# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: reading every known kind of file, validating, fingerprinting, writing the native form.

The way of a file: `files` (which kind is it) → `pickles` or `native` (bytes to tensors) → `layouts`
(names) → `shapes` (which model is it) → `validate` → `tables` (missing coding tables) → `fingerprint`.
"""

from mlic_fast.checkpoint.convert import Conversion, convert
from mlic_fast.checkpoint.files import Checkpoint, checkpoint_from_state_dict, read_checkpoint
from mlic_fast.checkpoint.fingerprint import fingerprint
from mlic_fast.checkpoint.native import NativeHeader, read_header, write_native
from mlic_fast.checkpoint.shapes import expected_shapes, infer_config

__all__ = [
    "Checkpoint",
    "Conversion",
    "NativeHeader",
    "checkpoint_from_state_dict",
    "convert",
    "expected_shapes",
    "fingerprint",
    "infer_config",
    "read_checkpoint",
    "read_header",
    "write_native",
]
