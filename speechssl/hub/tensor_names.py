"""The encoder's tensors under our names and under transformers', and strict assembly.

Other formats are spelled as renamings of transformers' names, which tell every part apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from speechssl.config import EncoderConfig
from speechssl.encoders.frame_encoder import FrameEncoderConfig
from speechssl.encoders.transformer import TransformerConfig

Value = TypeVar("Value")
POSITIONS = "pos_conv_embed.conv.parametrizations.weight"
Row = tuple[str, tuple[str, ...]]
"""Our name, and theirs; several of theirs where ours is their concatenation."""


@dataclasses.dataclass(frozen=True)
class CtcTensors:
    """A CTC head: weight (V, D), bias (V,), the index of blank, and symbol -> index if given."""

    weight: Tensor
    bias: Tensor
    blank: int
    vocabulary: Mapping[str, int] | None


class Checkpoint(NamedTuple):
    """A public checkpoint, read.

    state: the encoder's state dict, in our names.
    head: its CTC head, if any.
    left_out: names, in the checkpoint's words, of tensors of other heads, codebooks and teachers.
    """

    config: EncoderConfig
    state: dict[str, Tensor]
    head: CtcTensors | None
    left_out: tuple[str, ...]


def leave_out(
    found: Mapping[str, Value], beginnings: tuple[str, ...], prefix: str = ""
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Part `found` into what is kept, and the names that start with one of `beginnings`.

    prefix: is taken off a name before it is looked at.
    """
    left_out = {k for k in found if k.removeprefix(prefix).startswith(beginnings)}
    return {k: v for k, v in found.items() if k not in left_out}, tuple(sorted(left_out))


def pair(ours: str, theirs: str) -> Iterator[Row]:
    """Rows of a weight and a bias."""
    for leaf in ("weight", "bias"):
        yield f"{ours}.{leaf}", (f"{theirs}.{leaf}",)


def front_names(config: FrameEncoderConfig) -> Iterator[Row]:
    """One row per tensor of the wave front end, its projection and the mask."""
    for i in range(len(config.conv_kernels)):
        ours, theirs = f"front.layers.{i}", f"feature_extractor.conv_layers.{i}"
        yield f"{ours}.weight", (f"{theirs}.conv.weight",)
        if config.conv_bias:
            yield f"{ours}.bias", (f"{theirs}.conv.bias",)
        if i == 0 or config.front_norm == "layer":
            yield from pair(f"{ours}.norm", f"{theirs}.layer_norm")
    yield from pair("front_norm", "feature_projection.layer_norm")
    yield from pair("projection", "feature_projection.projection")
    yield "mask_emb", ("masked_spec_embed",)


def tensor_names(config: TransformerConfig) -> Iterator[Row]:
    """One row per tensor of the encoder.

    Raises `ValueError` for an encoder with ALiBi, which other libraries do not have.
    """
    if config.alibi:
        raise ValueError("alibi: found true, want false, the only one that other libraries have")
    yield from front_names(config)
    if config.pos_conv_depth == 1:
        yield "pos_conv.g", (f"encoder.{POSITIONS}.original0",)
        yield "pos_conv.v", (f"encoder.{POSITIONS}.original1",)
        yield "pos_conv.bias", ("encoder.pos_conv_embed.conv.bias",)
    else:
        for i in range(config.pos_conv_depth):
            yield from pair(f"pos_conv.layers.{i}", f"encoder.pos_conv_embed.layers.{i}.conv")
    yield from pair("layer_norm", "encoder.layer_norm")
    if config.relative_buckets:
        yield "relative_bias.table", ("encoder.layers.0.attention.rel_attn_embed.weight",)
    for i in range(config.layers):
        yield from _layer_names(f"layers.{i}", f"encoder.layers.{i}", config)


def _layer_names(ours: str, theirs: str, config: TransformerConfig) -> Iterator[Row]:
    for leaf in ("weight", "bias"):
        parts = tuple(f"{theirs}.attention.{x}_proj.{leaf}" for x in "qkv")
        yield f"{ours}.attention.qkv.{leaf}", parts
    yield from pair(f"{ours}.attention.out", f"{theirs}.attention.out_proj")
    yield from pair(f"{ours}.attention_norm", f"{theirs}.layer_norm")
    yield from pair(f"{ours}.fc1", f"{theirs}.feed_forward.intermediate_dense")
    yield from pair(f"{ours}.fc2", f"{theirs}.feed_forward.output_dense")
    yield from pair(f"{ours}.ffn_norm", f"{theirs}.final_layer_norm")
    if config.relative_buckets:
        gate = f"{theirs}.attention.gru_rel_pos"
        yield f"{ours}.attention.gate.scale", (f"{gate}_const",)
        yield from pair(f"{ours}.attention.gate.projection", f"{gate}_linear")


def assemble(
    found: Mapping[str, Tensor], table: Iterable[Row], config: EncoderConfig, source: str
) -> dict[str, Tensor]:
    """Our state dict of their tensors, float32.

    Raises `ValueError` naming, in their words, each tensor that is missing, left over, or of
    another shape than the configuration gives.
    """
    rows = list(table)
    wanted = {name for _, names in rows for name in names}
    faults = [f"missing {k}" for k in sorted(wanted - found.keys())]
    faults += [f"unexpected {k} {tuple(found[k].shape)}" for k in sorted(found.keys() - wanted)]
    state: dict[str, Tensor] = {}
    if not faults:
        with torch.device("meta"):
            own = config.build().state_dict()
        for ours, names in rows:
            parts = [found[k] for k in names]
            value = (torch.cat(parts) if len(parts) > 1 else parts[0]).float()
            state[ours] = value
            if value.shape != own[ours].shape:
                want = tuple(own[ours].shape)
                faults.append(f"{' + '.join(names)}: found {tuple(value.shape)}, want {want}")
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" * (len(faults) > 8))
        raise ValueError(f"{source} does not hold the model of its configuration: {shown}")
    return state
