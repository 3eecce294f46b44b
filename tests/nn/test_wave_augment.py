"""Pitch, echo and noise: what they change by how much, and that batches do not matter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechssl.nn.wave_augment import AugmentConfig, augment_waves, reverberate, shift_pitch

NOTHING = {"pitch_probability": 0.0, "reverb_probability": 0.0, "noise_probability": 0.0}


def tone(hertz: float, samples: int = 16000) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples) / 16000)


def peak(x: Tensor) -> float:
    window = torch.hann_window(len(x), periodic=False)
    return float(torch.fft.rfft(x * window).abs().argmax()) * 16000 / len(x)


@pytest.mark.parametrize("cents", [-300.0, -50.0, 120.0, 300.0])
@pytest.mark.parametrize("hertz", [200.0, 1130.0])
def test_a_shift_multiplies_the_frequency_and_keeps_length_and_level(cents, hertz) -> None:
    x = tone(hertz, 15001)
    y = shift_pitch(x, cents)
    assert y.shape == x.shape
    assert peak(y) == pytest.approx(hertz * 2 ** (cents / 1200), rel=0.01)
    inside = slice(1000, -1000)
    assert y[inside].square().mean().item() == pytest.approx(0.5, rel=0.1)


def test_a_shift_keeps_the_time_of_what_happens() -> None:
    x = torch.cat([torch.zeros(8000), tone(500.0, 8000)])
    y = shift_pitch(x, 200.0)
    assert y[:7000].square().mean() < 1e-3 < 0.3 < y[9000:15000].square().mean()


def test_what_is_no_number_passes() -> None:
    x = torch.randn(4000)
    x[2000] = torch.nan
    assert shift_pitch(x, 100.0).isnan().any()


def test_no_shift_and_too_few_samples_change_nothing() -> None:
    x = torch.randn(4000)
    assert shift_pitch(x, 0.0) is x
    assert shift_pitch(x[:256], 100.0).shape == (256,)


def test_an_echo_follows_the_direct_sound_and_falls_in_its_time() -> None:
    x = torch.zeros(16000)
    x[1000] = 1.0
    y = reverberate(x, 0.3, 5.0, torch.tensor([3]), 1)
    assert y.square().sum().item() == pytest.approx(1.0, rel=1e-4)
    assert not y[:999].abs().max() > 1e-5
    echo = y[1001:]
    assert y[1000] ** 2 / echo.square().sum() == pytest.approx(10**0.5, rel=1e-3)
    early, late = echo[:800].square().sum(), echo[2400:3200].square().sum()
    # 150 ms later, of 300 ms to 60 dB: 30 dB.
    assert 10 * torch.log10(early / late) == pytest.approx(30, abs=2)


def test_noise_has_the_drawn_level() -> None:
    config = AugmentConfig(**(NOTHING | {"noise_probability": 1.0, "noise_ratio_db": (7.0, 7.0)}))
    wave = tone(300.0, 32000)[None]
    noise = augment_waves(wave, torch.tensor([32000]), torch.tensor([5]), config, 0) - wave
    found = 10 * torch.log10(wave.square().mean() / noise.square().mean())
    assert found.item() == pytest.approx(7.0, abs=0.15)


def test_an_utterance_is_augmented_alike_whatever_its_batch_and_otherwise_by_another_stream() -> (
    None
):
    config = AugmentConfig(pitch_probability=0.9, reverb_probability=0.9, noise_probability=0.9)
    wave, lengths = torch.randn(3, 9000), torch.tensor([9000, 5000, 2345])
    seeds = torch.tensor([4, -9, 2**50])
    together = augment_waves(wave, lengths, seeds, config, 10)
    for i, length in enumerate(lengths.tolist()):
        assert not together[i, length:].any()
        alone = augment_waves(wave[i : i + 1, :length], lengths[i : i + 1], seeds[i : i + 1],
                              config, 10)  # fmt: skip
        assert torch.equal(together[i, :length], alone[0])
    assert not torch.equal(together, augment_waves(wave, lengths, seeds, config, 13))


def test_shares_of_utterances_are_those_asked_for() -> None:
    config = AugmentConfig(**(NOTHING | {"noise_probability": 0.3}))
    wave = torch.randn(1, 450).expand(600, -1)
    lengths = torch.full((600,), 450)
    changed = (augment_waves(wave, lengths, torch.arange(600), config, 0) != wave).any(1)
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.06)
    assert augment_waves(wave, lengths, torch.arange(600), AugmentConfig(**NOTHING), 0) is wave


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"augment\.noise_probability: found 2"):
        AugmentConfig(noise_probability=2)
    with pytest.raises(ValueError, match=r"augment\.reverb_ratio_db: found \(3, 1\)"):
        AugmentConfig(reverb_ratio_db=(3, 1))
