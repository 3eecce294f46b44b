"""Options of vocoders and of their training. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from speechssl.config import VocoderConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralConfig(VocoderConfig):
    """ConvNeXt over frames that predicts each frame's spectrum: the choice for CPUs."""

    dim: int = 192
    """Width of the blocks."""
    hidden_dim: int = 576
    """Width within the blocks."""
    blocks: int = 6
    """Number of blocks."""
    kernel: int = 7
    """Frames that each convolution sees."""
    fft: int = 640
    """Samples of the frames that are put out, window and Fourier transform alike; even, at least
    twice the mel's hop, and four times it as in Vocos."""

    def build(self, mel: Any) -> Any:
        from speechssl.vocoder.spectral import SpectralVocoder

        return SpectralVocoder(self, mel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HifiganConfig(VocoderConfig):
    """HiFi-GAN's generator, in its size V2: samples by transposed convolutions, for GPUs."""

    channels: int = 128
    """Channels before the first upsampling; each halves them (V1 512, V2 128)."""
    rates: list[int] = dataclasses.field(default_factory=lambda: [5, 4, 4, 2])
    """Factors of upsampling, whose product is the mel's hop."""
    kernels: list[int] = dataclasses.field(default_factory=lambda: [3, 7, 11])
    """Kernels of the residual blocks behind each upsampling."""
    dilations: list[int] = dataclasses.field(default_factory=lambda: [1, 3, 5])
    """Dilations of the convolutions within each residual block."""

    def build(self, mel: Any) -> Any:
        from speechssl.vocoder.hifigan import HifiganVocoder

        return HifiganVocoder(self, mel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How a vocoder's wave is compared with the true one."""

    mel_weight: float = 1.0
    """Weight of the mean difference of log-mels."""
    stft_weight: float = 1.0
    """Weight of the differences of spectra, mean over `windows`."""
    windows: list[int] = dataclasses.field(default_factory=lambda: [160, 320, 640, 1280])
    """Window lengths in samples, each shifted by a quarter of itself."""
    gain_db: tuple[float, float] = (-12.0, 6.0)
    """In training each utterance is made louder by a gain drawn from this range, in dB, without
    clipping; (0, 0): never."""

    def __post_init__(self) -> None:
        if any(w < 16 or w % 4 for w in self.windows):
            raise ValueError(
                f"loss.windows: found {self.windows}, want multiples of 4 from 16 samples up"
            )
        weights = (self.mel_weight, self.stft_weight if self.windows else 0.0)
        if min(self.mel_weight, self.stft_weight) < 0 or not any(weights):
            raise ValueError(
                f"loss.mel_weight, stft_weight: found {self.mel_weight}, {self.stft_weight} with "
                f"{len(self.windows)} windows, want 0 or more, and one term above 0"
            )
        if self.gain_db[0] > self.gain_db[1]:
            raise ValueError(f"loss.gain_db: found {self.gain_db}, want (low, high)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Discriminators of waves folded by periods and of spectrograms, and their terms' weights."""

    periods: list[int] = dataclasses.field(default_factory=lambda: [2, 3, 5, 7, 11])
    """Periods in samples by which a wave is folded, one discriminator for each."""
    period_channels: list[int] = dataclasses.field(default_factory=lambda: [32, 128, 512, 1024])
    """Channels of their strided layers (HiFi-GAN's; [8, 16, 32, 64] for a CPU)."""
    windows: list[int] = dataclasses.field(default_factory=lambda: [320, 640, 1280])
    """Windows in samples of the spectrograms, one discriminator for each."""
    window_channels: int = 32
    """Their channels (UnivNet's; 8 for a CPU)."""
    kind: Literal["hinge", "least_squares"] = "hinge"
    """Loss of the scores (Vocos hinge; HiFi-GAN least_squares)."""
    segment_seconds: float = 0.5
    """Length of the random part of each utterance that is judged; shorter ones are padded."""
    adversarial_weight: float = 0.1
    """Weight, in the vocoder's loss, of the mean score."""
    matching_weight: float = 0.2
    """Weight of the mean difference of the discriminators' hidden layers."""

    def __post_init__(self) -> None:
        if not self.periods and not self.windows:
            raise ValueError("critic.periods, windows: found none of either, want at least one")
        if any(p < 1 for p in self.periods) or any(w < 16 or w % 4 for w in self.windows):
            raise ValueError(
                f"critic.periods, windows: found {self.periods}, {self.windows}, want periods of 1 "
                "or more, and windows that are multiples of 4 from 16 samples up"
            )
        if not self.period_channels or min(*self.period_channels, self.window_channels) < 1:
            raise ValueError(
                f"critic.period_channels, window_channels: found {self.period_channels}, "
                f"{self.window_channels}, want 1 or more of each"
            )
        if self.segment_seconds <= 0:
            raise ValueError(
                f"critic.segment_seconds: found {self.segment_seconds}, want more than 0"
            )
        if min(self.adversarial_weight, self.matching_weight) < 0:
            raise ValueError(
                f"critic.adversarial_weight, matching_weight: found {self.adversarial_weight}, "
                f"{self.matching_weight}, want 0 or more"
            )
