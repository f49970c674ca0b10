# SPDX-License-Identifier: Apache-2.0
"""The four transforms, compiled: g_a and g_s in strips of rows, h_a and h_s as a whole.

With dtype bfloat16 the convolutions of g_a, h_a and g_s multiply in it, all but the last one of each, the one that
reads the picture, and g_a's skip connections. Maps between blocks, sums and GDN stay in float32: rounding them would
cost 0.01 dB and more at high rates.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from mlic_fast.engine.budget import largest_map
from mlic_fast.engine.layers import LAYOUT, Convolution, Weights, compile_convolution, compile_module, shuffle
from mlic_fast.engine.map_memory import shared_map_memory
from mlic_fast.engine.strips import (
    Block,
    ConvolutionRows,
    Gated,
    Normalised,
    NormRows,
    Residual,
    RowLayer,
    Sequence,
    in_strips,
)
from mlic_fast.nn.analysis import AnalysisTransform
from mlic_fast.nn.blocks import DownsamplingBlock, ResidualBlock, UpsamplingBlock
from mlic_fast.nn.gate import parts_of_gate
from mlic_fast.nn.gdn import GDN
from mlic_fast.nn.hyperprior import HyperAnalysis, HyperSynthesis
from mlic_fast.nn.synthesis import SynthesisTransform
from mlic_fast.nn.token_mixing import DepthwiseResidualBlock, TokenMixing

_FLOAT32 = torch.float32

# Values that go in and come out where the picture is a large one.
_LARGE = 4 * 2**20


class StripTransform:
    """A transform that changes the resolution by out_scale / in_scale, taken a strip of rows at a time."""

    def __init__(self, blocks: list[Block], channels: int, in_scale: int, out_scale: int) -> None:
        """in_scale, out_scale: pixels of the input, and of the result, on 16 pixels of the picture."""
        self._blocks, self._channels = blocks, channels
        self._in_scale, self._out_scale = in_scale, out_scale

    def __call__(self, x: Tensor, memory_budget: int) -> Tensor:
        """x [B, in, H, W] → [B, out, H · out_scale / in_scale, …], float32, channels-last.

        memory_budget: bytes for maps on the way.
        """
        batch, _, height, width = x.shape
        largest = largest_map(memory_budget, x.device.type == "cuda")
        size = (batch, self._channels, *(side // self._in_scale * self._out_scale for side in (height, width)))
        out = torch.empty(size, dtype=_FLOAT32, device=x.device, memory_format=LAYOUT)
        for item in range(batch):
            blocks, done = [(block, block.make()) for block in self._blocks], 0
            for rows in in_strips(blocks, x[item : item + 1], True, largest):
                out[item : item + 1, :, done : done + rows.shape[2]] = rows
                done += rows.shape[2]
        if x.device.type == "cpu" and out.numel() + x.numel() > _LARGE:
            shared_map_memory().release()  # what comes next needs memory too, and clearing pages anew is a trifle
        return out


def compile_analysis(module: AnalysisTransform, dtype: torch.dtype) -> StripTransform:
    """g_a: x [B, 3, H, W] → y [B, M, H/16, W/16]."""
    *blocks, last = module.analysis_transform
    final = compile_module(last, exact=False)
    steps = [step for block in blocks for step in steps_of(block, dtype)]
    outputs, inputs = last.get_parameter("weight").shape[:2]
    steps.append(Block(partial(ConvolutionRows, final), inputs))
    return StripTransform(steps, outputs, 16, 1)


def compile_synthesis(module: SynthesisTransform, dtype: torch.dtype) -> StripTransform:
    """g_s: ŷ [B, M, h, w] → x̂ [B, 3, 16h, 16w]."""
    *blocks, last = module.synthesis_transform
    final, factor = _subpixel_convolution(last, _FLOAT32)
    steps = [step for block in blocks for step in steps_of(block, dtype)]
    steps.append(Block(partial(ConvolutionRows, final, factor=factor), last.get_parameter("0.weight").shape[1]))
    return StripTransform(steps, 3, 1, 16)


class CompiledHyperAnalysis:
    """h_a: y [B, M, h, w] → z [B, N, h/4, w/4], float32."""

    def __init__(self, module: HyperAnalysis, dtype: torch.dtype) -> None:
        layers = list(module.reduction)[::2]
        self._dtype = dtype
        self._layers = [compile_module(layer, dtype=dtype, exact=False) for layer in layers[:-1]]
        self._last = compile_module(layers[-1], exact=False)

    def __call__(self, y: Tensor) -> Tensor:
        x = y.to(self._dtype).contiguous(memory_format=LAYOUT)
        for layer in self._layers:
            x = layer(x, gelu=True)
        return self._last(x.float())


class CompiledHyperSynthesis:
    """h_s: ẑ [B, N, h/4, w/4] → hyper-parameters [B, 2M, h, w]. Part of the entropy path: float32-class.

    Its packed weights are not kept: they would take as much memory as a third of the walk's, for one use a call.
    """

    def __init__(self, module: HyperSynthesis) -> None:
        layers = list(module.increase)[::2]
        self._layers: list[tuple[Convolution, int]] = [
            _subpixel_convolution(layer, _FLOAT32, exact=True, keep=False)
            if isinstance(layer, nn.Sequential)
            else (compile_module(layer, keep=False), 1)
            for layer in layers
        ]

    def __call__(self, z_hat: Tensor) -> Tensor:
        x = z_hat.contiguous(memory_format=LAYOUT)
        for number, (layer, factor) in enumerate(self._layers):
            x = shuffle(layer(x, gelu=number + 1 < len(self._layers)), factor)
        return x


def steps_of(module: nn.Module, dtype: torch.dtype) -> list[Block]:
    """The steps that a block of g_a or g_s is, or several one after the other."""
    if isinstance(module, nn.Sequential):
        return [step for block in module for step in steps_of(block, dtype)]
    if isinstance(module, ResidualBlock):
        return [_residual(module, dtype)]
    if isinstance(module, TokenMixing):
        return [_token_mixing(module, dtype)]
    if isinstance(module, DownsamplingBlock):
        return [_down(module, dtype)]
    assert isinstance(module, UpsamplingBlock)
    return [_up(module, dtype)]


def _residual(module: ResidualBlock, dtype: torch.dtype) -> Block:
    first, second = (compile_module(layer, dtype=dtype, exact=False) for layer in (module.conv1, module.conv2))
    skip = None if module.skip is None else compile_module(module.skip, dtype=dtype, exact=False)

    def make() -> RowLayer:
        layers = Sequence(ConvolutionRows(first, gelu=True), ConvolutionRows(second, gelu=True))
        return Residual(layers, None if skip is None else ConvolutionRows(skip))

    return Block(make, max(module.conv1.weight.shape[:2]))


def _token_mixing(module: TokenMixing, dtype: torch.dtype) -> Block:
    def compiled(layers: Iterable[nn.Module]) -> list[Convolution]:
        return [compile_module(layer, dtype=dtype, exact=False) for layer in layers]

    residual, *rest = module.token_mixer
    assert isinstance(residual, DepthwiseResidualBlock)
    inner, outer = compiled(residual.block[n] for n in (0, 2)), compiled(rest)
    norm, layers = parts_of_gate(module.gate.gate)
    *opening, last = compiled(layers)

    def make() -> RowLayer:
        near = Residual(Sequence(*(ConvolutionRows(layer, gelu=True) for layer in inner)))
        mixer = Sequence(NormRows(module.norm1), near, *(ConvolutionRows(layer) for layer in outer))
        opened = (ConvolutionRows(layer, gelu=True) for layer in opening)
        gate = Gated(Sequence(NormRows(norm), *opened, ConvolutionRows(last)))
        return Sequence(Residual(mixer), Residual(Sequence(NormRows(module.norm2), gate)))

    return Block(make, len(module.norm1.weight))


def _down(module: DownsamplingBlock, dtype: torch.dtype) -> Block:
    # 8-bit pixels do not fit into bfloat16's 8 bits: rounding them alone would cost 0.15 % of the bytes
    of_pixels = module.conv1.weight.shape[1] == 3
    first = compile_module(module.conv1, dtype=_FLOAT32 if of_pixels else dtype, exact=False)
    second = compile_module(module.conv2, dtype=dtype, exact=False)
    # most of what reaches y comes this way, and it is cheap
    skip = compile_module(module.skip, exact=False)
    beta, gamma = _gdn_parameters(module.gdn)

    def make() -> RowLayer:
        layers = Sequence(ConvolutionRows(first, gelu=True), ConvolutionRows(second))
        return Normalised(layers, ConvolutionRows(skip), beta, gamma, False)

    outputs, inputs = module.conv1.weight.shape[:2]
    return Block(make, max(inputs, outputs // 4))


def _up(module: UpsamplingBlock, dtype: torch.dtype) -> Block:
    (first, factor), (skip, _) = (_subpixel_convolution(part, dtype) for part in (module.subpel_conv, module.upsample))
    second = compile_module(module.conv, dtype=dtype, exact=False)
    beta, gamma = _gdn_parameters(module.igdn)

    def make() -> RowLayer:
        # GELU before the shuffle is GELU after it
        layers = Sequence(ConvolutionRows(first, gelu=True, factor=factor), ConvolutionRows(second))
        return Normalised(layers, ConvolutionRows(skip, factor=factor), beta, gamma, True)

    return Block(make, factor**2 * len(beta))


def _subpixel_convolution(
    module: nn.Module, dtype: torch.dtype, exact: bool = False, keep: bool = True
) -> tuple[Convolution, int]:
    """The convolution before a pixel shuffle, its output channels in the order that `shuffle` takes, and the factor."""
    assert isinstance(module, nn.Sequential)
    layer, pixel_shuffle = module
    assert isinstance(pixel_shuffle, nn.PixelShuffle)
    factor = pixel_shuffle.upscale_factor

    def parts(x: Tensor) -> list[Tensor]:
        return [x.detach()[n :: factor**2] for n in range(factor**2)]

    weight, bias = Weights(*parts(layer.get_parameter("weight"))), torch.cat(parts(layer.get_parameter("bias")))
    return compile_convolution(weight, bias, dtype=dtype, exact=exact, keep=keep), factor


def _gdn_parameters(module: GDN) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        beta, gamma = module.weights()
        return beta.detach(), gamma.detach()
