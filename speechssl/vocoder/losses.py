"""How far a made wave is from the true one, for each utterance on its own.

Shape legend: B utterances, L samples, T frames, K frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask

QUIET = 1e-8
"""Power added before a logarithm: that of the rounding of 16-bit samples in a short window."""


class SpectrumDistance(nn.Module):
    """Two waves (B, L), 0 behind `lengths` (B,) -> (B,): difference of their spectra.

    The mean over frames and frequencies of the difference of log-magnitudes, plus the sum of the
    differences of magnitudes over the sum of the true ones.

    Source: Yamamoto, Song and Kim 2020 (Parallel WaveGAN), section 2.2, equations 4 to 6.
    Differs: the second term has absolute values where the paper's spectral convergence has squares,
    and the sum in its denominator has a small constant, so that silence has a finite loss.
    """

    window: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.size, self.hop = window, window // 4
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def power(self, wave: Tensor) -> Tensor:
        """(B, L) -> (B, T, K), frames centred at multiples of the hop, zeros beyond the ends."""
        padded = F.pad(wave, (self.size // 2, self.size // 2))
        spectrum = torch.stft(
            padded, self.size, self.hop, window=self.window, center=False, return_complex=True
        ).transpose(1, 2)
        return spectrum.real.square() + spectrum.imag.square()

    def forward(self, made: Tensor, true: Tensor, lengths: Tensor) -> Tensor:
        made, true = self.power(made) + QUIET, self.power(true) + QUIET
        frames = lengths // self.hop + 1
        past = padding_mask(frames, made.shape[1])[..., None]
        logs = (made.log() - true.log()).abs().masked_fill(past, 0).sum((1, 2)) / 2
        linear = (made.sqrt() - true.sqrt()).abs().masked_fill(past, 0).sum((1, 2))
        count = frames * made.shape[2]
        whole = true.sqrt().masked_fill(past, 0).sum((1, 2)) + 0.01 * count
        return logs / count + linear / whole


class SpectraDistance(nn.Module):
    """The mean of `SpectrumDistance` over several windows: (B,)."""

    def __init__(self, windows: list[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(SpectrumDistance(w) for w in windows)

    def forward(self, made: Tensor, true: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(made.device.type, enabled=False):
            return torch.stack([part(made, true, lengths) for part in self.parts]).mean(0)


def mel_distance(made: Tensor, true: Tensor, frames: Tensor) -> Tensor:
    """Log-mels (B, T, M) of `frames` (B,) -> (B,): mean absolute difference."""
    past = padding_mask(frames, made.shape[1])[..., None]
    total = (made - true).abs().masked_fill(past, 0).sum((1, 2))
    return total / (frames * made.shape[2])


def critic_terms(real: list[Tensor], fake: list[Tensor], kind: str) -> Tensor:
    """Scores (B, N) of each discriminator -> (B,): what discriminators minimise, mean over them."""
    if kind == "hinge":
        terms = [F.relu(1 - r).mean(1) + F.relu(1 + f).mean(1) for r, f in zip(real, fake)]
    else:
        terms = [(1 - r).square().mean(1) + f.square().mean(1) for r, f in zip(real, fake)]
    return torch.stack(terms).mean(0)


def deception_terms(fake: list[Tensor], kind: str) -> Tensor:
    """Scores (B, N) of each discriminator -> (B,): what the vocoder minimises, mean over them."""
    if kind == "hinge":
        terms = [F.relu(1 - f).mean(1) for f in fake]
    else:
        terms = [(1 - f).square().mean(1) for f in fake]
    return torch.stack(terms).mean(0)


def matching_terms(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Hidden layers (B, ...) of each discriminator -> (B,): sum over layers of their mean
    difference, mean over discriminators."""
    terms = [
        sum((r.detach() - f).abs().flatten(1).mean(1) for r, f in zip(rs, fs))
        for rs, fs in zip(real, fake)
    ]
    return torch.stack(terms).mean(0)  # pyright: ignore
