"""Model folders of transformers (config.json with safetensors or .bin): read and write, strictly.

Reads and writes HuBERT, WavLM and data2vec (audio); reads the models that share HuBERT's module
tree, wav2vec 2.0, UniSpeech and UniSpeech-SAT; and wav2vec 2.0 Conformer. transformers itself is
not needed.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.encoders.conformer import ConformerConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub import conformer_format
from speechssl.hub.tensor_names import (
    POSITIONS,
    Checkpoint,
    CtcTensors,
    assemble,
    leave_out,
    tensor_names,
)

PREFIXES = {
    "hubert": "hubert.",
    "wavlm": "wavlm.",
    "wav2vec2": "wav2vec2.",
    "unispeech": "unispeech.",
    "unispeech-sat": "unispeech_sat.",
    "data2vec-audio": "data2vec_audio.",
    conformer_format.KIND: "wav2vec2_conformer.",
}

PRETRAINING_TENSORS = (
    "quantizer.",
    "project_q.",
    "project_hid.",
    "final_proj.",
    "speaker_proj.",
    "label_embeddings_concat",
    "layer_norm_for_extract.",
    "ctc_proj.",
)
TASK_TENSORS = (
    "projector.",
    "classifier.",
    "layer_weights",
    "tdnn.",
    "objective.",
    "feature_extractor.weight",
    "feature_extractor.bias",
)
"""These and the tensors of pretraining heads are left out and listed. Any other unknown one is an
error. The last two are a linear layer of ...ForXVector, whatever its name."""


def read_transformers(folder: str | Path, settings: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return the configuration, the encoder's state dict in our names, and the CTC head if any.

    settings: {"do_normalize": whether waves are brought to mean 0 and variance 1}, before what
        preprocessor_config.json says; without either the front end's kind decides, with a warning.
    Raises `ValueError` if the architecture is not one that we compute exactly, or naming each
    tensor that is missing, left over, or of another shape. Nothing is unpickled.
    """
    folder = Path(folder)
    values = _read_json(folder / "config.json")
    kind = values.get("model_type")
    if kind not in PREFIXES:
        raise ValueError(
            f"{folder}/config.json: found model_type {kind!r}, want one of {', '.join(PREFIXES)}"
        )
    normalize_wave = _normalizes(folder, values, settings or {})
    found = {_plain_name(k, PREFIXES[kind]): v for k, v in _read_tensors(folder).items()}
    head = _take_head(found, folder, values)
    found, left_out = leave_out(found, (*PRETRAINING_TENSORS, *TASK_TENSORS))
    if kind == conformer_format.KIND:
        shared = _to_config(conformer_format.as_transformer(values), normalize_wave, str(folder))
        config = conformer_format.conformer_config(shared, values, str(folder))
        found, unused = leave_out(found, conformer_format.UNUSED_TENSORS)
        found, left_out = conformer_format.conformer_tensors(found), (*left_out, *unused)
    else:
        config = _to_config(values, normalize_wave, str(folder))
    return Checkpoint(config, _to_ours(found, config, values, str(folder)), head, left_out)


def write_transformers(
    folder: str | Path,
    config: TransformerConfig,
    state: Mapping[str, Tensor],
    head: CtcTensors | None = None,
) -> None:
    """Write a folder that transformers' `AutoModel` or `AutoModelForCTC.from_pretrained` opens.

    Raises `ValueError` if the encoder has no counterpart there (a log-mel front end).
    """
    from safetensors.torch import save_file

    values = _from_config(config)
    prefix = ""
    theirs: dict[str, Tensor] = {}
    folder = Path(folder)
    if head is not None:
        prefix = PREFIXES[values["model_type"]]
        values["architectures"] = [values["architectures"][0].removesuffix("Model") + "ForCTC"]
        values |= {"vocab_size": len(head.bias), "pad_token_id": head.blank}
        theirs = {"lm_head.weight": head.weight, "lm_head.bias": head.bias}
    for ours, names in tensor_names(config):
        parts = state[ours].chunk(len(names)) if len(names) > 1 else (state[ours],)
        theirs |= {f"{prefix}{k}": v for k, v in zip(names, parts)}
    theirs = {k: v.detach().cpu().contiguous().clone() for k, v in theirs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    processor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": config.normalize_wave,
        "return_attention_mask": True,
    }
    files = {"preprocessor_config": processor, "config": values}
    if head is not None and head.vocabulary is not None:
        blank = next(s for s, i in head.vocabulary.items() if i == head.blank)
        tokenizer = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": blank}
        tokenizer |= {"bos_token": None, "eos_token": None, "word_delimiter_token": "|"}
        files = {"vocab": dict(head.vocabulary), "tokenizer_config": tokenizer} | files
    save_file(theirs, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")
    for name, content in files.items():
        temporary = folder / f"{name}.json.tmp"
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, folder / f"{name}.json")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent}: found no {path.name}, want a folder of transformers")
    return json.loads(path.read_text(encoding="utf-8"))


def _normalizes(folder: Path, values: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether the model was trained on waves of mean 0 and variance 1."""
    if settings.keys() - {"do_normalize"}:
        raise ValueError(f"settings: found {sorted(settings)}, want do_normalize only")
    if "do_normalize" in settings:
        return bool(settings["do_normalize"])
    path = folder / "preprocessor_config.json"
    if path.is_file():
        processor = _read_json(path)
        if processor.get("sampling_rate", 16000) != 16000:
            raise ValueError(
                f"{path}: sampling_rate: found {processor['sampling_rate']}, want 16000, the only "
                "one of this encoder"
            )
        return bool(processor.get("do_normalize", True))  # transformers' default
    # Every published model with layer norms in its front end was trained on normalised waves.
    norm = values.get("feat_extract_norm", "layer")
    warnings.warn(
        f"{folder}: found no preprocessor_config.json; waves are "
        f"{'normalised' if norm == 'layer' else 'taken as they are'}, as by published models with "
        f'a {norm} norm in their front end; settings={{"do_normalize": ...}} decides otherwise',
        stacklevel=2,
    )
    return norm == "layer"


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        state: dict[str, Tensor] = {}
        for name in sorted(set(_read_json(index)["weight_map"].values())):
            state |= load_file(folder / Path(name).name)
        return state
    if (folder / "pytorch_model.bin").is_file():
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    raise ValueError(f"{folder}: found no model.safetensors and no pytorch_model.bin, want one")


def _plain_name(name: str, prefix: str) -> str:
    name = name.removeprefix(prefix)
    name = name.replace("pos_conv_embed.conv.weight_g", f"{POSITIONS}.original0")
    return name.replace("pos_conv_embed.conv.weight_v", f"{POSITIONS}.original1")


def _take_head(
    found: dict[str, Tensor], folder: Path, values: Mapping[str, Any]
) -> CtcTensors | None:
    if "lm_head.weight" not in found:
        return None
    vocabulary = None
    if (folder / "vocab.json").is_file():
        vocabulary = _read_json(folder / "vocab.json")
    return CtcTensors(
        found.pop("lm_head.weight"),
        found.pop("lm_head.bias"),
        int(values.get("pad_token_id") or 0),
        vocabulary,
    )


_REQUIRED = {
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}
"""Settings that the encoder computes in one way only; the values are transformers' defaults."""


def _to_config(values: Mapping[str, Any], normalize_wave: bool, source: str) -> TransformerConfig:
    for key, wanted in _REQUIRED.items():
        if values.get(key, wanted) != wanted:
            raise ValueError(
                f"{source}/config.json: {key}: found {values[key]!r}, want {wanted!r}, the only "
                "one that this encoder computes"
            )

    def need(key: str) -> Any:
        if key not in values:
            raise ValueError(f"{source}/config.json: found no {key}, which is never guessed")
        return values[key]

    widths = set(need("conv_dim"))
    if len(widths) != 1:
        raise ValueError(
            f"{source}/config.json: conv_dim: found {need('conv_dim')}, want one width"
        )
    # transformers has data2vec in one form only, and no setting for it.
    stack = values["model_type"] == "data2vec-audio"
    pre_norm = not stack and bool(need("do_stable_layer_norm"))
    norm = "layer" if stack else need("feat_extract_norm")
    wavlm = values["model_type"] == "wavlm"
    return TransformerConfig(
        front_norm=norm,
        front_dim=widths.pop(),
        conv_kernels=tuple(need("conv_kernel")),
        conv_strides=tuple(need("conv_stride")),
        conv_bias=bool(need("conv_bias")),
        normalize_wave=normalize_wave,
        layers=need("num_hidden_layers"),
        dim=need("hidden_size"),
        ffn_dim=need("intermediate_size"),
        heads=need("num_attention_heads"),
        pre_norm=pre_norm,
        dropout=float(values.get("hidden_dropout", 0.1)),
        attention_dropout=float(values.get("attention_dropout", 0.1)),
        activation_dropout=float(values.get("activation_dropout", 0.1)),
        input_dropout=float(values.get("feat_proj_dropout", 0.0)),
        layerdrop=float(values.get("layerdrop", 0.1)),
        conv_gradient_scale=1.0 if pre_norm else 0.1,
        pos_conv_kernel=need("conv_pos_kernel_size" if stack else "num_conv_pos_embeddings"),
        pos_conv_depth=need("num_conv_pos_embeddings") if stack else 1,
        pos_conv_groups=need("num_conv_pos_embedding_groups"),
        relative_buckets=need("num_buckets") if wavlm else 0,
        relative_max_distance=need("max_bucket_distance") if wavlm else 800,
    )


def _from_config(config: TransformerConfig) -> dict[str, Any]:
    if config.front_end != "wave":
        raise ValueError(
            f"front_end: found {config.front_end}, want wave; transformers has no counterpart"
        )
    count = len(config.conv_kernels)
    wavlm, stack = config.relative_buckets > 0, config.pos_conv_depth > 1
    if stack and (wavlm or config.pre_norm or config.front_norm != "layer"):
        raise ValueError(
            f"pos_conv_depth: found {config.pos_conv_depth} with pre_norm={config.pre_norm}, "
            f"front_norm={config.front_norm}, relative_buckets={config.relative_buckets}; "
            "transformers has such positions in data2vec only, post-norm with front_norm=layer"
        )
    name, kind = ("WavLM", "wavlm") if wavlm else ("Hubert", "hubert")
    if stack:
        name, kind = "Data2VecAudio", "data2vec-audio"
    values: dict[str, Any] = {
        "architectures": [f"{name}Model"],
        "model_type": kind,
        "feat_extract_norm": config.front_norm,
        "conv_dim": [config.front_dim] * count,
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "conv_bias": config.conv_bias,
        "num_feat_extract_layers": count,
        "num_hidden_layers": config.layers,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_attention_heads": config.heads,
        "do_stable_layer_norm": config.pre_norm,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feat_proj_dropout": config.input_dropout,
        "layerdrop": config.layerdrop,
        "num_conv_pos_embeddings": config.pos_conv_kernel,
        "num_conv_pos_embedding_groups": config.pos_conv_groups,
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    if wavlm:
        values["num_buckets"] = config.relative_buckets
        values["max_bucket_distance"] = config.relative_max_distance
    if stack:
        values["num_conv_pos_embeddings"] = config.pos_conv_depth
        values["conv_pos_kernel_size"] = config.pos_conv_kernel
    return values


def _to_ours(
    found: dict[str, Tensor],
    config: TransformerConfig | ConformerConfig,
    values: Mapping[str, Any],
    source: str,
) -> dict[str, Tensor]:
    # transformers leaves the mask vector out of a model whose config never masks.
    masks = values.get("mask_time_prob", 0.05) > 0 or values.get("mask_feature_prob", 0.0) > 0
    if "masked_spec_embed" not in found and not masks:
        generator = torch.Generator().manual_seed(0)
        found["masked_spec_embed"] = torch.rand(config.dim, generator=generator)
    if isinstance(config, ConformerConfig):
        return assemble(found, conformer_format.conformer_names(config), config, source)
    return assemble(found, tensor_names(config), config, source)
