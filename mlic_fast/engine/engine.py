# SPDX-License-Identifier: Apache-2.0
"""Engine: one model's four transforms and its walk over the slices, compiled for inference."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from mlic_fast.compute.precision import no_autocast
from mlic_fast.compute.private_torch import has_bfloat16
from mlic_fast.engine.budget import default_budget
from mlic_fast.engine.layers import has_bfloat16_unit
from mlic_fast.engine.transforms import (
    CompiledHyperAnalysis,
    CompiledHyperSynthesis,
    StripTransform,
    compile_analysis,
    compile_synthesis,
)
from mlic_fast.engine.walk import CompiledSlices, walk
from mlic_fast.errors import ConfigError
from mlic_fast.nn.walk import SliceNetworks
from mlic_fast.passes import Walk

if TYPE_CHECKING:
    from mlic_fast.nn.network import Network

Part = TypeVar("Part")

TransformType = Literal["auto", "float32", "bfloat16"]


class Options(NamedTuple):
    """What an engine is compiled for.

    transform_dtype: what g_a, h_a and g_s multiply in; "auto": bfloat16 on GPUs and processors with matrix units for
        it, else float32: on other processors Winograd's method makes float32 as fast. A processor without
        any instructions for bfloat16 takes float32 whatever is asked for: it is faster and more exact there.
        The entropy path is float32-class in any case, and so are y, z and x̂.
    memory_budget: bytes that the maps of g_a and of g_s may take on the way, besides what goes in and comes out;
        None: 512 MiB on a CPU, 2 GiB on a GPU. On a GPU the walk over the slices may take an eighth of it for what
        is computed for several slices at once.
    """

    transform_dtype: TransformType = "auto"
    memory_budget: int | None = None

    def dtype(self, device: torch.device) -> torch.dtype:
        """The type that is meant on this device. Raises ConfigError for a type that there is not."""
        if self.transform_dtype not in get_args(TransformType):
            raise ConfigError(
                f"transform_dtype must be one of {', '.join(get_args(TransformType))}, not {self.transform_dtype!r}"
            )
        if self.transform_dtype == "auto":
            return torch.bfloat16 if has_bfloat16_unit(device) else torch.float32
        computed = device.type == "cuda" or has_bfloat16()
        return torch.bfloat16 if self.transform_dtype == "bfloat16" and computed else torch.float32

    def settled(self, device: torch.device) -> Options:
        """The same with nothing left to the engine's choice on this device. Raises ConfigError as `dtype` does."""
        name: TransformType = "bfloat16" if self.dtype(device) == torch.bfloat16 else "float32"
        return Options(name, self.budget(device))

    def budget(self, device: torch.device) -> int:
        """The memory budget on this device, in bytes."""
        return default_budget(device) if self.memory_budget is None else self.memory_budget


class Engine:
    """A model in evaluation mode, compiled. Each part is compiled when it is first used.

    Holds weights of the time it was made, and no state of a call: threads may share one. Maps that are returned are
    channels-last. No gradients.
    """

    def __init__(self, model: Network, options: Options) -> None:
        """Raises ConfigError for options that there are not."""
        self._device = device = next(model.g_a.parameters()).device
        self.options, self._dtype = options, options.dtype(device)
        self._budget = options.budget(device)
        # its parts, not the model: whoever remembers the engine of a model must not keep the model alive
        self._modules = model.g_a, model.h_a, model.h_s, model.g_s
        names = (*SliceNetworks.__annotations__, *(context.name for context in model.config.member.contexts))
        self._networks = SimpleNamespace(**{name: getattr(model, name) for name in names})
        self._latent = model.M
        self.slice_count, self.slice_width = model.slice_num, model.slice_ch

    @torch.no_grad()
    def analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x float [B, 3, H, W] → y [B, M, H/16, W/16] and z [B, N, H/64, W/64], float32; H and W multiples of 64."""
        with no_autocast(x.device):
            y = self._analysis(x, self._budget)
            return y, self._hyper_analysis(y)

    @torch.no_grad()
    def hyper(self, z_hat: Tensor) -> Tensor:
        """Decoded z [B, N, H/64, W/64] → hyper-parameters [B, 2M, H/16, W/16]."""
        with no_autocast(z_hat.device):
            return self._hyper_synthesis(z_hat)

    def walk(self, z_hat: Tensor) -> Walk:
        """The walk over the slices from decoded z [B, N, H/64, W/64]; to be driven without gradients and autocast."""
        return walk(self._slices, self.hyper(z_hat), self._budget)

    @torch.no_grad()
    def synthesise(self, y_hat: Tensor) -> Tensor:
        """ŷ [B, M, H/16, W/16] → x̂ [B, 3, H, W], float32, not clamped."""
        with no_autocast(y_hat.device):
            return self._synthesis(y_hat, self._budget)

    @cached_property
    def _analysis(self) -> StripTransform:
        return self._finished(compile_analysis(self._modules[0], self._dtype))

    @cached_property
    def _hyper_analysis(self) -> CompiledHyperAnalysis:
        return self._finished(CompiledHyperAnalysis(self._modules[1], self._dtype))

    @cached_property
    def _hyper_synthesis(self) -> CompiledHyperSynthesis:
        return self._finished(CompiledHyperSynthesis(self._modules[2]))

    @cached_property
    def _synthesis(self) -> StripTransform:
        return self._finished(compile_synthesis(self._modules[3], self._dtype))

    @cached_property
    def _slices(self) -> CompiledSlices:
        return self._finished(CompiledSlices(self._networks, self._latent))

    def _finished(self, part: Part) -> Part:
        """The part, once its weights are there: other threads take it on other streams."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return part
