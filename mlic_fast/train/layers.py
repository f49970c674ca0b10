# SPDX-License-Identifier: Apache-2.0
"""What training puts in place of the network's layers: the same parameters and values, faster and with less memory.

Results are those of the layers as written down, up to rounding; on backend torch they are the same to the bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.checkerboard import Parity, pack, unpack
from mlic_fast.compute.backend import choose
from mlic_fast.nn.analysis import AnalysisTransform
from mlic_fast.nn.blocks import DownsamplingBlock, ResidualBlock, UpsamplingBlock
from mlic_fast.nn.entropy_parameters import EntropyParameters
from mlic_fast.nn.local_context import LocalContext
from mlic_fast.nn.network import Network
from mlic_fast.nn.synthesis import SynthesisTransform
from mlic_fast.ops.local_attention import local_attention
from mlic_fast.ops.winograd import conv3x3, on_cpu_kernels


def install(model: Network) -> None:
    """Put the layers of training into a model in place. Parameters and their names stay; a second time does nothing.

    Without gradients they compute what the model's own do.
    """
    for transform in (model.g_a, model.g_s, model.h_a):
        for module in list(transform.modules()):
            if type(module) is nn.Conv2d and module.groups == 1:
                kernel, stride = module.kernel_size, module.stride
                if kernel == (3, 3) and stride == (1, 1):
                    module.__class__ = TrainedConv
                elif kernel == (1, 1) and stride == (2, 2):
                    module.__class__ = StridedSkip
    for module in list(model.modules()):
        trained = _TRAINED.get(type(module))
        if trained is not None:
            module.__class__ = trained


class TrainedConv(nn.Conv2d):
    """3×3 convolution that takes Winograd's method where gradients are wanted and it is the faster one."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return conv3x3(input, weight, bias)
        return super()._conv_forward(input, weight, bias)

    def of_gelu(self, x: Tensor) -> Tensor:
        """self(GELU(x)); except on the plain path, gradients keep x alone."""
        if not torch.is_grad_enabled() or choose(x) == "torch":
            out: Tensor = self(F.gelu(x))
            return out
        return conv3x3(x, self.weight, self.bias, gelu=True)


class StridedSkip(nn.Conv2d):
    """1×1 convolution of stride 2, for the skip around a downsampling block."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and input.device.type == "cpu":
            if on_cpu_kernels(input):
                # of what is read alone, so that gradients keep a quarter of the map instead of a copy of it
                read = input[:, :, ::2, ::2].permute(0, 2, 3, 1).contiguous()  # [B, H/2, W/2, in]
                return F.linear(read, weight.flatten(1), bias).permute(0, 3, 1, 2)
            # PyTorch's backward on the CPU (2.14 at least) overruns its buffer for 3 channels in channels-last layout
            input, weight = input.contiguous(), weight.contiguous()
        return super()._conv_forward(input, weight, bias)


class TrainedResidualBlock(ResidualBlock):
    """Keeps one map of GELU and convolution."""

    conv2: TrainedConv

    def forward(self, x: Tensor) -> Tensor:
        out = F.gelu(self.conv2.of_gelu(self.conv1(x)))
        return out + (x if self.skip is None else self.skip(x))


class TrainedDownsamplingBlock(DownsamplingBlock):
    """Likewise."""

    conv2: TrainedConv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gdn(self.conv2.of_gelu(self.conv1(x)), self.skip(x))
        return out


class TrainedUpsamplingBlock(UpsamplingBlock):
    """Likewise."""

    conv: TrainedConv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.igdn(self.conv.of_gelu(self.subpel_conv(x)), self.upsample(x))
        return out


def _in_training_layout(x: Tensor) -> Tensor:
    """Channels-last where gradients are wanted and Winograd's method may be taken."""
    if torch.is_grad_enabled() and x.dtype == torch.float32 and on_cpu_kernels(x):
        return x.contiguous(memory_format=torch.channels_last)
    return x


class TrainedAnalysisTransform(AnalysisTransform):
    """Computes in the layout of training."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(_in_training_layout(x))
        return y.contiguous() if torch.is_grad_enabled() else y


class TrainedSynthesisTransform(SynthesisTransform):
    """Computes in the layout of training."""

    def forward(self, y_hat: Tensor) -> Tensor:
        return super().forward(_in_training_layout(y_hat))


class TrainedEntropyParameters(EntropyParameters):
    """Computes at the positions of the pass alone: half of the work, and half of what gradients keep."""

    def of_pass(self, contexts: Tensor, parity: Parity) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled() or choose(contexts) == "torch":
            return super().of_pass(contexts, parity)
        scales, means = self(pack(contexts, parity)).chunk(2, dim=1)
        return scales.contiguous(), means.contiguous()


class TrainedLocalContext(LocalContext):
    """Computes at the non-anchors alone; zeros elsewhere."""

    def forward(self, anchors: Tensor, mask: Tensor | None = None) -> Tensor:
        if choose(anchors) == "torch":
            return super().forward(anchors, mask)
        out = local_attention(self.qkv(anchors), *self.parameters_of_attention())  # [B, h, w/2, 2C]
        out = out + self.mlp(self.norm2(out))
        return unpack(out.permute(0, 3, 1, 2), Parity.NONANCHOR)


_TRAINED: dict[type[nn.Module], type[nn.Module]] = {
    ResidualBlock: TrainedResidualBlock,
    DownsamplingBlock: TrainedDownsamplingBlock,
    UpsamplingBlock: TrainedUpsamplingBlock,
    AnalysisTransform: TrainedAnalysisTransform,
    SynthesisTransform: TrainedSynthesisTransform,
    EntropyParameters: TrainedEntropyParameters,
    LocalContext: TrainedLocalContext,
}
