"""Public checkpoints of transformers as they are published: every size, head, file layout, policy.

The hidden states themselves are compared in test_transformers_format.py; here, what stands around
them: the published sizes fit tensor by tensor, foreign heads are left out and listed, weights in
several files are put together, and waves are normalised as the checkpoint says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speechssl
from speechssl.hub import transformers_format
from speechssl.hub.transformers_format import read_transformers

transformers = pytest.importorskip("transformers")

LAYERED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096,
}  # fmt: skip
XLARGE = LARGE | {"hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert-base-ls960": ("Hubert", {}),
    "hubert-large-ll60k": ("Hubert", LARGE | LAYERED | {"conv_bias": True}),
    "hubert-xlarge-ll60k": ("Hubert", XLARGE | LAYERED | {"conv_bias": True}),
    "wavlm-base-plus": ("WavLM", {}),
    "wavlm-large": ("WavLM", LARGE | LAYERED),
    "wav2vec2-base": ("Wav2Vec2", {}),
    "wav2vec2-large": ("Wav2Vec2", LARGE),
    "wav2vec2-large-xlsr-53": ("Wav2Vec2", LARGE | LAYERED | {"conv_bias": True}),
    "wav2vec2-xls-r-1b": ("Wav2Vec2", XLARGE | LAYERED | {"conv_bias": True}),
    "data2vec-audio-base": ("Data2VecAudio", {}),
    "data2vec-audio-large": ("Data2VecAudio", LARGE),
    "unispeech-large-1500h-cv": ("UniSpeech", LARGE | LAYERED | {"conv_bias": True}),
    "unispeech-sat-base-plus": ("UniSpeechSat", {}),
    "unispeech-sat-large": ("UniSpeechSat", LARGE | LAYERED),
}
SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "tdnn_dim": [8, 8, 8, 8, 16], "xvector_output_dim": 8, "classifier_proj_size": 8,
    "codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4,
    "num_ctc_classes": 5, "vocab_size": 6,
}  # fmt: skip


def _config(family: str, **values: Any) -> Any:
    return getattr(transformers, f"{family}Config")(**values)


def _preprocessor(folder: Path, **values: Any) -> None:
    values = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", **values}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_size_fits_tensor_by_tensor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full size without a number in memory: names and shapes only, none missing, none left over."""
    family, values = PUBLISHED[name]
    config = _config(family, **values)
    with torch.device("meta"):
        theirs = getattr(transformers, f"{family}Model")(config).state_dict()
    config.save_pretrained(tmp_path)
    _preprocessor(tmp_path, do_normalize=True)
    monkeypatch.setattr(transformers_format, "_read_tensors", lambda folder: theirs)
    found = read_transformers(tmp_path)
    assert sum(v.numel() for v in found.state.values()) == sum(v.numel() for v in theirs.values())
    shape = found.config.layers, found.config.dim, found.config.heads, found.config.ffn_dim
    wanted = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    assert shape == tuple(getattr(config, k) for k in wanted)
    assert found.left_out == ()


FAMILIES = ("Hubert", "WavLM", "Wav2Vec2", "Data2VecAudio", "UniSpeech", "UniSpeechSat")
HEADS = ("PreTraining", "SequenceClassification", "AudioFrameClassification", "XVector")
WITH_HEADS = [
    (family, head)
    for family in FAMILIES
    for head in HEADS
    if hasattr(transformers, f"{family}For{head}")
]


@pytest.mark.parametrize(("family", "head"), WITH_HEADS)
def test_a_head_of_another_task_is_left_out_and_listed(
    family: str, head: str, tmp_path: Path
) -> None:
    config = _config(family, **SMALL, use_weighted_layer_sum=head not in ("PreTraining",))
    theirs = getattr(transformers, f"{family}For{head}")(config).eval()
    theirs.save_pretrained(tmp_path)
    _preprocessor(tmp_path, do_normalize=False)
    model = speechssl.load(tmp_path)
    inner = getattr(theirs, theirs.base_model_prefix)
    kept = {f"{theirs.base_model_prefix}.{k}" for k in inner.state_dict()}
    outside = {k for k in theirs.state_dict() if k not in kept}
    left_out = set(model.provenance["left_out"])
    assert left_out == outside and outside
    assert f"left out of the checkpoint: {min(left_out)}" in model.describe()
    wave = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    with torch.no_grad():
        want = inner(torch.tensor(wave)[None], output_hidden_states=True).hidden_states
    found = model.extract(wave, rate=16000)[0]
    for layer, values in enumerate(want):
        assert np.abs(found.hidden[layer] - values[0].numpy()).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_recogniser_decodes_at_once(family: str, tmp_path: Path) -> None:
    symbols = ["<pad>", "|", "A", "B", "C", "D"]
    config = _config(family, **SMALL, pad_token_id=0)
    theirs = getattr(transformers, f"{family}ForCTC")(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    _preprocessor(tmp_path, do_normalize=False)
    model = speechssl.load(tmp_path)
    wave = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.tensor(wave)[None]).logits.log_softmax(-1)
        found, frames = model.head.log_probs(torch.tensor(wave)[None], torch.tensor([16000]))  # type: ignore[union-attr]
    assert frames.tolist() == [49] and (found - want).abs().max() < 1e-4
    best = want[0].argmax(-1).tolist()
    joined = [b for a, b in zip([0, *best], best) if b not in (a, 0)]
    text = " ".join("".join(" ABCD"[b - 1] for b in joined).split())
    assert model.transcribe(wave, rate=16000) == [text] and text


def test_a_tensor_of_no_known_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = transformers.HubertModel(_config("Hubert", **SMALL))
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"adapter.layers.0.weight": torch.ones(2)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _preprocessor(tmp_path)
    with pytest.raises(ValueError, match=r"unexpected adapter\.layers\.0\.weight \(2,\)"):
        speechssl.load(tmp_path)


def test_weights_in_several_files_are_put_together(tmp_path: Path) -> None:
    theirs = transformers.HubertModel(_config("Hubert", **SMALL))
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    settings = {"do_normalize": False}
    one, many = (read_transformers(tmp_path / x, settings).state for x in ("one", "many"))
    assert one.keys() == many.keys() and all(torch.equal(one[k], many[k]) for k in one)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_waves_are_normalised_as_the_checkpoint_says(norm: str, tmp_path: Path) -> None:
    """The processor beside the weights decides; theirs and ours then agree end to end."""
    theirs = transformers.HubertModel(_config("Hubert", **SMALL, feat_extract_norm=norm)).eval()
    theirs.save_pretrained(tmp_path)
    wave = (0.03 * np.random.default_rng(0).standard_normal(8000) + 0.01).astype(np.float32)
    for policy in (True, False):
        processor = transformers.Wav2Vec2FeatureExtractor(do_normalize=policy)
        processor.save_pretrained(tmp_path)
        given = processor(wave, sampling_rate=16000, return_tensors="pt").input_values
        with torch.no_grad():
            want = theirs(given).last_hidden_state[0].numpy()
        model = speechssl.load(tmp_path)
        assert model.encoder.config.normalize_wave is policy
        assert np.abs(model.extract(wave, [-1], rate=16000)[0].hidden[2] - want).max() < 1e-4
        kind = "brought to mean 0" if policy else "taken as they are"
        assert kind in model.describe()
    assert speechssl.load(tmp_path, settings={"do_normalize": True}).encoder.config.normalize_wave


def test_an_unsaid_policy_is_the_default_there_and_an_absent_one_a_warning(tmp_path: Path) -> None:
    theirs = transformers.HubertModel(_config("Hubert", **SMALL))
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no preprocessor_config.json; waves are taken as they"):
        assert not speechssl.load(tmp_path).encoder.config.normalize_wave
    _preprocessor(tmp_path)
    assert speechssl.load(tmp_path).encoder.config.normalize_wave
    assert transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path).do_normalize
    _preprocessor(tmp_path, sampling_rate=8000)
    with pytest.raises(ValueError, match="sampling_rate: found 8000, want 16000"):
        speechssl.load(tmp_path)


def test_settings_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    theirs = transformers.HubertModel(_config("Hubert", **SMALL))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"settings: found \['heads'\], want do_normalize only"):
        speechssl.load(tmp_path, settings={"heads": 4})
    (tmp_path / "model.json").touch()
    with pytest.raises(ValueError, match=r"want none: .* holds its own"):
        speechssl.load(tmp_path, settings={"do_normalize": True})
