"""Losses of a vocoder: zero of itself, one utterance at a time, each player its own gradient."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from speechssl.contract import Batch
from speechssl.nn.speech_mel import SpeechMelConfig
from speechssl.vocoder.config import CriticConfig, ReconstructionConfig, SpectralConfig
from speechssl.vocoder.critics import Critics, PeriodCritic
from speechssl.vocoder.losses import (
    SpectraDistance,
    SpectrumDistance,
    critic_terms,
    deception_terms,
    matching_terms,
    mel_distance,
)
from speechssl.vocoder.objective import VocoderObjective

CRITIC = CriticConfig(periods=[2, 3], period_channels=[4, 6], windows=[64, 160],
                      window_channels=4, segment_seconds=0.1)  # fmt: skip


def objective_of(critic: CriticConfig | None = None, **loss) -> VocoderObjective:
    torch.manual_seed(2)
    vocoder = SpectralConfig(dim=16, hidden_dim=32, blocks=2).build(SpeechMelConfig())
    return VocoderObjective(vocoder, ReconstructionConfig(windows=[160, 640], **loss), critic)


def batch_of(*lengths: int, pad: int = 0, first: int = 0) -> Batch:
    """Tones with noise; utterance i is the same in every batch."""
    wave = torch.zeros(len(lengths), max(lengths) + pad)
    for row, length in enumerate(lengths):
        number = first + row
        noise = torch.randn(length, generator=torch.Generator().manual_seed(number))
        time = torch.arange(length) / 16000
        wave[row, :length] = 0.2 * torch.sin(2 * math.pi * 200 * (number + 1) * time) + 0.01 * noise
    seeds = torch.arange(first, first + len(lengths))
    ids = tuple(f"utt{int(n)}" for n in seeds)
    return Batch(wave, torch.tensor(lengths), {}, {}, seeds, ids)


def test_a_wave_is_at_no_distance_from_itself_and_silence_has_a_finite_loss() -> None:
    wave, lengths = batch_of(3200, 1600).wave, torch.tensor([3200, 1600])
    distance = SpectraDistance([160, 640])
    assert distance(wave, wave, lengths).abs().max() == 0
    silence = torch.zeros_like(wave, requires_grad=True)
    far = distance(silence, wave, lengths)
    assert (far > 1).all()
    (far.sum() + distance(silence, silence.detach(), lengths).sum()).backward()
    assert silence.grad is not None and silence.grad.isfinite().all()


def test_twice_as_loud_is_the_closed_form() -> None:
    """Logarithms differ by ln 2; magnitudes by the whole of the true ones."""
    noise = torch.randn(1, 16000)
    found = SpectrumDistance(640)(2 * noise, noise, torch.tensor([16000]))
    assert found.item() == pytest.approx(math.log(2) + 1, abs=0.01)
    mel = torch.randn(1, 7, 80)
    assert mel_distance(mel + 0.5, mel, torch.tensor([7])).item() == pytest.approx(0.5)


def test_scores_give_the_published_losses() -> None:
    real, fake = [torch.tensor([[2.0, 0.5]])], [torch.tensor([[-3.0, 0.0]])]
    assert critic_terms(real, fake, "hinge").item() == pytest.approx(0.25 + 0.5)
    assert deception_terms(fake, "hinge").item() == pytest.approx(2.5)
    assert critic_terms(real, fake, "least_squares").item() == pytest.approx(0.625 + 4.5)
    assert deception_terms(fake, "least_squares").item() == pytest.approx(8.5)
    layers = [[torch.ones(1, 3), torch.zeros(1, 2)]]
    other = [[torch.zeros(1, 3), torch.full((1, 2), 2.0)]]
    assert matching_terms(layers, other).item() == pytest.approx(3.0)


@pytest.mark.parametrize("critic", [None, CRITIC], ids=["alone", "critics"])
def test_batch_shape_does_not_change_loss_and_gradient(critic: CriticConfig | None) -> None:
    model = objective_of(critic)
    results = []
    cuts = [
        [batch_of(3300, 1000, 2400)],
        [batch_of(3300, pad=700), batch_of(1000, 2400, pad=161, first=1)],
    ]
    for batches in cuts:
        model.zero_grad()
        losses = [model(b) for b in batches]
        if critic:
            losses += [model.critic_loss(b) for b in batches]
        total = sum(x.total for x in losses)
        total.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((total.item(), sum(int(x.count) for x in losses), gradient))
    assert results[0][1] == results[1][1]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert (results[0][2] - results[1][2]).abs().max() < 2e-4 * results[0][2].abs().max()


def test_each_player_has_its_own_gradient() -> None:
    # Hinges would balance to exactly 0 where both waves score within them.
    model = objective_of(dataclasses.replace(CRITIC, kind="least_squares"))
    batch = batch_of(3200, 2000)
    model.critic_loss(batch).total.backward()
    assert all(p.grad is None for p in model.vocoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.critic.parameters())
    model.zero_grad()
    model.critic.requires_grad_(False)
    model(batch).total.backward()
    assert all(p.grad is None for p in model.critic.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.vocoder.parameters())


def test_the_vocoder_hears_its_critics() -> None:
    """Adversarial terms alone move it towards higher scores, and to hidden layers of real ones."""
    for weights, name in (((1e3, 0.0), "deception"), ((0.0, 1e3), "matching")):
        critic = dataclasses.replace(
            CRITIC, adversarial_weight=weights[0], matching_weight=weights[1]
        )
        model = objective_of(critic, mel_weight=1e-3, stft_weight=0.0)
        batch, values = batch_of(3200), []
        model.critic.requires_grad_(False)
        optimizer = torch.optim.Adam(model.vocoder.parameters(), 1e-3)
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(batch)
            loss.total.backward()
            optimizer.step()
            values.append(float(loss.logs[name][0]))
        assert values[-1] < values[0], name


def test_validation_leaves_out_critics_and_gain() -> None:
    model, batch = objective_of(CRITIC), batch_of(3200)
    plain = objective_of()
    plain.vocoder.load_state_dict(model.vocoder.state_dict())
    assert set(model(batch).logs) == {"mel", "stft", "deception", "matching"}
    model.eval()
    plain.eval()
    assert set(model(batch).logs) == {"mel", "stft"}
    assert model(batch).total.item() == pytest.approx(plain(batch).total.item())


def test_in_half_precision_the_losses_are_nearly_the_same() -> None:
    model, batch = objective_of(CRITIC), batch_of(3200)
    whole = model(batch), model.critic_loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch), model.critic_loss(batch)
    for a, b in zip(whole, half, strict=True):
        assert b.total.dtype == torch.float32
        assert b.total.item() == pytest.approx(a.total.item(), rel=0.03)
    half[0].total.backward()
    assert all(p.grad.isfinite().all() for p in model.vocoder.parameters())


def test_gain_is_drawn_from_the_seed_and_never_clips() -> None:
    model = objective_of(gain_db=(-12.0, 30.0))
    batch = batch_of(3200, 1600, 2500)
    wave, lengths = model.prepared(batch)
    ratio = wave.abs().amax(1) / batch.wave.abs().amax(1)
    assert len(ratio.unique()) == 3 and wave.abs().max() <= 0.9901 and ratio.max() > 1
    assert lengths.tolist() == [3200, 1600, 2400] and not wave[2, 2400:].any()
    alone, _ = model.prepared(batch_of(1600, first=1))
    assert torch.equal(wave[1, :1600], alone[0])


def test_both_waves_are_judged_at_the_same_place() -> None:
    model = objective_of(CRITIC)
    batch = batch_of(3200, 800)
    true = batch.wave + 1
    true[1, 800:] = 0
    real, fake = model.segments(batch, batch.wave_lengths, true, 2 * true)
    assert real.shape == (2, 1600) and torch.equal(fake, 2 * real)
    assert real[0].all() and real[1, :800].all() and not real[1, 800:].any()
    places = {
        int(model.segments(batch_of(3200, first=n), torch.tensor([3200]),
                           torch.arange(3200.0)[None], torch.zeros(1, 3200))[0][0, 0])
        for n in range(20)
    }  # fmt: skip
    assert len(places) > 15 and max(places) <= 1600 and max(places) - min(places) > 800


def test_period_critics_fold_a_wave() -> None:
    critic = PeriodCritic(3, [4])
    image = critic.image(torch.arange(7.0)[None] + 1)
    assert image[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 0, 0]]
    scores, hidden = Critics(CRITIC)(torch.randn(2, 1600))
    assert len(scores) == len(hidden) == 4 and all(len(x) == 2 for x in scores)


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        (ReconstructionConfig, {"windows": [30]}, "multiples of 4"),
        (ReconstructionConfig, {"mel_weight": 0.0, "windows": []}, "one term above 0"),
        (ReconstructionConfig, {"gain_db": (3.0, 0.0)}, "want \\(low, high\\)"),
        (CriticConfig, {"periods": [], "windows": []}, "at least one"),
        (CriticConfig, {"periods": [0]}, "periods of 1"),
        (CriticConfig, {"period_channels": []}, "want 1 or more of each"),
        (CriticConfig, {"segment_seconds": 0.0}, "want more than 0"),
    ],
)
def test_options_that_cannot_be(kind: type, values: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        kind(**values)
