"""Vectors of utterances that several views of them agree on, learnt without labels.

The views are the parts of the encoder (`encoders.fusion`), such as a pretrained model and log-mel,
as `speechssl finetune --fuse` puts them together. Each has a small network of its own; of each pair
of views, the vectors of one utterance are drawn together and those of different ones apart.
`speechssl decode` then writes the views' vectors side by side, for a classifier of few labels.

Source: Khaertdinov et al. 2024, "Exploring Self-Supervised Multi-view Contrastive Learning for
Speech Emotion Recognition with Limited Annotations": views of wav2vec 2.0 features, mel spectra and
eGeMAPS, a small encoder for each, NT-Xent summed over the pairs of views.

Ours by choice, since we do not know theirs: the networks' shape, the projection behind them that
the loss reads (as in SimCLR), and the temperature. What is projected is brought to mean 0 and
variance 1 over the micro-batch: what all utterances share is most of a vector at first, and the
loss then stays for long where nothing is told apart (measured). Of eGeMAPS there is no view:
openSMILE computes it. The negatives are the other utterances of the micro-batch, so the loss,
unlike others, depends on how an update is cut: take data.max_batch_seconds as large as memory
allows.

Shape legend: B utterances, L samples, T frames, V views, E width of a view's vector.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import Batch, Encoder, Loss, padding_mask
from speechssl.heads.frames import FramesHead
from speechssl.heads.pooling import mean_and_deviation
from speechssl.heads.utterance import UtteranceConfig
from speechssl.nn.contrastive import nt_xent


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiviewConfig(UtteranceConfig):
    needs_classes: ClassVar[bool] = False
    field: str = "emotion"
    """Field of the manifest that decoding notes beside each utterance's vectors."""
    hidden_dim: int = 128
    """Width of each view's network."""
    kernel: int = 5
    """Frames that its two convolutions span; odd."""
    view_dim: int = 128
    """E: width of each view's vector."""
    projection_dim: int = 64
    """Width of what the loss compares, a projection of the vectors."""
    dropout: float = 0.1
    """Dropout inside the networks."""
    temperature: float = 0.1
    """Of the cosines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden_dim", "view_dim", "projection_dim", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, want more than 0")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel: found {self.kernel}, want an odd number of frames")
        if self.layer is None and self.interface != "sum":
            raise ValueError(
                f"interface: found {self.interface}, want sum: the others mix the views"
            )

    def build(self, encoder: Encoder) -> MultiviewHead:
        return MultiviewHead(self, encoder)


class ViewNetwork(nn.Module):
    """Two convolutions over the frames, and statistics over all of them: (B, T, D) -> (B, E)."""

    def __init__(self, dim: int, config: MultiviewConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, hidden)
        self.convs = nn.ModuleList(
            nn.Conv1d(hidden, hidden, config.kernel, padding=config.kernel // 2) for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.outer = nn.Linear(2 * hidden, config.view_dim)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = padding_mask(lengths, x.shape[1])[..., None]
        x = F.gelu(self.inner(self.norm(x)))
        for conv in self.convs:
            x = self.dropout(x).masked_fill(padding, 0)
            x = x + F.gelu(conv(x.transpose(1, 2)).transpose(1, 2))
        return self.outer(self.dropout(mean_and_deviation(x, lengths)))


class MultiviewHead(FramesHead):
    """A network for each part of the encoder, and the contrast between them."""

    config: MultiviewConfig

    def __init__(self, config: MultiviewConfig, encoder: Encoder) -> None:
        if len(encoder.part_dims) < 2:
            raise ValueError(
                f"encoder: found a {type(encoder).__name__}, want one of two parts or more, each a "
                "view: name another with --fuse, such as a YAML file of log-mel"
            )
        super().__init__(config, encoder)
        self.widths = encoder.part_dims
        self.views = nn.ModuleList(ViewNetwork(width, config) for width in self.widths)
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.view_dim, config.view_dim),
                nn.GELU(),
                nn.Linear(config.view_dim, config.projection_dim, bias=False),
            )
            for _ in self.widths
        )

    def forward(self, batch: Batch) -> Loss:
        """NT-Xent, a sum over utterances and pairs of views."""
        vectors = self.vectors(batch.wave, batch.wave_lengths)
        projected = [
            _standardised(project(vector))
            for project, vector in zip(self.projections, vectors, strict=True)
        ]
        total, hits = nt_xent(projected, self.config.temperature)
        pairs = len(vectors) * (len(vectors) - 1) // 2
        count = torch.tensor(len(batch) * pairs, device=total.device)
        others = torch.tensor(len(batch) * (len(batch) - 1), device=total.device)
        utterances = torch.tensor(len(batch), device=total.device)
        logs = {
            "nats": (total.detach(), count),
            "accuracy": (hits, count),
            "negatives": (others, utterances),
        }
        return Loss(total, count, logs)

    def vectors(self, wave: Tensor, wave_lengths: Tensor) -> list[Tensor]:
        """(B, L) and (B,) samples -> (B, E) float32 of each view."""
        x, lengths = self.frames(wave, wave_lengths)
        parts = x.split(self.widths, -1)
        return [view(part, lengths).float() for view, part in zip(self.views, parts, strict=True)]

    def embed(self, wave: Tensor, wave_lengths: Tensor) -> Tensor:
        """(B, L) and (B,) samples -> (B, V E) float32: the views' vectors side by side."""
        return torch.cat(self.vectors(wave, wave_lengths), -1)


def _standardised(x: Tensor) -> Tensor:
    """(B, F): each channel to mean 0 and variance 1 over the batch. A single row becomes 0."""
    centred = x.float() - x.float().mean(0)
    return centred * (centred.square().mean(0) + 1e-6).rsqrt()
