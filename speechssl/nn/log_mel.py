"""Log-mel front end: Kaldi's filterbank, normalised per utterance, and strided convolutions.

It costs a small part of the waveform front end, hence the default of CPU-sized recipes.

Shape legend: B utterances, L samples, M mel frames (10 ms), F mel bins, T frames, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask

WINDOW_SAMPLES = 400
SHIFT_SAMPLES = 160
FFT_SIZE = 512
FLOOR = 1e-10
MEAN, DEVIATION = -8.7, 5.3
"""Of `LogMel`'s energies, over 90 recordings of six corpora of speech, silence included."""


def mel_banks(bins: int, low_hz: float = 20.0, sample_rate_hz: int = 16000) -> Tensor:
    """(FFT_SIZE // 2 + 1, bins) triangles, equally wide in mel, from `low_hz` to half the rate.

    Source: Kaldi, `feat/mel-computations.cc`.
    """

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    limits = mel(torch.tensor([low_hz, sample_rate_hz / 2], dtype=torch.float64))
    step = (limits[1] - limits[0]) / (bins + 1)
    centre = limits[0] + step * torch.arange(1, bins + 1, dtype=torch.float64)
    bin_hz = torch.arange(FFT_SIZE // 2 + 1, dtype=torch.float64) * sample_rate_hz / FFT_SIZE
    banks = (1 - (mel(bin_hz)[:, None] - centre).abs() / step).clamp(min=0)
    banks[-1] = 0  # Kaldi leaves the bin of half the sampling rate out
    return banks.float()


class LogMel(nn.Module):
    """wave (B, L) in [-1, 1] -> log mel energies (B, M, F), M = floor((L - 400) / 160) + 1.

    As Kaldi without dither, with snip_edges: each 25 ms window has its mean removed, is
    pre-emphasised by 0.97 and shaped by the "povey" window. Only whole windows are used, so
    valid frames never see padding.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        window = torch.hann_window(WINDOW_SAMPLES, periodic=False).pow(0.85)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("banks", mel_banks(bins), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            frames = wave.float().unfold(1, WINDOW_SAMPLES, SHIFT_SAMPLES)
            frames = frames - frames.mean(-1, keepdim=True)
            previous = torch.cat([frames[..., :1], frames[..., :-1]], -1)
            spectrum = torch.fft.rfft((frames - 0.97 * previous) * self.window, FFT_SIZE)
            power = spectrum.real.square() + spectrum.imag.square()
            return (power @ self.banks).clamp(min=FLOOR).log()


def mel_lengths(wave_lengths: Tensor) -> Tensor:
    """(B,) samples -> (B,) mel frames of an utterance."""
    return (wave_lengths - WINDOW_SAMPLES) // SHIFT_SAMPLES + 1


def normalise_frames(x: Tensor, padding: Tensor | None, masked: Tensor | None = None) -> Tensor:
    """Subtract each channel's mean over valid frames and divide by its deviation: (B, M, F).

    padding: (B, M) bool, True on padding, None if there is none; those frames become 0.
    masked: with padding, (B, M) bool, True on frames that are normalised too but do not count; all
        of an utterance's count where none else is left.
    """
    if padding is None:
        centred = x - x.mean(1, keepdim=True)
        return centred * (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt()
    pad = left_out = padding[..., None]
    if masked is not None:
        left_out = pad | masked[..., None]
        left_out = torch.where(left_out.all(1, keepdim=True), pad, left_out)
    count = (~left_out).sum(1, keepdim=True)
    mean = x.masked_fill(left_out, 0).sum(1, keepdim=True) / count
    centred = x - mean
    variance = centred.masked_fill(left_out, 0).square().sum(1, keepdim=True) / count
    return centred.masked_fill(pad, 0) * (variance + 1e-5).rsqrt()


class SubsamplingLayer(nn.Module):
    """A convolution of stride 2 over frames, a norm over channels or over time, and GELU."""

    def __init__(self, c_in: int, c_out: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, stride=2, padding=kernel // 2)
        self.norm = nn.LayerNorm(c_out)
        self.over_time = norm == "group"

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """x (B, M, C) zero on padding; padding (B, ceil(M / 2)) of the output."""
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        if self.over_time:
            y = normalise_frames(y.float(), padding) * self.norm.weight + self.norm.bias
        else:
            y = self.norm(y)
        y = F.gelu(y)
        return y if padding is None else y.masked_fill(padding[..., None], 0)


class LogMelFrontEnd(nn.Module):
    """wave (B, L), lengths (B,) -> (B, T, C), T = floor((L - 400) / hop) + 1.

    hop_samples: 320 or 640 (or more powers of 2 times 160): one stride-2 convolution for each
        factor of 2 over the filterbank's 160. A frame's own 25 ms window starts at
        t * hop_samples; the convolutions see `kernel // 2` neighbours on each side, zero beyond
        the utterance.
    norm: "layer" over channels, or "group": each channel over the utterance's valid frames.
    mel_norm: "utterance", or "global": fixed mean and deviation held in the buffers `mel_mean`
        and `mel_deviation`, at first `MEAN` and `DEVIATION` of every bin.
    """

    def __init__(
        self, bins: int, channels: int, hop_samples: int, kernel: int, *, norm: str, mel_norm: str
    ) -> None:
        super().__init__()
        steps = round(math.log2(hop_samples / SHIFT_SAMPLES)) if hop_samples > 0 else 0
        if steps < 1 or SHIFT_SAMPLES * 2**steps != hop_samples:
            raise ValueError(
                f"mel_hop_samples: found {hop_samples}, want 160 times a power of 2: 320, 640, ..."
            )
        if kernel % 2 == 0:
            raise ValueError(f"mel_kernel: found {kernel}, want an odd number")
        self.dim = channels
        self.hop_samples = hop_samples
        self.receptive_field_samples = WINDOW_SAMPLES
        self.mel_norm = mel_norm
        self.log_mel = LogMel(bins)
        if mel_norm == "global":
            self.register_buffer("mel_mean", torch.full((bins,), MEAN))
            self.register_buffer("mel_deviation", torch.full((bins,), DEVIATION))
        self.layers = nn.ModuleList(
            SubsamplingLayer(bins if i == 0 else channels, channels, kernel, norm)
            for i in range(steps)
        )

    def forward(self, wave: Tensor, lengths: Tensor, padded: bool) -> Tensor:
        x = self.log_mel(wave)
        frames = mel_lengths(lengths)
        padding = padding_mask(frames, x.shape[1]) if padded else None
        if self.mel_norm == "global":
            x = (x - self.mel_mean) / self.mel_deviation
            x = x if padding is None else x.masked_fill(padding[..., None], 0)
        else:
            x = normalise_frames(x, padding)
        for layer in self.layers:
            frames = (frames + 1) // 2
            padding = padding_mask(frames, (x.shape[1] + 1) // 2) if padded else None
            x = layer(x, padding)
        return x
