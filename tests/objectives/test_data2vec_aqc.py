"""data2vec-aqc is data2vec with contrast across views."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import batch_for, build

from speechssl.nn.contrastive import draw_negatives, info_nce
from speechssl.nn.cosine_clusters import cosine_clusters
from speechssl.nn.frame_masks import masked_frames
from speechssl.objectives import data2vec_aqc
from speechssl.objectives.data2vec import Data2vecConfig
from speechssl.objectives.data2vec_aqc import (
    _CLUSTERS,
    _NEGATIVES,
    Data2vecAqc,
    Data2vecAqcConfig,
)


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


def test_the_student_tells_clean_frames_apart_and_the_teacher_augmented_ones() -> None:
    """Both contrasts written out, the factor of negatives in the positive's cluster included."""
    model = objective().eval()
    batch = batch_for(model, (1.3, 0.81))
    noisy = dataclasses.replace(batch, views={"mixed": batch.wave + torch.randn_like(batch.wave)})
    mask, valid = masks(model, batch)
    found = {"student": 0.0, "teacher": 0.0}
    scaled = 0
    with torch.no_grad():
        out = model.encoder(noisy.views["mixed"], batch.wave_lengths, mask=mask)
        clean = model.encoder(batch.wave, batch.wave_lengths, layers=[0]).front
        targets = model.targets(batch, clean, ~valid)
        negatives = draw_negatives(
            mask.sum(1), batch.seeds, model.config.negatives, int(mask.sum(1).max()), _NEGATIVES
        )
        for b, own in enumerate(mask):
            views = [
                model.quantiser(model.encoder.front_norm(x[b, own])) for x in (clean, out.front)
            ]
            words = [model.project_quantised(view.vectors) for view in views]
            pairs = torch.stack(words, 1).flatten(0, 1)[None]
            number = max(int(valid[b].sum()) // model.config.cluster_frames, 2)
            everything = torch.ones(1, pairs.shape[1], dtype=torch.bool)
            clusters = cosine_clusters(
                pairs, everything, torch.tensor([number]), batch.seeds[b : b + 1], stream=_CLUSTERS
            ).view(-1, 2)
            for i, (name, states) in enumerate((("student", out.last), ("teacher", targets))):
                context = model.project_context(states[b, own]).double()
                for t, x in enumerate(context):
                    cosines = torch.cosine_similarity(x[None], words[i].double()) / 0.1
                    logits = [cosines[t]]
                    for n in negatives[b, t].tolist():
                        same = bool(clusters[n, i] == clusters[t, i])
                        scaled += same
                        if not torch.equal(views[i].codes[n], views[i].codes[t]):
                            logits.append(cosines[n] * (0.3 if same else 1.0))
                    found[name] += (torch.stack(logits).logsumexp(0) - cosines[t]).item()
        logs = model(noisy).logs
    assert scaled > 0 and found["student"] != pytest.approx(found["teacher"], rel=1e-3)
    for name, expected in found.items():
        assert logs[f"contrast_nats_{name}"][0].item() == pytest.approx(expected, rel=1e-5)


def test_the_gumbel_temperature_falls_from_update_to_update() -> None:
    model = objective(gumbel_factor=0.5, gumbel_end=0.3)
    seen = []
    for step in range(4):
        model.step.fill_(step)
        seen.append(model.gumbel_temperature().item())
    assert seen == pytest.approx([2.0, 1.0, 0.5, 0.3])


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


@pytest.mark.parametrize("tie", [True, False])
def test_as_released_clusters_are_of_the_batch_and_count_only_with_a_tie(
    monkeypatch: pytest.MonkeyPatch, tie: bool
) -> None:
    """The factors of the contrast, against clusters of all utterances' vectors side by side."""
    model = objective(as_released=True).eval()
    batch = batch_for(model, (1.3, 0.81))
    batch = dataclasses.replace(batch, views={"mixed": batch.wave + torch.randn_like(batch.wave)})
    seen: list[tuple] = []

    def contrast(context, target, packed, negatives, temperature, codes, factors):
        seen.append((target, packed, negatives, codes, factors))
        return info_nce(context, target, packed, negatives, temperature, codes, factors)

    monkeypatch.setattr(data2vec_aqc, "info_nce", contrast)
    if not tie:
        quantise = model.quantise

        def distinct(*given):
            found = quantise(*given)
            rows, size = found[1].shape[:2]
            return found[0], torch.arange(rows * size).view(rows, size, 1), *found[2:]

        monkeypatch.setattr(model, "quantise", distinct)
    model(batch)
    packed = seen[0][1]
    words = [one[0][packed] for one in seen]  # (N, F) of the clean view and of the other
    pairs = torch.stack(words, 1).flatten(0, 1)[None]
    number = int(model.encoder.frame_lengths(batch.wave_lengths).max()) // 8
    everything = torch.ones(1, pairs.shape[1], dtype=torch.bool)
    clusters = cosine_clusters(
        pairs, everything, torch.tensor([number]), batch.seeds[:1], stream=_CLUSTERS
    ).view(-1, 2)
    offsets = [0, int(packed[0].sum())]
    scaled = 0
    for i, (_, _, negatives, codes, factors) in enumerate(seen):
        for b, t in packed.nonzero().tolist():
            for k, n in enumerate(negatives[b, t].tolist()):
                same = bool(clusters[offsets[b] + n, i] == clusters[offsets[b] + t, i])
                scaled += same
                assert factors[b, t, k].item() == pytest.approx(0.3 if same and tie else 1.0)
        equal = (codes[:, :, None] == codes[:, None]).all(-1).gather(2, negatives)[packed]
        assert bool(equal.any()) == tie
    assert scaled > 0


def test_as_released_diversity_is_of_the_clean_view_and_the_front_end_is_penalised() -> None:
    model = objective(as_released=True, feature_penalty=10.0).eval()
    batch = batch_for(model)
    batch = dataclasses.replace(batch, views={"mixed": batch.wave + torch.randn_like(batch.wave)})
    loss = model(batch)
    mask, valid = masks(model, batch)
    clean = model.encoder(batch.wave, batch.wave_lengths, layers=[0]).front
    p_NGV = model.quantiser(model.encoder.front_norm(clean)[mask]).probabilities
    assert loss.logs["diversity"][0].item() == pytest.approx(model.usage(p_NGV).item(), rel=1e-5)
    plain = objective(as_released=True).eval()
    plain.load_state_dict(model.state_dict())
    expected = sum(
        float(own.sum()) * clean[b, there].double().square().mean().item()
        for b, (own, there) in enumerate(zip(mask, valid, strict=True))
    )
    assert (loss.total - plain(batch).total).item() == pytest.approx(10 * expected, rel=1e-4)
    model.train()(batch)
    model.after_update(1)
    torch.testing.assert_close(model.usage.usage, p_NGV.mean(0))


def test_a_batch_without_the_mixed_view_is_refused() -> None:
    model = objective()
    with pytest.raises(ValueError, match=r"data\.mixing"):
        model(dataclasses.replace(batch_for(model), views={}))
