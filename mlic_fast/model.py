# SPDX-License-Identifier: Apache-2.0
"""MLICPlusPlus: the official constructor and methods, nothing else."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.models import CompressionModel
from compressai.ops import quantize_ste
from torch import Tensor, nn

from mlic_fast.compute.backend import choose, is_named, plain_path
from mlic_fast.compute.defaults import coding, float32_on_cpu
from mlic_fast.compute.derived import Remembered
from mlic_fast.compute.device import memory_errors, resolve_device
from mlic_fast.compute.precision import KeepsFloat32, at_least_float32, no_autocast, sums_for_products
from mlic_fast.config import PADDING_UNIT, ModelConfig
from mlic_fast.engine import Engine, Options, PackedReader, PackedWriter, engine_for, forget_engines
from mlic_fast.engine.gpu import programs as device_steps
from mlic_fast.entropy.coding_steps import Estimator, Reader, Writer
from mlic_fast.entropy.factorized import decode_hyper_latent, encode_hyper_latent, likelihoods_with_noise
from mlic_fast.entropy.guard import DEFAULT_DELTA
from mlic_fast.entropy.moved_boundaries import GuardReader, GuardWriter
from mlic_fast.entropy.range_coder import Decoder, Encoder
from mlic_fast.entropy.tables import coding_tables, forget_tables
from mlic_fast.errors import BitstreamError, GuardError, ImageError
from mlic_fast.limits import Limits
from mlic_fast.nn.analysis import AnalysisTransform
from mlic_fast.nn.channel_context import ChannelContext
from mlic_fast.nn.entropy_parameters import EntropyParameters
from mlic_fast.nn.global_context import GlobalInterContext, GlobalIntraContext
from mlic_fast.nn.hyperprior import HyperAnalysis, HyperSynthesis
from mlic_fast.nn.local_context import LocalContext
from mlic_fast.nn.residual_prediction import LatentResidualPrediction
from mlic_fast.nn.slices import walk
from mlic_fast.nn.synthesis import SynthesisTransform

# SHA-256 over a model's weights and tables
fingerprints: Remembered[bytes] = Remembered()

_TABLES = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")


class _EntropyBottleneck(KeepsFloat32, EntropyBottleneck):
    def _logits_cumulative(self, inputs: Tensor, stop_gradient: bool) -> Tensor:
        with sums_for_products(inputs.device):  # tables are computed from these
            logits: Tensor = super()._logits_cumulative(inputs, stop_gradient)
        return logits


class _GaussianConditional(KeepsFloat32, GaussianConditional):
    pass


class MLICPlusPlus(CompressionModel):
    """The learned image codec MLIC++ (Jiang & Wang 2023, arXiv 2307.15421).

    config: the official configuration object (attributes N, M, slice_num, context_window), a
        ModelConfig, or None for the published model (83,501,408 parameters).

    Parameter and buffer names and shapes are the official ones. The model keeps no state of a
    call: several threads may use one model at once. The way from z to the scales stays in float32
    under `.half()`, autocast and PyTorch's precision switches, since encoder and decoder must agree
    on it. Raises ConfigError for a configuration that the architecture does not allow.
    """

    @float32_on_cpu()
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = c = ModelConfig() if config is None else ModelConfig.from_object(config)
        N, M, C = c.N, c.M, c.slice_width
        self.name = ""  # for people: files say which model they were written with
        self.engine_options = Options()  # how the engine computes that evaluation mode uses, see mlic_fast.engine
        # What files allow for differences between machines: δ in log-scale, or one of each pass and channel.
        self.guard_deltas: float | Tensor = DEFAULT_DELTA
        self.N, self.M, self.slice_num, self.slice_ch, self.context_window = N, M, c.slice_num, C, c.context_window

        # The order of construction is the official one: the same seed gives the same initial weights.
        self.entropy_bottleneck = _EntropyBottleneck(N)
        self.g_a = AnalysisTransform(N, M)
        self.g_s = SynthesisTransform(N, M, c.variant)
        self.h_a = HyperAnalysis(N, M)
        self.h_s = HyperSynthesis(N, M)
        self.gaussian_conditional = _GaussianConditional(None)

        def each_slice(make: Callable[[int], nn.Module], first: int = 0) -> nn.ModuleList:
            # None keeps the official numbering: contexts between slices begin at slice 1
            modules: list[Any] = [make(i) if i >= first else None for i in range(c.slice_num)]
            return nn.ModuleList(modules)

        self.local_context = each_slice(lambda i: LocalContext(C))
        self.channel_context = each_slice(lambda i: ChannelContext(i * C, C), first=1)
        self.global_inter_context = each_slice(lambda i: GlobalInterContext(i * C, C), first=1)
        self.global_intra_context = each_slice(lambda i: GlobalIntraContext(C), first=1)
        # hyper-parameters 2M; between slices: 2C global, 4C channel; within: 2C local, 2C global
        self.entropy_parameters_anchor = each_slice(lambda i: EntropyParameters(2 * M + (6 * C if i else 0), C))
        self.entropy_parameters_nonanchor = each_slice(
            lambda i: EntropyParameters(2 * M + 2 * C + (8 * C if i else 0), C)
        )
        # hyper means M, decoded slices iC, current slice C
        self.lrp_anchor = each_slice(lambda i: LatentResidualPrediction(M + (i + 1) * C, C, c.variant))
        self.lrp_nonanchor = each_slice(lambda i: LatentResidualPrediction(M + (i + 1) * C, C, c.variant))

    @coding
    def forward(self, x: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> dict[str, Any]:
        """Reconstruct x and estimate its rate, without coding.

        x: float [B, 3, H, W] in [0, 1], H and W multiples of 64.
        noise: what is added to y [B, M, H/16, W/16] and z [B, N, H/64, W/64] for the likelihoods, in either mode,
            uniform from -1/2 to 1/2 as a rule; None: training mode draws it, evaluation mode adds none.
        Returns {"x_hat": [B, 3, H, W], "likelihoods": {"y_likelihoods": [B, M, H/16, W/16],
        "z_likelihoods": [B, N, H/64, W/64]}}. In training mode likelihoods are those of noisy values and
        rounding passes gradients straight through.
        """
        y, z = self._analyse(x)
        with no_autocast(x.device):
            if noise is None:
                z_likelihoods = self.entropy_bottleneck(z)[1]
            else:
                z_likelihoods = likelihoods_with_noise(self.entropy_bottleneck, z, noise[1])
            medians = self._medians()
            z_hat = quantize_ste(z - medians) + medians
            estimator = Estimator(self.gaussian_conditional, None if noise is None else noise[0])
            y_hat = walk(self, self.h_s(z_hat), y, estimator)
            y_likelihoods = estimator.likelihoods()
        return {
            "x_hat": self._synthesise(y_hat),
            "likelihoods": {"y_likelihoods": y_likelihoods, "z_likelihoods": z_likelihoods},
        }

    @coding
    @torch.no_grad()
    def compress(self, x: Tensor, *, exact: bool = True, guard: float | Tensor | None = None) -> dict[str, Any]:
        """Code x into strings.

        x: float [B, 3, H, W] in [0, 1], H and W multiples of 64.
        exact: take the official operators, so that the official code decodes the strings; False: take kernels,
            whose scales differ in the last bits. A backend named by MLIC_FAST_BACKEND goes before either.
        guard: None: the official layout. δ in log-scale, or δ of each pass and channel [passes, C], `guard_deltas` for
            instance: symbols are coded so that whoever computes the scales with an error below it can decode them,
            given the guard returned.
        Returns {"strings": [[y string], [z string of each item]], "shape": z's height and width,
        "cost_time": seconds}, and "guard": bytes if one was asked for. The y string holds the whole batch.
        Raises ImageError for other shapes, NonFiniteError where values are not finite, CodingError
        where tables are missing or a symbol is out of the coder's range, GuardError for a δ out of range, or not
        one of each pass and channel.
        """
        start = self._seconds(x.device)
        _check_input(x)
        self._check_deltas(guard)
        with _operators(exact):
            engine = engine_for(self, self.engine_options)
            if engine is not None and x.device.type == "cuda":
                y_string, z_strings, moves = device_steps.compress(engine, self._entropy(), x, guard)
                return self._coded(y_string, z_strings, (x.shape[2] // 64, x.shape[3] // 64), moves, start, x.device)
            mover = None if guard is None else GuardWriter(self._scale_table(), guard)
            y, z = self._analyse(x) if engine is None else engine.analyse(x)
            with no_autocast(x.device):
                z_strings, z_hat = encode_hyper_latent(self.entropy_bottleneck, self._medians(), z)
                encoder = Encoder(coding_tables(self.gaussian_conditional))
                if engine is None:
                    walk(self, self.h_s(z_hat), y, Writer(encoder, self.gaussian_conditional, mover))
                else:
                    engine.walk(z_hat, y, PackedWriter(encoder, self.gaussian_conditional, mover))
                y_string = encoder.finish()
        moves = None if mover is None else mover.finish()
        return self._coded(y_string, z_strings, z.shape[-2:], moves, start, x.device)

    @coding
    @torch.no_grad()
    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: Sequence[int],
        *,
        exact: bool = True,
        guard: bytes | None = None,
        limits: Limits | None = None,
    ) -> dict[str, Any]:
        """Decode what `compress` wrote.

        strings, shape: as `compress` returns them. exact: as they were written; where the one way fails, the
        other is tried. guard: as `compress` returned it. limits: what a picture may measure; None: Pillow's
            pixel limit.
        Returns {"x_hat": [B, 3, H, W], not clamped, "cost_time": seconds}.
        Raises BitstreamError if a string does not end as it must: it is damaged, or was written with
        other weights, or its scales came out differently on the machine that wrote it; of guarded strings
        the latter raises GuardError before anything wrong is decoded. LimitError if `shape` is that of a
        larger picture than the limits allow.
        """
        device = self._medians().device
        start = self._seconds(device)
        y_string, z_strings, z_height, z_width = _checked_strings(strings, shape)
        # Of the smallest picture that is padded to this; in a batch small ones add up to what they are padded to.
        spared = 0 if len(z_strings) > 1 else PADDING_UNIT - 1
        width, height = (side * PADDING_UNIT - spared for side in (z_width, z_height))
        Limits.of(limits).check(width, height, "the picture that shape stands for", count=len(z_strings))
        x_hat = self._read(y_string, z_strings, (z_height, z_width), exact, guard)
        return {"x_hat": x_hat, "cost_time": self._seconds(device) - start}

    def refresh(self) -> None:
        """Forget what was derived from weights and tables: call it after writing to them through `.data`.

        Other changes (load_state_dict, optimizer steps, in-place operators) are noticed without it.
        """
        fingerprints.forget(self)
        forget_engines(self)
        forget_tables(self.entropy_bottleneck)
        forget_tables(self.gaussian_conditional)

    @float32_on_cpu()
    def update(self, *args: Any, **kwargs: Any) -> bool:
        """Compute the coding tables, as compressai.models.CompressionModel.update does, with its arguments."""
        updated: bool = super().update(*args, **kwargs)
        return updated

    def update_resolutions(self, height: int, width: int) -> None:
        """Accepted for the official test script's sake: nothing here depends on an earlier resolution."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters and coding tables under official names, of CompressAI's older or newer spelling.

        Returns the missing and unexpected keys, as torch.nn.Module does. Tables that are in
        `state_dict` replace the model's, whatever their length.
        """
        from mlic_fast.checkpoint.layouts import official_names

        state_dict = official_names(state_dict)
        for prefix, entropy_model in (
            ("entropy_bottleneck.", self.entropy_bottleneck),
            ("gaussian_conditional.", self.gaussian_conditional),
        ):
            for name in _TABLES:
                saved, own = state_dict.get(prefix + name), getattr(entropy_model, name, None)
                if saved is not None and own is not None and saved.shape != own.shape:
                    setattr(entropy_model, name, torch.empty(saved.shape, dtype=own.dtype, device=own.device))
        return nn.Module.load_state_dict(self, state_dict, strict=strict, assign=assign)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> MLICPlusPlus:
        """A model in evaluation mode with these weights; configuration and variant are found from the tensors.

        Missing coding tables are computed. Raises CheckpointError where the tensors are no MLIC++ model's.
        """
        from mlic_fast.checkpoint import checkpoint_from_state_dict

        return cls._from_checkpoint(checkpoint_from_state_dict(state_dict))

    @classmethod
    def from_checkpoint(cls, path: str | PathLike[str], device: str | torch.device = "cpu") -> MLICPlusPlus:
        """A model in evaluation mode with the weights of an official, CompressAI or native file.

        device: as for torch, or "auto": the first CUDA device, or else the CPU.
        Raises DeviceError, FileNotFoundError, or CheckpointError saying what is wrong with the file.
        """
        from mlic_fast.checkpoint import read_checkpoint

        place = resolve_device(device)
        with memory_errors(f"loading {path}"):
            return cls._from_checkpoint(read_checkpoint(path)).to(place)

    @classmethod
    @float32_on_cpu()
    def _from_checkpoint(cls, checkpoint: Any) -> MLICPlusPlus:
        model = cls(checkpoint.config)
        model.name = checkpoint.name
        if checkpoint.guard_deltas is not None:
            model.guard_deltas = torch.tensor(checkpoint.guard_deltas, dtype=torch.float64)
        model.load_state_dict(checkpoint.state_dict)
        return model.eval()

    def _analyse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and z of x, in at least float32."""
        _check_input(x)
        y = self.g_a(x.to(next(self.g_a.parameters()).dtype))
        z = self.h_a(y)
        return at_least_float32(y), at_least_float32(z)

    def _read(
        self,
        y_string: bytes,
        z_strings: Sequence[bytes],
        shape: tuple[int, int],
        exact: bool,
        guard: bytes | None,
    ) -> Tensor:
        """x̂ from the strings. Raises BitstreamError unless they end as they must."""
        device = self._medians().device

        def read(engine: Engine | None) -> Tensor:
            if engine is not None and device.type == "cuda":
                return device_steps.decompress(engine, self._entropy(), y_string, z_strings, shape, guard)
            with no_autocast(device):
                z_hat = decode_hyper_latent(self.entropy_bottleneck, self._medians(), z_strings, shape)
                decoder = Decoder(coding_tables(self.gaussian_conditional), y_string)
                mover = None if guard is None else GuardReader(self._scale_table(), guard)
                if engine is None:
                    y_hat = walk(self, self.h_s(z_hat), None, Reader(decoder, self.gaussian_conditional, mover))
                else:
                    steps = PackedReader(decoder, self.gaussian_conditional, mover)
                    y_hat = engine.walk(z_hat, None, steps)
                decoder.finish()
                if mover is not None:
                    mover.finish()
            return self._synthesise(y_hat) if engine is None else engine.synthesise(y_hat)

        Enter = Callable[[], AbstractContextManager[None]]
        plain: tuple[Enter, bool] = (plain_path, False)
        others: list[tuple[Enter, bool]] = [(nullcontext, True), (nullcontext, False)]
        failures: dict[str, BitstreamError] = {}
        # Where the first way fails, perhaps it was written in another: there a scale next to a table's boundary may
        # come out on the boundary's other side, and everything after it is different.
        for enter, compiled in [plain, *others] if exact and not is_named() else [*others, plain]:
            with enter():
                engine = engine_for(self, self.engine_options) if compiled else None
                way = choose(self._medians()) if engine is None else "engine"
                if way in failures:
                    continue
                try:
                    return read(engine)
                except BitstreamError as error:
                    failures[way] = error
        raise next(iter(failures.values()))

    def _synthesise(self, y_hat: Tensor) -> Tensor:
        x_hat: Tensor = self.g_s(y_hat.to(next(self.g_s.parameters()).dtype))
        return x_hat

    def _medians(self) -> Tensor:
        """Medians of z's channels, [N, 1, 1]."""
        return self.entropy_bottleneck.get_parameter("quantiles")[:, :, 1:2]

    def _coded(
        self,
        y_string: bytes,
        z_strings: list[bytes],
        shape: Sequence[int],
        guard: bytes | None,
        start: float,
        device: torch.device,
    ) -> dict[str, Any]:
        """What `compress` returns."""
        cost = self._seconds(device) - start
        coded = {"strings": [[y_string], z_strings], "shape": torch.Size(shape), "cost_time": cost}
        return coded if guard is None else coded | {"guard": guard}

    def _entropy(self) -> device_steps.Entropy:
        return device_steps.Entropy(self.gaussian_conditional, self.entropy_bottleneck)

    def _check_deltas(self, deltas: float | Tensor | None) -> None:
        wanted = 2 * self.slice_num, self.slice_ch
        if isinstance(deltas, Tensor) and tuple(deltas.shape) != wanted:
            raise GuardError(
                f"the guard's δ have the shape {list(deltas.shape)}, not that of this model's passes and channels, "
                f"{list(wanted)}"
            )

    def _scale_table(self) -> Tensor:
        return self.gaussian_conditional.get_buffer("scale_table")

    @staticmethod
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
            f"the model takes [B, 3, H, W] with H and W multiples of {PADDING_UNIT}, not {list(x.shape)}; "
            "mlic_fast.image.pad_to_64 pads a picture"
        )


def _operators(exact: bool) -> AbstractContextManager[None]:
    """The official operators if `exact` and nobody names a backend, else those of the backend."""
    return plain_path() if exact and not is_named() else nullcontext()


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


def load(path_or_name: str | PathLike[str], device: str | torch.device = "cpu") -> MLICPlusPlus:
    """The model of that name or file, in evaluation mode on `device`.

    path_or_name: a file (official, CompressAI's or native), or a name: a bundled model
        ("mlicpp-s-0.0067") or one found in MLIC_FAST_MODELS.
    device: as for torch, or "auto": the first CUDA device, or else the CPU.
    Raises FileNotFoundError, CheckpointError or WrongWeightsError saying what was looked for and where, DeviceError.
    """
    from mlic_fast.registry import resolve

    return MLICPlusPlus.from_checkpoint(resolve(path_or_name), device)
