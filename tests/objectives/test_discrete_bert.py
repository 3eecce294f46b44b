"""Masked BERT on the units of vq-wav2vec: both stages, the vocabulary, the continuous variant."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import ENCODER, UNITS, VQ, batch_for, build

from speechssl.model_file import save_model
from speechssl.nn.collapse import Collapsed
from speechssl.nn.contrastive import draw_negatives
from speechssl.nn.frame_masks import masked_frames
from speechssl.objectives.discrete_bert import _NEGATIVES, DiscreteBert, DiscreteBertConfig
from speechssl.objectives.vq_wav2vec import VqWav2vecConfig


def objective(**changes: Any) -> DiscreteBert:
    built = build(DiscreteBertConfig, **changes)
    assert isinstance(built, DiscreteBert)
    return built


def first_stage(folder: Path, counts: dict[int, float], quantiser: str = "gumbel") -> Any:
    """A vq-wav2vec encoder, exported, that has counted `counts`."""
    kind: Any = dataclasses.replace(VQ, quantiser=quantiser)
    encoder: Any = build(VqWav2vecConfig, encoder=kind).encoder
    for pair, count in counts.items():
        encoder.pair_counts[pair] = count
    save_model(folder, encoder.config, encoder.state_dict())
    return encoder


@pytest.mark.parametrize("quantiser", ["gumbel", "kmeans"])
def test_units_are_the_most_frequent_combinations_of_the_first_stage(
    tmp_path: Path, quantiser: Any
) -> None:
    counts = {63: 5.0, 7: 9.0, 20: 0.5, 21: 7.0}
    first = first_stage(tmp_path, counts, quantiser)
    encoder = dataclasses.replace(UNITS, vocabulary=4, quantiser=quantiser)
    model = objective(units=str(tmp_path), encoder=encoder)
    named = {int(p): int(model.encoder.unit_of[p]) for p in model.encoder.unit_of.nonzero()}
    assert named == {7: 1, 21: 2, 63: 3}
    batch = batch_for(model)
    with torch.no_grad():
        front = first(batch.wave, batch.wave_lengths, layers=[0]).front
        codes = first.projection.sample(first.front_norm(front).flatten(0, 1)).codes
        wanted = [named.get(8 * int(a) + int(b), 0) for a, b in codes]
        with model.encoder.observed_units() as units:
            model.encoder(batch.wave, batch.wave_lengths, layers=[0])
    assert units[0].flatten().tolist() == wanted


def test_the_loss_is_the_cross_entropy_of_masked_units_and_starts_at_that_of_chance() -> None:
    model = objective().eval()
    batch = batch_for(model)
    c = model.config
    mask, _ = masked_frames(model.encoder, batch, probability=c.mask_probability,
                            span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip
    with torch.no_grad(), model.encoder.observed_units() as units:
        x = model.encoder(batch.wave, batch.wave_lengths, mask=mask).last[mask]
        log_p = model.head(x).double().log_softmax(-1)
    expected = -sum(row[u].item() for row, u in zip(log_p, units[0][mask], strict=True))
    loss = model(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == int(mask.sum())
    assert (loss.total / loss.count).item() == pytest.approx(math.log(65), abs=0.5)


def test_masked_units_do_not_reach_the_context() -> None:
    model = objective().eval()
    batch = batch_for(model, (1.0,))
    c = model.config
    mask, _ = masked_frames(model.encoder, batch, probability=c.mask_probability,
                            span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip
    with torch.no_grad(), model.encoder.observed_units() as units:
        plain = model.encoder(batch.wave, batch.wave_lengths, mask=mask).last
        changed = torch.where(mask, (units[0] + 1) % 65, units[0])
        model.encoder.units = lambda _front: changed
        other = model.encoder(batch.wave, batch.wave_lengths, mask=mask).last
    assert not torch.equal(units[0], units[1]) and torch.equal(plain, other)


def test_the_tokenizer_never_changes_and_does_not_depend_on_precision() -> None:
    model = objective().train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch = batch_for(model)
    model(batch).total.backward()
    optimiser.step()
    after = model.encoder.state_dict()
    for name in before:
        frozen = name.startswith(("front.", "unit_norm", "tokenizer", "unit_of"))
        assert torch.equal(before[name], after[name]) == frozen, name
    found = []
    for precise in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise), torch.no_grad():
            with model.encoder.observed_units() as units:
                model.encoder(batch.wave, batch.wave_lengths, layers=[0])
        found.append(units[0])
    assert torch.equal(*found)


def test_the_continuous_variant_tells_features_apart() -> None:
    encoder = dataclasses.replace(UNITS, inputs="features")
    model = objective(encoder=encoder, negatives=20).eval()
    assert model.encoder.embedding is None and model.head.out_features == UNITS.front_dim
    batch = batch_for(model, (1.3, 0.81))
    c = model.config
    mask, _ = masked_frames(model.encoder, batch, probability=c.mask_probability,
                            span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip
    counts = mask.sum(1)
    negatives = draw_negatives(counts, batch.seeds, 20, int(counts.max()), _NEGATIVES)
    expected = 0.0
    with torch.no_grad():
        out = model.encoder(batch.wave, batch.wave_lengths, mask=mask)
        for b, own in enumerate(mask):
            guesses = model.head(out.last[b, own]).double()
            features = out.front[b, own].double()
            for t, guess in enumerate(guesses):
                cosines = torch.cosine_similarity(guess[None], features) / 0.1
                logits = cosines[[t, *negatives[b, t].tolist()]]
                expected += (logits.logsumexp(0) - logits[0]).item()
    loss = model(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == int(mask.sum())
    model.train()(batch).total.backward()
    assert model.encoder.mask_emb.grad is not None


def test_the_detector_fires_when_all_frames_have_one_unit(tmp_path: Path) -> None:
    model = objective(collapse_after=1).train()
    model(batch_for(model))
    model.after_update(1)
    model = objective(collapse_after=1).train()
    model.encoder.unit_of.fill_(3)
    model(batch_for(model))
    with pytest.raises(Collapsed, match="same unit"):
        model.after_update(1)


def test_units_that_do_not_fit_are_named(tmp_path: Path) -> None:
    first_stage(tmp_path, {1: 1.0})
    other = dataclasses.replace(UNITS, codes=4, quantised_dim=16)
    with pytest.raises(ValueError, match=r"codes: found 4, want 8; quantised_dim: found 16"):
        objective(units=str(tmp_path), encoder=other)
    first_stage(tmp_path, {})
    with pytest.raises(ValueError, match="found no combination of codes"):
        objective(units=str(tmp_path))
    save_model(tmp_path, ENCODER, ENCODER.build().state_dict())
    with pytest.raises(ValueError, match="found a TransformerEncoder in"):
        objective(units=str(tmp_path))
    for encoder in (ENCODER, VQ):
        with pytest.raises(ValueError, match="which makes units"):
            objective(encoder=encoder)
    with pytest.raises(ValueError, match=r"conv_gradient_scale: found 0\.1"):
        dataclasses.replace(UNITS, conv_gradient_scale=0.1)
