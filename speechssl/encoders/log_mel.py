"""Log-mel energies as an encoder without parameters: the baseline that learns nothing.

Shape legend: B utterances, L samples, T frames, F mel bins, D = F (1 + deltas).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from speechssl.config import EncoderConfig
from speechssl.contract import Encoder, EncoderOutput, padding_mask
from speechssl.nn.log_mel import SHIFT_SAMPLES, WINDOW_SAMPLES, LogMel, normalise_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMelConfig(EncoderConfig):
    mel_bins: int = 80
    deltas: int = 2
    """Time derivatives beside the energies: 0, 1 or 2."""
    normalise: bool = False
    """Bring each channel to mean 0 and variance 1 over the utterance, as SUPERB does. Means over
    time are then 0 for every utterance, and heads that pool by them learn next to nothing."""

    def __post_init__(self) -> None:
        if self.mel_bins < 1 or self.deltas not in (0, 1, 2):
            raise ValueError(
                f"mel_bins, deltas: found {self.mel_bins}, {self.deltas}, want 1 or more, 0 to 2"
            )

    def build(self) -> LogMelEncoder:
        return LogMelEncoder(self)


class LogMelEncoder(Encoder):
    """wave -> Kaldi's log-mel energies and their deltas, 100 frames per second, as layer 0.

    Source: "FBANK" of Yang et al. 2021 (SUPERB).
    Differs: not normalised per utterance unless asked for; at an utterance's ends deltas repeat its
    own first and last frame.
    """

    config: LogMelConfig
    num_layers = 0
    hop_samples = SHIFT_SAMPLES
    receptive_field_samples = WINDOW_SAMPLES

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.mel_bins * (1 + config.deltas)
        self.log_mel = LogMel(config.mel_bins)

    def forward(
        self,
        wave: Tensor,
        wave_lengths: Tensor,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> EncoderOutput:
        """As `Encoder.forward`; masked frames become 0: there is no learnt mask vector."""
        if layers is not None and (not layers or any(n not in (0, -1) for n in layers)):
            raise ValueError(f"layers: found {list(layers)}, want 0: log-mel has no other layer")
        short = int(wave_lengths.min()) if len(wave_lengths) else WINDOW_SAMPLES
        if short < WINDOW_SAMPLES or int(wave_lengths.max()) > wave.shape[1]:
            raise ValueError(
                f"wave_lengths: found {wave_lengths.tolist()}, want {WINDOW_SAMPLES} (one frame) "
                f"to {wave.shape[1]} samples; drop shorter utterances"
            )
        lengths = self.frame_lengths(wave_lengths)
        wave = wave.masked_fill(padding_mask(wave_lengths, wave.shape[1]), 0)
        x = self.log_mel(wave)
        parts = [x]
        for _ in range(self.config.deltas):
            parts.append(deltas(parts[-1], lengths))
        x = torch.cat(parts, -1)
        padding = padding_mask(lengths, x.shape[1])
        if self.config.normalise:
            x = normalise_frames(x, padding)
        if mask is not None:
            x = x.masked_fill(mask[..., None], 0)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0)
        x = x.masked_fill(padding[..., None], 0)
        numbers = (0,) if layers is None else (0,) * len(layers)
        return EncoderOutput((x,) * len(numbers), numbers, lengths, self.frame_rate_hz)


def deltas(x: Tensor, lengths: Tensor, reach: int = 2) -> Tensor:
    """(B, T, D) -> same: slope of the line fitted over `reach` frames on each side.

    Source: Young et al., The HTK Book, section 5.9; Kaldi, `feat/feature-functions.cc`.
    """
    at = torch.arange(x.shape[1], device=x.device)
    last = (lengths - 1)[:, None]
    total = torch.zeros_like(x)
    for n in range(1, reach + 1):
        ahead = torch.minimum(at + n, last).clamp(max=x.shape[1] - 1)
        behind = torch.minimum((at - n).clamp(min=0), last)
        total = total + n * (_frames(x, ahead) - _frames(x, behind))
    return total / (2 * sum(n * n for n in range(1, reach + 1)))


def _frames(x: Tensor, at: Tensor) -> Tensor:
    """(B, T, D), (B, T) -> (B, T, D): frame at[b, t] of each utterance."""
    return x.gather(1, at[..., None].expand_as(x))
