"""DinoSR: predict which codeword each of an averaged teacher's layers takes for masked frames.

Source: Liu et al. 2023, "DinoSR: Self-Distillation and Online Clustering for Self-supervised
Speech Representation Learning", section 3; its official code on fairseq.

Differs:
- Codebooks move once per update, by the frames of all its micro-batches and ranks (see
  `speechssl.nn.codebook`).
- Statistics of the instance norm are those of valid frames; masked rows are not cut to equal
  counts.

Shape legend: B utterances, T frames, D encoder width, N masked frames, K layers with a codebook,
V codewords of each.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, Loss, Objective
from speechssl.nn import collapse
from speechssl.nn.codebook import OnlineCodebooks
from speechssl.nn.ema import EmaTeacher, linear_then_hold
from speechssl.nn.frame_masks import masked_frames
from speechssl.nn.log_mel import normalise_frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinoSRConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain."""
    target_layers: int = 8
    """K: how many of the teacher's last layers have a codebook."""
    codes: int = 256
    """Codewords of each."""
    codebook_decay: float = 0.9
    """Share that a codeword keeps of its sum at each update in which it is taken."""
    mask_probability: float = 0.8
    """Span starts per frame times the span."""
    mask_span: int = 10
    """Frames per span."""
    mask_min_spans: int = 2
    """Least number of spans of an utterance."""
    ema_start: float = 0.999
    """The teacher's decay at the first update."""
    ema_end: float = 0.9999
    """Its decay from update `ema_steps` on."""
    ema_steps: int = 30_000
    """Updates over which the decay grows, along a line."""
    freeze_step: int = 0
    """From this update on, the teacher and the student's front end no longer change; 0: never."""
    collapse_after: int = 5000
    """Raise from this update on if nearly all frames take the same codeword; 0: never."""
    least_perplexity: float = 1.5
    """Mean perplexity of the codebooks' codes that counts as sound."""

    def build(self) -> DinoSR:
        return DinoSR(self)


class DinoSR(Objective):
    """Cross entropy of K classifiers on the student's last layer."""

    def __init__(self, config: DinoSRConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        dim, layers, books = self.encoder.dim, self.encoder.num_layers, config.target_layers
        if not 1 <= books <= layers:
            raise ValueError(f"target_layers: found {books}, want 1 to {layers}, the encoder's")
        self.head = nn.Linear(dim, books * config.codes)
        self.teacher = EmaTeacher(self.encoder)
        self.codebooks = OnlineCodebooks(books, config.codes, dim, config.codebook_decay)

    def train(self, mode: bool = True) -> DinoSR:
        super().train(mode)
        if self.config.freeze_step > 0:
            self._freeze(int(self.step) + 1 >= self.config.freeze_step)
        return self

    def forward(self, batch: Batch) -> Loss:
        config = self.config
        mask, valid = masked_frames(
            self.encoder,
            batch,
            probability=config.mask_probability,
            span=config.mask_span,
            min_spans=config.mask_min_spans,
        )
        out = self.encoder(batch.wave, batch.wave_lengths, mask=mask, layers=[-1])
        y_KND = self.targets(batch, out.front, ~valid, mask)
        codes_KN = self.codebooks.assign(y_KND)
        if not batch.filler:
            self.codebooks.collect(y_KND, codes_KN)
        logits = self.head(out.last[mask]).float().unflatten(-1, (-1, config.codes))  # (N, K, V)
        total = F.cross_entropy(logits.flatten(0, 1), codes_KN.T.flatten(), reduction="sum")
        total = total / config.target_layers
        count = mask.sum()
        hits = (logits.detach().argmax(-1) == codes_KN.T).sum()
        used = F.one_hot(codes_KN, config.codes).sum(1)
        logs = {
            "loss_nats": (total.detach(), count),
            "masked_accuracy": (hits, count * config.target_layers),
            "code_perplexity": (collapse.perplexity(used).mean() * count, count),
            "masked_fraction": (count, valid.sum()),
        }
        return Loss(total, count, logs)

    def targets(self, batch: Batch, front: Tensor, padding: Tensor, mask: Tensor) -> Tensor:
        """(K, N, D) float32: instance-normed feed-forward outputs of the teacher's last layers."""
        outputs = self.teacher.feed_forward_outputs(
            batch.wave, batch.wave_lengths, front, self.config.target_layers
        )
        return torch.stack([normalise_frames(y.float(), padding)[mask] for y in outputs])

    def ema_decay(self, step: int) -> float:
        """Decay of update number `step`, 1 for the first; 1 once the teacher is frozen."""
        c = self.config
        if 0 < c.freeze_step <= step:
            return 1.0
        return linear_then_hold(c.ema_start, c.ema_end, c.ema_steps, step - 1)

    def after_update(self, step: int) -> None:
        super().after_update(step)
        decay = self.ema_decay(step)
        if decay < 1:
            self.teacher.update(self.encoder, decay)
        taken = self.codebooks.commit()
        if collapse.due(step, self.config.collapse_after):
            found = collapse.perplexity(taken).mean()
            because = "nearly all frames take the same codeword"
            collapse.require("code perplexity", found, self.config.least_perplexity, step, because)

    def _freeze(self, frozen: bool) -> None:
        # Without a gradient the optimiser passes them over, weight decay included.
        for name in ("front", "front_norm", "projection"):
            part: nn.Module = getattr(cast(Any, self.encoder), name)
            part.requires_grad_(not frozen)
