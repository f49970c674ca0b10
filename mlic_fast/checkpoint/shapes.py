# SPDX-License-Identifier: Apache-2.0
"""Which tensors a model of a given configuration has, and which configuration given tensors have.

Nothing here builds a network or imports torch: a file is recognised, and refused if need be,
from its names and shapes alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from mlic_fast.config import HEAD_WIDTH, ModelConfig
from mlic_fast.contexts import FAMILY, Architecture, Form, Variant, inputs_of, member_of, width_of
from mlic_fast.errors import CheckpointError, ConfigError

Shape = tuple[int, ...]

# Coding tables: empty until update() fills them, so their shapes do not follow from the configuration.
BOTTLENECK_TABLES = tuple(f"entropy_bottleneck.{name}" for name in ("_offset", "_quantized_cdf", "_cdf_length"))
GAUSSIAN_TABLES = tuple(f"gaussian_conditional.{name}" for name in ("_offset", "_quantized_cdf", "_cdf_length"))
SCALE_TABLE = "gaussian_conditional.scale_table"
TABLES = frozenset((*BOTTLENECK_TABLES, *GAUSSIAN_TABLES, SCALE_TABLE))

# Constants that are saved with the weights and never trained; so are the tables and the position indexes.
_CONSTANTS = re.compile(r".*\.(bound|pedestal|scale_bound|target|frequency)")

Entries = Iterator[tuple[str, Shape]]


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every name and shape of the model's state dict, in its order; coding tables as (0,), not yet computed."""
    return dict(_model(config))


def parameter_count(config: ModelConfig) -> int:
    """How many trained numbers a model of this configuration has."""
    return sum(
        math.prod(shape)
        for name, shape in _model(config)
        if name not in TABLES and not is_position_index(name) and not _CONSTANTS.fullmatch(name)
    )


def is_position_index(name: str) -> bool:
    """Whether the tensor is a local context's constant index table (int64, fixed by the window alone)."""
    return name.endswith(".relative_position_index")


def infer_config(shapes: Mapping[str, Shape], architecture: Architecture | None = None) -> ModelConfig:
    """Find N, M, slice_num, context_window, variant and architecture in canonical names and shapes.

    Only the telling tensors are looked at; whether all the others fit is `validate`'s question.
    architecture: None: the member of the family whose names these are, or nearly are; of members with the same names
        the first in `FAMILY`, MLIC++.
    Raises CheckpointError if these are not the tensors of a model of the family, or of that member, and ConfigError
    for an architecture that there is not.
    """
    slices = {int(m.group(1)) for name in shapes if (m := _LOCAL.fullmatch(name))}
    if slices != set(range(len(slices))) or not slices:
        found = f"slices {sorted(slices)[:20]}" if slices else "none"
        raise CheckpointError(
            f"these are not the weights of {_wanted(architecture)}: local contexts (local_context.0 …) are numbered "
            f"from 0 without gaps, here there are {found}; the names begin with {_some(sorted(shapes))}"
        )
    # M = N leaves no other trace of the old synthesis transform; the old residual prediction has one layer more.
    variant: Variant = "new"
    if "lrp_anchor.0.lrp_transform.6.weight" in shapes:
        variant = "old"
    elif "local_context.0.rope.theta_x" in shapes:
        variant = "guided"
    first = next(name for name in shapes if (m := _LOCAL.fullmatch(name)) and m.group(1) == "0")
    member = _member(shapes, len(slices), variant, architecture)
    try:
        return ModelConfig(
            N=_dimension(shapes, "g_a.analysis_transform.0.conv1.weight", 4, 0),
            M=_dimension(shapes, "g_a.analysis_transform.6.weight", 4, 0),
            slice_num=len(slices),
            context_window=_dimension(shapes, first, 4, 3),
            variant=_own(variant, member),
            architecture=member,
        )
    except ConfigError as error:
        title = member_of(member).title
        raise CheckpointError(f"the shapes of these weights make no valid {title} model: {error}") from error


# A weight that every slice's local context has, in each form.
_LOCAL = re.compile(r"local_context\.(\d{1,4})\.(?:fusion|context\.0)\.weight")
_LATE_SLICE = re.compile(r"\w+\.(?:[2-9]|\d{2,})\..*")


def _member(shapes: Mapping[str, Shape], slice_num: int, variant: Variant, wanted: Architecture | None) -> Architecture:
    """The member whose tensors have these names, as far as slices 0 and 1 go."""
    count = min(slice_num, 2)
    names = {name for name in shapes if not _LATE_SLICE.fullmatch(name)}

    def expected(architecture: Architecture) -> set[str]:
        # names are those of any width
        size = {"N": HEAD_WIDTH, "M": HEAD_WIDTH * count, "slice_num": count}
        config = ModelConfig(**size, variant=_own(variant, architecture), architecture=architecture)
        return set(expected_shapes(config))

    unlike = {architecture: len(names ^ expected(architecture)) for architecture in FAMILY}
    found = min(FAMILY, key=lambda architecture: unlike[architecture])
    if wanted is None:
        return found
    member_of(wanted)
    if unlike[wanted] > unlike[found]:
        lacking, held = sorted(expected(wanted) - names), sorted(names - expected(wanted))
        raise CheckpointError(
            f"these are the weights of {_titled(found)}, not of {_titled(wanted)}: they lack {_some(lacking)} and hold "
            f"{_some(held)}"
        )
    return wanted


def _own(variant: Variant, architecture: Architecture) -> Variant:
    return variant if variant in member_of(architecture).variants else "new"


def _titled(architecture: Architecture) -> str:
    return f"an {member_of(architecture).title} model"


def _wanted(architecture: Architecture | None) -> str:
    if architecture is not None:
        return _titled(architecture)
    *others, last = (member.title for member in FAMILY.values())
    return f"an {', '.join(others)} or {last} model" if others else f"an {last} model"


def _dimension(shapes: Mapping[str, Shape], name: str, rank: int, axis: int) -> int:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(
            f"these are not the weights of {_wanted(None)}: {name} is missing; the names begin with "
            f"{_some(sorted(shapes))}"
        )
    if len(shape) != rank:
        raise CheckpointError(f"{name} has shape {list(shape)}, it must have {rank} dimensions")
    return shape[axis]


def _some(names: list[str]) -> str:
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "nothing"


def _model(config: ModelConfig) -> Entries:
    n, m, c = config.N, config.M, config.slice_width
    yield from _entropy_bottleneck(n)
    block = _token_mixing_pair if config.member.token_mixing else _block
    yield from _under("g_a.analysis_transform", _analysis(n, m, block))
    yield from _under("g_s.synthesis_transform", _synthesis(n, m, block, old=config.variant == "old"))
    yield from _under("h_a.reduction", _convs((m, n, n, n, n, n), 3))
    yield from _under("h_s.increase", _hyper_synthesis(n, m))
    yield from _gaussian_conditional()
    slices = range(config.slice_num)
    contexts = {context.name: context for context in config.member.contexts}
    for name, forms in _CONTEXT_ENTRIES.items():
        if context := contexts.get(name):
            for i in filter(context.has, slices):
                yield from _under(f"{name}.{i}", forms[context.form](i, config))
    for name in ("anchor", "nonanchor"):
        for i in slices:
            inputs = inputs_of(config.architecture, i, config.variant)
            # the contexts, then the hyper-parameters
            width = width_of(inputs.anchors if name == "anchor" else inputs.nonanchors, c) + 2 * m
            yield from _under(f"entropy_parameters_{name}.{i}.fusion", _convs((width, 320, 256, 128, 2 * c), 1))
    for name in ("anchor", "nonanchor"):
        for i in slices:
            d = m + i * c
            width = d + c
            old_widths = (width, width - d // 4, width - d // 2, width - d * 3 // 4, c)
            widths = old_widths if config.variant == "old" else (width, 224, 128, c)
            yield from _under(f"lrp_{name}.{i}.lrp_transform", _convs(widths, 3))
    if config.member.predictor:
        for i in slices:
            side = 2 * m + i * c + width_of(inputs_of(config.architecture, i, config.variant).before, c)
            yield from _under(f"selective_predictor.{i}", _selective_predictor(side, c))


def _under(prefix: str, entries: Entries) -> Entries:
    return ((f"{prefix}.{name}", shape) for name, shape in entries)


def _conv(name: str, inputs: int, outputs: int, kernel: int) -> Entries:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def _convs(widths: tuple[int, ...], kernel: int) -> Entries:
    """Convolutions with an activation between: only even positions have parameters."""
    for k, (inputs, outputs) in enumerate(pairwise(widths)):
        yield from _conv(str(2 * k), inputs, outputs, kernel)


def _linear(name: str, inputs: int, outputs: int) -> Entries:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Entries:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _gdn(name: str, width: int) -> Entries:
    yield f"{name}.beta", (width,)
    yield f"{name}.gamma", (width, width)
    for parameter in ("beta", "gamma"):
        yield f"{name}.{parameter}_reparam.pedestal", (1,)
        yield f"{name}.{parameter}_reparam.lower_bound.bound", (1,)


def _block(name: str, inputs: int, outputs: int) -> Entries:
    yield from _conv(f"{name}.conv1", inputs, outputs, 3)
    yield from _conv(f"{name}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        yield from _conv(f"{name}.skip", inputs, outputs, 1)


def _depthwise(name: str, width: int, kernel: int) -> Entries:
    return _conv(name, 1, width, kernel)


def _gate(name: str, width: int) -> Entries:
    yield from _norm(f"{name}.0", width)
    yield from _conv(f"{name}.1", width, width, 1)
    yield from _depthwise(f"{name}.3", width, 3)
    yield from _conv(f"{name}.5", width, width, 1)


def _token_mixing_pair(name: str, width: int, _: int) -> Entries:
    for prefix in (f"{name}.0", f"{name}.1"):
        yield from _norm(f"{prefix}.norm1", width)
        yield from _depthwise(f"{prefix}.token_mixer.0.block.0", width, 3)
        yield from _conv(f"{prefix}.token_mixer.0.block.2", width, width, 1)
        yield from _depthwise(f"{prefix}.token_mixer.1", width, 5)
        yield from _conv(f"{prefix}.token_mixer.2", width, width, 1)
        yield from _norm(f"{prefix}.norm2", width)
        yield from _gate(f"{prefix}.gate.gate", width)


def _strided_block(name: str, inputs: int, outputs: int) -> Entries:
    yield from _conv(f"{name}.conv1", inputs, outputs, 3)
    yield from _conv(f"{name}.conv2", outputs, outputs, 3)
    yield from _gdn(f"{name}.gdn", outputs)
    yield from _conv(f"{name}.skip", inputs, outputs, 1)


def _upsampling_block(name: str, inputs: int, outputs: int) -> Entries:
    yield from _conv(f"{name}.subpel_conv.0", inputs, 4 * outputs, 3)
    yield from _conv(f"{name}.conv", outputs, outputs, 3)
    yield from _gdn(f"{name}.igdn", outputs)
    yield from _conv(f"{name}.upsample.0", inputs, 4 * outputs, 3)


_Block = Callable[[str, int, int], Entries]


def _analysis(n: int, m: int, block: _Block) -> Entries:
    for k, inputs in enumerate((3, n, n)):
        yield from _strided_block(str(2 * k), inputs, n)
        yield from block(str(2 * k + 1), n, n)
    yield from _conv("6", n, m, 3)


def _synthesis(n: int, m: int, block: _Block, *, old: bool) -> Entries:
    first = n if old else m
    yield from block("0", m, first)
    for k, inputs in enumerate((first, n, n)):
        yield from _upsampling_block(str(2 * k + 1), inputs, n)
        yield from block(str(2 * k + 2), n, n)
    yield from _conv("7.0", n, 3 * 4, 3)


def _hyper_synthesis(n: int, m: int) -> Entries:
    wide = m * 3 // 2
    yield from _conv("0", n, m, 3)
    yield from _conv("2.0", m, 4 * m, 3)
    yield from _conv("4", m, wide, 3)
    yield from _conv("6.0", wide, 4 * wide, 3)
    yield from _conv("8", wide, 2 * m, 3)


def _entropy_bottleneck(n: int) -> Entries:
    prefix = "entropy_bottleneck"
    yield f"{prefix}.quantiles", (n, 1, 3)
    yield from ((name, (0,)) for name in BOTTLENECK_TABLES)
    yield f"{prefix}.target", (3,)
    yield f"{prefix}.likelihood_lower_bound.bound", (1,)
    filters = (1, 3, 3, 3, 3, 1)
    layers = list(pairwise(filters))
    for k, (inputs, outputs) in enumerate(layers):
        yield f"{prefix}.matrices.{k}", (n, outputs, inputs)
    for k, (_, outputs) in enumerate(layers):
        yield f"{prefix}.biases.{k}", (n, outputs, 1)
    for k, (_, outputs) in enumerate(layers[:-1]):
        yield f"{prefix}.factors.{k}", (n, outputs, 1)


def _gaussian_conditional() -> Entries:
    prefix = "gaussian_conditional"
    yield from ((name, (0,)) for name in (*GAUSSIAN_TABLES, SCALE_TABLE))
    yield f"{prefix}.scale_bound", (1,)
    yield f"{prefix}.likelihood_lower_bound.bound", (1,)
    yield f"{prefix}.lower_bound_scale.bound", (1,)


def _local_context(c: int, window: int, *, rotated: bool = False) -> Entries:
    heads = 2
    if not rotated:
        yield "relative_position_table", ((2 * window - 1) ** 2, heads)
        yield "relative_position_index", (window**2, window**2)
    yield from _linear("qkv_proj", c, 3 * c)
    if rotated:
        yield from _rotation("rope", c // 2)
    yield from _linear("proj", 2 * c, 2 * c)
    yield from _linear("mlp.fc1", 2 * c, 4 * c)
    yield from _linear("mlp.fc2", 4 * c, 2 * c)
    yield from _norm("norm1", c)
    yield from _norm("norm2", 2 * c)
    yield from _conv("fusion", c, 2 * c, window)


def _stacked_context(c: int, window: int) -> Entries:
    return _under("context", _convs((c, c, c, 2 * c), window))


def _channel_context(width: int, c: int) -> Entries:
    return _under("fushion", _convs((width, 192, 128, 4 * c), 3))


def _projection(name: str, width: int, out: int) -> Entries:
    yield from _conv(f"{name}.0", width, out, 1)
    yield from _depthwise(f"{name}.1", out, 3)


def _global_context(width: int, c: int, *, inter: bool, source: int | None = None) -> Entries:
    for name in ("keys", "queries"):
        yield from _projection(name, source or width, width)
    yield from _projection("values", width, width)
    inner = 3 * c if inter else 2 * c
    yield from _conv("reprojection", width, inner, 5)
    yield from _conv("mlp.0", inner, 4 * c, 1)
    yield from _depthwise("mlp.2", 4 * c, 3)
    yield from _conv("mlp.4", 4 * c, 2 * c, 1)
    if inter:
        yield from _conv("skip", inner, 2 * c, 1)


def _inter_context(i: int, config: ModelConfig) -> Entries:
    return _global_context(i * config.slice_width, config.slice_width, inter=True)


def _intra_context(i: int, config: ModelConfig) -> Entries:
    # where the first slice has it, it is of the hyper-parameters
    source = config.slice_width if i else 2 * config.M
    return _global_context(config.slice_width, config.slice_width, inter=False, source=source)


def _rotation(name: str, width: int) -> Entries:
    yield f"{name}.theta_x", ()
    yield f"{name}.theta_y", ()
    yield f"{name}.frequency", (width // 2,)


def _reweighted(
    context: Callable[[int, ModelConfig], Entries], *, rotated: bool
) -> Callable[[int, ModelConfig], Entries]:
    def entries(i: int, config: ModelConfig) -> Entries:
        width = 2 * config.slice_width
        yield from _under("context", context(i, config))
        if rotated:
            yield from _rotation("rope", width)
        yield from _norm("reweighting.norm", width)
        for name in ("queries", "keys", "values", "proj"):
            yield from _conv(f"reweighting.{name}", width, width, 1)
        yield from _norm("reweighting.out_norm", width)
        yield from _gate("reweighting.gate.net", width)

    return entries


def _hyper_context(i: int, config: ModelConfig) -> Entries:
    m, c = config.M, config.slice_width
    for name in ("queries", "keys", "hyper_values"):
        yield from _projection(name, m, m)
    yield from _conv("slice_values", c, m, 1)
    yield from _conv("proj", m, 2 * c, 3)
    yield from _gate("gate.net", 2 * c)


def _selective_predictor(side: int, c: int) -> Entries:
    hidden = max(16, c)
    yield "step_bias", (2, c, 1, 1)
    yield "scale_slope", ()
    yield from _conv("side_proj", side, hidden, 1)
    yield from _conv("predictor.0", hidden + 3 * c, hidden, 3)
    yield from _conv("predictor.2", hidden, hidden, 3)
    yield from _conv("predictor.4", hidden, c, 1)


# The tensors of one slice's module by the context's name and form: (slice number, configuration) → entries. In a
# model's order.
_CONTEXT_ENTRIES: dict[str, dict[Form, Callable[[int, ModelConfig], Entries]]] = {
    "global_hyper_context": {"linear attention": _hyper_context},
    "local_context": {
        "windows": lambda i, config: _local_context(config.slice_width, config.context_window),
        "rotated windows": lambda i, config: _local_context(config.slice_width, config.context_window, rotated=True),
        "stack": lambda i, config: _stacked_context(config.slice_width, config.context_window),
    },
    "channel_context": {"convolutions": lambda i, config: _channel_context(i * config.slice_width, config.slice_width)},
    "global_inter_context": {
        "linear attention": _inter_context,
        "softmax attention": _inter_context,
        "rotated and reweighted": _reweighted(_inter_context, rotated=True),
        "reweighted": _reweighted(_inter_context, rotated=False),
    },
    "global_intra_context": {
        "linear attention": _intra_context,
        "softmax attention": _intra_context,
        "rotated and reweighted": _reweighted(_intra_context, rotated=True),
        "reweighted": _reweighted(_intra_context, rotated=False),
    },
}
