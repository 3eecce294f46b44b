"""Augmentation of waves within the model, each utterance by its own seed: pitch, room, noise.

Unlike the corruption in the data path, one batch can be augmented several times, differently.

Shape legend: B utterances, L samples, N samples of one utterance, F bins, K windows.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.nn.draws import random_normal, random_uniform

SAMPLE_RATE = 16000
WINDOW, HOP = 512, 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to a wave, in this order; each with its own probability."""

    pitch_probability: float = 0.5
    """Share of utterances whose pitch is shifted."""
    pitch_cents: float = 300.0
    """Largest shift up or down, in hundredths of a semitone."""
    reverb_probability: float = 0.5
    """Share of utterances that get the echo of a room: noise that decays exponentially."""
    reverb_seconds: tuple[float, float] = (0.1, 0.5)
    """Range of the time in which it falls by 60 dB."""
    reverb_ratio_db: tuple[float, float] = (0.0, 15.0)
    """Range of the energy of the direct sound over that of the echo."""
    noise_probability: float = 0.5
    """Share of utterances that get white noise."""
    noise_ratio_db: tuple[float, float] = (5.0, 25.0)
    """Range of the energy of the utterance over that of the noise."""

    def __post_init__(self) -> None:
        for name in ("pitch_probability", "reverb_probability", "noise_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name}: found {getattr(self, name)}, want 0 to 1")
        for name in ("reverb_seconds", "reverb_ratio_db", "noise_ratio_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"augment.{name}: found ({low}, {high}), want (low, high)")
        if self.pitch_cents < 0 or self.reverb_seconds[0] <= 0:
            raise ValueError(
                f"augment: found pitch_cents {self.pitch_cents} and reverb_seconds "
                f"{self.reverb_seconds}, want at least 0 and more than 0"
            )

    def touches_nothing(self) -> bool:
        return self.pitch_probability == self.reverb_probability == self.noise_probability == 0


@torch.no_grad()
def augment_waves(
    wave: Tensor, lengths: Tensor, seeds: Tensor, config: AugmentConfig, stream: int
) -> Tensor:
    """(B, L) waves, of which `lengths` (B,) samples count, augmented; the rest is 0.

    seeds: (B,). stream: the first of three streams of a seed; others augment otherwise.
    """
    if config.touches_nothing():
        return wave
    result = torch.zeros_like(wave)
    seeds = seeds.to(wave.device)
    dice = random_uniform(seeds, stream, 7)
    with torch.autocast(wave.device.type, enabled=False):
        for row, (length, draws) in enumerate(zip(lengths.tolist(), dice.tolist(), strict=True)):
            seed, x = seeds[row : row + 1], wave[row, :length].float()
            if draws[0] < config.pitch_probability:
                x = shift_pitch(x, config.pitch_cents * (2 * draws[1] - 1))
            if draws[2] < config.reverb_probability:
                seconds = _between(config.reverb_seconds, draws[3])
                x = reverberate(
                    x, seconds, _between(config.reverb_ratio_db, draws[4]), seed, stream + 1
                )
            if draws[5] < config.noise_probability:
                noise = random_normal(seed, stream + 2, length)[0]
                ratio = 10 ** (_between(config.noise_ratio_db, draws[6]) / 20)
                x = x + x.square().mean().sqrt() / ratio * noise
            result[row, :length] = x
    return result


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share


def shift_pitch(x: Tensor, cents: float) -> Tensor:
    """(N,) samples with all frequencies multiplied by 2 ** (cents / 1200), as long as before.

    A phase vocoder stretches time; resampling by the spectrum brings it back. Fewer samples than
    half a window are returned as they are.
    """
    rate = 2 ** (cents / 1200)
    if len(x) <= WINDOW // 2 or rate == 1:
        return x
    window = torch.hann_window(WINDOW, device=x.device)
    spectrum = torch.stft(x, WINDOW, HOP, window=window, return_complex=True)
    size = round(len(x) * rate)
    stretched = torch.istft(_stretch(spectrum, rate), WINDOW, HOP, window=window, length=size)
    bins = torch.fft.rfft(stretched)[: len(x) // 2 + 1]
    bins = F.pad(bins, (0, len(x) // 2 + 1 - len(bins)))
    return torch.fft.irfft(bins, len(x)) * (len(x) / size)


def _stretch(spectrum: Tensor, rate: float) -> Tensor:
    """(F, K) -> (F, K * rate) windows that last longer at the same frequencies.

    Source: Laroche and Dolson 1999, "Improved phase vocoder time-scale modification of audio",
    sections II and III-C. Phases of peaks grow by the frequency that two neighbouring windows
    show; bins around a peak keep their phase to it, so that a tone stays one.
    Differs: a peak's phase is that of its bin, wherever the peak was before; no loop over windows.
    """
    count = spectrum.shape[1]
    time = torch.arange(math.ceil(count * rate), device=spectrum.device) / rate
    before = time.long().clamp(max=count - 1)
    after = (before + 1).clamp(max=count - 1)
    part = (time - before).clamp(0, 1)
    magnitude, phase = spectrum.abs(), spectrum.angle()
    level = magnitude[:, before] * (1 - part) + magnitude[:, after] * part
    bins = torch.arange(len(spectrum), device=spectrum.device)[:, None]
    advance = 2 * math.pi * HOP / WINDOW * bins
    change = phase[:, after] - phase[:, before] - advance
    change = change - 2 * math.pi * (change / (2 * math.pi)).round() + advance
    grown = phase[:, :1] + F.pad(change, (1, 0))[:, :-1].cumsum(1)
    peak = _nearest_peak(level, bins)
    read = phase[:, before]
    return torch.polar(level, grown.gather(0, peak) + read - read.gather(0, peak))


def _nearest_peak(level: Tensor, bins: Tensor) -> Tensor:
    """(F, K) bin of the nearest largest of five neighbours, in each window."""
    around = F.max_pool1d(level.T[:, None], 5, stride=1, padding=2)[:, 0].T
    is_peak, far = level >= around, 4 * len(level)
    below = torch.where(is_peak, bins, -far).cummax(0).values
    above = torch.where(is_peak, bins, far).flip(0).cummin(0).values.flip(0)
    # Not-a-numbers have no peak; they pass, for the trainer to refuse.
    return torch.where(bins - below <= above - bins, below, above).clamp(0, len(level) - 1)


def reverberate(x: Tensor, seconds: float, ratio_db: float, seed: Tensor, stream: int) -> Tensor:
    """(N,) samples with an echo that falls by 60 dB in `seconds`, of the same power.

    ratio_db: energy of the direct sound, at its time, over that of the echo.
    """
    taps = max(round(seconds * SAMPLE_RATE), 2)
    time = torch.arange(1, taps, device=x.device) / SAMPLE_RATE
    echo = random_normal(seed, stream, taps - 1)[0] * 10 ** (-3 * time / seconds)
    echo = echo / echo.square().sum().sqrt() * 10 ** (-ratio_db / 20)
    size = 1 << (len(x) + taps - 2).bit_length()
    response = torch.fft.rfft(F.pad(echo, (1, 0)), size)
    wet = x + torch.fft.irfft(torch.fft.rfft(x, size) * response, size)[: len(x)]
    power = wet.square().mean()
    return wet * (x.square().mean() / power.clamp(min=1e-20)).sqrt()
