# SPDX-License-Identifier: Apache-2.0
"""Tables as the terminal shows them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

# what a cell says where there is no value
NOTHING = "–"


def lines(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]) -> list[str]:
    """A table's lines, columns two spaces apart. left: heads of the columns that begin at the left; numbers do not."""
    padded = []
    for head, *cells in zip(heads, *rows, strict=True):
        width = max(map(len, (head, *cells)))
        padded.append([text.ljust(width) if head in left else text.rjust(width) for text in (head, *cells)])
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
