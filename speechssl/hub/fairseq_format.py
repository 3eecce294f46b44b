"""Checkpoints of fairseq and of Microsoft's UniLM: one .pt with settings, tensors, and much else.

Reads HuBERT, wav2vec 2.0, data2vec (audio) and DinoSR, pretrained or fine-tuned with CTC;
MR-HuBERT, UniSpeech-SAT, and WavLM ({cfg, model}). Neither fairseq nor omegaconf is needed, and
nothing in the file is run.

Source: the modules of fairseq `models/wav2vec/wav2vec2.py`, `models/hubert/hubert.py`,
`examples/data2vec/models/data2vec_audio.py`, DinoSR's `models/dinosr.py` and UniLM
`wavlm/WavLM.py`, for names and settings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub import multires_format
from speechssl.hub.restricted_pickle import load_tensors, plain
from speechssl.hub.tensor_names import (
    Checkpoint,
    CtcTensors,
    Row,
    assemble,
    leave_out,
    tensor_names,
)

MODELS = (
    "wav2vec2", "hubert", "data2vec_audio", "dinosr", "unispeech_sat", "wavlm",
    multires_format.KIND,
)  # fmt: skip
RECOGNISERS = ("wav2vec_ctc", "hubert_ctc")
CTC_PREFIX = "w2v_encoder.w2v_model."
PRETRAINING_TENSORS = (
    "final_proj.",
    "label_embs_concat",
    "quantizer.",
    "project_q.",
    "input_quantizer.",
    "project_inp.",
    "target_glu.",
    "spk_proj.",
    "layer_norm_for_extract.",
    "encoder.layer_norm_for_extract.",
    "_ema",
    "heads.",
    "_codebook",
    "_pre_encoder_",
)
"""Tensors of pretraining heads, codebooks and teachers, which are left out and listed. Any other
unknown one is an error."""


def is_fairseq(content: Any) -> bool:
    """Whether this is what fairseq or UniLM writes."""
    return (
        isinstance(content, Mapping) and "model" in content and bool({"cfg", "args"} & {*content})
    )


def read_fairseq(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """Configuration, encoder state dict in our names, and CTC head of a file's content.

    content: what `read_torch_file` returned for `path`.
    Raises `ValueError` if the settings lack one that is needed or want a model that the encoder
    does not compute, or naming each tensor that is missing, left over, or of another shape.
    """
    settings, task, recogniser = _settings(content, path)
    shared = to_config(settings, task, str(path))
    prefix = CTC_PREFIX if recogniser else ""
    multires = (settings.get("_name") or settings.get("arch")) == multires_format.KIND
    beginnings = multires_format.PRETRAINING_TENSORS if multires else PRETRAINING_TENSORS
    wanted, left_out = leave_out(content["model"], beginnings, prefix)
    tensors = {_modern(k): v for k, v in load_tensors(wanted)}
    if multires:
        config = multires_format.multires_config(shared, settings, str(path))
        tensors = multires_format.multires_tensors(tensors)
        names = multires_format.multires_names(config)
        return Checkpoint(config, assemble(tensors, names, config, str(path)), None, left_out)
    head = None
    if recogniser:
        if not {"w2v_encoder.proj.weight", "w2v_encoder.proj.bias"} <= tensors.keys():
            raise ValueError(f"{path}: found no w2v_encoder.proj, the recogniser's output layer")
        weight, bias = (tensors.pop(f"w2v_encoder.proj.{x}").float() for x in ("weight", "bias"))
        head = CtcTensors(weight, bias, 0, _vocabulary(content, path, len(bias)))
    table = [(ours, tuple(prefix + n for n in names)) for ours, names in fairseq_names(shared)]
    return Checkpoint(shared, assemble(tensors, table, shared, str(path)), head, left_out)


def _modern(name: str) -> str:
    """Positions of a file written by a newer torch, under the name of older ones."""
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    return name.replace(".parametrizations.weight.original1", ".weight_v")


def _settings(
    content: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The encoder's settings, its task's, and whether it is a recogniser."""
    root = plain(content.get("cfg") or content.get("args"))
    if not isinstance(root, dict):
        raise ValueError(f"{path}: found settings of type {type(root).__name__}, want cfg or args")
    model, task = _model_and_task(root)
    name = model.get("_name") or model.get("arch")
    if name is None and "encoder_layers" in model:
        name = "wavlm"  # UniLM's WavLM: its settings lie flat and name no class
    if name in RECOGNISERS:
        inner = model.get("w2v_args")
        if not isinstance(inner, dict):
            raise ValueError(
                f"{path}: found a {name} without w2v_args, the settings of its encoder; they "
                "lie in the pretrained checkpoint that it names"
            )
        # The task of the recogniser says how its waves are normalised.
        return _model_and_task(inner)[0], task, True
    if name not in MODELS:
        raise ValueError(
            f"{path}: found the model {name!r}, want one of {', '.join((*MODELS, *RECOGNISERS))}"
        )
    return model, task, False


def _model_and_task(root: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of new settings (cfg.model, cfg.task), and of old ones, which lie flat."""
    model, task = root.get("model"), root.get("task")
    if isinstance(model, dict) and isinstance(task, dict):
        return _filled(model, root), _filled(task, root)
    return root, root


def _filled(values: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with "${a.b}" replaced by what it points to."""

    def look(value: Any, depth: int = 0) -> Any:
        found = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if found is None or depth > 5:
            return value
        target: Any = root
        for key in found[1].split("."):
            if not isinstance(target, Mapping) or key not in target:
                return value
            target = target[key]
        return look(target, depth + 1)

    return {k: look(v) for k, v in values.items()}


_REQUIRED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "conv_pos_batch_norm": False,
    "pos_enc_type": "abs",
    "gru_rel_pos": True,
}
"""Settings that the encoder computes in one way only; absent ones had these values."""


def to_config(
    settings: Mapping[str, Any], task: Mapping[str, Any], source: str
) -> TransformerConfig:
    """The configuration that fairseq's settings describe."""

    def need(key: str, of: Mapping[str, Any] = settings) -> Any:
        if of.get(key) is None:
            raise ValueError(f"{source}: found no setting {key}, which is never guessed")
        return of[key]

    relative = bool(settings.get("relative_position_embedding", False))
    for key, wanted in _REQUIRED.items():
        if key == "gru_rel_pos" and not relative:
            continue
        if settings.get(key, wanted) not in (wanted, None, ""):
            raise ValueError(
                f"{source}: {key}: found {settings[key]!r}, want {wanted!r}, the only one that "
                "this encoder computes"
            )
    convolutions = parse_convolutions(need("conv_feature_layers"), source)
    widths = {width for width, _, _ in convolutions}
    if len(widths) != 1:
        raise ValueError(f"{source}: conv_feature_layers: found widths {widths}, want one")
    norm = {"default": "group", "layer_norm": "layer"}.get(need("extractor_mode"))
    if norm is None:
        raise ValueError(
            f"{source}: extractor_mode: found {need('extractor_mode')!r}, want default or "
            "layer_norm"
        )
    depth = int(settings.get("pos_conv_depth") or 1)
    kernel = int(need("conv_pos"))
    return TransformerConfig(
        front_norm=norm,  # pyright: ignore
        front_dim=widths.pop(),
        conv_kernels=tuple(k for _, k, _ in convolutions),
        conv_strides=tuple(s for _, _, s in convolutions),
        conv_bias=bool(settings.get("conv_bias", False)),
        normalize_wave=bool(need("normalize", task)),
        layers=int(need("encoder_layers")),
        dim=int(need("encoder_embed_dim")),
        ffn_dim=int(need("encoder_ffn_embed_dim")),
        heads=int(need("encoder_attention_heads")),
        pre_norm=bool(need("layer_norm_first")),
        dropout=float(settings.get("dropout", 0.1)),
        attention_dropout=float(settings.get("attention_dropout", 0.1)),
        activation_dropout=float(settings.get("activation_dropout", 0.0)),
        input_dropout=float(settings.get("dropout_input", 0.0)),
        layerdrop=float(settings.get("encoder_layerdrop", 0.0)),
        conv_gradient_scale=float(settings.get("feature_grad_mult", 1.0)),
        pos_conv_kernel=max(3, kernel // depth) if depth > 1 else kernel,
        pos_conv_groups=int(need("conv_pos_groups")),
        pos_conv_depth=depth,
        relative_buckets=int(need("num_buckets")) if relative else 0,
        relative_max_distance=int(need("max_distance")) if relative else 800,
    )


def parse_convolutions(text: Any, source: str) -> list[tuple[int, int, int]]:
    """(width, kernel, stride) of e.g. "[(512,10,5)] + [(512,3,2)] * 4"; fairseq evaluates it."""
    found: Any = text
    try:
        if isinstance(text, str):
            found = _arithmetic(ast.parse(text.strip(), mode="eval").body)
        layers = [tuple(map(int, layer)) for layer in found]
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(f"{source}: conv_feature_layers: cannot read {text!r}") from None
    if not layers or any(len(layer) != 3 for layer in layers):
        raise ValueError(f"{source}: conv_feature_layers: found {text!r}, want triples")
    return layers  # pyright: ignore


def _arithmetic(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _arithmetic(node.left) + _arithmetic(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _arithmetic(node.left), _arithmetic(node.right)
        if isinstance(left, int):
            left, right = right, left
        if not isinstance(right, int) or not 0 < right <= 100:
            raise ValueError("want a list times a small number")
        return left * right
    return ast.literal_eval(node)


def fairseq_names(config: TransformerConfig) -> Iterator[Row]:
    """One row per tensor of the encoder: our name, fairseq's."""
    for ours, names in tensor_names(config):
        yield ours, tuple(_fairseq_name(name, config) for name in names)


_PARTS = (
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"^masked_spec_embed$", "mask_emb"),
    (r"pos_conv_embed\.layers\.(\d+)\.conv\.", r"pos_conv.\1.0."),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.", "pos_conv.0."),
    (r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"feed_forward\.intermediate_dense\.", "fc1."),
    (r"feed_forward\.output_dense\.", "fc2."),
    (r"\.attention\.", ".self_attn."),
    (r"rel_attn_embed\.", "relative_attention_bias."),
    (r"gru_rel_pos_linear\.", "grep_linear."),
    (r"gru_rel_pos_const$", "grep_a"),
)


def _fairseq_name(name: str, config: TransformerConfig) -> str:
    if name.startswith("feature_extractor."):
        norm = ".2.1." if config.front_norm == "layer" else ".2."
        return name.replace(".conv.", ".0.").replace(".layer_norm.", norm)
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def _vocabulary(content: Mapping[str, Any], path: Path, size: int) -> dict[str, int] | None:
    """Symbols of the file's own dictionary, or of a dict.*.txt beside it."""
    states = plain(content.get("task_state") or {})
    found = [states.get("target_dictionary"), *(states.get("dictionaries") or [])]
    for dictionary in found:
        symbols = dictionary.get("symbols") if isinstance(dictionary, dict) else None
        if symbols and len(symbols) == size:
            return {str(s): i for i, s in enumerate(symbols)}
    for beside in sorted(path.parent.glob("dict.*.txt")):
        lines = beside.read_text(encoding="utf-8").splitlines()
        symbols = ["<s>", "<pad>", "</s>", "<unk>", *(x.rsplit(" ", 1)[0] for x in lines if x)]
        if len(symbols) == size:
            return {s: i for i, s in enumerate(symbols)}
    return None
