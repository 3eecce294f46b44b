"""From short-time spectra of centred frames back to a wave, the end of each utterance heeded.

Shape legend: B utterances, T frames, K = fft / 2 + 1 frequencies, W window samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask


class InverseStft(nn.Module):
    """spectrum (B, T, K) complex, lengths (B,) frames -> wave (B, (T - 1) * hop).

    Frame t is centred at sample t * hop, as `torch.stft(center=True)` and `SpeechMel.spectrum`
    make it. An utterance of n frames has (n - 1) * hop samples; behind them, the wave is 0, and
    its frames behind n count as absent. Of a true spectrum the result is the wave itself.

    Source: Griffin and Lim 1984, equation 6: the wave whose spectrum is nearest to the given one.
    Differs from torch.istft: lengths for each row of a batch, and a window's sum that is small at
    the ends is no error, since every sample kept lies within hop of a frame's centre.
    """

    window: Tensor

    def __init__(self, fft: int, window: int, hop: int) -> None:
        super().__init__()
        if not 0 < 2 * hop <= window <= fft or window % 2 or fft % 2:
            raise ValueError(
                f"inverse STFT: found fft {fft}, window {window}, hop {hop}, want an even window "
                "of at least 2 hops, and an even fft no shorter than it"
            )
        self.fft, self.size, self.hop = fft, window, hop
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, spectrum: Tensor, lengths: Tensor | None = None) -> Tensor:
        count = spectrum.shape[1]
        with torch.autocast(spectrum.device.type, enabled=False):
            start = (self.fft - self.size) // 2
            frames = torch.fft.irfft(spectrum, self.fft)[..., start : start + self.size]
            frames = frames * self.window
            weights = self.window.square().expand(1, count, -1)
            if lengths is not None:
                past = padding_mask(lengths, count)[..., None]
                frames, weights = frames.masked_fill(past, 0), weights.masked_fill(past, 0)
            wave, total = self._add(frames), self._add(weights)
            wave = wave / total.clamp(min=1e-4)
        if lengths is None:
            return wave
        return wave.masked_fill(padding_mask((lengths - 1) * self.hop, wave.shape[1]), 0)

    def _add(self, frames: Tensor) -> Tensor:
        """(B, T, W) -> (B, (T - 1) * hop): overlapping frames added up, from the first's centre."""
        batch, count, _ = frames.shape
        whole = (count - 1) * self.hop + self.size
        folded = F.fold(
            frames.transpose(1, 2), (1, whole), (1, self.size), stride=(1, self.hop)
        ).view(batch, whole)
        return folded[:, self.size // 2 : self.size // 2 + (count - 1) * self.hop]
