# SPDX-License-Identifier: Apache-2.0
"""What a file's name says about the weights in it: λ and metric, as the released files spell them."""

from __future__ import annotations

import re
from pathlib import Path

from mlic_fast.checkpoint.native import SUFFIX
from mlic_fast.config import LossMetric

# λ of the released models, quality 1 to 6.
RELEASED_LAMBDAS: dict[LossMetric, tuple[float, ...]] = {
    "mse": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483),
    "ms-ssim": (2.4, 4.58, 8.73, 16.64, 31.73, 60.5),
}

SUFFIXES = (".pth.tar", ".pth", ".pt", ".tar", SUFFIX)

_METRIC = re.compile(r"(?<![a-z])(?:(mse)|(ms[-_]?ssim))(?![a-z])")
_QUALITY = re.compile(r"(?<![a-z0-9])q([1-6])(?![0-9])")
# Four digits are decimals (mse_0250: 0.0250); a point or an underscore makes a number (8.73, 8_73).
_DECIMALS = re.compile(r"(?<![0-9])(0[0-9]{3})(?![0-9])")
_NUMBER = re.compile(r"(?<![0-9])([0-9]{1,2}[._][0-9]{1,4})(?![0-9])")


def stem(path: str | Path) -> str:
    """File name without the suffixes that weights have, ".pth.tar" as a whole."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def guess_labels(path: str | Path) -> tuple[float | None, LossMetric | None]:
    """λ and metric that the file's name seems to say, None where it does not.

    "mlicpp_mse_q5_2960000.pth.tar" → (0.025, "mse"); "mlicpp_small_mse_0067.pth.tar" → (0.0067, "mse").
    A number counts only if it is one of the released models' λ or, for MSE, four decimals.
    """
    text = stem(path).lower()
    found = _METRIC.search(text)
    if found is None:
        return None, None
    metric: LossMetric = "mse" if found.group(1) else "ms-ssim"
    known = RELEASED_LAMBDAS[metric]
    if quality := _QUALITY.search(text):
        return known[int(quality.group(1)) - 1], metric
    after = text[found.end() :]
    if metric == "mse" and (decimals := _DECIMALS.search(after)):
        value = int(decimals.group(1)) / 10_000
        return (value or None), metric
    if number := _NUMBER.search(after):
        value = float(number.group(1).replace("_", "."))
        return (value if value in known else None), metric
    return None, metric
