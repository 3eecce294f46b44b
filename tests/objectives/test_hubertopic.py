"""HuBERTopic is HuBERT, WavLM or MR-HuBERT with a term for the utterance's topic."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from fakes import TOPICS, one
from kinds import ENCODER, MULTIRES, SMALL, batch_for, build, trained

from speechssl.contract import Batch
from speechssl.objectives.hubert import HubertConfig
from speechssl.objectives.hubertopic import (
    Hubertopic,
    HubertopicConfig,
    MrHubertopic,
    MrHubertopicConfig,
    TopicHead,
)
from speechssl.objectives.mr_hubert import MrHubertConfig
from speechssl.objectives.wavlm import WavLMConfig


def objective(**changes: Any) -> Hubertopic:
    built = build(HubertopicConfig, **changes)
    assert isinstance(built, Hubertopic)
    return built


@pytest.mark.parametrize(
    ("ours", "theirs", "changes"),
    [
        (HubertopicConfig, HubertConfig, {}),
        (HubertopicConfig, WavLMConfig, {"corrupted": True}),
        (MrHubertopicConfig, MrHubertConfig, {}),
    ],
)
def test_without_weight_training_equals_the_bases_bit_by_bit(
    ours: Any, theirs: Any, changes: dict[str, Any]
) -> None:
    encoder = dataclasses.replace(SMALL[ours.__name__].get("encoder", ENCODER), dropout=0.1)
    states = []
    for kind, more in ((ours, {"topic_weight": 0.0, **changes}), (theirs, {})):
        model = build(kind, encoder=encoder, **more).train()
        torch.manual_seed(3)  # of the dropout
        states.append(trained(model))
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("pooling", ["mean", "token"])
@pytest.mark.parametrize("layer", [1, -1])
def test_the_total_is_huberts_plus_each_utterances_share_of_its_topics_cross_entropy(
    pooling: str, layer: int
) -> None:
    """Written out in float64, utterance by utterance."""
    model = objective(topic_weight=0.3, topic_layer=layer, topic_pooling=pooling).eval()
    head = model.topic_head
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    hubert = build(HubertConfig).eval()
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith("topic_head")}
    hubert.load_state_dict(shared)
    batch = batch_for(model)
    ours, theirs = model(batch), hubert(batch)
    mask, _ = model.frame_mask(batch)
    out = model.encoder(batch.wave, batch.wave_lengths, mask=mask)
    expected = nats = 0.0
    for row, frames in enumerate(out.lengths.tolist()):
        x = out.hidden[layer][row, :frames].double()
        x = torch.nn.functional.layer_norm(x, (32,), head.norm.weight.double(),
                                           head.norm.bias.double())  # fmt: skip
        weights = torch.full((frames,), 1 / frames, dtype=torch.float64)
        if pooling == "token":
            weights = (x @ head.token.double() / math.sqrt(32)).softmax(0)
            assert weights.std() > 1e-5
        logits = head.classify.weight.double() @ (weights @ x) + head.classify.bias.double()
        loss = -logits.log_softmax(0)[batch.targets["topics"][row]].item()
        nats += loss
        expected += int(mask[row].sum()) * loss
    assert ours.total.item() == pytest.approx(theirs.total.item() + 0.3 * expected, rel=1e-5)
    assert int(ours.count) == int(theirs.count) == int(mask.sum())
    assert ours.logs["topic_nats"][0].item() == pytest.approx(nats, rel=1e-5)
    assert int(ours.logs["topic_nats"][1]) == 3


def test_an_utterance_weighs_as_much_as_its_frames_count() -> None:
    """Unmasked frames too, where they are part of the loss; labels may be missing."""
    model = objective(topic_weight=0.3, unmasked_weight=0.5).eval()
    hubert = build(HubertConfig, unmasked_weight=0.5).eval()
    hubert.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("topic_head")}
    )
    batch = batch_for(model)
    batch.targets["km"][0, 20:] = -100
    ours, theirs = model(batch), hubert(batch)
    alone = [model(one(batch, i)) for i in range(3)]
    expected = sum(float(x.count) * x.logs["topic_nats"][0].item() for x in alone)
    assert ours.count == theirs.count
    assert ours.total.item() == pytest.approx(theirs.total.item() + 0.3 * expected, rel=1e-5)


def with_topics(batch: Batch, target: torch.Tensor) -> Batch:
    return dataclasses.replace(batch, targets={**batch.targets, "topics": target})


def test_a_posterior_that_is_sure_is_the_label_and_an_even_one_costs_the_mean() -> None:
    model = objective().eval()
    batch = batch_for(model)
    labels = batch.targets["topics"]
    hard = model(batch)
    sure = with_topics(batch, torch.nn.functional.one_hot(labels, TOPICS) * 65535)
    assert model(sure).total.item() == pytest.approx(hard.total.item(), rel=1e-6)
    assert model(sure).logs["topic_accuracy"] == hard.logs["topic_accuracy"]
    every = [
        model(with_topics(batch, torch.full_like(labels, t))).total.item() for t in range(TOPICS)
    ]
    even = model(with_topics(batch, torch.full((len(labels), TOPICS), 16384)))
    assert even.total.item() == pytest.approx(sum(every) / TOPICS, rel=1e-5)


def test_an_unsure_classifier_costs_the_logarithm_of_the_topics() -> None:
    model = objective(topic_weight=1.0).eval()
    with torch.no_grad():
        model.topic_head.classify.weight.zero_()
        model.topic_head.classify.bias.zero_()
    total, count = model(batch_for(model)).logs["topic_nats"]
    assert float(total / count) == pytest.approx(math.log(TOPICS), rel=1e-6)


def test_utterances_of_unknown_topic_add_nothing() -> None:
    model = objective(topic_weight=0.5).eval()
    batch = batch_for(model)
    plain = build(HubertConfig).eval()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("topic_head")}
    )
    unknown = (torch.full((3,), -100), torch.zeros(3, TOPICS, dtype=torch.int64))
    for target in unknown:
        loss = model(with_topics(batch, target))
        assert loss.total.item() == pytest.approx(plain(batch).total.item(), rel=1e-6)
        assert int(loss.logs["topic_nats"][1]) == 0


def test_the_corrupted_wave_is_read_where_it_is_asked_for() -> None:
    clean, mixed = objective().eval(), objective(corrupted=True).eval()
    batch = batch_for(clean)
    swapped = dataclasses.replace(batch, wave=batch.views["mixed"])
    assert torch.equal(mixed(batch).total, clean(swapped).total)
    assert not torch.equal(mixed(batch).total, clean(batch).total)
    with pytest.raises(ValueError, match=r"data\.mixing"):
        mixed(dataclasses.replace(batch, views={}))


def test_with_several_rates_both_terms_are_there_and_a_slow_layer_may_be_classified() -> None:
    model = build(MrHubertopicConfig, topic_weight=0.7, topic_layer=2, lower_weight=0.4).eval()
    assert isinstance(model, MrHubertopic) and model.encoder.layer_strides[2] == 2
    base = build(MrHubertConfig, lower_weight=0.4).eval()
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith("topic_head")}
    base.load_state_dict(shared)
    batch = batch_for(model)
    loss, plain = model(batch), base(batch)
    mask, _ = model.frame_mask(batch)
    out = model.encoder(batch.wave, batch.wave_lengths, mask=mask)
    logits = model.topic_head(out.layer(2), out.lengths_of(2))
    each = torch.nn.functional.cross_entropy(logits, batch.targets["topics"], reduction="none")
    expected = plain.total.item() + 0.7 * (mask.sum(1) * each).sum().item()
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert "loss_nats_40ms" in loss.logs and "topic_nats" in loss.logs


def test_padding_is_not_pooled_whatever_stands_there() -> None:
    for pooling in ("mean", "token"):
        head = TopicHead(8, 3, pooling)
        x, lengths = torch.randn(2, 9, 8), torch.tensor([9, 5])
        broken = x.clone()
        broken[1, 5:] = torch.nan
        assert torch.equal(head(x, lengths), head(broken, lengths))
        alone = head(x[1:, :5], lengths[1:])
        assert torch.allclose(head(x, lengths)[1:], alone, atol=1e-6)


def test_topics_are_learnt() -> None:
    model = objective(topic_weight=1.0)
    batch = batch_for(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    assert loss.logs["topic_accuracy"][0] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topic_layer": 3}, "topic_layer: found 3, want 1 to 2"),
        ({"topic_layer": 0}, "topic_layer: found 0"),
        ({"topics": 1}, "topics: found 1"),
        ({"topic_weight": -0.1}, "topic_weight: found -0.1"),
        ({"topic_target": "km"}, "topic_target: found 'km'"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**changes)


def test_wrong_targets_are_named() -> None:
    model = objective()
    batch = batch_for(model)
    rest = {k: v for k, v in batch.targets.items() if k != "topics"}
    with pytest.raises(ValueError, match=r"want 'topics'.*data\.labels\.topics"):
        model(dataclasses.replace(batch, targets=rest))
    with pytest.raises(ValueError, match="labels of frames"):
        model(with_topics(batch, batch.targets["km"]))
    with pytest.raises(ValueError, match="found label 4, want fewer than 4"):
        model(with_topics(batch, batch.targets["topics"] * 0 + 4))


def test_the_exported_encoder_is_the_bases() -> None:
    with torch.device("meta"):
        models = [build(HubertopicConfig), build(HubertConfig)]
        models += [build(MrHubertopicConfig), build(MrHubertConfig, encoder=MULTIRES)]
    for ours, theirs in (models[:2], models[2:]):
        sizes = [{k: v.shape for k, v in m.encoder.state_dict().items()} for m in (ours, theirs)]
        assert sizes[0] == sizes[1]
