"""Discriminators of waves: folded by several periods, and spectrograms of several windows.

Shape legend: B utterances, S samples of a segment, N scores.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from speechssl.nn.speech_mel import TINY
from speechssl.vocoder.config import CriticConfig

SLOPE = 0.1


class Critic(nn.Module):
    """Convolutions with leaky rectifiers, of which the last scores each place."""

    layers: nn.ModuleList
    output: nn.Module

    def image(self, wave: Tensor) -> Tensor:
        """(B, S) -> (B, 1, height, width)"""
        raise NotImplementedError

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores (B, N), and the hidden layers."""
        x, hidden = self.image(wave), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            hidden.append(x)
        return self.output(x).flatten(1).float(), hidden


class PeriodCritic(Critic):
    """Sees every `period`-th sample together, and never two of different phases.

    Source: Kong, Kim and Bae 2020 (HiFi-GAN), section 2.3.
    Differs: a segment is padded to whole periods with zeros, not by reflection.
    """

    def __init__(self, period: int, channels: list[int]) -> None:
        super().__init__()
        self.period = period
        sizes = [1, *channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)))
            for a, b in itertools.pairwise(sizes)
        )
        last = sizes[-1]
        self.layers.append(weight_norm(nn.Conv2d(last, last, (5, 1), 1, (2, 0))))
        self.output = weight_norm(nn.Conv2d(last, 1, (3, 1), 1, (1, 0)))

    def image(self, wave: Tensor) -> Tensor:
        wave = F.pad(wave, (0, -wave.shape[1] % self.period))
        return wave.view(len(wave), 1, -1, self.period)


class WindowCritic(Critic):
    """Sees the magnitudes of a short-time spectrum, shifted by a quarter of its window.

    Source: Jang et al. 2021, "UnivNet", section 2.2.
    """

    window: Tensor

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.size = window
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        shapes = [((3, 9), (1, 1)), *[((3, 9), (1, 2))] * 3, ((3, 3), (1, 1))]
        sizes = [1, *[channels] * len(shapes)]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, kernel, stride, (kernel[0] // 2, kernel[1] // 2)))
            for a, b, (kernel, stride) in zip(sizes[:-1], sizes[1:], shapes, strict=True)
        )
        self.output = weight_norm(nn.Conv2d(channels, 1, (3, 3), 1, (1, 1)))

    def image(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            padded = F.pad(wave.float(), (self.size // 2, self.size // 2))
            spectrum = torch.stft(
                padded, self.size, self.size // 4, window=self.window, center=False,
                return_complex=True,
            ).transpose(1, 2)  # fmt: skip
            power = spectrum.real.square() + spectrum.imag.square()
            return power.clamp(min=TINY).sqrt()[:, None]


class Critics(nn.Module):
    """All discriminators of a configuration: (B, S) -> scores and hidden layers of each."""

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleList(PeriodCritic(p, config.period_channels) for p in config.periods)
        self.parts.extend(WindowCritic(w, config.window_channels) for w in config.windows)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        answers = [part(wave) for part in self.parts]
        return [scores for scores, _ in answers], [hidden for _, hidden in answers]
