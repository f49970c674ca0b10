# SPDX-License-Identifier: Apache-2.0
"""The models run in `compressai.utils.eval_model`, as docs/evaluation.md says, and it finds what `eval` finds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import compressai.zoo.image
import pytest
import torch
from checkpoint_samples import one_thread
from PIL import Image

import mlic_fast
from mlic_fast.cli.main import main

__all__ = ["one_thread"]

DOCUMENT = Path(__file__).parent.parent / "docs" / "evaluation.md"


@pytest.fixture
def _settings_kept() -> Iterator[None]:
    """eval_model sets PyTorch to one thread and to deterministic kernels when it is imported."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic
    zoo = compressai.zoo.image.model_architectures, compressai.zoo.image_models
    yield
    torch.set_num_threads(before[0])
    torch.backends.cudnn.deterministic = before[1]
    for models in zoo:
        models.pop("mlicpp", None)


@pytest.mark.usefixtures("_settings_kept")
def test_eval_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with resources.files("mlic_fast").joinpath("data", "coffee.png").open("rb") as file:
        # a multiple of 64, so that ways of padding make no difference
        Image.open(file).convert("RGB").crop((200, 150, 392, 342)).save(pictures / "a.png")
    checkpoint = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": mlic_fast.load("mlicpp-s-0.0067").state_dict()}, checkpoint)

    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    command = ["run.py", "checkpoint", "pictures", "-a", "mlicpp", "--no-update", "-d", "theirs", "-o", "results"]
    monkeypatch.setattr(sys, "argv", [*command, "--path", "checkpoint.pth.tar"])
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "run.py", "exec"), {})
    theirs = json.loads((tmp_path / "theirs" / "results.json").read_text())["results"]

    arguments = ["eval", str(pictures), "--model", str(checkpoint), "--format", "official", "--name", "ours"]
    assert main([*arguments, "-o", str(tmp_path / "ours")]) == 0
    ours = json.loads((tmp_path / "ours" / "ours.json").read_text())["results"]
    assert set(theirs) <= set(ours)
    # the same streams, and the same rounded pixels
    assert ours["bpp-strings"] == pytest.approx(theirs["bpp"], rel=1e-12)
    assert ours["psnr-rgb"] == pytest.approx(theirs["psnr-rgb"], abs=1e-3)
    assert ours["ms-ssim-rgb"] == pytest.approx(theirs["ms-ssim-rgb"], abs=1e-5)
    assert ours["bpp"][0] > theirs["bpp"][0]
