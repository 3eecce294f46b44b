"""The log-mel spectrogram that speech is synthesised from: heads, vocoders and metrics share it.

It is not the front end of encoders (`log_mel.py`, Kaldi's): frames are centred, magnitudes are
neither pre-emphasised nor normalised, and a wave can be made of it again.

Shape legend: B utterances, L samples, T frames, M mel bins, K = fft / 2 + 1 frequencies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask

TINY = 1e-12
"""Power below which a magnitude has no gradient: that of a square root at 0 is not finite."""


@dataclasses.dataclass(frozen=True)
class SpeechMelConfig:
    """How a log-mel spectrogram is made; a model that reads or writes one records it.

    `low_hz` to `high_hz`, 80 bins and natural logarithm are those of Taco2-AR, HiFi-GAN and most
    vocoders; hop 160 puts two frames on each of a 50 Hz encoder, and divides 16 kHz.
    """

    sample_rate_hz: int = 16000
    fft: int = 1024
    window: int = 640
    hop: int = 160
    bins: int = 80
    low_hz: float = 80.0
    high_hz: float = 7600.0
    floor: float = 1e-5
    """Smallest mel magnitude; silence is its logarithm."""

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window <= self.fft or self.fft % 2 or self.window % 2:
            raise ValueError(
                f"mel: found hop {self.hop}, window {self.window}, fft {self.fft}, want "
                "0 < hop <= window <= fft, the last two even"
            )
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"mel: found {self.low_hz} to {self.high_hz} Hz, want 0 <= low_hz < high_hz <= "
                f"{self.sample_rate_hz / 2}, half the sampling rate"
            )
        if self.bins < 1 or self.floor <= 0:
            raise ValueError(
                f"mel: found {self.bins} bins and floor {self.floor}, want at least one bin and a "
                "floor above 0"
            )

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop

    @property
    def silence(self) -> float:
        """Log-mel of silence, and of frames behind an utterance's end."""
        return float(np.log(self.floor))

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that tell one definition from another."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The fields, each with its number type, so that a hash survives JSON."""
        return {
            f.name: (int if f.type == "int" else float)(getattr(self, f.name))
            for f in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpeechMelConfig:
        """The definition of `to_dict`; `ValueError` if a field is missing or unknown."""
        names = {f.name for f in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(f"mel: found fields {sorted(values)}, want {sorted(names)}")
        return cls(**values)


def require_same_mel(found: SpeechMelConfig, wanted: SpeechMelConfig, where: str) -> None:
    """Raise `ValueError` that names the fields in which `found`, that of `where`, differs."""
    if found.hash == wanted.hash:
        return
    have, want = found.to_dict(), wanted.to_dict()
    faults = [f"{k}: found {have[k]}, want {want[k]}" for k in want if have[k] != want[k]]
    raise ValueError(
        f"{where} has another mel definition: {'; '.join(faults)}. Take models trained with one "
        "definition, or train it anew"
    )


def slaney_hz(mel: np.ndarray) -> np.ndarray:
    """Slaney's mel scale, mel to Hz: linear below 1000 Hz, 27 mel per factor 6.4 above."""
    linear = mel * (200.0 / 3)
    return np.where(mel < 15, linear, 1000.0 * np.exp((mel - 15) * (np.log(6.4) / 27)))


def slaney_mel(hz: float) -> float:
    """Hz to mel."""
    return hz * 3 / 200 if hz < 1000 else 15 + float(np.log(hz / 1000)) * 27 / float(np.log(6.4))


def mel_filters(config: SpeechMelConfig) -> Tensor:
    """(K, M) float32 triangles of equal area, as `librosa.filters.mel`.

    Source: Slaney 1998, "Auditory Toolbox", Version 2; equal to librosa 0.11's with its defaults.
    """
    edges = slaney_hz(
        np.linspace(slaney_mel(config.low_hz), slaney_mel(config.high_hz), config.bins + 2)
    )
    bins_hz = np.arange(config.fft // 2 + 1) * (config.sample_rate_hz / config.fft)
    rise = (bins_hz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins_hz[:, None]) / (edges[2:] - edges[1:-1])
    area = (edges[2:] - edges[:-2]) / 2
    return torch.from_numpy(np.maximum(0, np.minimum(rise, fall)) / area).float()


class SpeechMel(nn.Module):
    """wave (B, L) in [-1, 1], lengths (B,) -> log-mel (B, T, M) float32, lengths (B,).

    T = floor(L / hop) + 1 per utterance; frame t is centred at sample t * hop. Both ends are
    padded with zeros, and whatever lies behind an utterance's length counts as zero, so an
    utterance has the same frames alone and in any padded batch. Frames behind its end are
    silence, `config.silence`. Gradients reach the wave.

    Differs from librosa.feature.melspectrogram(pad_mode="constant", power=1): the logarithm, and
    the floor before it.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: SpeechMelConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpeechMelConfig()
        self.register_buffer("window", torch.hann_window(self.config.window), persistent=False)
        self.register_buffer("filters", mel_filters(self.config), persistent=False)

    def frame_lengths(self, wave_lengths: Tensor) -> Tensor:
        """(B,) samples -> (B,) frames; works for a plain int too."""
        return wave_lengths // self.config.hop + 1

    def spectrum(self, wave: Tensor) -> Tensor:
        """wave (B, L) -> complex (B, T, K), the centred short-time Fourier transform."""
        c = self.config
        with torch.autocast(wave.device.type, enabled=False):
            padded = F.pad(wave.float(), (c.fft // 2, c.fft // 2))
            return torch.stft(
                padded, c.fft, c.hop, c.window, self.window, center=False, return_complex=True
            ).transpose(1, 2)

    def of_magnitude(self, magnitude: Tensor) -> Tensor:
        """magnitude (..., K) -> log-mel (..., M)"""
        with torch.autocast(magnitude.device.type, enabled=False):
            return (magnitude.float() @ self.filters).clamp(min=self.config.floor).log()

    def forward(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, Tensor]:
        if wave.ndim != 2 or wave_lengths.shape != wave.shape[:1]:
            raise ValueError(
                f"wave: found shape {tuple(wave.shape)} with lengths {tuple(wave_lengths.shape)}, "
                "want (B, L) and (B,)"
            )
        wave = wave.masked_fill(padding_mask(wave_lengths, wave.shape[1]), 0)
        spectrum = self.spectrum(wave)
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = self.of_magnitude(power.clamp(min=TINY).sqrt())
        lengths = self.frame_lengths(wave_lengths)
        past = padding_mask(lengths, log_mel.shape[1])[..., None]
        return log_mel.masked_fill(past, self.config.silence), lengths
