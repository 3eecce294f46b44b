"""ContentVec: HuBERT's masked prediction of units without a speaker, from two changed voices.

Source: Qian et al. 2022, "ContentVec: An Improved Self-Supervised Speech Representation by
Disentangling Speakers", section 3; official code auspicious3000/contentvec.

Its three parts, each of which can be left out:
- Labels without speakers: clusters of the features of speech that was converted to one voice. The
  conversion is a step before training, by any program: it writes a recording of the same length
  for each one, and `speechssl cluster apply` on cuts with the same ids and those recordings makes
  the label store that this objective reads; `speechssl convert-voice` writes both. Nothing here
  knows where labels come from.
- Two views of each utterance in different voices (`nn.voice_change`), under one mask; a contrast
  (InfoNCE) at an inner layer pulls the two views of a visible frame together, whose weight grows.
- Layers behind the encoder that are told the speaker, so that the encoder need not know; they
  predict the labels and are not exported. A speaker is a row of a table that is learnt (a label per
  utterance) or a vector made before, such as by `speechssl decode` with a head for speakers.

Differs:
- A speaker's gain is 1 plus a linear map of the vector, from which the norm of an unknown speaker
  is a plain one; the published map starts at ones, and an unknown speaker's output is 0. The norms
  are those of each frame; the published code normalises over the batch too.
- Views are changed in validation too; layers are counted as they are, dropped ones included.
- Layers behind a pre-norm encoder are pre-norm ones with a last norm, and read its normed output.

Without views, contrast and further layers it is HuBERT, to the bit.

Shape legend: B utterances, L samples, T frames, M visible frames, D width, S speaker width.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.contract import IGNORE, Batch, Encoder, EncoderOutput, Loss, padding_mask
from speechssl.nn.contrastive import draw_negatives, info_nce
from speechssl.nn.frame_masks import pack
from speechssl.nn.transformer_layer import TransformerLayer
from speechssl.nn.voice_change import VoiceConfig, change_voices
from speechssl.objectives.hubert import Hubert, HubertConfig, Labels, Logs

_VIEWS, _NEGATIVES = (91, 92), (93, 94)
"""Streams of an utterance's seed, for each view."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContentVecConfig(HubertConfig):
    """As HuBERT, with two views, a contrast between them, and layers that know the speaker."""

    voice: VoiceConfig = dataclasses.field(default_factory=VoiceConfig)
    """How the voices of the views are changed."""
    contrast_layer: int = 7
    """The layer whose visible frames are contrasted, from 1: 7 of 12 Base."""
    contrast_growth: float = 1e-5
    """The contrast's weight grows by this with each update; 0: no contrast."""
    contrast_most: float = 1.0
    """Its largest weight, which the published run reaches at its end."""
    contrast_temperature: float = 0.1
    """Cosines are divided by this."""
    negatives: int = 100
    """Other visible frames of the same view that each is told apart from."""
    speaker_layers: int = 3
    """Layers behind the encoder that know the speaker; 0: none."""
    speaker_heads: int = 12
    """Their attention heads."""
    speaker_ffn_dim: int = 3072
    """Width of their feed-forward blocks."""
    speaker_dropout: float = 0.1
    """Their dropout."""
    speaker_dim: int = 256
    """Width of a speaker's vector; that of speaker_vectors, if they are given."""
    speakers: int = 0
    """Speakers of the table. The target's labels are 0 to speakers - 1; the label `speakers`, or
    none, stands for all others."""
    speaker_target: str = "speakers"
    """Name of that target: a label per utterance."""
    speaker_vectors: str | None = None
    """Instead of a table: folder with embeddings.npy and embeddings.jsonl, as `speechssl decode`
    writes it. Utterances of one speaker share the mean of their vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.speaker_layers > 0 and (self.speakers > 0) == (self.speaker_vectors is not None):
            raise ValueError(
                f"speakers, speaker_vectors: found {self.speakers} and {self.speaker_vectors} with "
                f"{self.speaker_layers} speaker_layers, want one of them: the number of speakers "
                "of a table, or a folder of vectors; or speaker_layers 0"
            )
        if self.contrast_growth < 0 or self.contrast_temperature <= 0 or self.negatives < 1:
            raise ValueError(
                f"found contrast_growth {self.contrast_growth}, contrast_temperature "
                f"{self.contrast_temperature} and negatives {self.negatives}, want 0 or more, more "
                "than 0, and 1 or more"
            )

    def build(self) -> ContentVec:
        return ContentVec(self)


class ContentVec(Hubert):
    """Masked cross entropy of both views behind layers that know the speaker, and a contrast."""

    config: ContentVecConfig

    def __init__(self, config: ContentVecConfig) -> None:
        super().__init__(config)
        encoder = cast(Encoder, self.encoder)
        self.contrasts = config.contrast_growth > 0
        if self.contrasts:
            if not 1 <= config.contrast_layer <= encoder.num_layers:
                raise ValueError(
                    f"contrast_layer: found {config.contrast_layer}, want 1 to {encoder.num_layers}"
                )
            self.inner_layers = (config.contrast_layer,)
            self.project_contrast = nn.Linear(encoder.dim, config.final_dim)
        if config.speaker_layers > 0:
            width = config.speaker_dim
            if config.speaker_vectors is None:
                self.speaker: SpeakerTable | SpeakerVectors = SpeakerTable(config)
            else:
                self.speaker = SpeakerVectors(config.speaker_vectors)
                width = self.speaker.dim
            self.speaker_stack = SpeakerStack(config, encoder, width)

    def forward(self, batch: Batch) -> Loss:
        return super().forward(self.both_views(batch) if self.has_views() else batch)

    def has_views(self) -> bool:
        return self.contrasts or not self.config.voice.touches_nothing()

    def both_views(self, batch: Batch) -> Batch:
        """Twice the utterances: all in one voice, then all in another, with the same seeds.

        Equal seeds make equal masks.
        """
        names = [*self.config.classes, self.config.speaker_target]
        views = [
            change_voices(batch.wave, batch.wave_lengths, batch.seeds, self.config.voice, stream)
            for stream in _VIEWS
        ]
        return dataclasses.replace(
            batch,
            wave=torch.cat(views),
            wave_lengths=batch.wave_lengths.repeat(2),
            targets={k: torch.cat([v, v]) for k, v in batch.targets.items() if k in names},
            views={},
            seeds=batch.seeds.repeat(2),
            ids=batch.ids * 2,
        )

    def encode(self, batch: Batch, mask: Tensor) -> EncoderOutput:
        out = super().encode(batch, mask)
        if self.config.speaker_layers == 0:
            return out
        keep = None
        if int(out.lengths.min()) < mask.shape[1]:
            keep = ~padding_mask(out.lengths, mask.shape[1])
        last = self.speaker_stack(out.last, self.speaker(batch).to(out.last.device), keep)
        return dataclasses.replace(out, hidden=(*out.hidden[:-1], last))

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        """The contrast of both views, which are the two halves of the batch, with its weight."""
        config, half = self.config, len(batch) // 2
        mask, valid = self.frame_mask(batch)
        x = self.project_contrast(out.aligned(config.contrast_layer))
        visible = (valid & ~mask)[:half]
        packed, there = zip(*(pack(view, visible) for view in (x[:half], x[half:])), strict=True)
        counts = visible.sum(1)
        total, hits = x.new_zeros((), dtype=torch.float32), counts.new_zeros(())
        for (one, other), stream in zip((packed, packed[::-1]), _NEGATIVES, strict=True):
            negatives = draw_negatives(
                counts, batch.seeds[:half], config.negatives, packed[0].shape[1], stream
            )
            found = info_nce(one, other, there[0], negatives, config.contrast_temperature)
            total, hits = total + found[0], hits + found[1]
        number = 2 * counts.sum()
        logs["contrast_nats"] = (total.detach(), number)
        logs["contrast_accuracy"] = (hits, number)
        cosines = F.cosine_similarity(packed[0].detach().float(), packed[1].detach().float(), -1)
        logs["view_cosine"] = ((cosines * there[0]).sum(), counts.sum())
        return self.contrast_weight() * total

    def contrast_weight(self) -> Tensor:
        """Of the update that is being made, the first of which is number 1."""
        grown = (self.step + 1).float() * self.config.contrast_growth
        return grown.clamp(max=self.config.contrast_most)


class SpeakerNorm(nn.Module):
    """A layer norm of frames whose gain and bias are those of the utterance's speaker.

    Source: Qian et al. 2022, section 3.4, after Chen et al. 2021 (AdaSpeech).
    """

    def __init__(self, dim: int, speaker_dim: int) -> None:
        super().__init__()
        self.gain = nn.Linear(speaker_dim, dim, bias=False)
        self.shift = nn.Linear(speaker_dim, dim, bias=False)
        for module in (self.gain, self.shift):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor, speaker_BS: Tensor) -> Tensor:
        """(B, T, D), (B, S) -> (B, T, D)."""
        normed = F.layer_norm(x, x.shape[-1:])
        return normed * (1 + self.gain(speaker_BS)[:, None]) + self.shift(speaker_BS)[:, None]


class SpeakerLayer(TransformerLayer):
    """A Transformer layer whose norms know the speaker."""

    def __init__(
        self, dim: int, ffn_dim: int, heads: int, speaker_dim: int, **options: Any
    ) -> None:
        super().__init__(dim, ffn_dim, heads, **options)
        self.attention_norm = SpeakerNorm(dim, speaker_dim)
        self.ffn_norm = SpeakerNorm(dim, speaker_dim)

    def forward(self, x: Tensor, speaker_BS: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.pre_norm:
            attended = self.attention(self.attention_norm(x, speaker_BS), keep)
            x = x + self._drop(attended, self.dropout)
            fed = self._feed_forward(self.ffn_norm(x, speaker_BS))
            return x + self._drop(fed, self.dropout)
        x = x + self._drop(self.attention(x, keep), self.dropout)
        x = self.attention_norm(x, speaker_BS)
        x = x + self._drop(self._feed_forward(x), self.dropout)
        return self.ffn_norm(x, speaker_BS)


class SpeakerStack(nn.Module):
    """Layers that know the speaker: (B, T, D), (B, S) -> (B, T, D)."""

    def __init__(self, config: ContentVecConfig, encoder: Encoder, speaker_dim: int) -> None:
        super().__init__()
        pre_norm = bool(getattr(encoder.config, "pre_norm", False))
        self.layers = nn.ModuleList(
            SpeakerLayer(
                encoder.dim,
                config.speaker_ffn_dim,
                config.speaker_heads,
                speaker_dim,
                pre_norm=pre_norm,
                dropout=config.speaker_dropout,
                attention_dropout=config.speaker_dropout,
            )
            for _ in range(config.speaker_layers)
        )
        self.norm = SpeakerNorm(encoder.dim, speaker_dim) if pre_norm else None
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, speaker_BS: Tensor, keep: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, speaker_BS, keep)
        return x if self.norm is None else self.norm(x, speaker_BS)


class SpeakerTable(nn.Module):
    """A learnt vector for each speaker, by a label per utterance; 0 for all others."""

    def __init__(self, config: ContentVecConfig) -> None:
        super().__init__()
        self.name = config.speaker_target
        self.vectors = nn.Embedding(config.speakers, config.speaker_dim)

    def forward(self, batch: Batch) -> Tensor:
        """(B, S)."""
        count = self.vectors.num_embeddings
        if self.name not in batch.targets:
            raise ValueError(
                f"speakers: found targets {sorted(batch.targets)}, want {self.name!r}; name a "
                f"label store of speakers in data.labels, such as data.labels.{self.name}="
                "exp/speakers, or give speaker_vectors, or set speaker_layers to 0"
            )
        target = batch.targets[self.name]
        if target.ndim != 1:
            raise ValueError(
                f"speakers: found target {self.name!r} of shape {tuple(target.shape)}, want (B,) "
                "labels of utterances"
            )
        if not target.is_cuda and target.numel() and int(target.max()) > count:
            raise ValueError(
                f"speakers: found label {int(target.max())}, want at most {count}, the number of "
                "speakers that the objective was given, which stands for all others"
            )
        known = (target != IGNORE) & (target < count)
        return self.vectors(target * known) * known[:, None]


class SpeakerVectors(nn.Module):
    """Vectors made before, of length 1, by the utterances' ids: no parameters."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        matrix, info = Path(folder) / "embeddings.npy", Path(folder) / "embeddings.jsonl"
        if not (matrix.is_file() and info.is_file()):
            raise ValueError(
                f"speaker_vectors: found no embeddings.npy with embeddings.jsonl in {folder}, want "
                "what `speechssl decode` writes with a head for speakers"
            )
        self.folder = folder
        x = torch.from_numpy(np.load(matrix)).float()
        rows = [json.loads(line) for line in info.read_text(encoding="utf-8").splitlines()]
        if x.ndim != 2 or len(x) != len(rows) or not len(rows):
            raise ValueError(
                f"{matrix}: found shape {tuple(x.shape)}, want ({len(rows)}, width), one row for "
                f"each line of {info.name}, and one at least"
            )
        self.dim = x.shape[1]
        names = [row.get("speaker") or f"\0{row['id']}" for row in rows]
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.row = {row["id"]: place[name] for row, name in zip(rows, names, strict=True)}
        sums = torch.zeros(len(place), self.dim)
        sums.index_add_(0, torch.tensor([place[n] for n in names]), F.normalize(x, dim=-1))
        self.register_buffer("vectors", F.normalize(sums, dim=-1), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """(B, S); zero for a filler."""
        vectors = self.get_buffer("vectors")
        if batch.filler:
            return vectors.new_zeros(len(batch), self.dim)
        absent = [name for name in batch.ids if name not in self.row]
        if absent:
            raise ValueError(
                f"speaker_vectors: found none for {', '.join(absent[:3])} in {self.folder}, want "
                "one for every cut; embed the training and the validation cuts into one folder"
            )
        return vectors[[self.row[name] for name in batch.ids]]
