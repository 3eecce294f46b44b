"""transformers' HuBERT and WavLM are the reference: same weights, same hidden states."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.tensor_names import CtcTensors
from speechssl.hub.transformers_format import read_transformers, write_transformers

transformers = pytest.importorskip("transformers")

SHAPES: dict[str, dict[str, Any]] = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "large_bias": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}


def their_model(family: str, shape: str) -> Any:
    more = SHAPES.get(shape, {})
    if family == "Data2VecAudio":  # has one form only
        more = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}
    config = getattr(transformers, f"{family}Config")(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=192,
        conv_dim=[48] * 7,
        **more,
    )
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}Model")(config).eval()
    # Norms and gates start as identities: random values show a swapped or forgotten one.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "rel_" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


# Their processor does the normalisation of the wave; it is not part of their model.
AS_IT_IS = {"do_normalize": False}


def our_model(folder: Path) -> Any:
    config, state, *_ = read_transformers(folder, AS_IT_IS)
    model = config.build().eval()
    model.load_state_dict(state)
    return model


def their_states(model: Any, wave: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    with torch.no_grad():
        output = model(wave, attention_mask=mask, output_hidden_states=True)
    # Some versions list the last layer of a pre-norm model before the encoder's norm.
    return (*output.hidden_states[:-1], output.last_hidden_state)


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *itertools.product(["Hubert", "WavLM", "Wav2Vec2", "UniSpeech", "UniSpeechSat"], SHAPES),
        ("Data2VecAudio", "only"),
    ],
)
def test_every_hidden_state_equals_theirs(family: str, shape: str, tmp_path: Path) -> None:
    model = their_model(family, shape)
    model.save_pretrained(tmp_path)
    wave = torch.randn(1, 20000)
    want = their_states(model, wave)
    ours = our_model(tmp_path)
    with torch.no_grad():
        got = ours(wave, torch.tensor([20000])).hidden
    assert len(got) == len(want) == 4
    for a, b in zip(got, want):
        assert (a - b).abs().max() < 1e-4


def test_a_padded_batch_equals_single_utterances_where_theirs_does_not(tmp_path: Path) -> None:
    model = their_model("Hubert", "base")
    model.save_pretrained(tmp_path)
    ours = our_model(tmp_path)
    lengths = torch.tensor([24000, 9000])
    wave = torch.randn(2, 24000)
    wave[1, 9000:] = 0
    with torch.no_grad():
        batch = ours(wave, lengths).hidden
        single = ours(wave[1:, :9000], lengths[1:]).hidden
    frames = single[0].shape[1]
    assert all((a[1, :frames] - b[0]).abs().max() < 1e-5 for a, b in zip(batch, single))
    keep = (torch.arange(24000)[None] < lengths[:, None]).long()
    theirs = their_states(model, wave, keep)[-1][1, :frames]
    theirs_alone = their_states(model, wave[1:, :9000])[-1][0]
    assert (theirs_alone - single[-1][0]).abs().max() < 1e-4
    difference = float((theirs - theirs_alone).abs().max())
    print(f"padding moves transformers' features by up to {difference:.3g}")
    assert difference > 1e-2


@pytest.mark.parametrize(
    ("family", "shape"), [("Hubert", "base"), ("WavLM", "large"), ("Data2VecAudio", "only")]
)
def test_writing_what_was_read_gives_the_same_tensors(
    family: str, shape: str, tmp_path: Path
) -> None:
    model = their_model(family, shape)
    model.save_pretrained(tmp_path / "theirs")
    config, state, *_ = read_transformers(tmp_path / "theirs", AS_IT_IS)
    write_transformers(tmp_path / "again", config, state)
    config_again, state_again, *_ = read_transformers(tmp_path / "again")
    assert config_again == config
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[k], state_again[k]) for k in state)
    theirs = type(model).from_pretrained(tmp_path / "again").eval()
    wave = torch.randn(1, 5000)
    for a, b in zip(their_states(theirs, wave), their_states(model, wave)):
        assert torch.equal(a, b)


def test_old_files_with_weight_g_and_a_prefix_are_read(tmp_path: Path) -> None:
    model = their_model("Hubert", "base")
    model.save_pretrained(tmp_path)
    _, want, *_ = read_transformers(tmp_path, AS_IT_IS)
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        state[f"hubert.{name}"] = value
    state |= {"lm_head.weight": torch.randn(5, 96), "lm_head.bias": torch.zeros(5)}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "A": 1}))
    _, got, head, _ = read_transformers(tmp_path, AS_IT_IS)
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert head is not None
    assert torch.equal(head.weight, state["lm_head.weight"])
    assert head.vocabulary == {"<pad>": 0, "A": 1}


def test_missing_and_left_over_tensors_are_named(tmp_path: Path) -> None:
    model = their_model("Hubert", "base")
    model.save_pretrained(tmp_path)
    state = dict(model.state_dict())
    state["surplus.weight"] = state.pop("encoder.layers.1.attention.q_proj.weight")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"missing encoder\.layers\.1\.attention\.q_proj\.weight"):
        read_transformers(tmp_path, AS_IT_IS)
    with pytest.raises(ValueError, match=r"unexpected surplus\.weight"):
        read_transformers(tmp_path, AS_IT_IS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", None),
        ("conv_pos_batch_norm", True),
        ("hidden_act", "relu"),
        ("model_type", "bert"),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    their_model("Hubert", "base").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    if value is None:
        del values[key]
    else:
        values[key] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=key):
        read_transformers(tmp_path, AS_IT_IS)


@pytest.mark.parametrize(("family", "shape"), [("WavLM", "large"), ("Wav2Vec2", "large_bias")])
def test_padded_layer_norm_models_equal_theirs_with_their_mask(
    family: str, shape: str, tmp_path: Path
) -> None:
    model = their_model(family, shape)
    model.save_pretrained(tmp_path)
    ours = our_model(tmp_path)
    lengths = torch.tensor([24000, 9000])
    wave = torch.randn(2, 24000) * (torch.arange(24000)[None] < lengths[:, None])
    keep = (torch.arange(24000)[None] < lengths[:, None]).long()
    want = their_states(model, wave, keep)
    with torch.no_grad():
        got = ours(wave, lengths)
    for a, b in zip(got.hidden, want, strict=True):
        for row, frames in enumerate(got.lengths.tolist()):
            assert (a[row, :frames] - b[row, :frames]).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "shape"), [("Hubert", "base"), ("Data2VecAudio", "only")])
def test_a_recogniser_written_opens_there_with_equal_scores(
    family: str, shape: str, tmp_path: Path
) -> None:
    model = their_model(family, shape)
    model.save_pretrained(tmp_path / "theirs")
    config, state, *_ = read_transformers(tmp_path / "theirs", AS_IT_IS)
    head = CtcTensors(torch.randn(5, 96), torch.randn(5), 0, {"<pad>": 0, "|": 1, "É": 2})
    write_transformers(tmp_path / "ours", config, state, head)
    theirs = transformers.AutoModelForCTC.from_pretrained(tmp_path / "ours").eval()
    wave = torch.randn(1, 9000)
    with torch.no_grad():
        hidden = model(wave).last_hidden_state
        want = hidden @ head.weight.t() + head.bias
        assert (theirs(wave).logits - want).abs().max() < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.decode([2, 2, 0, 2, 1, 2]) == "ÉÉ É"
    again = read_transformers(tmp_path / "ours")[2]
    assert again is not None and again.vocabulary == head.vocabulary
    assert torch.equal(again.weight, head.weight) and torch.equal(again.bias, head.bias)


def test_a_log_mel_encoder_cannot_be_written(tmp_path: Path) -> None:
    config = TransformerConfig(front_end="log_mel", layers=1, dim=32, ffn_dim=32, heads=2)
    with pytest.raises(ValueError, match="front_end"):
        write_transformers(tmp_path, config, {})


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    their_model("Hubert", "base").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_transformers(tmp_path, AS_IT_IS)
