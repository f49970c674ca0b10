# SPDX-License-Identifier: Apache-2.0
"""Files of every release so far decode to the pictures that they decoded to then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlic_fast
from mlic_fast.bitstream import container
from mlic_fast.codec import decode_tensor
from mlic_fast.compute.backend import use_backend
from mlic_fast.engine import Options

# Weights are part of what a file needs: those that were bundled when the files were written.
WEIGHTS = {"v1": Path(__file__).parent / "golden" / "files" / "mlicpp-small.safetensors"}
FILES = sorted((Path(__file__).parent / "golden" / "files").glob("*/*.npz"))


def _data(reference: Path) -> bytes:
    path = reference.with_suffix(".mlic")
    return (path if path.exists() else reference.with_suffix(".bin")).read_bytes()


@pytest.fixture(scope="module", params=["plain", "kernels", "engine", "engine, one thread", "engine, bfloat16"])
def way(request: pytest.FixtureRequest) -> Any:
    """A model that decodes in one way, and the backend to name."""
    model = mlic_fast.load(WEIGHTS["v1"])
    kind: str = request.param
    model.engine_options = Options("bfloat16" if "bfloat16" in kind else "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLIC_FAST_ENGINE", "on" if "engine" in kind else "off")
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if "one thread" in kind else 2)
        with use_backend("torch" if kind == "plain" else "auto"):
            yield model, 0.05 if "bfloat16" in kind else 1e-3
        torch.set_num_threads(threads)


def test_there_are_files() -> None:
    assert {path.stem for path in FILES} >= {"rgb", "grey", "rgb-alpha", "grey-alpha", "one-pixel", "official"}


@pytest.mark.parametrize("reference", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_file_decodes_to_its_reference(reference: Path, way: Any) -> None:
    model, tolerance = way
    data = _data(reference)
    with np.load(reference) as file:
        expected = dict(file)
    x_hat, _ = decode_tensor(data, model)
    assert np.abs(x_hat.clamp(0, 1).numpy()[0] - expected["x_hat"] / 65535).max() <= tolerance
    image = mlic_fast.decode(data, model)
    assert ("alpha" in expected) == (image.mode in ("LA", "RGBA"))
    if "alpha" in expected:
        assert np.array_equal(np.asarray(image)[..., -1], expected["alpha"])


def test_golden_files_find_their_weights_and_are_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLIC_FAST_MODELS", str(WEIGHTS["v1"].parent))
    for reference in FILES:
        if reference.stem != "official":
            assert container.read(_data(reference)).guard is not None
            mlic_fast.decode(_data(reference))


def test_what_else_a_golden_file_carries() -> None:
    image = mlic_fast.decode(_data(FILES[0].parent / "rgb-alpha.npz"), WEIGHTS["v1"])
    assert image.getexif()[0x010E] == "golden"
    assert b"xmpmeta" in image.info["xmp"]
    assert image.info["comment"] == b"golden"
