"""data2vec's targets, loss and collapse detector."""

from __future__ import annotations

import pytest
import torch
from kinds import ENCODER, batch_for, build

from speechssl.nn.collapse import Collapsed
from speechssl.nn.frame_masks import masked_frames
from speechssl.objectives.data2vec import Data2vec, Data2vecConfig


def objective(**changes: object) -> Data2vec:
    built = build(Data2vecConfig, **({"target_layers": 2} | changes))
    assert isinstance(built, Data2vec)
    return built


def masks(model: Data2vec, batch):
    c = model.config
    return masked_frames(model.encoder, batch, probability=c.mask_probability,
                         span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip


def test_targets_have_mean_0_over_valid_frames_and_are_those_of_each_utterance() -> None:
    model = objective(target_layers=1)
    with torch.no_grad():
        # Else the norm's epsilon shows: fresh weights make small outputs.
        model.teacher.encoder.layers[-1].fc2.weight.mul_(100)
    batch = batch_for(model)
    _, valid = masks(model, batch)
    out = model.encoder(batch.wave, batch.wave_lengths)
    targets = model.targets(batch, out.front, ~valid)
    for row, keep in zip(targets, valid, strict=True):
        assert row[keep].mean(0).abs().max() < 1e-5
        assert (row[keep].std(0, correction=0) - 1).abs().max() < 1e-2


def test_the_loss_equals_brute_force() -> None:
    model = objective().eval()
    batch = batch_for(model)
    mask, valid = masks(model, batch)
    with torch.no_grad():
        out = model.encoder(batch.wave, batch.wave_lengths, mask=mask)
        clean = model.encoder(batch.wave, batch.wave_lengths)
        blocks = [
            layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.attention_norm(x + a))))
            for layer, x, a in (
                (layer, clean.hidden[i], layer.attention(clean.hidden[i], valid))
                for i, layer in enumerate(model.encoder.layers)
            )
        ]
    expected = 0.0
    for b in range(len(batch)):
        keep = valid[b]
        target = 0
        for block in blocks:
            x = block[b, keep].double()
            variance = x.var(0, correction=0, keepdim=True)
            target = target + (x - x.mean(0, keepdim=True)) / (variance + 1e-5).sqrt() / len(blocks)
        guess = out.last[b, keep].double() @ model.head.weight.double().T + model.head.bias
        for t in mask[b].nonzero().flatten().tolist():
            expected += (guess[t] - target[t]).square().sum().item() / model.encoder.dim**0.5
    loss = model(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == int(mask.sum())


def test_smooth_l1_is_the_published_alternative() -> None:
    batch = batch_for(objective())
    squared, smooth = (objective(smooth_l1=b).eval()(batch).total.item() for b in (0.0, 1e6))
    # Far below beta, smooth L1 is the squared error over twice beta.
    assert smooth == pytest.approx(squared / 2e6, rel=1e-4)


def test_the_teacher_moves_by_its_decay_behind_each_update() -> None:
    model = objective(ema_start=0.5, ema_end=0.9, ema_steps=4)
    assert [model.ema_decay(s) for s in (1, 3, 5, 9)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    theirs, mine = model.encoder.layers[0].fc1.bias, model.teacher.encoder.layers[0].fc1.bias
    with torch.no_grad():
        theirs.fill_(1.0)
    model.after_update(1)
    assert mine.unique().tolist() == [0.5]


def collapsed(model: Data2vec) -> None:
    model.train()
    model(batch_for(model))
    model.after_update(1)


def test_the_detector_fires_on_constant_targets_and_stays_quiet_otherwise() -> None:
    collapsed(objective(collapse_after=1))
    model = objective(collapse_after=1)
    with torch.no_grad():
        for layer in model.teacher.encoder.layers:
            layer.fc2.weight.zero_()
    with pytest.raises(Collapsed, match="all targets are nearly the same"):
        collapsed(model)
    model = objective(collapse_after=1)
    with torch.no_grad():
        model.head.weight.zero_()
    with pytest.raises(Collapsed, match="all predictions are nearly the same"):
        collapsed(model)


def test_the_front_ends_deviation_over_time_is_logged() -> None:
    """By it a front end shows that gives all frames the same."""
    model = objective()
    batch = batch_for(model)
    _, valid = masks(model, batch)
    front = model.encoder(batch.wave, batch.wave_lengths, layers=[0]).front
    expected = sum(
        (row[keep].std(0, correction=0).mean() * keep.sum()).item()
        for row, keep in zip(front, valid, strict=True)
    )
    total, count = model(batch).logs["front_deviation"]
    assert total.item() == pytest.approx(expected, rel=1e-4) and count == valid.sum()
    with torch.no_grad():
        model.encoder.front.layers[-1].norm.weight.zero_()
    assert model(batch).logs["front_deviation"][0].item() == pytest.approx(0, abs=1e-3)


def test_more_target_layers_than_the_encoder_has_are_refused() -> None:
    with pytest.raises(ValueError, match=f"found 8, want 1 to {ENCODER.layers}"):
        objective(target_layers=8)
