# SPDX-License-Identifier: Apache-2.0
"""CompressAI's architectures with seeded weights whose latents spread over their tables, and beyond."""

from __future__ import annotations

import warnings
from typing import Any

import torch


def seeded_model(name: str, seed: int = 0, **sizes: Any) -> Any:
    """A model of CompressAI's registry in evaluation mode, with tables; nothing is downloaded.

    sizes: of its constructor; without any, those of the zoo's lowest quality.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import compressai.models  # noqa: F401 - registers them
        from compressai.registry import MODELS
        from compressai.zoo import image_models

    torch.manual_seed(seed)
    model = MODELS[name](**sizes) if sizes else image_models[name](quality=1, pretrained=False)
    with torch.no_grad():
        last = [layer for layer in model.g_a if isinstance(layer, torch.nn.Conv2d)][-1]
        for parameter in last.parameters():
            parameter.mul_(40)
        for module in model.modules():
            if hasattr(module, "quantiles"):
                # tables of several lengths and offsets
                module.quantiles[:, 0, 0] -= torch.rand(module.quantiles.shape[0]) * 9
                module.quantiles[:, 0, 1] += torch.rand(module.quantiles.shape[0]) - 0.5
                module.quantiles[:, 0, 2] += torch.rand(module.quantiles.shape[0]) * 9
        model.update()
    return model.eval()
