"""transformers' Wav2Vec2Conformer: its settings and tensors in our words.

Of the dropouts theirs has more than ours: `hidden_dropout` stands for that of all three kinds of
blocks; it matters in training only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from speechssl.encoders.conformer import ConformerConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.tensor_names import Row, front_names, pair

KIND = "wav2vec2-conformer"
ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu"}
POSITIONS = {"relative": "relative", "rotary": "rotary_input", None: "none"}
UNUSED_TENSORS = ("encoder.pos_conv_embed.", "encoder.embed_positions.inv_freq")
"""A convolution that transformers' model holds and never computes, and a table that follows from
the settings."""


def as_transformer(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from which what a Conformer shares with a Transformer can be read."""
    return {**values, "do_stable_layer_norm": True, "hidden_act": "gelu"}


def conformer_config(
    shared: TransformerConfig, values: Mapping[str, Any], source: str
) -> ConformerConfig:
    """The configuration that `values`, a config.json, describes.

    shared: what was read of `as_transformer(values)`.
    Raises `ValueError` on a setting that is absent or that the encoder does not compute.
    """

    def one_of(key: str, known: Mapping[Any, str]) -> Any:
        if key not in values:
            raise ValueError(f"{source}/config.json: found no {key}, which is never guessed")
        if values[key] not in known:
            raise ValueError(
                f"{source}/config.json: {key}: found {values[key]!r}, want one of "
                f"{', '.join(map(repr, known))}"
            )
        return known[values[key]]

    kernel = values.get("conv_depthwise_kernel_size")
    if kernel is None:
        raise ValueError(
            f"{source}/config.json: found no conv_depthwise_kernel_size, which is never guessed"
        )
    names = {f.name for f in dataclasses.fields(ConformerConfig)}
    common = {
        f.name: getattr(shared, f.name)
        for f in dataclasses.fields(TransformerConfig)
        if f.name in names
    }
    return ConformerConfig(
        **common,
        depthwise_kernel=kernel,
        conv_norm="batch",
        positions=one_of("position_embeddings_type", POSITIONS),
        rotary_base=float(values.get("rotary_embedding_base", 10000)),
        activation=one_of("hidden_act", ACTIVATIONS),
    )


def conformer_tensors(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors with convolutions of one frame as matrices, without counts of batches."""
    kept = {k: v for k, v in found.items() if not k.endswith(".num_batches_tracked")}
    return {k: v.squeeze(-1) if ".pointwise_conv" in k else v for k, v in kept.items()}


def conformer_names(config: ConformerConfig) -> Iterator[Row]:
    """One row per tensor of the encoder: our name, and theirs."""
    yield from front_names(config)
    yield from pair("layer_norm", "encoder.layer_norm")
    for i in range(config.layers):
        yield from _layer_names(f"layers.{i}", f"encoder.layers.{i}", config)


def _layer_names(ours: str, theirs: str, config: ConformerConfig) -> Iterator[Row]:
    for ffn in ("ffn1", "ffn2"):
        yield from pair(f"{ours}.{ffn}.norm", f"{theirs}.{ffn}_layer_norm")
        yield from pair(f"{ours}.{ffn}.fc1", f"{theirs}.{ffn}.intermediate_dense")
        yield from pair(f"{ours}.{ffn}.fc2", f"{theirs}.{ffn}.output_dense")
    yield from pair(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm")
    for leaf in ("weight", "bias"):
        parts = tuple(f"{theirs}.self_attn.linear_{x}.{leaf}" for x in "qkv")
        yield f"{ours}.attention.qkv.{leaf}", parts
    yield from pair(f"{ours}.attention.out", f"{theirs}.self_attn.linear_out")
    if config.positions == "relative":
        yield f"{ours}.attention.position.weight", (f"{theirs}.self_attn.linear_pos.weight",)
        yield f"{ours}.attention.content_bias", (f"{theirs}.self_attn.pos_bias_u",)
        yield f"{ours}.attention.position_bias", (f"{theirs}.self_attn.pos_bias_v",)
    yield from pair(f"{ours}.conv.input_norm", f"{theirs}.conv_module.layer_norm")
    yield f"{ours}.conv.expand.weight", (f"{theirs}.conv_module.pointwise_conv1.weight",)
    yield f"{ours}.conv.depthwise.weight", (f"{theirs}.conv_module.depthwise_conv.weight",)
    yield from pair(f"{ours}.conv.norm", f"{theirs}.conv_module.batch_norm")
    for buffer in ("running_mean", "running_var"):
        yield f"{ours}.conv.norm.{buffer}", (f"{theirs}.conv_module.batch_norm.{buffer}",)
    yield f"{ours}.conv.contract.weight", (f"{theirs}.conv_module.pointwise_conv2.weight",)
    yield from pair(f"{ours}.final_norm", f"{theirs}.final_layer_norm")
