"""Another voice saying the same: pitch, formants and an equaliser, drawn by an utterance's seed.

Source: Qian et al. 2022 (ContentVec), section 3.3, after Choi et al. 2021 (NANSY): Praat's "Change
gender" and a parametric equaliser, of which the ranges here are.

Differs:
- Pitch and formants are changed in short-time spectra, as source and envelope, instead of pitch
  period by pitch period: it needs no pitch tracker and no search range for each speaker, never
  fails, and takes some 15 ms of one core for each second of speech. The range of the pitch around
  its median is not changed.
- Each utterance keeps its power.

Shape legend: B utterances, L samples, N samples of one utterance, F bins, K windows.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from speechssl.nn.draws import random_uniform
from speechssl.nn.wave_augment import HOP, SAMPLE_RATE, WINDOW, shift_pitch

LIFTER = 32
"""Cepstral coefficients of the envelope: 2 ms, less than the period of any voice's pitch."""
BANDS_HZ = tuple(60.0 * (7600.0 / 60.0) ** (i / 9) for i in range(10))
"""Centres of the equaliser's bands; the first is a low shelf, the last a high shelf."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoiceConfig:
    """How far voices are changed; the defaults are the published ones."""

    formant_ratio: float = 1.4
    """All formants are multiplied by a number drawn from 1 to this, or, as often, divided by it."""
    pitch_ratio: float = 2.0
    """The same for the pitch."""
    equaliser_db: float = 12.0
    """Each band is raised or lowered by up to so much."""
    equaliser_q: tuple[float, float] = (2.0, 5.0)
    """Range of the quality of the bands, drawn evenly in its logarithm."""

    def __post_init__(self) -> None:
        for name, high in (("formant_ratio", 2.0), ("pitch_ratio", 4.0)):
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"voice.{name}: found {getattr(self, name)}, want 1 to {high:g}")
        low, high = self.equaliser_q
        if self.equaliser_db < 0 or not 0 < low <= high:
            raise ValueError(
                f"voice: found equaliser_db {self.equaliser_db} and equaliser_q ({low}, {high}), "
                "want 0 or more, and (low, high) above 0"
            )

    def touches_nothing(self) -> bool:
        return self.formant_ratio == self.pitch_ratio == 1 and self.equaliser_db == 0


@dataclasses.dataclass(frozen=True)
class VoiceDraw:
    """What one utterance gets."""

    pitch_ratio: float
    formant_ratio: float
    gains_db: Tensor
    qualities: Tensor


def draw_voice(seed: Tensor, config: VoiceConfig, stream: int) -> VoiceDraw:
    """The change of the utterance of `seed` (1,), a pure function of seed and stream."""
    dice = random_uniform(seed, stream, 24)[0].double().cpu()

    def ratio(most: float, share: float, turn: float) -> float:
        drawn = 1 + (most - 1) * share
        return drawn if turn < 0.5 else 1 / drawn

    shares = dice[:4].tolist()
    low, high = config.equaliser_q
    return VoiceDraw(
        ratio(config.pitch_ratio, *shares[:2]),
        ratio(config.formant_ratio, *shares[2:]),
        config.equaliser_db * (2 * dice[4:14] - 1),
        low * (high / low) ** dice[14:],
    )


@torch.no_grad()
def change_voices(
    wave: Tensor, lengths: Tensor, seeds: Tensor, config: VoiceConfig, stream: int
) -> Tensor:
    """(B, L) waves, of which `lengths` (B,) samples count, in other voices; the rest is 0.

    seeds: (B,). stream: of the seeds; another one draws other voices.
    """
    if config.touches_nothing():
        return wave
    result = torch.zeros_like(wave)
    with torch.autocast(wave.device.type, enabled=False):
        for row, length in enumerate(lengths.tolist()):
            x = wave[row, :length].float()
            draw = draw_voice(seeds[row : row + 1], config, stream)
            y = change_voice(x, draw.pitch_ratio, draw.formant_ratio)
            if config.equaliser_db > 0:
                y = equalise(y, draw.gains_db, draw.qualities)
            result[row, :length] = _with_power_of(x, y)
    return result


def change_voice(x: Tensor, pitch_ratio: float, formant_ratio: float) -> Tensor:
    """(N,) samples whose pitch and formants are multiplied by the two ratios, as long as before.

    The spectrum of each window is parted into its envelope and what is left, the source. The
    source is shifted, the envelope is stretched along frequency. Where a lower pitch leaves the
    source without high frequencies, the old ones stay. Fewer samples than a window are returned as
    they are.
    """
    if len(x) <= WINDOW or pitch_ratio == formant_ratio == 1:
        return x
    window = torch.hann_window(WINDOW, device=x.device)
    spectrum = torch.stft(x, WINDOW, HOP, window=window, return_complex=True)
    envelope = spectral_envelope(spectrum.abs())
    source = spectrum / envelope
    if pitch_ratio != 1:
        before = torch.istft(source, WINDOW, HOP, window=window, length=len(x))
        shifted = shift_pitch(before, 1200 * math.log2(pitch_ratio))
        shifted = torch.stft(shifted, WINDOW, HOP, window=window, return_complex=True)
        # What was left of the envelope in the source has moved with the pitch: out with it.
        shifted = shifted / spectral_envelope(shifted.abs())
        edge = min(math.floor(pitch_ratio * (len(source) - 1)), len(source))
        source = torch.cat([shifted[:edge], source[edge:]])
    return torch.istft(
        source * _stretched(envelope, formant_ratio), WINDOW, HOP, window=window, length=len(x)
    )


def spectral_envelope(magnitude: Tensor) -> Tensor:
    """(F, K) magnitudes -> (F, K) smooth ones above 0, by the first cepstral coefficients.

    Source: Oppenheim and Schafer 1968 (homomorphic filtering).
    """
    floor = (1e-5 * magnitude.max()).clamp(min=1e-8)
    cepstrum = torch.fft.irfft((magnitude + floor).log(), WINDOW, dim=0)
    # An even sequence: the last coefficients mirror the first.
    cepstrum[LIFTER : WINDOW - LIFTER + 1] = 0
    return torch.fft.rfft(cepstrum, dim=0).real.exp()


def _stretched(envelope: Tensor, ratio: float) -> Tensor:
    """(F, K) -> (F, K): at each frequency f what was at f / ratio, the last one behind the end."""
    if ratio == 1:
        return envelope
    place = torch.arange(len(envelope), device=envelope.device) / ratio
    place = place.clamp(max=len(envelope) - 1)
    below = place.long().clamp(max=len(envelope) - 2)
    part = (place - below)[:, None]
    return envelope[below] * (1 - part) + envelope[below + 1] * part


def equalise(x: Tensor, gains_db: Tensor, qualities: Tensor) -> Tensor:
    """(N,) samples through a shelf, eight peaks and a shelf at `BANDS_HZ`; gains, qualities (10,).

    The filters' own response, applied as a product of spectra, with a second of silence behind the
    signal for what rings.
    """
    size = 1 << (len(x) + SAMPLE_RATE - 1).bit_length()
    delay = -2j * math.pi / size * torch.arange(size // 2 + 1, dtype=torch.float64)
    z = torch.exp(delay)
    response = torch.ones_like(z)
    for band, (gain, q) in enumerate(zip(gains_db.tolist(), qualities.tolist(), strict=True)):
        (b0, b1, b2), (a0, a1, a2) = biquad(band, gain, q)
        response = response * (b0 + z * (b1 + z * b2)) / (a0 + z * (a1 + z * a2))
    spectrum = torch.fft.rfft(x, size) * response.to(torch.complex64).to(x.device)
    return torch.fft.irfft(spectrum, size)[: len(x)]


Coefficients = tuple[float, float, float]


def biquad(band: int, gain_db: float, quality: float) -> tuple[Coefficients, Coefficients]:
    """Numerator and denominator of the equaliser's filter number `band`.

    Source: R. Bristow-Johnson, "Cookbook formulae for audio equalizer biquad filter coefficients".
    """
    a = 10 ** (gain_db / 40)
    omega = 2 * math.pi * BANDS_HZ[band] / SAMPLE_RATE
    cos, alpha = math.cos(omega), math.sin(omega) / (2 * quality)
    if 0 < band < len(BANDS_HZ) - 1:
        return (1 + alpha * a, -2 * cos, 1 - alpha * a), (1 + alpha / a, -2 * cos, 1 - alpha / a)
    # The high shelf is the low one with the frequency axis turned round: cos changes its sign.
    side = 1 if band == 0 else -1
    up, down, root = a + 1, (a - 1) * side, 2 * math.sqrt(a) * alpha
    numerator = (
        a * (up - down * cos + root),
        2 * a * side * ((a - 1) - up * cos * side),
        a * (up - down * cos - root),
    )
    denominator = (
        up + down * cos + root,
        -2 * side * ((a - 1) + up * cos * side),
        up + down * cos - root,
    )
    return numerator, denominator


def _with_power_of(x: Tensor, y: Tensor) -> Tensor:
    power = y.square().mean()
    return y * (x.square().mean() / power.clamp(min=1e-20)).sqrt()
