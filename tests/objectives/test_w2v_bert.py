"""w2v-BERT is wav2vec 2.0 at a layer between, with prediction of codes above."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build

from speechssl.objectives.w2v_bert import W2vBert, W2vBertConfig
from speechssl.objectives.wav2vec2 import Wav2vec2Config

QUANTISER = {"groups": 1, "codes": 8, "negatives": 10, "quantiser_dropout": 0.0}


def objective(**changes: Any) -> W2vBert:
    built = build(W2vBertConfig, **changes)
    assert isinstance(built, W2vBert)
    return built


def test_the_contrast_is_that_of_wav2vec2_on_the_lower_layers() -> None:
    model = objective(prediction_weight=0.0).eval()
    lower = dataclasses.replace(ENCODER, layers=1)
    small = build(Wav2vec2Config, encoder=lower, feature_penalty=0.0, gumbel_end=0.1, **QUANTISER)
    weights = model.state_dict()
    small.load_state_dict({k: weights[k] for k in small.state_dict()})
    batch = batch_for(model)
    assert model(batch).total.item() == pytest.approx(small.eval()(batch).total.item(), rel=1e-6)


def test_prediction_is_the_cross_entropy_of_the_quantisers_codes() -> None:
    model = objective(prediction_weight=0.7).eval()
    batch = batch_for(model)
    loss, plain = model(batch), objective(prediction_weight=0.0).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(20, model.encoder.dim)
    codes = torch.randint(8, (20, 1))
    log_p = model.predict(x).double().log_softmax(-1)
    expected = -sum(log_p[n, c].item() for n, c in enumerate(codes.flatten().tolist()))
    found = model.upper_terms(x, codes, {"contrast_nats": (torch.tensor(0.0), torch.tensor(20))})
    assert found.item() == pytest.approx(0.7 * expected, rel=1e-5)
    extra = 0.7 * loss.logs["prediction_nats"][0]
    assert loss.total.item() == pytest.approx((plain(batch).total + extra).item(), rel=1e-5)


def test_prediction_does_not_teach_the_quantiser() -> None:
    gradients = []
    for weight in (0.0, 5.0):
        model = objective(prediction_weight=weight)
        model(batch_for(model)).total.backward()
        gradients.append([p.grad for p in model.quantiser.parameters()])
        assert model.encoder.layers[0].fc1.weight.grad.any()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_layer_that_is_not_between_and_layerdrop_are_refused() -> None:
    with pytest.raises(ValueError, match="contrastive_layer: found 2, want 1 to 1"):
        objective(contrastive_layer=2)
    with pytest.raises(ValueError, match=r"layerdrop: found 0\.1"):
        objective(encoder=dataclasses.replace(ENCODER, layerdrop=0.1))
