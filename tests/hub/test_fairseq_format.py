"""fairseq's and UniLM's files, hand-made of random weights: the same hidden states as transformers.

The names are written out here once more, independently of the code under test.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import speechssl
from speechssl.hub.fairseq_format import parse_convolutions
from speechssl.hub.model import Model

transformers = pytest.importorskip("transformers")

LAYERS, DIM = 3, 96
SMALL: dict[str, Any] = {
    "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 6,
    "intermediate_size": 192, "conv_dim": [48] * 7,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "extractor_mode": "default",
    "encoder_layers": LAYERS,
    "encoder_embed_dim": DIM,
    "encoder_ffn_embed_dim": 192,
    "encoder_attention_heads": 6,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_feature_layers": "[(48,10,5)] + [(48,3,2)] * 4 + [(48,2,2)] * 2",
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "feature_grad_mult": 0.1,
    "dropout": 0.1,
    "encoder_layerdrop": 0.05,
}
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True}
LARGE_THEIRS = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
STACK = {"extractor_mode": "layer_norm", "conv_pos": 21, "pos_conv_depth": 3}
STACK_THEIRS = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}
RELATIVE = {
    "relative_position_embedding": True, "num_buckets": 320, "max_distance": 800,
    "gru_rel_pos": True, "normalize": False,
}  # fmt: skip

OLD_NAMES = [
    (r"feature_extractor\.conv_layers\.(\d)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"^feature_projection\.layer_norm", "layer_norm"),
    (r"^feature_projection\.projection", "post_extract_proj"),
    (r"^masked_spec_embed", "mask_emb"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv\.bias", "pos_conv.0.bias"),
    (r"pos_conv_embed\.layers\.(\d)\.conv", r"pos_conv.\1.0"),
    (r"\.attention\.rel_attn_embed\.weight", ".self_attn.relative_attention_bias.weight"),
    (r"\.attention\.gru_rel_pos_linear", ".self_attn.grep_linear"),
    (r"\.attention\.gru_rel_pos_const", ".self_attn.grep_a"),
    (r"\.attention\.([qkv]|out)_proj", r".self_attn.\1_proj"),
    (r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
]


def their_model(family: str, **more: Any) -> Any:
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}Model")(
        getattr(transformers, f"{family}Config")(**SMALL, **more)
    ).eval()
    with torch.no_grad():  # norms and gates start as identities, which would hide a mistake
        for name, parameter in model.named_parameters():
            if "norm" in name or "rel_" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def old_state(model: Any, layer_norm: bool) -> dict[str, Tensor]:
    state = {}
    for name, value in model.state_dict().items():
        norm = "2.1" if layer_norm else "2"
        name = re.sub(r"(conv_layers\.\d)\.layer_norm", rf"\1.{norm}", name)
        for pattern, replacement in OLD_NAMES:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    return state


def same_states(path: Path, model: Any) -> Model:
    """Check every hidden state, alone and padded; return the opened model."""
    ours = speechssl.load(path)
    waves = [np.random.default_rng(i).standard_normal(n) for i, n in enumerate((20000, 7777))]
    waves = [w.astype(np.float32) for w in waves]
    for wave, found in zip(waves, ours.extract(waves, rate=16000), strict=True):
        x = torch.from_numpy(wave)[None]
        if ours.encoder.config.normalize_wave:
            x = (x - x.mean()) / (x.var(unbiased=False) + 1e-7).sqrt()
        with torch.no_grad():
            output = model(x, output_hidden_states=True)
        want = (*output.hidden_states[:-1], output.last_hidden_state)
        assert len(found.hidden) == len(want) == LAYERS + 1
        for layer, values in enumerate(want):
            assert np.abs(found.hidden[layer] - values[0].numpy()).max() < 1e-4, layer
    return ours


def fairseq_objects(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `Dictionary` as fairseq pickles it."""
    module = types.ModuleType("fairseq.data.dictionary")

    class Dictionary:
        def __init__(self, symbols: list[str]) -> None:
            self.symbols = ["<s>", "<pad>", "</s>", "<unk>", *symbols]
            self.count = [1] * len(self.symbols)
            self.indices = {s: i for i, s in enumerate(self.symbols)}
            self.bos_index, self.pad_index = 0, 1

    Dictionary.__module__, Dictionary.__qualname__ = module.__name__, "Dictionary"
    module.Dictionary = Dictionary  # type: ignore[attr-defined]
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, module)
    return Dictionary


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("size", ["base", "large"])
def test_hubert_with_its_dictionary_and_optimiser(
    size: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = size == "large"
    model = their_model("Hubert", **(LARGE_THEIRS if large else {}))
    state = old_state(model, large)
    state |= {"final_proj.weight": torch.randn(8, DIM), "final_proj.bias": torch.randn(8)}
    state |= {"label_embs_concat": torch.randn(104, 8)}
    dictionary = fairseq_objects(monkeypatch)
    content = {
        "args": None,
        "cfg": {
            "model": {"_name": "hubert", **SETTINGS, **(LARGE if large else {})},
            "task": {"_name": "hubert_pretraining", "normalize": large, "labels": ["km"]},
        },
        "model": state,
        "task_state": {"dictionaries": [dictionary([str(i) for i in range(100)])]},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.randn(DIM)}}},
        "extra_state": {"val_loss": np.float64(1.0)},
    }
    torch.save(content, tmp_path / "hubert.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    ours = same_states(tmp_path / "hubert.pt", model)
    assert ours.encoder.config.normalize_wave is large
    assert ours.provenance["format"] == "fairseq" and "fairseq" not in sys.modules
    assert ours.provenance["left_out"] == [
        "final_proj.bias",
        "final_proj.weight",
        "label_embs_concat",
    ]


@pytest.mark.parametrize("bias", [True, False])
def test_wav2vec_2_with_a_namespace_of_old(bias: bool, tmp_path: Path) -> None:
    more = {"conv_bias": True, **LARGE_THEIRS} if bias else {}
    model = their_model("Wav2Vec2", **more)
    state = old_state(model, bias) | {
        "quantizer.vars": torch.randn(1, 640, 4), "quantizer.weight_proj.bias": torch.randn(4),
        "project_q.weight": torch.randn(4, 4), "final_proj.weight": torch.randn(4, DIM),
    }  # fmt: skip
    settings = SETTINGS | ({"conv_bias": True} | LARGE if bias else {})
    args = argparse.Namespace(arch="wav2vec2", task="audio_pretraining", normalize=bias, **settings)
    torch.save({"args": args, "model": state}, tmp_path / "w2v.pt")
    same_states(tmp_path / "w2v.pt", model)


def test_data2vec_leaves_out_its_teacher(tmp_path: Path) -> None:
    model = their_model("Data2VecAudio", **STACK_THEIRS)
    state: dict[str, Any] = old_state(model, True) | {
        "final_proj.0.weight": torch.randn(DIM, DIM), "final_proj.0.bias": torch.randn(DIM),
        "_ema": {"layers.0.fc1.weight": torch.randn(3, 3)},
    }  # fmt: skip
    cfg = {
        "model": {"_name": "data2vec_audio", **SETTINGS, **STACK},
        "task": {"_name": "audio_pretraining", "normalize": True},
    }
    torch.save({"cfg": cfg, "args": None, "model": state}, tmp_path / "d2v.pt")
    ours = same_states(tmp_path / "d2v.pt", model)
    assert ours.encoder.config.pos_conv_depth == 3
    assert ours.encoder.config.pos_conv_kernel == 7


def dinosr_content(model: Any, dictionary: Any, **more: Any) -> dict[str, Any]:
    """A DinoSR file: data2vec's encoder, prediction heads, codebooks, and its teachers' weights."""
    heads = {f"heads.{i}.{leaf}": torch.randn(7, *([DIM] if leaf == "weight" else []))
             for i in range(2) for leaf in ("weight", "bias")}  # fmt: skip
    books = {f"_codebook{i}": torch.randn(7, DIM) for i in range(2)}
    books |= {f"_codebook_cnts{i}": torch.ones(7) for i in range(2)}
    teachers = {
        "_ema": {k.removeprefix("encoder."): v.clone() for k, v in old_state(model, True).items()
                 if k.startswith("encoder.layers.")},
        "_pre_encoder_cnn": {"conv_layers.0.0.weight": torch.randn(48, 1, 10)},
        "_pre_encoder_ln": {"weight": torch.ones(48)},
        "_pre_encoder_proj": {"weight": torch.randn(DIM, 48)},
    }  # fmt: skip
    settings = {
        "_name": "dinosr", **SETTINGS, **STACK, "feature_grad_mult": 1.0, "discrete": True,
        "codebook_size": 7, "average_top_k_layers": 2, "instance_norm_target_layer": True,
    }  # fmt: skip
    return {
        "args": None,
        "cfg": {
            "model": argparse.Namespace(**settings),
            "task": argparse.Namespace(_name="audio_pretraining", normalize=True),
            "optimization": {"max_update": 400000},
        },
        "model": {**old_state(model, True), **heads, **books, **teachers, **more},
        "task_state": {"target_dictionary": dictionary},
        "extra_state": {"train_iterator": {"epoch": 3}, "metrics": {"default": [np.float64(1.0)]}},
        "last_optimizer_state": {"state": {}, "param_groups": [{"lr": 5e-4}]},
    }


def test_dinosr_lists_its_codebooks_and_teachers_as_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = their_model("Data2VecAudio", **STACK_THEIRS)
    content = dinosr_content(model, fairseq_objects(monkeypatch)([]))
    torch.save(content, tmp_path / "dinosr.pt")
    monkeypatch.undo()
    ours = same_states(tmp_path / "dinosr.pt", model)
    config = ours.encoder.config
    assert (config.pos_conv_depth, config.pos_conv_kernel) == (3, 7) and config.normalize_wave
    left_out = set(ours.provenance["left_out"])
    assert left_out == content["model"].keys() - old_state(model, True).keys()
    assert {"_codebook0", "_codebook_cnts1", "_ema", "_pre_encoder_ln", "heads.1.bias"} < left_out
    assert "left out of the checkpoint: _codebook0, " in ours.describe()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"codebooks.0": torch.ones(2)}, r"unexpected codebooks\.0 \(2,\)"),
        ({"teacher.layers.0.fc1.weight": torch.ones(2)}, r"unexpected teacher\.layers"),
        (
            {"encoder.extra": {"weight": torch.ones(2)}},
            r"encoder\.extra: found dict, want a tensor",
        ),
        ({"mask_emb": None}, r"mask_emb: found NoneType, want a tensor"),
    ],
)
def test_dinosr_with_what_nobody_knows_is_refused(
    more: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = their_model("Data2VecAudio", **STACK_THEIRS)
    dictionary = fairseq_objects(monkeypatch)([])
    torch.save(dinosr_content(model, dictionary, **more), tmp_path / "dinosr.pt")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=message):
        speechssl.load(tmp_path / "dinosr.pt")


@pytest.mark.parametrize("size", ["base", "large"])
def test_wavlm_of_unilm(size: str, tmp_path: Path) -> None:
    large = size == "large"
    model = their_model("WavLM", **(LARGE_THEIRS if large else {}))
    cfg = SETTINGS | RELATIVE | (LARGE if large else {}) | {"normalize": large}
    torch.save({"cfg": cfg, "model": old_state(model, large)}, tmp_path / "WavLM.pt")
    same_states(tmp_path / "WavLM.pt", model)


def test_unispeech_sat_of_unilm(tmp_path: Path) -> None:
    model = their_model("UniSpeechSat", **LARGE_THEIRS)
    state = old_state(model, True) | {
        "spk_proj.weight": torch.randn(4, DIM), "layer_norm_for_extract.bias": torch.ones(1),
        "label_embs_concat": torch.randn(9, 4), "final_proj.weight": torch.randn(4, DIM),
    }  # fmt: skip
    cfg = {
        "model": {"_name": "unispeech_sat", **SETTINGS, **LARGE, "normalize": "${task.normalize}"},
        "task": {"_name": "utterance_mixing_pretraining", "normalize": True},
    }
    torch.save({"cfg": cfg, "model": state}, tmp_path / "sat.pt")
    same_states(tmp_path / "sat.pt", model)


@pytest.mark.parametrize("where", ["file", "beside", "nowhere"])
def test_a_recogniser_decodes_at_once(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = their_model("Wav2Vec2")
    letters = ["|", *"ETAON"]
    head = torch.nn.Linear(DIM, 4 + len(letters))
    state = {f"w2v_encoder.w2v_model.{k}": v for k, v in old_state(model, False).items()}
    state |= {f"w2v_encoder.proj.{k}": v for k, v in head.state_dict().items()}
    inner = argparse.Namespace(arch="wav2vec2", normalize=True, **SETTINGS)
    content: dict[str, Any] = {
        "cfg": {
            "model": {"_name": "wav2vec_ctc", "w2v_args": inner, "w2v_path": "/gone.pt"},
            "task": {"_name": "audio_finetuning", "normalize": False},
        },
        "model": state,
    }
    if where == "file":
        content["task_state"] = {"target_dictionary": fairseq_objects(monkeypatch)(letters)}
    if where == "beside":
        lines = "".join(f"{s} {9 - i}\n" for i, s in enumerate(letters))
        (tmp_path / "dict.ltr.txt").write_text(lines)
    torch.save(content, tmp_path / "ctc.pt")
    monkeypatch.undo()
    ours = same_states(tmp_path / "ctc.pt", model)
    wave = np.random.default_rng(3).standard_normal(32000).astype(np.float32)
    if where == "nowhere":
        with pytest.raises(ValueError, match="tokenizer"):
            ours.transcribe((wave, 16000))
        return
    with torch.no_grad():
        best = head(model(torch.tensor(wave)[None]).last_hidden_state)[0].argmax(-1).tolist()
    joined = [b for a, b in zip([0, *best], best) if b != a and b > 3]
    want = " ".join("".join([" ", *letters[1:]][b - 4] for b in joined).split())
    assert ours.transcribe((wave, 16000)) == [want] and want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_attention_heads": None}, "encoder_attention_heads, which is never guessed"),
        ({"normalize": None}, "normalize, which is never guessed"),
        ({"layer_type": "conformer"}, "layer_type: found 'conformer', want 'transformer'"),
        ({"activation_fn": "relu"}, "activation_fn"),
        ({"conv_feature_layers": "__import__('os').getcwd()"}, "conv_feature_layers: cannot read"),
        ({"encoder_layers": 2}, r"unexpected encoder\.layers\.2\.fc1\.bias"),
        ({"encoder_layers": 4}, r"missing encoder\.layers\.3\.fc1\.bias"),
        ({"encoder_ffn_embed_dim": 200}, r"fc1\.weight: found \(192, 96\), want \(200, 96\)"),
        ({"arch": "wav2vec"}, "found the model 'wav2vec', want one of"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = old_state(their_model("Wav2Vec2"), False)
    values = {"arch": "wav2vec2", "normalize": False, **SETTINGS} | change
    torch.save({"args": argparse.Namespace(**values), "model": state}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        speechssl.load(tmp_path / "x.pt")


def test_the_convolutions_are_read_without_evaluation() -> None:
    base = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"
    want = [(512, 10, 5), *[(512, 3, 2)] * 4, (512, 2, 2), (512, 2, 2)]
    assert parse_convolutions(base, "x") == want
    assert parse_convolutions([list(layer) for layer in want], "x") == want
    for bad in ("[(1,2,3)] * 10**9", "open('x')", "[(1,2)]", "", "[].append", "3"):
        with pytest.raises(ValueError, match="conv_feature_layers"):
            parse_convolutions(bad, "x")


def test_the_pickle_of_a_fairseq_shaped_attack_is_refused_by_load(tmp_path: Path) -> None:
    import os

    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'victim'}",)

    content = {"args": argparse.Namespace(arch="hubert"), "model": {}, "task_state": Attack()}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"refused: it asks for \w+\.system"):
        speechssl.load(tmp_path / "x.pt")
    assert not (tmp_path / "victim").exists()
