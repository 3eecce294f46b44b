"""data2vec-aqc is data2vec with contrast across views."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import batch_for, build

from speechssl.nn.frame_masks import masked_frames
from speechssl.objectives.data2vec import Data2vecConfig
from speechssl.objectives.data2vec_aqc import Data2vecAqc, Data2vecAqcConfig


def objective(**changes: Any) -> Data2vecAqc:
    built = build(Data2vecAqcConfig, **changes)
    assert isinstance(built, Data2vecAqc)
    return built


def same_views(batch):
    return dataclasses.replace(batch, views={"mixed": batch.wave})


def masks(model: Data2vecAqc, batch):
    c = model.config
    return masked_frames(model.encoder, batch, probability=c.mask_probability,
                         span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip


def test_without_contrast_on_equal_views_it_is_data2vec() -> None:
    model = objective(contrast_weight=0.0, diversity_weight=0.0).eval()
    plain = build(Data2vecConfig).eval()
    weights = model.state_dict()
    plain.load_state_dict({k: weights[k] for k in plain.state_dict()})
    batch = same_views(batch_for(model))
    assert torch.equal(model(batch).total, plain(batch).total)


def test_targets_are_those_of_the_clean_view() -> None:
    model = objective(contrast_weight=0.0, diversity_weight=0.0).eval()
    batch = batch_for(model)
    noisy = dataclasses.replace(batch, views={"mixed": batch.wave + torch.randn_like(batch.wave)})
    seen = []
    targets = model.targets
    model.targets = lambda *a: seen.append(targets(*a)) or seen[-1]
    a, b = model(noisy), model(same_views(batch))
    assert torch.equal(seen[0], seen[1]) and a.total != b.total


def test_equal_views_give_equal_quantised_streams_in_training_too() -> None:
    model = objective().train()
    batch = same_views(batch_for(model))
    mask, _ = masks(model, batch)
    clean = model.encoder(batch.wave, batch.wave_lengths, layers=[0]).front
    mixed = model.encoder(batch.views["mixed"], batch.wave_lengths, mask=mask).front
    for a, b in zip(*(model.quantise(x, mask, batch) for x in (clean, mixed)), strict=True):
        assert torch.equal(a, b)


def test_the_total_is_the_sum_of_its_terms_by_their_weights() -> None:
    model = objective(contrast_weight=0.7, diversity_weight=0.3).eval()
    loss = model(batch_for(model))
    logs = {k: v[0].item() for k, v in loss.logs.items()}
    expected = logs["regression"] + 0.3 * logs["diversity"]
    expected += 0.7 * (logs["contrast_nats_student"] + logs["contrast_nats_teacher"])
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_clusters_change_the_contrast_unless_their_scale_is_1(monkeypatch) -> None:
    batch = batch_for(objective())
    for scale, changes in ((1.0, False), (0.3, True)):
        model = objective(cluster_scale=scale).eval()
        before = model(batch).total
        none = torch.zeros(3, 1, 1, dtype=torch.bool)
        monkeypatch.setattr(
            model, "same_cluster", lambda *a, none=none: (none.expand_as(a[3]),) * 2
        )
        assert (model(batch).total != before) == changes


def test_a_batch_without_the_mixed_view_is_refused() -> None:
    model = objective()
    with pytest.raises(ValueError, match=r"data\.mixing"):
        model(dataclasses.replace(batch_for(model), views={}))
