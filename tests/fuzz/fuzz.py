# SPDX-License-Identifier: Apache-2.0
"""Fuzzes one target with atheris: python tests/fuzz/fuzz.py TARGET [libFuzzer's options and corpora]."""

from __future__ import annotations

import sys
import warnings

import atheris
from PIL import Image

with atheris.instrument_imports(include=["mlic_fast", "targets"], enable_loader_override=False):
    from targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py {'|'.join(TARGETS)} [options of libFuzzer] [corpora]")
    target = TARGETS[sys.argv.pop(1)]
    Image.MAX_IMAGE_PIXELS = 2**16  # as the targets' own limit
    warnings.simplefilter("ignore")  # Pillow's about damaged metadata
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
