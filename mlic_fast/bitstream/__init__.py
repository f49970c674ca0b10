# SPDX-License-Identifier: Apache-2.0
"""File formats, sole owners of bytes: `container` (.mlic) and `official` (the test script's layout)."""

from __future__ import annotations

from typing import Literal

from mlic_fast.bitstream import container, official
from mlic_fast.limits import Limits

__all__ = ["Limits", "container", "official", "sniff"]


def sniff(data: bytes | bytearray | memoryview) -> Literal["mlic", "official", "unknown"]:
    """Say which format the data seems to be in, from its first bytes; the rest may still be damaged."""
    if bytes(data[: len(container.MAGIC)]) == container.MAGIC:
        return "mlic"
    return "official" if official.has_head(data) else "unknown"
