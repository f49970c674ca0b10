# SPDX-License-Identifier: Apache-2.0
"""Files of every member of the family, of every release so far, decode to the pictures that they decoded to then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_samples import golden_model

import mlic_fast
from mlic_fast.bitstream import container
from mlic_fast.codec import decode_tensor, model_fingerprint
from mlic_fast.compute.backend import use_backend
from mlic_fast.contexts import FAMILY
from mlic_fast.engine import Options
from mlic_fast.evaluate.calibration import on_threads

FOLDER = Path(__file__).parent / "golden" / "family"
FILES = sorted(FOLDER.glob("*/*.mlic"))
WAYS = {
    "plain": ("torch", "off", 2),
    "kernels": ("auto", "off", 2),
    "engine": ("auto", "on", 2),
    "engine, one thread": ("auto", "on", 1),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The models that the files were written with, by the folder's name, with the coding tables of then."""
    found = {}
    for folder in sorted({path.parent for path in FILES}):
        file = container.read((folder / "rgb.mlic").read_bytes())
        model = copy.deepcopy(golden_model(file.architecture, file.variant))
        with np.load(folder / "tables.npz") as tables:
            model.load_state_dict({name: torch.from_numpy(tables[name]) for name in tables}, strict=False)
        model.engine_options = Options("float32")
        found[folder.name] = model.eval()
    return found


def test_every_member_beside_mlicpp_has_files() -> None:
    files = [container.read(path.read_bytes()) for path in FILES]
    everything = {(name, variant) for name, member in FAMILY.items() for variant in member.variants if name != "mlicpp"}
    assert {(file.architecture, file.variant) for file in files} >= everything
    assert {path.stem for path in FILES} >= {"rgb", "grey", "rgb-alpha", "one-pixel"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_file_decodes_to_its_reference(
    path: Path, way: str, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = path.read_bytes(), models[path.parent.name]
    assert container.read(data).guard is not None
    assert container.read(data).fingerprint == model_fingerprint(model)[: container.FINGERPRINT_BYTES]
    with np.load(path.with_suffix(".npz")) as file:
        expected = dict(file)
    backend, engine, threads = WAYS[way]
    monkeypatch.setenv("MLIC_FAST_ENGINE", engine)
    with use_backend(backend), on_threads(threads, plain=False):  # type: ignore[arg-type]
        x_hat, _ = decode_tensor(data, model)
        image = mlic_fast.decode(data, model)
    assert np.abs(x_hat.clamp(0, 1).numpy()[0] - expected["x_hat"] / 65535).max() <= 1e-3
    assert ("alpha" in expected) == (image.mode in ("LA", "RGBA"))
