"""DinoSR's targets, loss, freezing and collapse detector."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kinds import batch_for, build

from speechssl.nn.collapse import Collapsed
from speechssl.nn.frame_masks import masked_frames
from speechssl.objectives.dinosr import DinoSR, DinoSRConfig


def objective(**changes: Any) -> DinoSR:
    built = build(DinoSRConfig, **changes)
    assert isinstance(built, DinoSR)
    return built


def test_the_loss_equals_brute_force_with_the_codebook_of_before() -> None:
    model = objective().eval()
    batch = batch_for(model)
    c = model.config
    mask, valid = masked_frames(model.encoder, batch, probability=c.mask_probability,
                                span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip
    words = model.codebooks.codewords().double()
    with torch.no_grad():
        out = model.encoder(batch.wave, batch.wave_lengths, mask=mask)
        y_KND = model.targets(batch, out.front, ~valid, mask).double()
        logits = model.head(out.last[mask]).double()
        expected = 0.0
        for k in range(2):
            codes = torch.cdist(y_KND[k], words[k]).argmin(-1)
            log_p = logits[:, k * c.codes : (k + 1) * c.codes].log_softmax(-1)
            expected -= log_p[torch.arange(len(codes)), codes].sum().item() / 2
    loss = model.train()(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == int(mask.sum())


def test_the_loss_starts_near_the_logarithm_of_the_number_of_codewords() -> None:
    model = objective(codes=64)
    loss = model(batch_for(model))
    assert (loss.total / loss.count).item() == pytest.approx(math.log(64), abs=0.3)


def test_codebooks_move_behind_the_update_and_not_before() -> None:
    model = objective().train()
    before = model.codebooks.codewords().clone()
    model(batch_for(model))
    assert torch.equal(model.codebooks.codewords(), before)
    model.after_update(1)
    moved = (model.codebooks.codewords() != before).any(-1)
    assert moved.any() and not moved.all()


def test_frozen_parts_stay_bit_equal_and_codebooks_go_on() -> None:
    """Update 3 is the first that changes none of them."""
    model = objective(freeze_step=3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    batch = batch_for(model)
    states = []
    for step in range(1, 5):
        model.train()
        optimiser.zero_grad(set_to_none=True)
        model(batch).total.backward()
        optimiser.step()
        model.after_update(step)
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    frozen = [k for k in states[0] if k.startswith(("teacher.", "encoder.front", "encoder.proj"))]
    moved = lambda a, b: [k for k in frozen if not torch.equal(a[k], b[k])]  # noqa: E731
    assert len(moved(states[0], states[1])) > len(frozen) / 2
    assert moved(states[1], states[3]) == []
    assert not torch.equal(states[2]["codebooks.sums"], states[3]["codebooks.sums"])
    assert not torch.equal(
        states[2]["encoder.layers.0.fc1.weight"], states[3]["encoder.layers.0.fc1.weight"]
    )


def test_a_resumed_frozen_run_is_frozen() -> None:
    model = objective(freeze_step=2)
    model.step.fill_(7)
    model.train()
    assert not any(p.requires_grad for p in model.encoder.front.parameters())
    assert all(p.requires_grad for p in model.encoder.layers.parameters())


def test_the_detector_fires_on_a_constant_teacher_and_stays_quiet_otherwise() -> None:
    model = objective(collapse_after=1).train()
    model(batch_for(model))
    model.after_update(1)
    model = objective(collapse_after=1).train()
    with torch.no_grad():
        for layer in model.teacher.encoder.layers:
            layer.fc2.weight.zero_()
    loss = model(batch_for(model))
    assert loss.logs["code_perplexity"][0] == loss.count
    with pytest.raises(Collapsed, match="same codeword"):
        model.after_update(1)
