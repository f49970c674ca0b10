# SPDX-License-Identifier: Apache-2.0
"""Networks whose initial values are not drawn, because what they will be is read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = (
    nn.init.kaiming_uniform_,
    nn.init.trunc_normal_,
    nn.init.uniform_,
    nn.init.normal_,
    Tensor.uniform_,
    Tensor.normal_,
)


class Undrawn(TorchFunctionMode):
    """Context in which this thread's tensors stay what they are where they would be filled with random numbers.

    A model's initial values take longer to draw than a file to read. The meta device does the same and imports
    PyTorch's compiler: two seconds. Everything must be loaded with `assign=True`, which leaves no tensor from here in
    the model.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
