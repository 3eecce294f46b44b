"""The separation head: its transform goes there and back, its loss knows no order of sources."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from task_heads import build, task_batch

from speechssl.heads.separate import SeparateConfig, si_sdr_db
from speechssl.score.separation import si_sdr

ONE = (SeparateConfig, {"hidden_dim": 8, "hidden_layers": 1})
TWO = (SeparateConfig, {"hidden_dim": 8, "hidden_layers": 1, "sources": 2})


@pytest.mark.parametrize("shift", [320, 128, 384])
def test_a_mask_of_ones_gives_the_mixture_back(shift: int) -> None:
    head = build(ONE, shift_samples=shift).eval()
    head.output.weight.data.zero_()
    head.output.bias.data.fill_(1.0)
    for samples in (8000, 8001, 8319, 8320):
        wave = torch.randn(1, samples)
        found, lengths = head.separate(wave, torch.tensor([samples]))
        assert found.shape == (1, samples, 1) and int(lengths[0]) == samples
        assert (found[..., 0] - wave).abs().max() < 1e-4


def test_the_ideal_mask_takes_most_of_the_noise_away() -> None:
    head = build(ONE).eval()
    time = torch.arange(16000) / 16000
    wave = torch.sin(2 * torch.pi * 440 * time)[None]
    mixed = wave + 0.5 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    heard, truth = head._spectrum(mixed), head._spectrum(wave)
    phase = torch.sgn(heard)
    mask = ((truth * phase.conj()).real.clamp(min=0) / heard.abs().clamp(min=1e-6))[:, None]
    found = head._waves(mask * heard[:, None], torch.tensor([16000]), 16000)[0, 0]
    assert si_sdr_db(found, wave[0]) > si_sdr_db(mixed[0], wave[0]) + 10


def swapped(head: torch.nn.Module) -> None:
    """Exchange the two outputs."""
    for p in (head.output.weight, head.output.bias):
        p.data = torch.cat(p.data.chunk(2)[::-1])


def test_the_order_of_sources_and_of_outputs_does_not_matter() -> None:
    head = build(TWO).eval()
    data = task_batch(head)
    plain = head(data)
    other = dataclasses.replace(data, wave=data.views["mixed"] - data.wave)
    assert head(other).total.item() == pytest.approx(plain.total.item(), rel=1e-4)
    swapped(head)
    turned = head(data)
    assert turned.total.item() == pytest.approx(plain.total.item(), rel=1e-5)
    for loss in (turned, head(other)):
        ours, theirs = (x.logs["si_sdr_improvement_db"] for x in (loss, plain))
        assert float(ours[0]) == pytest.approx(float(theirs[0]), abs=1e-2)
        assert int(ours[1]) == int(theirs[1]) == 6


def test_a_perfect_mask_costs_nothing_more_than_what_is_out_of_phase() -> None:
    """The mixture that holds nothing else is wanted as it is: the mask of ones has loss 0."""
    head = build(ONE).eval()
    head.output.weight.data.zero_()
    head.output.bias.data.fill_(1.0)
    data = task_batch(head)
    clean = dataclasses.replace(data, views={"mixed": data.wave})
    loss = head(clean)
    assert loss.total.item() < 1e-3 * head(data).total.item()
    assert int(loss.logs["si_sdr_improvement_db"][1]) == 0


def test_the_ratio_is_that_of_the_score() -> None:
    found, truth = torch.randn(2, 500, generator=torch.Generator().manual_seed(1))
    ours = si_sdr_db(found + truth, truth)
    assert ours.item() == pytest.approx(
        si_sdr((found + truth).numpy().astype(np.float64), truth.numpy()), abs=1e-4
    )


def test_mistakes_are_named() -> None:
    head = build(ONE)
    data = task_batch(head)
    with pytest.raises(ValueError, match=r"data\.mixing"):
        head(dataclasses.replace(data, views={}))
    with pytest.raises(ValueError, match="sources: found 3"):
        SeparateConfig(sources=3)
    with pytest.raises(ValueError, match="shift_samples: found 400"):
        SeparateConfig(shift_samples=400)
