"""State dicts of torchaudio's wav2vec 2.0, HuBERT and WavLM: read and write.

Such a file holds tensors only, and their shapes do not reveal the number of heads or where the
layer norms are. The settings therefore come from a JSON file beside it: the arguments of
`torchaudio.models.wav2vec2_model` or `wavlm_model`, with `normalize_waveform` as in its bundles,
and `labels` of a recogniser. torchaudio itself is not needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.restricted_pickle import LazyTensor, load_tensors
from speechssl.hub.tensor_names import (
    Checkpoint,
    CtcTensors,
    Row,
    assemble,
    leave_out,
    tensor_names,
)

MASK = "mask_generator.mask_embedding"
PRETRAINING_TENSORS = ("logit_generator.", "feature_grad_mult")
SETTINGS = {
    "encoder_num_layers": "layers",
    "encoder_embed_dim": "dim",
    "encoder_ff_interm_features": "ffn_dim",
    "encoder_num_heads": "heads",
    "encoder_layer_norm_first": "pre_norm",
    "encoder_pos_conv_kernel": "pos_conv_kernel",
    "encoder_pos_conv_groups": "pos_conv_groups",
    "extractor_conv_bias": "conv_bias",
    "normalize_waveform": "normalize_wave",
}
"""Arguments that must be there, and our names of them."""
DROPOUTS = {
    "encoder_projection_dropout": "input_dropout",
    "encoder_attention_dropout": "attention_dropout",
    "encoder_ff_interm_dropout": "activation_dropout",
    "encoder_dropout": "dropout",
    "encoder_layer_drop": "layerdrop",
}
WAVLM = {"encoder_num_buckets": "relative_buckets", "encoder_max_distance": "relative_max_distance"}
NORMS = {"group_norm": "group", "layer_norm": "layer"}


def is_torchaudio(content: Any) -> bool:
    """Whether this is a state dict with torchaudio's names."""
    return isinstance(content, Mapping) and any(
        isinstance(v, LazyTensor) and "encoder.transformer." in k for k, v in content.items()
    )


def read_torchaudio(
    content: Mapping[str, Any], path: Path, settings: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Configuration, encoder state dict in our names, and CTC head of a state dict.

    content: what `read_torch_file` returned for `path`.
    settings: as in the module's docstring; None: read from the JSON file of the same name.
    Raises `ValueError` if settings are missing, or naming each tensor that does not fit.
    """
    if settings is None:
        settings = _beside(path)
    config = _to_config(settings, str(path))
    wanted, left_out = leave_out(content, PRETRAINING_TENSORS)
    found = {k.removeprefix("wav2vec2."): v for k, v in load_tensors(wanted)}
    found = {
        k.replace(".weight_g", f"{_G}0").replace(".weight_v", f"{_G}1"): v for k, v in found.items()
    }
    if MASK not in found:  # models without the pretraining wrapper have none
        found[MASK] = torch.rand(config.dim, generator=torch.Generator().manual_seed(0))
    head = None
    if "aux.weight" in found:
        labels = settings.get("labels")
        vocabulary = None if labels is None else _vocabulary(labels)
        head = CtcTensors(found.pop("aux.weight"), found.pop("aux.bias"), 0, vocabulary)
    state = assemble(found, torchaudio_names(config), config, str(path))
    return Checkpoint(config, state, head, left_out)


_G = ".parametrizations.weight.original"


def _vocabulary(labels: list[str]) -> dict[str, int]:
    return {("<blank>" if i == 0 else s): i for i, s in enumerate(labels)}


def _beside(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise ValueError(
            f"{path}: found a state dict of torchaudio without {beside.name}. Its shapes do not "
            "reveal the number of heads, nor where the norms are: put the arguments of "
            "torchaudio's wav2vec2_model or wavlm_model and normalize_waveform into that JSON "
            f"file, or pass settings=...; want {', '.join((*SETTINGS, 'extractor_mode'))}"
        )
    return json.loads(beside.read_text(encoding="utf-8"))


def _to_config(settings: Mapping[str, Any], source: str) -> TransformerConfig:
    absent = [k for k in (*SETTINGS, "extractor_mode") if settings.get(k) is None]
    if absent:
        raise ValueError(f"{source}: found no setting {', '.join(absent)}, never guessed")
    known = {*SETTINGS, *DROPOUTS, *WAVLM, "extractor_mode", "extractor_conv_layer_config"}
    strange = sorted(settings.keys() - known - {"aux_num_out", "labels"})
    if strange or settings["extractor_mode"] not in NORMS:
        raise ValueError(
            f"{source}: found the settings {strange} and extractor_mode "
            f"{settings['extractor_mode']!r}; want arguments of wav2vec2_model or wavlm_model, "
            "and extractor_mode group_norm or layer_norm"
        )
    names = SETTINGS | DROPOUTS | (WAVLM if settings.get("encoder_num_buckets") else {})
    values: dict[str, Any] = {ours: settings[k] for k, ours in names.items() if k in settings}
    layers = settings.get("extractor_conv_layer_config")
    if layers is not None:
        widths = {width for width, _, _ in layers}
        if len(widths) != 1:
            raise ValueError(
                f"{source}: extractor_conv_layer_config: found {layers}, want one width"
            )
        values["front_dim"] = widths.pop()
        values["conv_kernels"] = tuple(k for _, k, _ in layers)
        values["conv_strides"] = tuple(s for _, _, s in layers)
    return TransformerConfig(front_norm=NORMS[settings["extractor_mode"]], **values)  # pyright: ignore


def torchaudio_names(config: TransformerConfig) -> Iterator[Row]:
    """One row per tensor of the encoder: our name, torchaudio's."""
    for ours, names in tensor_names(config):
        if config.relative_buckets and ours.endswith(("qkv.weight", "qkv.bias")):
            stem, _, leaf = ours.partition(".attention.qkv.")
            yield ours, (f"encoder.transformer.{stem}.attention.attention.in_proj_{leaf}",)
            continue
        yield ours, tuple(_torchaudio_name(name, config) for name in names)


def _torchaudio_name(name: str, config: TransformerConfig) -> str:
    if name == "masked_spec_embed":
        return MASK
    if name.startswith("feature_extractor."):
        return name
    if name.startswith("feature_projection."):
        return f"encoder.{name}"
    if config.relative_buckets:
        name = name.replace(".attention.out_proj.", ".attention.attention.out_proj.")
    return name.replace("encoder.", "encoder.transformer.", 1)


def write_torchaudio(
    path: str | Path,
    config: TransformerConfig,
    state: Mapping[str, Tensor],
    head: CtcTensors | None = None,
) -> None:
    """Write a state dict that torchaudio's model loads strictly, and its arguments as JSON beside.

    The learnt mask vector is left out, as in torchaudio's inference models. Raises `ValueError` if
    the encoder has no counterpart there.
    """
    path = Path(path)
    if config.front_end != "wave" or config.pos_conv_depth > 1:
        raise ValueError(
            f"front_end, pos_conv_depth: found {config.front_end} and {config.pos_conv_depth}, "
            "want wave and 1; torchaudio has no counterpart"
        )
    settings: dict[str, Any] = {
        k: getattr(config, ours) for k, ours in (SETTINGS | DROPOUTS).items()
    }
    settings["extractor_mode"] = {v: k for k, v in NORMS.items()}[config.front_norm]
    shapes = zip(config.conv_kernels, config.conv_strides, strict=True)
    settings["extractor_conv_layer_config"] = [[config.front_dim, k, s] for k, s in shapes]
    if config.relative_buckets:
        settings |= {k: getattr(config, ours) for k, ours in WAVLM.items()}
    theirs: dict[str, Tensor] = {}
    for ours, names in torchaudio_names(config):
        parts = state[ours].chunk(len(names)) if len(names) > 1 else (state[ours],)
        theirs |= {k: v.detach().cpu().contiguous().clone() for k, v in zip(names, parts)}
    del theirs[MASK]
    settings["aux_num_out"] = None if head is None else len(head.bias)
    if head is not None:
        theirs |= {"aux.weight": head.weight.cpu(), "aux.bias": head.bias.cpu()}
        if head.vocabulary is not None:
            settings["labels"] = sorted(head.vocabulary, key=head.vocabulary.__getitem__)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(theirs, path.with_name(path.name + ".tmp"))
    os.replace(path.with_name(path.name + ".tmp"), path)
    beside = path.with_suffix(".json")
    temporary = beside.with_name(beside.name + ".tmp")
    temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, beside)
