"""Log-mel from frames, one after the other: the Taco2-AR model of voice conversion studies.

Convolutions and a BLSTM over the features, then a decoder that reads its own last frame through a
prenet whose dropout is never turned off. In training the true last frame is fed (teacher forcing).
No attention: input and output frames lie at the same times.

Source: Huang et al. 2022 (S3PRL-VC), section 3.2; Shen et al. 2018 (Tacotron 2), section 2.2, for
encoder and prenet; Sak et al. 2014 for LSTMs with projection. Published sizes are those of S3PRL's
configuration for VCC2020.
Differs: layer norm in place of batch norm, so that an utterance's spectrogram does not depend on
its batch; the prenet's dropout is a function of the seed and the frame's number, so that conversion
repeats and teacher forcing equals feedback of the same frames. S3PRL's code does not heed its
projection's 256, but passes on the tanh of another 1024, with dropout in what the cells get back.

Shape legend: B utterances, T mel frames, D input width, F mel bins, M width of the memory.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Encoder, padding_mask
from speechssl.heads.voice_mel import VoiceConfig, VoiceHead
from speechssl.nn.draws import random_uniform

# Of no use to anyone: what it announces is what happens with projections on every CPU.
warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")

PERIOD = 1024
"""Frames after which the draws of the prenet's dropout repeat."""
PRENET = 0x9E7
"""Stream of those draws."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoiceTaco2ArConfig(VoiceConfig):
    conv_dim: int = 512
    """Width of the convolutions (published 512)."""
    conv_layers: int = 3
    """Number of convolutions (published 3)."""
    conv_kernel: int = 5
    """Frames that each sees (published 5)."""
    conv_dropout: float = 0.5
    """Dropout behind each (published 0.5)."""
    blstm_dim: int = 512
    """Width of each direction behind them (published 512)."""
    prenet_dim: int = 256
    """Width of the two layers that the last frame passes (published 256)."""
    prenet_dropout: float = 0.5
    """Dropout behind each, in conversion too (published 0.5)."""
    lstm_dim: int = 1024
    """Width of the decoder's cells (published 1024)."""
    lstm_projection: int = 256
    """Width that its LSTMs are projected to (published 256)."""
    lstm_layers: int = 2
    """Their number (published 2)."""
    lstm_dropout: float = 0.2
    """Dropout behind each, in training (published 0.2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("conv_dropout", "prenet_dropout", "lstm_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 0 to below 1")
        if not 0 < self.lstm_projection < self.lstm_dim:
            raise ValueError(
                f"lstm_projection: found {self.lstm_projection}, want 1 to below lstm_dim, "
                f"{self.lstm_dim}"
            )
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel: found {self.conv_kernel}, want an odd number")

    def build(self, encoder: Encoder) -> VoiceTaco2ArHead:
        return VoiceTaco2ArHead(self, encoder)


class VoiceTaco2ArHead(VoiceHead):
    """The speaker's embedding is added before every convolution and to what the decoder reads."""

    config: VoiceTaco2ArConfig

    def __init__(self, config: VoiceTaco2ArConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.reader = Reader(self.input_dim, config, self.speaker_dim)
        self.decoder = Decoder(2 * config.blstm_dim, config)

    def predict(
        self,
        x: Tensor,
        lengths: Tensor,
        speaker: Tensor | None,
        *,
        teacher: Tensor | None,
        seeds: Tensor,
        start: Tensor | None = None,
    ) -> Tensor:
        memory = self.reader(x, lengths, speaker)
        if teacher is None:
            return self.decoder.generate(memory, seeds, start)
        return self.decoder(memory, teacher, seeds, start)


class Reader(nn.Module):
    """(B, T, D), zero on padding, (B,) -> memory (B, T, M)."""

    def __init__(self, dim: int, config: VoiceTaco2ArConfig, speaker_dim: int) -> None:
        super().__init__()
        width, kernel, count = config.conv_dim, config.conv_kernel, config.conv_layers
        self.input = nn.Linear(dim, width)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(count)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(count))
        self.dropout = nn.Dropout(config.conv_dropout)
        self.blstm = nn.LSTM(width, config.blstm_dim, batch_first=True, bidirectional=True)
        self.speakers = None
        if speaker_dim:
            widths = [width] * count + [2 * config.blstm_dim]
            self.speakers = nn.ModuleList(nn.Linear(speaker_dim, w, bias=False) for w in widths)

    def forward(self, x: Tensor, lengths: Tensor, speaker: Tensor | None) -> Tensor:
        padding = padding_mask(lengths, x.shape[1])[..., None]
        x = self.input(x)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = self._with(x, i, speaker).masked_fill(padding, 0)
            x = self.dropout(F.relu(norm(conv(x.transpose(1, 2)).transpose(1, 2))))
        # Packed, so that the backward direction starts at each utterance's own end.
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = self.blstm(packed)
        out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        return self._with(out, len(self.convs), speaker)

    def _with(self, x: Tensor, place: int, speaker: Tensor | None) -> Tensor:
        if self.speakers is None:
            return x
        assert speaker is not None
        return x + self.speakers[place](speaker)[:, None]


class Decoder(nn.Module):
    """memory (B, T, M) -> frames (B, T, F), each from the memory and the frame before it."""

    def __init__(self, memory_dim: int, config: VoiceTaco2ArConfig) -> None:
        super().__init__()
        self.bins, self.dropout = config.mel.bins, config.prenet_dropout
        width = config.prenet_dim
        self.prenet = nn.ModuleList([nn.Linear(self.bins, width), nn.Linear(width, width)])
        self.lstm = nn.LSTM(
            width + memory_dim,
            config.lstm_dim,
            config.lstm_layers,
            batch_first=True,
            dropout=config.lstm_dropout if config.lstm_layers > 1 else 0.0,
            proj_size=config.lstm_projection,
        )
        self.last_dropout = nn.Dropout(config.lstm_dropout)
        self.output = nn.Linear(config.lstm_projection, self.bins)

    def forward(
        self, memory: Tensor, teacher: Tensor, seeds: Tensor, start: Tensor | None = None
    ) -> Tensor:
        """Frame t from the true frame t - 1, zeros before the first; start as in `predict`."""
        before = F.pad(teacher[:, :-1], (0, 0, 1, 0))
        x = self._prenet(before, self._kept(seeds, memory.shape[1], start))
        out, _ = self.lstm(torch.cat([x, memory], -1))
        return self.output(self.last_dropout(out))

    def generate(self, memory: Tensor, seeds: Tensor, start: Tensor | None = None) -> Tensor:
        """Frame t from the decoder's own frame t - 1."""
        kept = self._kept(seeds, memory.shape[1], start)
        frame = memory.new_zeros(len(memory), 1, self.bins)
        state, found = None, []
        for t in range(memory.shape[1]):
            x = self._prenet(frame, None if kept is None else kept[:, t : t + 1])
            out, state = self.lstm(torch.cat([x, memory[:, t : t + 1]], -1), state)
            frame = self.output(self.last_dropout(out))
            found.append(frame)
        return torch.cat(found, 1)

    def _prenet(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """kept: (B or 1, T, 2, width) bool, which units dropout leaves; None: all."""
        for i, layer in enumerate(self.prenet):
            x = F.relu(layer(x))
            if kept is not None:
                x = x * kept[:, :, i] / (1 - self.dropout)
        return x

    def _kept(self, seeds: Tensor, frames: int, start: Tensor | None) -> Tensor | None:
        if not self.dropout:
            return None
        at = torch.arange(frames, device=seeds.device)
        count = PERIOD if start is not None else min(frames, PERIOD)
        width = self.prenet[0].out_features
        kept = random_uniform(seeds, PRENET, count, 2, width) >= self.dropout
        if start is not None:
            rows = torch.arange(len(start), device=seeds.device) % len(kept)
            return kept[rows[:, None], (start[:, None] + at) % PERIOD]
        return kept if frames == count else kept[:, at % PERIOD]
