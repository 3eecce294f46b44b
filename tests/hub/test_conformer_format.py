"""transformers' Wav2Vec2Conformer is the reference: same weights, same hidden states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speechssl
from speechssl.encoders.conformer import ConformerEncoder
from speechssl.hub.parity import parity_report
from speechssl.hub.transformers_format import read_transformers

transformers = pytest.importorskip("transformers")

PROCESSOR = {"do_normalize": True, "sampling_rate": 16000}


def their_model(positions: str | None, recogniser: bool = False, **more: Any) -> Any:
    config = transformers.Wav2Vec2ConformerConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=192,
        conv_dim=[48] * 7,
        conv_depthwise_kernel_size=9,
        position_embeddings_type=positions,
        vocab_size=5,
        **({"hidden_act": "swish", "feat_extract_norm": "layer", "conv_bias": True} | more),
    )
    torch.manual_seed(1)
    name = "Wav2Vec2ConformerForCTC" if recogniser else "Wav2Vec2ConformerModel"
    model = getattr(transformers, name)(config).eval()
    # Norms, biases and averages start plain: random values show a swapped or forgotten one.
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and ("norm" in tensor_name or "bias" in tensor_name):
                tensor.add_(0.2 * torch.rand_like(tensor))
    return model


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.mark.parametrize(
    ("positions", "more"),
    [
        ("relative", {}),
        ("rotary", {}),
        ("rotary", {"rotary_embedding_base": 500}),
        ("relative", {"hidden_act": "gelu", "feat_extract_norm": "group", "conv_bias": False}),
        (None, {}),
    ],
)
def test_every_hidden_state_equals_theirs(
    positions: str | None, more: dict[str, Any], tmp_path: Path
) -> None:
    folder = save(their_model(positions, **more), tmp_path)
    model = speechssl.load(folder)
    assert isinstance(model.encoder, ConformerEncoder)
    report = parity_report(model, folder, samples=(400, 20000))
    assert len(report.differences) == 4 and min(report.scales) > 0.1
    assert report.worst < 1e-4, str(report)
    want = [n for n in model.provenance["left_out"] if "pos_conv_embed" not in n]
    assert want == (["encoder.embed_positions.inv_freq"] if positions == "rotary" else [])


def test_a_padded_batch_equals_single_utterances_where_theirs_does_not(tmp_path: Path) -> None:
    theirs = their_model("relative")
    ours = speechssl.load(save(theirs, tmp_path)).encoder
    object.__setattr__(ours.config, "normalize_wave", False)
    lengths = torch.tensor([24000, 9000])
    keep = torch.arange(24000)[None] < lengths[:, None]
    wave = torch.randn(2, 24000) * keep
    with torch.no_grad():
        batch = ours(wave, lengths).hidden
        single = ours(wave[1:, :9000], lengths[1:]).hidden
        alone = theirs(wave[1:, :9000]).last_hidden_state[0]
        padded = theirs(wave, keep.long()).last_hidden_state[1]
    frames = single[0].shape[1]
    assert all((a[1, :frames] - b[0]).abs().max() < 1e-5 for a, b in zip(batch, single))
    assert (single[-1][0] - alone).abs().max() < 1e-4
    # Their depthwise convolution reads what the norms and biases made of padding.
    assert (padded[:frames] - alone).abs().max() > 1e-3


def test_a_recogniser_gives_their_scores_and_words(tmp_path: Path) -> None:
    theirs = their_model("relative", recogniser=True)
    folder = save(theirs, tmp_path)
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}))
    model = speechssl.load(folder)
    wave = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    x = torch.from_numpy(wave)[None]
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-7).sqrt()
    with torch.no_grad():
        want = theirs(x).logits.log_softmax(-1)
        got = model.head.log_probs(torch.from_numpy(wave)[None], torch.tensor([9000]))[0]
    assert (got - want).abs().max() < 1e-4
    ids = [i for i in torch.unique_consecutive(want[0].argmax(-1)).tolist() if i]
    text = " ".join("".join(" abc"[i - 1] for i in ids).split())
    assert model.transcribe([wave], rate=16000) == [text]


def test_missing_and_left_over_tensors_are_named(tmp_path: Path) -> None:
    model = their_model("relative")
    folder = save(model, tmp_path)
    state = dict(model.state_dict())
    state["surplus.weight"] = state.pop("encoder.layers.1.conv_module.batch_norm.running_var")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"missing .*batch_norm\.running_var.*surplus\.weight"):
        read_transformers(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embeddings_type", "relative_key"),
        ("position_embeddings_type", ...),
        ("conv_depthwise_kernel_size", ...),
        ("hidden_act", "relu"),
        ("num_attention_heads", ...),
        ("add_adapter", True),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = save(their_model("relative"), tmp_path)
    values = json.loads((folder / "config.json").read_text())
    values[key] = value
    values = {k: v for k, v in values.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=key):
        read_transformers(folder)
