"""TERA's alterations, each axis alone, and its loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build

from speechssl.nn.altered_mel import altered_mel
from speechssl.objectives.tera import Tera, TeraConfig


def objective(**changes: Any) -> Tera:
    built = build(TeraConfig, **changes)
    assert isinstance(built, Tera)
    return built


def case(model: Tera, rows: int = 200, seconds: float = 2.0) -> tuple[Any, torch.Tensor]:
    batch = batch_for(model, (seconds,) * rows)
    return batch, torch.randn(rows, int(seconds * 100) - 2, 80)


def test_along_time_blocks_of_frames_are_altered_at_their_rate() -> None:
    model = objective(frequency_share=0.0)
    batch, x = case(model)
    altered, cells = model.alter(x, batch)
    assert torch.equal(cells.all(2), cells.any(2))
    assert cells.float().mean().item() == pytest.approx(1 - (1 - 1 / 198) ** (0.15 * 198), abs=0.02)
    assert torch.equal(altered[~cells], x[~cells])
    chosen = cells.any(2)
    zero = torch.stack([(a[c] == 0).all() for a, c in zip(altered, chosen, strict=True)])
    same = torch.stack([(a == y).all() for a, y in zip(altered, x, strict=True)])
    assert zero.float().mean().item() == pytest.approx(0.8, abs=0.09)
    assert same.float().mean().item() == pytest.approx(0.1, abs=0.07)
    row = int((~zero & ~same).nonzero()[0])
    for frame in chosen[row].nonzero().flatten().tolist():
        source = (x[row] == altered[row, frame]).all(1).nonzero().flatten()
        assert len(source) == 1 and int(source) != frame


def test_along_frequency_one_block_of_bins_is_zeroed() -> None:
    model = objective(time_probability=0.0)
    batch, x = case(model)
    altered, cells = model.alter(x, batch)
    assert torch.equal(cells.all(1), cells.any(1))
    assert (altered[cells] == 0).all() and torch.equal(altered[~cells], x[~cells])
    widths = cells.any(1).sum(1)
    assert set(widths.tolist()) == set(range(17))
    bins = cells.any(1).int()
    assert (bins.diff(dim=1).abs().sum(1) <= 2).all()


def test_magnitude_is_noise_on_whole_utterances_that_is_not_scored() -> None:
    quiet = objective(time_probability=1e-9)
    model = objective(time_probability=1e-9, noise_probability=0.15)
    batch, x = case(model)
    (altered, cells), (plain, same) = model.alter(x, batch), quiet.alter(x, batch)
    assert torch.equal(cells, same)
    noise = altered - plain
    noisy = noise.flatten(1).any(1)
    assert noisy.float().mean().item() == pytest.approx(0.15, abs=0.08)
    assert noise[noisy].std().item() == pytest.approx(0.2, rel=0.02)


def test_the_loss_is_the_distance_on_altered_cells_alone() -> None:
    model = objective().eval()
    batch = batch_for(model)
    front = model.encoder.front
    lengths = (batch.wave_lengths - 400) // 160 + 1
    seen = []
    with altered_mel(model.encoder, lambda x: seen.append(x) or x):
        model.encoder(batch.wave, batch.wave_lengths)
    altered, cells = model.alter(seen[0], batch)
    with altered_mel(model.encoder, lambda _: altered):
        hidden = model.encoder(batch.wave, batch.wave_lengths).last
    expected, count = 0.0, 0
    for b, length in enumerate(lengths.tolist()):
        restored = model.head(hidden[b]).double().view(-1, 80)[:length]
        wanted = seen[0][b, :length].double()
        expected += (restored - wanted).abs()[cells[b, :length]].sum().item()
        count += int(cells[b, :length].sum())
    loss = model(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == count == int(cells.sum())
    assert not front.layers[0]._forward_pre_hooks


def test_without_any_alteration_or_a_log_mel_front_end_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is altered"):
        objective(time_probability=0.0, frequency_share=0.0)
    wave = dataclasses.replace(ENCODER, front_end="wave", front_norm="group")
    model = objective(encoder=wave)
    with pytest.raises(ValueError, match="want front_end: log_mel"):
        model(batch_for(model, (0.5,)))
