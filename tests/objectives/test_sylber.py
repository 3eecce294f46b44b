"""Sylber draws each frame to its segment's mean, as a teacher that rests sees both."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build

from speechssl.contract import Batch
from speechssl.nn.segmentation import segment, spans
from speechssl.objectives.sylber import Sylber, SylberConfig, crossing


def objective(**changes: Any) -> Sylber:
    built = build(SylberConfig, **changes)
    assert isinstance(built, Sylber)
    return built


def changed(model: Sylber) -> Sylber:
    """The model, whose student is no longer its teacher."""
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


def test_the_loss_is_the_distance_from_the_teachers_mean_and_from_0_outside() -> None:
    """Written out, segment by segment; half of the second utterance is silent."""
    model = changed(objective(silence_db=30.0, merge_threshold=(0.2, 0.2))).eval()
    batch = batch_for(model)
    batch.wave[1, 6000:] *= 1e-3
    loss = model(batch)
    student = model.encoder(batch.wave, batch.wave_lengths)
    teacher = model.teacher.encoder(batch.wave, batch.wave_lengths)
    expected, inside, segments = 0.0, 0, 0
    for row, frames in enumerate(student.lengths.tolist()):
        x = teacher.last[row, :frames].detach()
        power = batch.wave[row].unfold(0, 320, 320)[:frames].square().mean(1)
        alive = 10 * (power / power.max()).log10() >= -30
        target = torch.zeros(frames, 32, dtype=torch.float64)
        found = segment(x[None], alive[None], torch.tensor([0.2]))[0]
        for a, b in spans(found):
            target[a:b] = x[a:b].double().mean(0)
            inside, segments = inside + b - a, segments + 1
        expected += (student.last[row, :frames].double() - target).square().sum().item()
    assert 0 < inside < int(loss.count) == int(student.lengths.sum())
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.logs["share_inside"][0]) == inside
    assert int(loss.logs["segments_per_second"][0]) == 50 * segments


def test_labels_may_be_the_segments() -> None:
    model = changed(objective(segments="km")).eval()
    batch = batch_for(model)
    loss = model(batch)
    lengths = model.frames(batch)
    total = 0.0
    student = model.encoder(batch.wave, batch.wave_lengths).last
    teacher = model.teacher(batch.wave, batch.wave_lengths, 2)
    for row, frames in enumerate(lengths.tolist()):
        labels = batch.targets["km"][row, :frames].tolist()
        a = 0
        while a < frames:
            b = a
            while b < frames and labels[b] == labels[a]:
                b += 1
            mean = teacher[row, a:b].mean(0) if labels[a] > 0 else torch.zeros(32)
            total += (student[row, a:b] - mean).square().sum().item()
            a = b
    assert loss.total.item() == pytest.approx(total, rel=1e-4)
    rest = {k: v for k, v in batch.targets.items() if k != "km"}
    with pytest.raises(ValueError, match=r"want 'km'.*data\.labels\.km"):
        model(dataclasses.replace(batch, targets=rest))
    rest["km"] = batch.targets["topics"]
    with pytest.raises(ValueError, match=r"found target 'km' of shape \(3,\)"):
        model(dataclasses.replace(batch, targets=rest))


def update(model: Sylber, batch: Batch, step: int) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss = model(batch)
    (loss.total / loss.count).backward()
    optimiser.step()
    model.after_update(step)


def test_the_teacher_rests_or_follows_by_its_share() -> None:
    for keep in (1.0, 0.9):
        model = objective(ema=keep).train()
        assert not model.teacher.training and not model.teacher.encoder.training
        before = {k: v.clone() for k, v in model.teacher.encoder.named_parameters()}
        update(model, batch_for(model), 1)
        moved = 0
        for (name, p), q in zip(
            model.teacher.encoder.named_parameters(), model.encoder.parameters(), strict=True
        ):
            wanted = keep * before[name] + (1 - keep) * q
            assert torch.allclose(p, wanted, atol=1e-7), name
            moved += int(not torch.equal(p, before[name]))
        assert (moved > 0) == (keep < 1)


def test_training_draws_frames_of_a_segment_together() -> None:
    model = objective(merge_threshold=(0.2, 0.2))
    batch = batch_for(model)
    losses = []
    for step in range(25):
        loss = model(batch)
        losses.append((loss.total / loss.count).item())
        update(model, batch, step + 1)
    assert losses[-1] < 0.8 * losses[0]


def test_thresholds_are_drawn_per_utterance_within_their_range() -> None:
    model = objective(merge_threshold=(-1.0, 1.0))
    batch = batch_for(model, (1.0,) * 12)
    seen = model.teacher(batch.wave, batch.wave_lengths, 2)
    alive = torch.ones(seen.shape[:2], dtype=torch.bool)
    counts = model.segments(batch, seen, alive).amax(1)
    assert len(counts.unique()) > 3
    again = model.segments(batch, seen, alive).amax(1)
    assert torch.equal(counts, again)


def test_the_norms_threshold_is_where_the_published_gaussians_cross() -> None:
    """At 2.6, as the published inference has it."""
    found = objective().norm_threshold()
    assert found == pytest.approx(2.6, abs=0.05)

    def density(x: float, mean: float, variance: float) -> float:
        return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(variance)

    assert density(found, 6.10, 0.87) == pytest.approx(density(found, 0.34, 0.34), rel=1e-4)
    assert crossing(1.0, 0.5, 3.0, 0.5) == pytest.approx(2.0)
    # One inside the other: they cross on both sides, not between the means.
    assert crossing(1.0, 100.0, 1.1, 0.01) == pytest.approx(1.05)


def test_the_running_gaussians_move_by_all_frames_of_an_update() -> None:
    model = objective(norm_decay=0.9, signal_norm=(6.0, 1.0), noise_norm=(5.0, 1.0)).train()
    batch = batch_for(model)
    threshold = model.norm_threshold()
    for i in range(3):
        from fakes import one

        model(one(batch, i))
    seen = model.teacher(batch.wave, batch.wave_lengths, 2)
    lengths = model.frames(batch).tolist()
    norms = torch.cat([seen[i, :n].norm(dim=-1) for i, n in enumerate(lengths)]).double()
    model.after_update(1)
    for row, kind, (mean, variance) in (
        (0, norms >= threshold, (6.0, 1.0)),
        (1, norms < threshold, (5.0, 1.0)),
    ):
        if not kind.any():
            wanted = mean, variance
        else:
            moved = 0.9 * mean + 0.1 * norms[kind].mean().item()
            wanted = moved, 0.9 * variance + 0.1 * (norms[kind] - moved).square().mean().item()
        assert model.norms[row].tolist() == pytest.approx(wanted, rel=1e-4)
    fixed = objective(norm_decay=1.0).train()
    before = fixed.norms.clone()
    update(fixed, batch, 1)
    assert torch.equal(fixed.norms, before)


def test_the_student_reads_the_mixed_view_where_asked_for_and_the_teacher_never() -> None:
    model = changed(objective(corrupted=True)).eval()
    batch = batch_for(model)
    quiet = dataclasses.replace(batch, views={"mixed": batch.wave})
    clean = changed(objective()).eval()
    clean.load_state_dict(model.state_dict())
    assert torch.equal(model(quiet).total, clean(batch).total)
    other = dataclasses.replace(batch, views={"mixed": torch.randn(batch.wave.shape)})
    assert not torch.equal(model(other).total, clean(batch).total)
    with pytest.raises(ValueError, match=r"want 'mixed'; set data\.mixing"):
        model(dataclasses.replace(batch, views={}))


def test_layers_behind_the_chosen_one_stay_as_they_are() -> None:
    for pre_norm in (False, True):
        model = objective(layer=1, encoder=dataclasses.replace(ENCODER, pre_norm=pre_norm))
        model(batch_for(model)).total.backward()
        frozen = {n for n, p in model.encoder.named_parameters() if not p.requires_grad}
        assert {n.split(".")[1] for n in frozen if n.startswith("layers.")} == {"1"}
        assert ("layer_norm.weight" in frozen) == pre_norm
        for name, p in model.encoder.named_parameters():
            assert (p.grad is not None) == (name not in frozen), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "layer: found 3, want 1 to 2"),
        ({"merge_threshold": (0.9, 0.8)}, r"merge_threshold: found \(0.9, 0.8\)"),
        ({"silence_db": -1.0}, "silence_db -1.0"),
        ({"ema": 1.5}, "ema 1.5"),
        ({"noise_norm": (7.0, 1.0)}, "noise_norm, signal_norm"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**changes)
