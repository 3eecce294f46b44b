"""NFA is HuBERT with the likelihood of a layer's frames under a factor model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build, trained, trainer

from speechssl.config import HeadConfig, from_class_path
from speechssl.heads.factors import FactorHead, FactorHeadConfig
from speechssl.model_file import open_model
from speechssl.nn.factor_analysis import FactorModel
from speechssl.objectives.hubert import HubertConfig
from speechssl.objectives.nfa import Nfa, NfaConfig
from speechssl.train.folder import export, write_architecture


def objective(**changes: Any) -> Nfa:
    built = build(NfaConfig, **changes)
    assert isinstance(built, Nfa)
    return built


def test_without_weight_training_equals_huberts_bit_by_bit() -> None:
    encoder = dataclasses.replace(ENCODER, dropout=0.1)
    states = []
    for kind, changes in ((NfaConfig, {"factor_weight": 0.0}), (HubertConfig, {})):
        model = build(kind, encoder=encoder, **changes).train()
        torch.manual_seed(3)  # of the dropout
        states.append(trained(model))
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize(("layer", "update"), [(1, "gradient"), (-1, "gradient"), (1, "em")])
def test_the_total_is_huberts_plus_each_utterances_share_of_its_nats_per_channel(
    layer: int, update: str
) -> None:
    model = objective(factor_weight=0.3, factor_layer=layer, factor_update=update).eval()
    with torch.no_grad():
        model.factors.means.normal_()
    hubert = build(HubertConfig).eval()
    hubert.load_state_dict(
        {
            k: v
            for k, v in model.state_dict().items()
            if not k.startswith(("factors.", "statistics."))
        }
    )
    batch = batch_for(model)
    batch.targets["km"][0, 5:20] = -100  # frames without a unit have no place in the model
    ours, theirs = model(batch), hubert(batch)
    mask, _ = model.frame_mask(batch)
    out = model.encoder(batch.wave, batch.wave_lengths, mask=mask)
    exact = FactorModel(8, 32, 4).double()
    exact.load_state_dict(model.factors.state_dict())
    expected = nats = 0.0
    if update == "em":
        # Of all classes alike before the first update, about 0.
        spread = model.statistics.squares.double().mean(0).sqrt()
        everything = torch.distributions.Normal(torch.zeros(32).double(), spread)
    for row, frames in enumerate(out.lengths.tolist()):
        units = batch.targets["km"][row, :frames]
        known = (units != -100) & ~mask[row, :frames]
        x = torch.nn.functional.layer_norm(out.hidden[layer][row, :frames].double(), (32,))
        every = torch.ones(1, int(known.sum()), dtype=torch.bool)
        own = exact.posterior(x[known][None], units[known][None], every)
        loss = -own.log_likelihood.item() / 32
        nats += loss
        if update == "em":
            loss += everything.log_prob(x[known]).sum().item() / 32
        expected += loss * int((mask[row, :frames] & (units != -100)).sum()) / int(known.sum())
    assert ours.total.item() == pytest.approx(theirs.total.item() + 0.3 * expected, rel=1e-5)
    assert ours.count == theirs.count
    assert ours.logs["factor_nats"][0].item() == pytest.approx(nats, rel=1e-5)


def test_the_likelihood_trains_the_encoder_below_its_layer_and_no_further() -> None:
    model = objective(factor_layer=1).eval()
    batch = batch_for(model)
    loss = model(batch)
    total, _ = loss.logs["factor_nats"]
    assert not total.requires_grad
    hubert = build(HubertConfig).eval()
    hubert.load_state_dict(
        {
            k: v
            for k, v in model.state_dict().items()
            if not k.startswith(("factors.", "statistics."))
        }
    )
    loss.total.backward()
    hubert(batch).total.backward()
    for number, same in ((0, False), (1, True)):
        grads = [m.encoder.layers[number].fc1.weight.grad for m in (model, hubert)]
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-6) == same


@pytest.mark.parametrize("update", ["em", "gradient"])
def test_the_factor_model_learns_by_em_or_by_gradients(update: str) -> None:
    model = objective(factor_update=update).train()
    names = [n for n, _ in model.named_parameters() if n.startswith("factors.")]
    assert len(names) == (3 if update == "gradient" else 0)
    before = {k: v.clone() for k, v in model.factors.state_dict().items()}
    batch = batch_for(model)
    loss = model(batch)
    assert all(torch.equal(v, before[k]) for k, v in model.factors.state_dict().items())
    model.after_update(1)
    moved = [not torch.equal(v, before[k]) for k, v in model.factors.state_dict().items()]
    assert all(moved) if update == "em" else not any(moved)
    first, count = loss.logs["factor_nats"]
    for step in range(2, 12):
        if update == "gradient":
            break
        nats, _ = model(batch).logs["factor_nats"]
        model.after_update(step)
    else:
        assert float(nats) < float(first) - 0.05 * float(count)


def test_its_head_is_exported_with_the_encoder_and_embeds(tmp_path: Path) -> None:
    run = trainer(NfaConfig, tmp_path / "run", steps=2, valid=False)
    run.fit()
    model: Any = run.objective
    head = from_class_path(HeadConfig, model.exported_head())
    assert head == FactorHeadConfig(units=8, factors=4, layer=1)
    write_architecture(tmp_path / "run", model.encoder.config, head)
    export(tmp_path / "run", tmp_path / "out", run.export_state(), {})
    opened = open_model(tmp_path / "out")
    assert isinstance(opened.head, FactorHead)
    batch = batch_for(model)
    with torch.no_grad():
        found = opened.head.embed(batch.wave, batch.wave_lengths)
        model.eval()
        out = model.encoder(batch.wave, batch.wave_lengths, layers=[1])
        x = torch.nn.functional.layer_norm(out.last, (32,))
        for row, frames in enumerate(out.lengths.tolist()):
            own = x[row : row + 1, :frames]
            wanted = model.factors.embed(own, torch.ones(1, frames, dtype=torch.bool))[0]
            assert torch.allclose(found[row], wanted, atol=1e-5)
    assert found.shape == (3, 4) and found.std() > 0
    loss = opened.head(batch)
    assert torch.isfinite(loss.total) and int(loss.count) == int(out.lengths.sum())


def test_without_the_term_there_is_no_head() -> None:
    assert objective(factor_weight=0.0).exported_head() is None
    assert build(HubertConfig).exported_head() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor_layer": 3}, "factor_layer: found 3, want 1 to 2"),
        ({"factor_layer": 0}, "factor_layer: found 0"),
        ({"factor_weight": -0.1}, "factor_weight: found -0.1"),
        ({"factor_target": "mfcc"}, r"factor_target: found 'mfcc', want one of \['km'\]"),
        ({"factor_update": "sgd"}, "factor_update: found 'sgd', want em or gradient"),
        ({"factor_decay": 1.0}, r"factor decay: found 1\.0"),
        ({"factors": 0}, "factors, variance_floor: found 0"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**changes)


def test_a_head_without_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="layer: found none, want the one layer"):
        FactorHeadConfig(layer=None)
