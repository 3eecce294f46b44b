"""Matryoshka heads: what is added, and that a cut vector needs no training of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from utterance_heads import batch, build

from speechssl.heads.classify import ClassifyConfig
from speechssl.heads.multitask import MultitaskConfig
from speechssl.heads.nested import narrowed, nested_widths
from speechssl.heads.speaker import SpeakerConfig


def test_the_loss_of_classes_is_the_sum_over_widths() -> None:
    head: Any = build((ClassifyConfig, {"prefixes": [2, 9]})).eval()
    data = batch()
    x, lengths = head.frames(data.wave, data.wave_lengths)
    vectors, y = head.vectors(head.projection(x), lengths), data.targets["classes"]
    parts = []
    for width in (2, 9, 24):
        logits = vectors[:, :width] @ head.output.weight[:, :width].T + head.output.bias
        parts.append(F.cross_entropy(logits, y, reduction="sum"))
        cut = head.class_log_probs(data.wave, data.wave_lengths, width)
        assert torch.allclose(cut, logits.log_softmax(-1), atol=1e-5)
    found = head(data)
    assert found.total.item() == pytest.approx(sum(parts).item(), rel=1e-5)
    assert int(found.count) == 3
    for name, part in zip(("nats_of_2", "nats_of_9", "nats"), parts, strict=True):
        assert found.logs[name][0].item() == pytest.approx(part.item(), rel=1e-5)
    assert {"accuracy_of_2", "accuracy_of_9", "accuracy"} <= found.logs.keys()


def test_the_loss_of_speakers_is_the_sum_over_widths() -> None:
    options = {"network": "pooled", "prefixes": [3], "margin": 0.0, "scale": 20.0}
    head: Any = build((SpeakerConfig, options)).eval()
    data = batch()
    embeddings, y = head.embed(data.wave, data.wave_lengths), data.targets["classes"]
    parts = []
    for width in (3, 12):
        centres = F.normalize(head.margin.weight[:, :width])
        cosines = F.normalize(embeddings[:, :width]) @ centres.T
        parts.append(F.cross_entropy(20.0 * cosines, y, reduction="sum"))
    found = head(data)
    assert found.total.item() == pytest.approx(sum(parts).item(), rel=1e-5)
    assert found.logs["nats_of_3"][0].item() == pytest.approx(parts[0].item(), rel=1e-5)
    assert found.logs["nats"][0].item() == pytest.approx(parts[1].item(), rel=1e-5)


def learnt(prefixes: list[int]) -> tuple[float, float]:
    """Nats per utterance of eight that were learnt by heart: of two channels, and of all."""
    head: Any = build((ClassifyConfig, {"freeze_encoder_steps": -1, "prefixes": prefixes}))
    data = batch(seconds=[0.3 + 0.05 * i for i in range(8)])
    optimiser = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=0.03)
    with torch.no_grad():
        kept = head.encoder(data.wave, data.wave_lengths, layers=head.layers)
    for _ in range(100):
        vectors = head.vectors(head.projection(head.layer_sum(kept)), kept.lengths)
        losses = [
            F.cross_entropy(narrowed(head.output, vectors, width), data.targets["classes"])
            for width in head.widths
        ]
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
    found = [head.class_log_probs(data.wave, data.wave_lengths, width) for width in (2, 24)]
    few, whole = (F.nll_loss(x, data.targets["classes"]).item() for x in found)
    return few, whole


def test_a_cut_vector_needs_no_training_of_its_own() -> None:
    few, whole = learnt([2])
    plain_few, plain_whole = learnt([])
    assert whole < 0.05 and plain_whole < 0.05
    assert few < 0.1 and plain_few > 0.4


def test_mistakes_are_named() -> None:
    assert nested_widths([], 8) == [8] and nested_widths([2, 4], 8) == [2, 4, 8]
    for wrong in ([0], [4, 4], [4, 2], [8], [9]):
        with pytest.raises(ValueError, match="want widths that grow, each from 1 to 7"):
            nested_widths(wrong, 8)
    with pytest.raises(ValueError, match=r"prefixes: found \[24\] of a vector of 24"):
        build((ClassifyConfig, {"prefixes": [24]}))
    with pytest.raises(ValueError, match="with several tasks"):
        MultitaskConfig(field="x", classes=["a", "b"], prefixes=[2])
