"""A trained vocoder's phases, made consistent with the mel by some iterations of Griffin-Lim.

For vocoders of short training: they know phases better than chance, while their magnitudes are
not yet as near to the mel as the mel's own inverse.

Shape legend: B utterances, T frames, M mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.nn.mel_inverse import GriffinLim
from speechssl.vocoder.base import Vocoder


class RefinedVocoder(nn.Module):
    """`vocoder.decode`, and `iterations` of `GriffinLim` from there."""

    def __init__(self, vocoder: Vocoder, iterations: int) -> None:
        super().__init__()
        self.vocoder = vocoder
        self.mel = vocoder.mel
        self.griffin_lim = GriffinLim(vocoder.mel.config, iterations=iterations)

    @torch.no_grad()
    def decode(self, log_mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log_mel (B, T, M), lengths (B,) frames -> wave (B, (T - 1) * hop) in [-1, 1]."""
        wave = self.vocoder.decode(log_mel, lengths)
        return self.griffin_lim.decode(log_mel, lengths, wave)
