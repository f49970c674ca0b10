# SPDX-License-Identifier: Apache-2.0
"""Writes golden files of a member of the family: `python tests/golden/make_family_files.py NAME NEW_FOLDER [VARIANT]`.

As make_files.py does for MLIC++: files are added and never written again. Their weights are seeded, see
tests/family_samples.py; coding tables, which another machine may compute differently by a count, lie beside the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from make_files import pictures, reference

sys.path.insert(0, str(Path(__file__).parent.parent))

from family_samples import golden_model  # tests/ is no package

import mlic_fast
from mlic_fast.checkpoint.shapes import TABLES

NAMES = ("rgb", "grey", "rgb-alpha", "one-pixel")


def main() -> None:
    """Write the tables, the files and their references into a folder that does not exist yet."""
    architecture, folder, *variant = sys.argv[1:]
    model = golden_model(architecture, *variant)  # type: ignore[arg-type]  # refused there if there is none
    _write(model, Path(folder))


def _write(model: mlic_fast.model.CodecModel, folder: Path) -> None:
    folder.mkdir(parents=True)
    state = model.state_dict()
    np.savez_compressed(folder / "tables.npz", **{name: state[name].numpy() for name in sorted(TABLES)})
    for name in NAMES:
        data = mlic_fast.encode(pictures()[name], model)
        (folder / f"{name}.mlic").write_bytes(data)
        reference(folder / f"{name}.npz", data, model)


if __name__ == "__main__":
    main()
