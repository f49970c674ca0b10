# SPDX-License-Identifier: Apache-2.0
"""Network: all networks of a model under the official parameter names, with what coding needs of its tables.

Files are coded with it alone; `mlic_fast.model` adds CompressAI's entropy models and the official methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mlic_fast.compute.defaults import float32_on_cpu
from mlic_fast.compute.derived import Derived, tensors_of
from mlic_fast.compute.device import memory_errors, resolve_device
from mlic_fast.compute.precision import at_least_float32
from mlic_fast.compute.undrawn import Undrawn
from mlic_fast.config import ModelConfig
from mlic_fast.contexts import Architecture, Form, inputs_of, width_of
from mlic_fast.entropy.guard import DEFAULT_DELTA
from mlic_fast.entropy.tables import EntropyModels, SavedBottleneck, SavedGaussian
from mlic_fast.errors import ConfigError
from mlic_fast.nn.analysis import AnalysisTransform
from mlic_fast.nn.channel_context import ChannelContext
from mlic_fast.nn.entropy_parameters import EntropyParameters
from mlic_fast.nn.global_context import GlobalInterContext, GlobalIntraContext
from mlic_fast.nn.hyper_context import HyperContext
from mlic_fast.nn.hyperprior import HyperAnalysis, HyperSynthesis
from mlic_fast.nn.local_context import LocalContext
from mlic_fast.nn.refined_context import RefinedContext
from mlic_fast.nn.residual_prediction import LatentResidualPrediction
from mlic_fast.nn.selective import Selection, SelectivePredictor
from mlic_fast.nn.stacked_context import StackedLocalContext
from mlic_fast.nn.synthesis import SynthesisTransform
from mlic_fast.nn.walk import walk
from mlic_fast.passes import Walk

if TYPE_CHECKING:
    from typing_extensions import Self

# SHA-256 over a network's weights and tables, see `mlic_fast.checkpoint.fingerprint`.
fingerprints: Derived[bytes] = Derived()

_TABLES = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")


def _inter(i: int, C: int) -> GlobalInterContext:
    return GlobalInterContext(i * C, C, "linear attention")


def _intra(C: int, source: int | None = None) -> GlobalIntraContext:
    return GlobalIntraContext(C, "linear attention", source)


# The module of one slice by the context's name and form: (slice number, C, M) → module. In the order in which the
# official code builds the lists.
_CONTEXT_MODULES: dict[str, dict[Form, Callable[[int, int, int], nn.Module]]] = {
    "global_hyper_context": {"linear attention": lambda i, C, M: HyperContext(M, C)},
    "local_context": {
        "windows": lambda i, C, M: LocalContext(C),
        "rotated windows": lambda i, C, M: LocalContext(C, rotated=True),
        "stack": lambda i, C, M: StackedLocalContext(C),
    },
    "channel_context": {"convolutions": lambda i, C, M: ChannelContext(i * C, C)},
    "global_inter_context": {
        "linear attention": lambda i, C, M: _inter(i, C),
        "softmax attention": lambda i, C, M: GlobalInterContext(i * C, C, "softmax attention"),
        "rotated and reweighted": lambda i, C, M: RefinedContext(_inter(i, C), C),
        "reweighted": lambda i, C, M: RefinedContext(_inter(i, C), C, rotated=False),
    },
    "global_intra_context": {
        "linear attention": lambda i, C, M: _intra(C),
        "softmax attention": lambda i, C, M: GlobalIntraContext(C, "softmax attention"),
        "rotated and reweighted": lambda i, C, M: RefinedContext(_intra(C), C),
        # the first slice's is of the hyper-parameters
        "reweighted": lambda i, C, M: RefinedContext(_intra(C, C if i else 2 * M), C, rotated=False),
    },
}


class Network(nn.Module):
    """g_a, h_a, h_s, g_s, the networks of each slice, and the entropy models' tables.

    config: as for ModelConfig.from_object; None: the published MLIC++, or the member of the family that the class is.
    Raises ConfigError for what the architecture does not allow. Keeps no state of a call: threads may share one.
    """

    # Which member of the family a class is; None: any.
    architecture: ClassVar[Architecture | None] = None

    @float32_on_cpu()
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        own = self.architecture
        if config is None:
            self.config = c = ModelConfig.published(own or "mlicpp")
        else:
            self.config = c = ModelConfig.from_object(config, own)
        N, M, C = c.N, c.M, c.slice_width
        self.name = ""  # for people: files say which model they were written with
        self.engine_options: Any = None  # see mlic_fast.engine.Options; None: the defaults
        # What files allow for differences between machines: δ in log-scale, or one of each pass and channel.
        self.guard_deltas: float | Tensor = DEFAULT_DELTA
        self.N, self.M, self.slice_num, self.slice_ch, self.context_window = N, M, c.slice_num, C, c.context_window

        # The order of construction is the official one: the same seed gives the same initial weights.
        self.entropy_bottleneck = self._bottleneck(N)
        self.g_a = AnalysisTransform(N, M, token_mixing=c.member.token_mixing)
        self.g_s = SynthesisTransform(N, M, c.variant, token_mixing=c.member.token_mixing)
        self.h_a = HyperAnalysis(N, M)
        self.h_s = HyperSynthesis(N, M)
        self.gaussian_conditional = self._gaussian()

        def each_slice(make: Callable[[int], nn.Module], has: Callable[[int], bool] = lambda i: True) -> nn.ModuleList:
            # None keeps the official numbering: contexts between slices begin at slice 1
            modules: list[Any] = [make(i) if has(i) else None for i in range(c.slice_num)]
            return nn.ModuleList(modules)

        contexts = {context.name: context for context in c.member.contexts}
        for name, forms in _CONTEXT_MODULES.items():
            if context := contexts.get(name):
                make = forms[context.form]
                setattr(self, name, each_slice(lambda i, make=make: make(i, C, M), context.has))  # type: ignore[misc]
        inputs = [inputs_of(c.architecture, i, c.variant) for i in range(c.slice_num)]
        # the contexts, then the hyper-parameters
        self.entropy_parameters_anchor = each_slice(
            lambda i: EntropyParameters(width_of(inputs[i].anchors, C) + 2 * M, C)
        )
        self.entropy_parameters_nonanchor = each_slice(
            lambda i: EntropyParameters(width_of(inputs[i].nonanchors, C) + 2 * M, C)
        )
        # hyper means M, decoded slices iC, current slice C
        self.lrp_anchor = each_slice(lambda i: LatentResidualPrediction(M + (i + 1) * C, C, c.variant))
        self.lrp_nonanchor = each_slice(lambda i: LatentResidualPrediction(M + (i + 1) * C, C, c.variant))
        if c.member.predictor:
            # hyper-parameters, decoded slices, their contexts
            self.selective_predictor = each_slice(
                lambda i: SelectivePredictor(2 * M + i * C + width_of(inputs[i].before, C), C)
            )

    def _bottleneck(self, channels: int) -> Any:
        return SavedBottleneck(channels)

    def _gaussian(self) -> Any:
        return SavedGaussian()

    @property
    def entropy(self) -> EntropyModels:
        """The entropy models of y and z."""
        return EntropyModels(self.gaussian_conditional, self.entropy_bottleneck)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.entropy.medians().device

    def analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, 3, H, W], H and W multiples of 64 → y [B, M, H/16, W/16] and z [B, N, H/64, W/64], at least float32."""
        y = self.g_a(x.to(next(self.g_a.parameters()).dtype))
        z = self.h_a(y)
        return at_least_float32(y), at_least_float32(z)

    def walk(self, z_hat: Tensor, selection: Selection | None = None) -> Walk:
        """The walk over the slices from ẑ [B, N, H/64, W/64]; selection: for estimates, see mlic_fast.nn.selective."""
        return walk(self, self.h_s(z_hat), selection)

    def selection(self) -> Selection:
        """What the predictors of selective compression leave out of one walk. Raises ConfigError if there are none."""
        if not self.config.member.predictor:
            raise ConfigError(f"{self.config.member.title}, variant {self.config.variant}, predicts no symbols to skip")
        return Selection(self.selective_predictor)

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """ŷ [B, M, h, w] → x̂ [B, 3, 16h, 16w], not clamped."""
        x_hat: Tensor = self.g_s(y_hat.to(next(self.g_s.parameters()).dtype))
        return x_hat

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters and coding tables under official names, of CompressAI's older or newer spelling.

        Returns the missing and unexpected keys, as torch.nn.Module does. Tables that are in
        `state_dict` replace the model's, whatever their length.
        """
        from mlic_fast.checkpoint.layouts import official_names

        state_dict = official_names(state_dict)
        for prefix in ("entropy_bottleneck", "gaussian_conditional"):
            entropy_model = getattr(self, prefix)
            for name in _TABLES:
                saved, own = state_dict.get(f"{prefix}.{name}"), getattr(entropy_model, name, None)
                if saved is not None and own is not None and saved.shape != own.shape:
                    setattr(entropy_model, name, torch.empty(saved.shape, dtype=own.dtype, device=own.device))
        return nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], architecture: Architecture | None = None) -> Self:
        """A model in evaluation mode with these weights; configuration and variant are found from the tensors.

        architecture: as for `from_checkpoint`. Missing coding tables are computed.
        Raises CheckpointError where the tensors are no model's of the family, or no such one's.
        """
        from mlic_fast.checkpoint import checkpoint_from_state_dict

        wanted = cls._wanted(architecture)
        return cls._from_checkpoint(checkpoint_from_state_dict(state_dict, architecture=wanted), torch.device("cpu"))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | PathLike[str],
        device: str | torch.device = "cpu",
        architecture: Architecture | None = None,
    ) -> Self:
        """A model in evaluation mode with the weights of an official, CompressAI or native file.

        device: as for torch, or "auto": the first CUDA device, or else the CPU.
        architecture: whose weights they are; None: the class's, or, of a class for all, as the file says or the tensors
            tell; where they fit both MLIC++ and MLIC+, MLIC++.
        Raises DeviceError, FileNotFoundError, or CheckpointError saying what is wrong with the file, ConfigError for
        an architecture that there is not, or that the class is not.
        """
        from mlic_fast.checkpoint import read_checkpoint

        place, wanted = resolve_device(device), cls._wanted(architecture)
        with memory_errors(f"loading {path}"):
            return cls._from_checkpoint(read_checkpoint(path, wanted), place)

    @classmethod
    def _wanted(cls, architecture: Architecture | None) -> Architecture | None:
        own = cls.architecture
        if architecture is not None and own is not None and architecture != own:
            raise ConfigError(f"{cls.__name__} has the architecture {own!r}, not {architecture!r:.80}")
        return architecture or own

    @classmethod
    @float32_on_cpu()
    def _from_checkpoint(cls, checkpoint: Any, device: torch.device) -> Self:
        with Undrawn():
            model = cls(checkpoint.config)
        model.name = checkpoint.name
        if checkpoint.guard_deltas is not None:
            model.guard_deltas = torch.tensor(checkpoint.guard_deltas, dtype=torch.float64)
        model.load_state_dict(checkpoint.state_dict, assign=True)
        model.eval().to(device)
        fingerprints.put(model, tensors_of(model), checkpoint.fingerprint)
        return model
