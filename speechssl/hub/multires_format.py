"""fairseq's MR-HuBERT: its settings and tensors in our words.

Source: fairseq `models/multires_hubert/multires_hubert.py`, for names and settings.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.tensor_names import Row, front_names, pair

KIND = "multires_hubert"
PRETRAINING_TENSORS = ("final_projs.", "label_embs_concat.", "target_glus.")
FRONT = (
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    ("masked_spec_embed", "mask_emb"),
)


def multires_config(
    shared: TransformerConfig, settings: Mapping[str, Any], source: str
) -> MultiresConfig:
    """The configuration that fairseq's settings describe.

    shared: what was read of them as of a HuBERT, whose `layers` are those of each stack.
    Raises `ValueError` on a setting that is absent or that the encoder does not compute.
    """
    kernel = settings.get("conv_adapator_kernal", 7)  # fairseq's spelling, and its default
    if kernel != 1:
        raise ValueError(
            f"{source}: conv_adapator_kernal: found {kernel}, want 1, which all published models "
            "have and the only one that this encoder computes"
        )
    factors = _factors(settings.get("label_rate_ratios"), source)
    stacks = _stacks(settings.get("override_encoder_layers"), shared.layers, len(factors), source)
    names = {f.name for f in dataclasses.fields(MultiresConfig)}
    common = {
        f.name: getattr(shared, f.name)
        for f in dataclasses.fields(TransformerConfig)
        if f.name in names
    }
    return MultiresConfig(
        **common,
        stacks=stacks,
        factors=factors,
        simple_samplers=bool(settings.get("use_plain_updownsample", False)),
    )


def _factors(ratios: Any, source: str) -> tuple[int, ...]:
    """Of (1, 2, 1, 2): each pair is by what the rate rises and falls."""
    found = _literal(ratios)
    good = isinstance(found, list | tuple) and len(found) > 0 and len(found) % 2 == 0
    if not good or any(up != 1 for up in found[::2]) or any(down < 2 for down in found[1::2]):
        raise ValueError(
            f"{source}: label_rate_ratios: found {ratios!r}, want pairs of 1 and a whole number "
            "above it, such as [1, 2]"
        )
    return tuple(int(x) for x in found[1::2])


def _stacks(given: Any, layers: int, changes: int, source: str) -> tuple[int, ...]:
    if given in (None, ""):
        return (layers,) * (2 * changes + 1)
    found = _literal(given)
    if not isinstance(found, list | tuple) or len(found) != 2 * changes + 1:
        raise ValueError(
            f"{source}: override_encoder_layers: found {given!r}, want {2 * changes + 1} numbers"
        )
    # The numbers of the way up are given to its stacks from the end of the list, while these stand
    # in the order of their use: 3-2-2-2-3 in words is 3-2-2-3-2 in truth.
    return (*(int(x) for x in found[: changes + 1]), *(int(x) for x in found[:changes:-1]))


def _literal(value: Any) -> Any:
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        return value


def multires_tensors(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors with the samplers' convolutions as matrices (outputs, inputs)."""
    tensors = dict(found)
    for name, value in found.items():
        if "sample_conv.0.weight" in name and value.ndim == 3:
            matrix = value.squeeze(-1)
            # A transposed convolution has its inputs first.
            tensors[name] = matrix.t() if ".upsample_conv." in name else matrix
    return tensors


def multires_names(config: MultiresConfig) -> Iterator[Row]:
    """One row per tensor of the encoder: our name, and theirs."""
    for ours, (theirs,) in front_names(config):
        yield ours, (_front_name(theirs, config),)
    yield "pos_conv.g", ("encoders.0.pos_conv.0.weight_g",)
    yield "pos_conv.v", ("encoders.0.pos_conv.0.weight_v",)
    yield "pos_conv.bias", ("encoders.0.pos_conv.0.bias",)
    changes, number = len(config.factors), 0
    for stack, count in enumerate(config.stacks):
        theirs = "middle_encoder"
        if stack != changes:
            way, place = ("en", stack) if stack < changes else ("de", stack - changes - 1)
            theirs = f"{way}coders.{place}"
        yield from pair(f"norms.{stack}", f"{theirs}.layer_norm")
        for place in range(count):
            yield from _layer_names(f"layers.{number}", f"{theirs}.layers.{place}")
            number += 1
    for i in range(changes):
        # Theirs stand in the order of the way down, both.
        yield from _sampler_names(f"down.{i}", f"downsample_modules.{i}", config, up=False)
        theirs = f"upsample_modules.{changes - 1 - i}"
        yield from _sampler_names(f"up.{i}", theirs, config, up=True)


def _front_name(name: str, config: MultiresConfig) -> str:
    if name.startswith("feature_extractor."):
        norm = ".2.1." if config.front_norm == "layer" else ".2."
        return name.replace(".conv.", ".0.").replace(".layer_norm.", norm)
    for theirs, old in FRONT:
        name = name.replace(theirs, old)
    return name


def _sampler_names(ours: str, theirs: str, config: MultiresConfig, *, up: bool) -> Iterator[Row]:
    for way in ("up", "down"):
        if not config.simple_samplers or up == (way == "up"):
            yield f"{ours}.{way}_conv.weight", (f"{theirs}.{way}sample_conv.0.weight",)
            yield from pair(f"{ours}.{way}_norm", f"{theirs}.{way}sample_conv.2")


def _layer_names(ours: str, theirs: str) -> Iterator[Row]:
    for leaf in ("weight", "bias"):
        parts = tuple(f"{theirs}.self_attn.{x}_proj.{leaf}" for x in "qkv")
        yield f"{ours}.attention.qkv.{leaf}", parts
    yield from pair(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj")
    yield from pair(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm")
    yield from pair(f"{ours}.fc1", f"{theirs}.fc1")
    yield from pair(f"{ours}.fc2", f"{theirs}.fc2")
    yield from pair(f"{ours}.ffn_norm", f"{theirs}.final_layer_norm")
