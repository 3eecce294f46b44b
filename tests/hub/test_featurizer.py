"""`speechssl.Featurizer`: the layers' weighted sum, inert padding, gradients where they belong."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import speechssl
from speechssl.config import EncoderConfig
from speechssl.encoders.conformer import ConformerConfig
from speechssl.encoders.multires import MultiresConfig
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.model import Model
from speechssl.model_file import save_model

SMALL = TransformerConfig(
    layers=3, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4,
    dropout=0.1, layerdrop=0.5,
)  # fmt: skip
MULTIRES = MultiresConfig(
    stacks=(1, 1, 1), dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16,
    pos_conv_groups=4,
)  # fmt: skip
KINDS: dict[str, EncoderConfig] = {
    "base": SMALL,
    "large": dataclasses.replace(SMALL, front_norm="layer", pre_norm=True, normalize_wave=True),
    "wavlm": dataclasses.replace(SMALL, relative_buckets=320),
    "data2vec": dataclasses.replace(SMALL, front_norm="layer", pos_conv_depth=2, pos_conv_kernel=7),
    "conformer": ConformerConfig.wav2vec2_large(
        layers=2, dim=32, ffn_dim=64, heads=4, front_dim=16, depthwise_kernel=7
    ),
    "multires": MULTIRES,
}


def _batch(*sizes: int) -> tuple[Tensor, Tensor]:
    wave = 0.1 * torch.randn(len(sizes), max(sizes), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor(sizes)
    return wave * (torch.arange(max(sizes)) < lengths[:, None]), lengths


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("layers", [None, [-1, 1], 2])
def test_it_is_the_weighted_sum_of_the_layers(normalise: bool, layers: Any) -> None:
    model = Model(SMALL.build())
    featurizer = speechssl.Featurizer(model, layers, normalise)
    logits = torch.randn(len(featurizer.layers))
    featurizer.layer_weights.data.copy_(logits)
    shares = (logits.exp() / logits.exp().sum()).tolist()
    assert featurizer.layers == model.resolve_layers(layers)
    assert list(featurizer.weights) == list(featurizer.layers)
    assert list(featurizer.weights.values()) == pytest.approx(shares)
    wave, lengths = _batch(9000)
    found, frames = featurizer(wave, lengths)
    hidden = model.extract(wave[0], rate=16000)[0].hidden
    want = torch.zeros(27, 32)
    for layer, share in zip(featurizer.layers, shares, strict=True):
        state = torch.from_numpy(hidden[layer])
        if normalise:
            centred = state - state.mean(1, keepdim=True)
            state = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        want += share * state
    assert frames.tolist() == [27] and found.shape == (1, 27, featurizer.dim)
    assert (found[0] - want).abs().max() < 1e-5


def test_layers_of_a_lower_rate_have_their_frames_repeated() -> None:
    featurizer = speechssl.Featurizer(MULTIRES.build(), layers=[1, 2], normalise=False)
    wave, lengths = _batch(9000, 5000)
    output = featurizer.encoder(wave, lengths)
    low = output.layer(2)
    assert output.rates_hz == (50.0, 50.0, 25.0, 50.0) and low.shape[1] == 14
    found, frames = featurizer(wave, lengths)
    assert frames.tolist() == [27, 15]
    for row, count in enumerate(frames.tolist()):
        for t in range(count):
            want = 0.5 * output.layer(1)[row, t] + 0.5 * low[row, t // 2]
            assert (found[row, t] - want).abs().max() < 1e-6


def test_weights_start_alike() -> None:
    assert speechssl.Featurizer(SMALL.build()).weights == pytest.approx(
        dict.fromkeys(range(4), 0.25)
    )
    assert speechssl.Featurizer(SMALL.build(), [2]).weights == {2: 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_inert_and_comes_out_as_zero(kind: str) -> None:
    featurizer = speechssl.Featurizer(KINDS[kind].build())
    wave, lengths = _batch(12000, 5003, 400)
    dirty = wave.masked_fill(torch.arange(12000) >= lengths[:, None], float("nan"))
    found, frames = featurizer(dirty, lengths)
    assert frames.tolist() == [37, 15, 1]
    for row, (count, size) in enumerate(zip(frames.tolist(), lengths.tolist(), strict=True)):
        alone, _ = featurizer(wave[row : row + 1, :size], lengths[row : row + 1])
        assert (found[row, :count] - alone[0]).abs().max() < 1e-5
        assert (found[row, count:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainable", [False, True])
def test_gradients_reach_the_weights_and_the_encoder_only_if_wanted(
    kind: str, trainable: bool
) -> None:
    config = dataclasses.replace(KINDS[kind], layerdrop=0.0)  # type: ignore[call-arg]
    featurizer = speechssl.Featurizer(config.build(), trainable=trainable)
    features, frames = featurizer(*_batch(9000, 5000))
    loss = sum(features[i, :n].square().sum() for i, n in enumerate(frames.tolist()))
    (loss + features.flatten()[::7].sum()).backward()  # type: ignore[operator]
    gradient = featurizer.layer_weights.grad
    assert gradient is not None and gradient.isfinite().all() and (gradient != 0).all()
    for name, parameter in featurizer.encoder.named_parameters():
        assert parameter.requires_grad is trainable
        if trainable and name != "mask_emb":  # nothing is masked here
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    learning = [p for p in featurizer.parameters() if p.requires_grad]
    assert len(learning) == (len(list(featurizer.parameters())) if trainable else 1)


def test_a_frozen_encoder_stays_in_eval_mode_within_any_model() -> None:
    outer = nn.Sequential(speechssl.Featurizer(SMALL.build()), nn.Dropout())
    batch = _batch(9000, 5000)
    want = outer[0](*batch)[0]
    outer.train()
    assert outer.training and outer[0].training and outer[1].training
    assert not any(module.training for module in outer[0].encoder.modules())
    for _ in range(3):  # dropout and layerdrop would show
        assert torch.equal(outer[0](*batch)[0], want)
    outer[0].trainable = True
    assert all(module.training for module in outer[0].encoder.modules())
    assert all(p.requires_grad for p in outer[0].encoder.parameters())
    assert not torch.equal(outer[0](*batch)[0], want)
    outer.eval()
    assert not any(module.training for module in outer.modules())
    assert torch.equal(outer[0](*batch)[0], want)


def test_a_frozen_encoder_computes_no_graph_but_passes_gradients_to_a_wave() -> None:
    featurizer = speechssl.Featurizer(SMALL.build()).train()
    wave, lengths = _batch(9000, 5000)
    hidden = featurizer.encoder(wave, lengths).hidden
    assert not any(h.requires_grad for h in hidden)
    wave.requires_grad_()
    features, _ = featurizer(wave, lengths)
    features.flatten()[::7].sum().backward()
    assert wave.grad is not None and wave.grad.isfinite().all()
    assert (wave.grad[1, :4000] != 0).any() and (wave.grad[1, 5000:] == 0).all()


def test_training_finds_the_layer_that_tells_the_answer() -> None:
    featurizer = speechssl.Featurizer(SMALL.build())
    batch = _batch(9000, 5000)
    with torch.no_grad():
        state = featurizer.encoder(*batch, layers=[2]).last
        target = F.layer_norm(state, state.shape[-1:])
    optimizer = torch.optim.Adam([p for p in featurizer.parameters() if p.requires_grad], 0.3)
    for _ in range(30):
        features, frames = featurizer(*batch)
        errors = (features - target).square().mean(-1)
        loss = torch.cat([errors[i, :n] for i, n in enumerate(frames.tolist())]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert featurizer.weights[2] > 0.9 and sum(featurizer.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["own", "transformers"])
def test_it_opens_folders_and_its_state_is_clean(kind: str, tmp_path: Path) -> None:
    if kind == "own":
        save_model(tmp_path, SMALL, SMALL.build().state_dict())
    else:
        transformers = pytest.importorskip("transformers")
        config = transformers.HubertConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
            conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
            vocab_size=5,
        )  # fmt: skip
        transformers.HubertForCTC(config).save_pretrained(tmp_path)
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    featurizer = speechssl.Featurizer(tmp_path, layers=[0, 3])
    featurizer.layer_weights.data.copy_(torch.tensor([1.0, -2.0]))
    state = featurizer.state_dict()
    inner = {f"encoder.{k}" for k in featurizer.encoder.state_dict()}
    assert state.keys() == {"layer_weights", *inner}
    assert "layers=(0, 3), normalise=True, trainable=False" in repr(featurizer)
    again = speechssl.Featurizer(SMALL.build(), layers=[0, 3])
    config = copy.deepcopy(featurizer.encoder.config)
    object.__setattr__(again.encoder, "config", config)
    again.load_state_dict(state)
    want, _ = featurizer(*_batch(9000, 5000))
    found, _ = again(*_batch(9000, 5000))
    assert torch.equal(want, found)
    assert torch.equal(copy.deepcopy(featurizer)(*_batch(9000, 5000))[0], want)
    assert (featurizer.sample_rate_hz, featurizer.frame_rate_hz) == (16000, 50.0)


def test_a_model_is_shared_not_copied() -> None:
    model = Model(SMALL.build())
    assert speechssl.Featurizer(model).encoder is model.encoder


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match=r"layers: found \[4\], want numbers from 0"):
        speechssl.Featurizer(SMALL.build(), layers=[4])
    featurizer = speechssl.Featurizer(SMALL.build())
    with pytest.raises(ValueError, match=r"found 399 samples, want at least 400"):
        featurizer(torch.zeros(1, 399), torch.tensor([399]))
    with pytest.raises(ValueError, match=r"want \(B, L\) and \(B,\)"):
        featurizer(torch.zeros(9000), torch.tensor([9000]))
    with pytest.raises(TypeError, match="lengths"):
        featurizer(torch.zeros(1, 9000))
    with pytest.raises(AttributeError, match="no attribute 'Featuriser'"):
        _ = speechssl.Featuriser  # type: ignore[attr-defined]
