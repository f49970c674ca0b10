# SPDX-License-Identifier: Apache-2.0
"""The models of the family: the official constructor and methods, told once, and a class for each member."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.models import CompressionModel
from torch import Tensor

from mlic_fast import coding
from mlic_fast.compute.defaults import fit_to_code, float32_on_cpu
from mlic_fast.compute.device import memory_errors, resolve_device
from mlic_fast.compute.precision import KeepsFloat32, no_autocast, sums_for_products
from mlic_fast.config import PADDING_UNIT
from mlic_fast.contexts import Architecture, member_of
from mlic_fast.engine import Options
from mlic_fast.entropy.coders import code
from mlic_fast.entropy.estimator import Estimator, likelihoods_with_noise, round_straight_through
from mlic_fast.errors import BitstreamError, ImageError
from mlic_fast.limits import Limits
from mlic_fast.nn.network import Network


class _EntropyBottleneck(KeepsFloat32, EntropyBottleneck):
    def _logits_cumulative(self, inputs: Tensor, stop_gradient: bool) -> Tensor:
        with sums_for_products(inputs.device):  # tables are computed from these
            logits: Tensor = super()._logits_cumulative(inputs, stop_gradient)
        return logits


class _GaussianConditional(KeepsFloat32, GaussianConditional):
    pass


class CodecModel(Network, CompressionModel):
    """A model of the family with the methods of the official code.

    config: the official configuration object (attributes N, M, slice_num, context_window), a
        ModelConfig, or None for the published size.

    The model keeps no state of a
    call: several threads may use one model at once. The way from z to the scales stays in float32
    under `.half()`, autocast and PyTorch's precision switches, since encoder and decoder must agree
    on it. Raises ConfigError for a configuration that the architecture does not allow.
    """

    # CompressionModel's, which has no annotations
    aux_loss: Callable[[], Tensor]

    @float32_on_cpu()
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.engine_options = Options()  # how the engine computes that evaluation mode uses, see mlic_fast.engine

    def _bottleneck(self, channels: int) -> EntropyBottleneck:
        return _EntropyBottleneck(channels)

    def _gaussian(self) -> GaussianConditional:
        return _GaussianConditional(None)

    @fit_to_code
    def forward(
        self,
        x: Tensor,
        noise: tuple[Tensor, Tensor] | None = None,
        step: Tensor | None = None,
        *,
        selective: bool = False,
    ) -> dict[str, Any]:
        """Reconstruct x and estimate its rate, without coding.

        x: float [B, 3, H, W] in [0, 1], H and W multiples of 64.
        noise: what is added to y [B, M, H/16, W/16] and z [B, N, H/64, W/64] for the likelihoods, in either mode,
            uniform from -1/2 to 1/2 as a rule; None: training mode draws it, evaluation mode adds none.
        step: quantisation steps Δ of y [B], positive: symbols are (y − mean) / Δ, rounded; None: 1.
        selective: leave out the symbols that MLICv2's predictor drops, as CompressAI does: they are means and cost
            nothing. This is not what is coded, which is every symbol. Raises ConfigError for models without predictor.
        Returns {"x_hat": [B, 3, H, W], "likelihoods": {"y_likelihoods": [B, M, H/16, W/16],
        "z_likelihoods": [B, N, H/64, W/64]}}. In training mode likelihoods are those of noisy values and
        rounding passes gradients straight through.
        """
        _check_input(x)
        y, z = self.analyse(x)
        with no_autocast(x.device):
            if noise is None:
                z_likelihoods = self.entropy_bottleneck(z)[1]
            else:
                z_likelihoods = likelihoods_with_noise(self.entropy_bottleneck, z, noise[1])
            medians = self.entropy_bottleneck.quantiles[:, :, 1:2]
            z_hat = round_straight_through(z - medians) + medians
            steps = None if step is None else step.to(y).view(-1, 1, 1, 1)
            noise_of_y = None if noise is None else noise[0]
            estimator = Estimator(self.gaussian_conditional, y, self.slice_num, noise_of_y, steps)
            selection = self.selection() if selective else None
            y_hat = code(self.walk(z_hat, selection), estimator)
            y_likelihoods = estimator.likelihoods()
            if selection is not None:
                y_likelihoods = selection.likelihoods(y_likelihoods)
        return {
            "x_hat": self.synthesise(y_hat),
            "likelihoods": {"y_likelihoods": y_likelihoods, "z_likelihoods": z_likelihoods},
        }

    def compress(self, x: Tensor, *, exact: bool | None = None, guard: float | Tensor | None = None) -> dict[str, Any]:
        """Code x into strings.

        x: float [B, 3, H, W] in [0, 1], H and W multiples of 64.
        exact: True: take the official operators, so that the official code decodes the strings; False: take the engine,
            whose scales differ in the last bits. None: False, or what the environment variable MLIC_FAST_EXACT says. A
            backend named by MLIC_FAST_BACKEND goes before all of them.
        guard: None: the official layout. δ in log-scale, or δ of each pass and channel [passes, C], `guard_deltas` for
            instance: symbols are coded so that whoever computes the scales with an error below it can decode them,
            given the guard returned.
        Returns {"strings": [[y string], [z string of each item]], "shape": z's height and width,
        "cost_time": seconds}, and "guard": bytes if one was asked for. The y string holds the whole batch.
        Raises ImageError for other shapes, NonFiniteError where values are not finite, CodingError
        where tables are missing or a symbol is out of the coder's range, GuardError for a δ out of range, or not
        one of each pass and channel.
        """
        start = _seconds(x.device)
        _check_input(x)
        y, z, moves = coding.compress(self, x, exact=exact, deltas=guard)
        shape = torch.Size((x.shape[2] // PADDING_UNIT, x.shape[3] // PADDING_UNIT))
        coded = {"strings": [[y], z], "shape": shape, "cost_time": _seconds(x.device) - start}
        return coded if moves is None else coded | {"guard": moves}

    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: Sequence[int],
        *,
        exact: bool | None = None,
        guard: bytes | None = None,
        limits: Limits | None = None,
    ) -> dict[str, Any]:
        """Decode what `compress` wrote, or the official code.

        strings, shape: as `compress` returns them. exact: as they were written, if it is known; where the one way
            fails, the other is tried. guard: as `compress` returned it.
        limits: what a picture may measure; None: Pillow's pixel limit.
        Returns {"x_hat": [B, 3, H, W], not clamped, "cost_time": seconds}.
        Raises BitstreamError if a string does not end as it must: it is damaged, or was written with
        other weights, or its scales came out differently on the machine that wrote it; of guarded strings
        the latter raises GuardError before anything wrong is decoded. LimitError if `shape` is that of a
        larger picture than the limits allow.
        """
        start = _seconds(self.device)
        y_string, z_strings, z_height, z_width = _checked_strings(strings, shape)
        # Of the smallest picture that is padded to this; in a batch small ones add up to what they are padded to.
        spared = 0 if len(z_strings) > 1 else PADDING_UNIT - 1
        width, height = (side * PADDING_UNIT - spared for side in (z_width, z_height))
        Limits.of(limits).check(width, height, "the picture that shape stands for", count=len(z_strings))
        coded = coding.Coded(y_string, list(z_strings), guard)
        x_hat = coding.decompress(self, coded, (z_height, z_width), exact=exact)
        return {"x_hat": x_hat, "cost_time": _seconds(self.device) - start}

    def refresh(self) -> None:
        """Forget what was derived from weights and tables: call it after writing to them through `.data`.

        Other changes (load_state_dict, optimizer steps, in-place operators) are noticed without it.
        """
        coding.forget(self)

    @float32_on_cpu()
    def update(self, *args: Any, **kwargs: Any) -> bool:
        """Compute the coding tables, as compressai.models.CompressionModel.update does, with its arguments."""
        updated: bool = super().update(*args, **kwargs)
        return updated

    def update_resolutions(self, height: int, width: int) -> None:
        """Accepted for the official test script's sake: nothing here depends on an earlier resolution."""


def _seconds(device: torch.device) -> float:
    if device.type == "cuda":
        # not the whole device: other threads have pictures in flight
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


def _check_input(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ImageError(f"the model takes float values in [0, 1], not {x.dtype}: divide 8-bit values by 255")
    if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % PADDING_UNIT or x.shape[3] % PADDING_UNIT or not x.numel():
        raise ImageError(
            f"the model takes [B, 3, H, W] with H and W multiples of {PADDING_UNIT}, and no empty batch or picture, "
            f"not {list(x.shape)}; mlic_fast.image.pad_to_64 pads a picture"
        )


def _checked_strings(
    strings: Sequence[Sequence[bytes]], shape: Sequence[int]
) -> tuple[bytes, Sequence[bytes], int, int]:
    """Take apart what `compress` returned: y string, z strings, z's height and width."""
    if (
        not isinstance(strings, (list, tuple))
        or len(strings) != 2
        or not all(isinstance(part, (list, tuple)) and len(part) > 0 for part in strings)
        or len(strings[0]) != 1
        or not all(isinstance(string, (bytes, bytearray, memoryview)) for part in strings for string in part)
    ):
        raise BitstreamError("strings must be [[y string], [z string of each item]], as compress returns them")
    try:
        height, width = (operator.index(side) for side in shape)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise BitstreamError(f"shape must be z's height and width, two positive integers, not {shape!r:.80}")
    return strings[0][0], strings[1], height, width


class MLICPlusPlus(CodecModel):
    """The learned image codec MLIC++ (Jiang & Wang 2023, arXiv 2307.15421).

    config: as for CodecModel; None: the published model (83,501,408 parameters). Parameter and buffer names and shapes
    are the official ones.
    """

    architecture = "mlicpp"


class MLICPlus(CodecModel):
    """MLIC+ (Jiang et al. 2022, arXiv 2211.07273): MLIC++ with softmax attention in its global contexts.

    config: as for CodecModel; None: the published size (83,501,408 parameters). Its authors published neither code nor
    weights: this follows the paper as CompressAI's implementation reads it. Parameter names and shapes are MLIC++'s.
    """

    architecture = "mlic+"


class MLIC(CodecModel):
    """MLIC (Jiang et al. 2022, arXiv 2211.07273): stacked convolutions for a local context, no context between slices.

    config: as for CodecModel; None: the published size (41,885,452 parameters). Its authors published neither code nor
    weights: this follows the paper as CompressAI's implementation reads it.
    """

    architecture = "mlic"


class MLICv2(CodecModel):
    """MLICv2 (Jiang et al. 2025, arXiv 2504.19119): MLIC++ with token mixing and refined contexts, see docs/mlicv2.md.

    config: as for CodecModel; None: the published size in CompressAI's form (82,216,654 parameters). Its authors
    published neither code nor weights: this follows the paper as CompressAI's implementation reads it, with that one's
    parameter names where MLIC++ has none; variant "guided" follows it as we read it.
    """

    architecture = "mlicv2"


_CLASSES: dict[Architecture, type[CodecModel]] = {
    "mlicpp": MLICPlusPlus,
    "mlic+": MLICPlus,
    "mlic": MLIC,
    "mlicv2": MLICv2,
}


def class_of(architecture: Architecture) -> type[CodecModel]:
    """The class of a member of the family. Raises ConfigError for an architecture that there is not."""
    member_of(architecture)
    return _CLASSES[architecture]


def load(
    path_or_name: str | PathLike[str],
    device: str | torch.device = "cpu",
    architecture: Architecture | None = None,
) -> CodecModel:
    """The model of that name or file, in evaluation mode on `device`, of the class of its architecture.

    path_or_name: a file (official, CompressAI's or native), or a name: a bundled model
        ("mlicpp-s-0.0067") or one found in MLIC_FAST_MODELS.
    device: as for torch, or "auto": the first CUDA device, or else the CPU.
    architecture: whose weights they are; None: as the file says, or the tensors tell; where they fit both MLIC++ and
        MLIC+, MLIC++.
    Raises FileNotFoundError, CheckpointError or WrongWeightsError saying what was looked for and where, DeviceError,
    ConfigError for an architecture that there is not.
    """
    from mlic_fast.checkpoint import read_checkpoint
    from mlic_fast.registry import resolve

    path, place = resolve(path_or_name), resolve_device(device)
    with memory_errors(f"loading {path}"):
        checkpoint = read_checkpoint(path, architecture)
        return class_of(checkpoint.config.architecture)._from_checkpoint(checkpoint, place)
