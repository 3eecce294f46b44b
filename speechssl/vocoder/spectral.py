"""A vocoder that predicts the spectrum of each frame, and lets an inverse STFT make the wave.

Source: Siuzdak 2023, "Vocos: Closing the gap between time-domain and Fourier-based neural vocoders
for high-quality audio synthesis", section 3.
Differs: log-magnitudes are predicted relative to the envelope that the mel itself tells
(`spread_bands`), so that loudness and silence need not be learnt; they are limited, before the
exponential, to twice a full-scale tone's, where the official code cuts magnitudes at 100; phases
begin as those of a pulse in the middle of the window, not at its start, where the window is 0.

Shape legend: B utterances, T frames, M mel bins, D width, K = fft / 2 + 1 frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from speechssl.contract import padding_mask
from speechssl.nn.convnext import ConvNext
from speechssl.nn.inverse_stft import InverseStft
from speechssl.nn.linear import Linear
from speechssl.nn.mel_inverse import spread_bands
from speechssl.nn.speech_mel import SpeechMelConfig
from speechssl.vocoder.base import Vocoder
from speechssl.vocoder.config import SpectralConfig


class SpectralVocoder(Vocoder):
    config: SpectralConfig
    spread: Tensor
    offset: Tensor

    def __init__(self, config: SpectralConfig, mel: SpeechMelConfig) -> None:
        super().__init__(config, mel)
        self.backbone = ConvNext(
            mel.bins, config.dim, config.hidden_dim, config.blocks, config.kernel
        )
        bins = config.fft // 2 + 1
        self.head = Linear(config.dim, 2 * bins)
        self.istft = InverseStft(config.fft, config.fft, mel.hop)
        spread, offset = spread_bands(mel, config.fft)
        # A tone's magnitude grows with the window, half the sum of its samples.
        self.register_buffer("spread", spread, persistent=False)
        self.register_buffer("offset", offset + math.log(config.fft / mel.window), persistent=False)
        with torch.no_grad():
            self.head.bias[:bins] = 0
            self.head.bias[bins:] = math.pi * (torch.arange(bins) % 2)
        self.highest = math.log(config.fft / 2)
        self.reach = self.backbone.reach + math.ceil(config.fft / 2 / mel.hop)

    def spectrum(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, M) -> complex (B, T, K)"""
        padding = padding_mask(lengths, log_mel.shape[1])[..., None]
        hidden = self.backbone(self.normalised(log_mel, padding), padding)
        louder, phase = self.head(hidden).to(log_mel.dtype).chunk(2, -1)
        with torch.autocast(log_mel.device.type, enabled=False):
            envelope = log_mel.masked_fill(padding, self.mel.config.silence) @ self.spread
            level = (envelope + self.offset + louder).clamp(max=self.highest)
            return torch.polar(level.exp(), phase)

    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        return self.istft(self.spectrum(log_mel, lengths), lengths)
