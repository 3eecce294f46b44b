"""Changed voices: pitch and formants move by what was drawn, the equaliser is its filters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speechssl.nn.voice_change import (
    BANDS_HZ,
    VoiceConfig,
    biquad,
    change_voice,
    change_voices,
    draw_voice,
    equalise,
    spectral_envelope,
)

RATE = 16000
FORMANTS = ((600.0, 80.0), (1500.0, 110.0), (2600.0, 150.0))


def harmonics(f0: float, samples: int = 12000) -> Tensor:
    """A tone with all its harmonics, the higher the weaker."""
    time = torch.arange(samples, dtype=torch.float64) / RATE
    numbers = range(1, int(7000 / f0))
    tone = sum(torch.sin(2 * math.pi * f0 * n * time + n * n) / n for n in numbers)
    return tone.float()


def pitch_of(x: Tensor, low: float = 40.0, high: float = 700.0) -> float:
    """F0 by the highest peak of the autocorrelation, between samples by a parabola."""
    x = (x - x.mean())[1000:-1000].double()
    spectrum = torch.fft.rfft(x, 2 * len(x)).abs().square()
    r = torch.fft.irfft(spectrum)[: len(x)] / torch.arange(len(x), 0, -1)
    first, last = int(RATE / high), int(RATE / low)
    found = r[first : last + 1]
    # The first of all that are nearly as high: multiples of the period fit as well.
    peaks = (found[1:-1] >= found[:-2]) & (found[1:-1] >= found[2:])
    at = int(torch.nonzero(peaks & (found[1:-1] > 0.85 * found.max()))[0]) + 1 + first
    a, b, c = r[at - 1 : at + 2].tolist()
    return RATE / (at + 0.5 * (a - c) / (a - 2 * b + c))


def whisper(seconds: float = 3.0) -> Tensor:
    """White noise through three resonances."""
    x = torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(1)).double()
    size = 1 << (2 * len(x)).bit_length()
    z = torch.exp(-2j * math.pi / size * torch.arange(size // 2 + 1, dtype=torch.float64))
    response = torch.ones_like(z)
    for hertz, width in FORMANTS:
        radius = math.exp(-math.pi * width / RATE)
        cos = math.cos(2 * math.pi * hertz / RATE)
        response = response / (1 - 2 * radius * cos * z + radius**2 * z * z)
    return torch.fft.irfft(torch.fft.rfft(x, size) * response, size)[: len(x)].float()


def formants_of(x: Tensor) -> list[float]:
    """Peaks of the mean power spectrum's envelope below 4.5 kHz."""
    window = torch.hann_window(512)
    power = torch.stft(x, 512, 128, window=window, return_complex=True).abs().square().mean(1)
    level = spectral_envelope(power.sqrt()[:, None])[:, 0]
    inside = (level[1:-1] > level[:-2]) & (level[1:-1] > level[2:])
    bins = torch.nonzero(inside)[:, 0] + 1
    found = []
    for i in bins.tolist():
        a, b, c = level[i - 1 : i + 2].log().tolist()
        found.append((i + 0.5 * (a - c) / (a - 2 * b + c)) * RATE / 512)
    return [f for f in found if f < 4500][:3]


@pytest.mark.parametrize("f0", [110.0, 210.0])
@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.93, 1.2, 1.6, 2.0])
@pytest.mark.parametrize("formants", [1.0, 1.25])
def test_the_pitch_of_a_harmonic_tone_is_multiplied_by_the_ratio(f0, ratio, formants) -> None:
    x = harmonics(f0)
    y = change_voice(x, ratio, formants)
    assert y.shape == x.shape
    assert pitch_of(x) == pytest.approx(f0, rel=0.005)
    assert pitch_of(y) == pytest.approx(f0 * ratio, rel=0.02)


@pytest.mark.parametrize("ratio", [1 / 1.4, 0.85, 1.15, 1.4])
@pytest.mark.parametrize("pitch", [1.0, 0.7, 1.5])
def test_formants_move_by_their_ratio_whatever_the_pitch_does(ratio, pitch) -> None:
    x = whisper()
    before = formants_of(x)
    assert before == pytest.approx([f for f, _ in FORMANTS], rel=0.04)
    after = formants_of(change_voice(x, pitch, ratio))
    assert after == pytest.approx([f * ratio for f in before], rel=0.05)


def test_the_formants_of_a_tone_stay_when_its_pitch_moves() -> None:
    tone = harmonics(100.0, 32000)
    size = 1 << 16
    shape = torch.fft.rfft(whisper(), size).abs()  # any filter: only before and after are compared
    z = (
        torch.fft.rfft(tone, size)
        * torch.nn.functional.avg_pool1d(shape[None, None], 401, 1, 200).flatten()
    )
    x = torch.fft.irfft(z, size)[:32000]
    assert formants_of(change_voice(x, 1.4, 1.0)) == pytest.approx(formants_of(x), rel=0.08)


def test_no_change_and_too_few_samples_change_nothing() -> None:
    x = torch.randn(4000)
    assert change_voice(x, 1.0, 1.0) is x
    assert change_voice(x[:512], 1.5, 1.2).shape == (512,)
    unmoved = change_voice(x, 1.0, 1.0001)
    assert torch.allclose(unmoved[200:-200], x[200:-200], atol=0.02)


def recursion(x: Tensor, gains: Tensor, qualities: Tensor) -> Tensor:
    """The filters one behind the other, sample by sample in float64."""
    y = x.double().tolist()
    for band in range(10):
        (b0, b1, b2), (a0, a1, a2) = biquad(band, float(gains[band]), float(qualities[band]))
        given, y = y, []
        for n, value in enumerate(given):
            past = [given[n - k] if n >= k else 0.0 for k in (1, 2)]
            done = [y[n - k] if n >= k else 0.0 for k in (1, 2)]
            y.append((b0 * value + b1 * past[0] + b2 * past[1] - a1 * done[0] - a2 * done[1]) / a0)
    return torch.tensor(y)


def test_the_equaliser_is_its_ten_filters() -> None:
    x = torch.randn(1500, generator=torch.Generator().manual_seed(2))
    gains = torch.linspace(-12, 12, 10)[[3, 8, 1, 9, 0, 5, 2, 7, 4, 6]]
    qualities = torch.linspace(2, 5, 10)
    assert torch.allclose(
        equalise(x, gains, qualities), recursion(x, gains, qualities).float(), atol=2e-4
    )


@pytest.mark.parametrize("band", [0, 4, 9])
@pytest.mark.parametrize("gain", [-9.0, 6.0])
def test_a_band_has_its_gain_at_its_place_and_none_far_away(band: int, gain: float) -> None:
    b, a = biquad(band, gain, 3.0)

    def level(hertz: float) -> float:
        z = complex(math.cos(2 * math.pi * hertz / RATE), -math.sin(2 * math.pi * hertz / RATE))
        up, down = (c[0] + c[1] * z + c[2] * z * z for c in (b, a))
        return 20 * math.log10(abs(up / down))

    inside, outside = {0: (0.0, 8000.0), 4: (BANDS_HZ[4], 8000.0), 9: (8000.0, 0.0)}[band]
    assert level(inside) == pytest.approx(gain, abs=1e-3)
    assert level(outside) == pytest.approx(0.0, abs=1e-3)


def test_draws_fill_their_ranges_and_follow_from_seed_and_stream() -> None:
    config = VoiceConfig()
    draws = [draw_voice(torch.tensor([seed]), config, 5) for seed in range(400)]
    for name, most in (("pitch_ratio", 2.0), ("formant_ratio", 1.4)):
        found = torch.tensor([getattr(d, name) for d in draws])
        raised = (found > 1).float().mean().item()
        assert 0.42 < raised < 0.58
        assert 1 / most <= found.min() < 1.05 / most and 0.95 * most < found.max() <= most
    gains, qualities = (torch.stack([getattr(d, n) for d in draws]) for n in
                        ("gains_db", "qualities"))  # fmt: skip
    assert -12 <= gains.min() < -11.5 and 11.5 < gains.max() <= 12
    assert 2 <= qualities.min() < 2.05 and 4.9 < qualities.max() <= 5
    again = draw_voice(torch.tensor([7]), config, 5)
    assert again.pitch_ratio == draws[7].pitch_ratio
    assert draw_voice(torch.tensor([7]), config, 6).pitch_ratio != again.pitch_ratio


def test_an_utterance_is_changed_alike_whatever_its_batch_and_keeps_its_power() -> None:
    wave, lengths = torch.randn(3, 9000), torch.tensor([9000, 5000, 2345])
    seeds = torch.tensor([4, -9, 2**50])
    for i, length in enumerate(lengths.tolist()):
        wave[i, length:] = 0
    config = VoiceConfig()
    together = change_voices(wave, lengths, seeds, config, 10)
    for i, length in enumerate(lengths.tolist()):
        assert not together[i, length:].any()
        alone = change_voices(wave[i : i + 1, :length], lengths[i : i + 1], seeds[i : i + 1],
                              config, 10)  # fmt: skip
        assert torch.equal(together[i, :length], alone[0])
        power = together[i, :length].square().mean()
        assert power.item() == pytest.approx(wave[i, :length].square().mean().item(), rel=1e-3)
    assert not torch.equal(together, change_voices(wave, lengths, seeds, config, 11))


def test_nothing_to_change_changes_nothing_and_silence_stays() -> None:
    none = VoiceConfig(formant_ratio=1.0, pitch_ratio=1.0, equaliser_db=0.0)
    wave, lengths, seeds = torch.zeros(1, 4000), torch.tensor([4000]), torch.tensor([3])
    assert change_voices(wave, lengths, seeds, none, 0) is wave
    assert torch.equal(change_voices(wave, lengths, seeds, VoiceConfig(), 0), wave)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formant_ratio": 0.9}, r"voice\.formant_ratio: found 0.9, want 1 to 2"),
        ({"pitch_ratio": 5.0}, r"voice\.pitch_ratio: found 5.0, want 1 to 4"),
        ({"equaliser_db": -1.0}, "equaliser_db -1.0"),
        ({"equaliser_q": (3.0, 2.0)}, r"equaliser_q \(3.0, 2.0\)"),
    ],
)
def test_wrong_settings_are_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        VoiceConfig(**changes)
