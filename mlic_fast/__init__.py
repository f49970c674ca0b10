# SPDX-License-Identifier: Apache-2.0
"""mlic_fast: the learned image codec MLIC++ and its family, fast, exact and portable.

Public names are imported on first use, so that `import mlic_fast` does not import torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "kernels" / "__init__.py").is_file() and not (_checkout / "mlic_fast" / "kernels").exists():
    # A run from a checkout or an editable install: there kernels/ lies beside the package.
    __path__.append(str(_checkout))

importlib.import_module("mlic_fast.compute.forks")  # before any fork, to know of it

_HOME_OF = {
    "MLIC": "mlic_fast.model",
    "MLICPlus": "mlic_fast.model",
    "MLICPlusPlus": "mlic_fast.model",
    "MLICv2": "mlic_fast.model",
    "ModelConfig": "mlic_fast.config",
    "MlicError": "mlic_fast.errors",
    "encode": "mlic_fast.codec",
    "decode": "mlic_fast.codec",
    "encode_many": "mlic_fast.concurrent",
    "decode_many": "mlic_fast.concurrent",
    "load": "mlic_fast.model",
    "release": "mlic_fast.caches",
}

__all__ = [
    "MLIC",
    "MLICPlus",
    "MLICPlusPlus",
    "MLICv2",
    "MlicError",
    "ModelConfig",
    "__version__",
    "decode",
    "decode_many",
    "encode",
    "encode_many",
    "load",
    "release",
]

if TYPE_CHECKING:
    from mlic_fast.caches import release as release
    from mlic_fast.codec import decode as decode
    from mlic_fast.codec import encode as encode
    from mlic_fast.concurrent import decode_many as decode_many
    from mlic_fast.concurrent import encode_many as encode_many
    from mlic_fast.config import ModelConfig as ModelConfig
    from mlic_fast.errors import MlicError as MlicError
    from mlic_fast.model import MLIC as MLIC
    from mlic_fast.model import MLICPlus as MLICPlus
    from mlic_fast.model import MLICPlusPlus as MLICPlusPlus
    from mlic_fast.model import MLICv2 as MLICv2
    from mlic_fast.model import load as load


# Modules that have a name of their own beside their place in the package.
_MODULES = {"image": "mlic_fast.pictures.image", "save": "mlic_fast.pictures.save"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'mlic_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
