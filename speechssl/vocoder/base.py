"""What every trained vocoder is: log-mel in, wave out, in one piece or in overlapping chunks.

Shape legend: B utterances, T frames, M mel bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl.config import VocoderConfig
from speechssl.nn.mel_inverse import checked_mel
from speechssl.nn.speech_mel import SpeechMel, SpeechMelConfig


class Vocoder(nn.Module):
    """log-mel of `mel` -> wave of (T - 1) * hop samples; padding is inert.

    reach: frames on either side of a sample on which it depends. Subclasses set it and `forward`.
    """

    reach: int

    def __init__(self, config: VocoderConfig, mel: SpeechMelConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = SpeechMel(mel)
        self.sample_rate_hz = mel.sample_rate_hz

    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """log_mel (B, T, M), lengths (B,) frames -> (B, (T - 1) * hop), 0 behind each end."""
        raise NotImplementedError

    def normalised(self, log_mel: Tensor, padding: Tensor) -> Tensor:
        """(B, T, M), silence and padding 0, speech about 1 to 3; padding (B, T, 1)."""
        return ((log_mel - self.mel.config.silence) / 4).masked_fill(padding, 0)

    @torch.no_grad()
    def decode(
        self, log_mel: Tensor, lengths: Tensor | None = None, *, chunk_frames: int = 2000
    ) -> Tensor:
        """As `forward`, clipped to [-1, 1]; lengths: (B,) frames, None if all are valid.

        More than `chunk_frames` are decoded in pieces that overlap by `reach`, so that memory does
        not grow with the recording; the wave is the same.
        Raises `ValueError` for another shape, and for values that are not finite.
        """
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames: found {chunk_frames}, want 1 or more")
        log_mel, lengths = checked_mel(log_mel, lengths, self.mel.config)
        hop, last = self.mel.config.hop, log_mel.shape[1] - 1
        wave = log_mel.new_zeros(len(log_mel), last * hop)
        for start in range(0, last, chunk_frames):
            end = min(start + chunk_frames, last)
            low, high = max(start - self.reach, 0), min(end + self.reach, last) + 1
            rows = (lengths > low + 1).nonzero()[:, 0]
            if not len(rows):
                break
            within = (lengths[rows] - low).clamp(max=high - low)
            piece = self(log_mel[rows, low:high], within)
            wave[rows, start * hop : end * hop] = piece[:, (start - low) * hop : (end - low) * hop]
        return wave.clamp(-1, 1)
