"""A small padding-proof encoder and synthetic batches, so that objectives are tested alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechssl.config import EncoderConfig
from speechssl.contract import IGNORE, Batch, Encoder, EncoderOutput

VOCABULARY = 5
"""Tokens of transcripts, the blank included."""
TOPICS = 4
"""Topics of utterances."""
SPEAKERS = 3
"""Speakers of utterances."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FakeConfig(EncoderConfig):
    dim: int = 32
    num_layers: int = 2

    def build(self) -> FakeEncoder:
        return FakeEncoder(self)


class FakeEncoder(Encoder):
    """One convolution per 320 samples, then causal layers, so that padding at the end is inert."""

    def __init__(self, config: FakeConfig) -> None:
        super().__init__()
        self.config = config
        self.dim, self.num_layers, self.hop_samples = config.dim, config.num_layers, 320
        self.front = nn.Conv1d(1, config.dim, 400, stride=320)
        self.mask_vector = nn.Parameter(torch.rand(config.dim))
        self.layers = nn.ModuleList(
            nn.GRU(config.dim, config.dim, batch_first=True) for _ in range(config.num_layers)
        )

    def forward(
        self,
        wave: Tensor,
        wave_lengths: Tensor,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> EncoderOutput:
        front = self.front(wave[:, None]).transpose(1, 2)
        x = front
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_vector, x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0.0)
        hidden = [x]
        for layer in self.layers:
            x = x + layer(x)[0]
            hidden.append(x)
        numbers = range(len(hidden)) if layers is None else [i % len(hidden) for i in layers]
        return EncoderOutput(
            tuple(hidden[i] for i in numbers),
            tuple(numbers),
            self.frame_lengths(wave_lengths),
            self.frame_rate_hz,
            front,
        )


def make_batch(
    encoder: Encoder,
    seconds: Sequence[float],
    classes: dict[str, int],
    *,
    seed: int = 0,
    views: Sequence[str] = (),
) -> Batch:
    """Noise utterances with random labels, three tokens, a topic and a speaker each; utterance i is
    the same whatever stands beside it. Views have other noise on top."""
    waves, labels, text, topics, speakers = [], {name: [] for name in classes}, [], [], []
    corrupted = []
    for i, s in enumerate(seconds):
        random = torch.Generator().manual_seed(seed + i)
        waves.append(torch.randn(int(s * 16000), generator=random))
        other = torch.Generator().manual_seed(seed + i + 10**6)
        corrupted.append(waves[-1] + 0.5 * torch.randn(len(waves[-1]), generator=other))
        frames = int(encoder.frame_lengths(torch.tensor([len(waves[-1])])))
        for name, k in classes.items():
            labels[name].append(torch.randint(k, (frames,), generator=random))
        text.append(torch.randint(1, VOCABULARY, (3,), generator=random))
        topics.append(torch.randint(TOPICS, (), generator=random))
        speakers.append(torch.randint(SPEAKERS, (), generator=random))
    lengths = torch.tensor([len(w) for w in waves])
    wave = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    targets = {
        k: nn.utils.rnn.pad_sequence(v, batch_first=True, padding_value=IGNORE)
        for k, v in labels.items()
    }
    targets |= {"text": torch.cat(text), "text_lengths": torch.tensor([len(t) for t in text])}
    targets |= {"topics": torch.stack(topics), "speakers": torch.stack(speakers)}
    return Batch(
        wave=wave,
        wave_lengths=lengths,
        targets=targets,
        views=dict.fromkeys(views, nn.utils.rnn.pad_sequence(corrupted, batch_first=True)),
        seeds=torch.arange(len(waves)) + seed,
        ids=tuple(f"u{seed + i}" for i in range(len(waves))),
    )


def some(batch: Batch, rows: Sequence[int]) -> Batch:
    """Utterances `rows`, with no more padding than they need."""
    longest = int(batch.wave_lengths[rows].max())
    frames = (longest - 400) // 320 + 1
    targets = {
        k: v[rows] if v.ndim == 1 else v[rows, :frames]
        for k, v in batch.targets.items()
        if not k.startswith("text")
    }
    texts = batch.targets["text"].split(batch.targets["text_lengths"].tolist())
    targets["text"] = torch.cat([texts[r] for r in rows])
    targets["text_lengths"] = batch.targets["text_lengths"][rows]
    return Batch(
        wave=batch.wave[rows, :longest],
        wave_lengths=batch.wave_lengths[rows],
        targets=targets,
        views={k: v[rows, :longest] for k, v in batch.views.items()},
        seeds=batch.seeds[rows],
        ids=tuple(batch.ids[r] for r in rows),
    )


def one(batch: Batch, i: int) -> Batch:
    """Utterance i alone, without padding."""
    return some(batch, [i])
