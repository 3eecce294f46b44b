"""vq-wav2vec: tell the quantised frames that follow from others, by what was heard before.

Source: Baevski, Schneider and Auli 2020, "vq-wav2vec: Self-Supervised Learning of Discrete Speech
Representations", sections 2 and 3; fairseq `models/wav2vec/wav2vec.py`. Its units are what
`speechssl.objectives.discrete_bert` reads.

Differs:
- The quantiser is the encoder's: `quantiser: gumbel` or `kmeans`. The diversity of Gumbel's codes
  may be part of the loss (see `wav2vec2`); published without.
- Negatives are other frames of the utterance than the one to tell; noise and negatives are drawn
  per utterance. The loss is a mean over told frames of all steps.

Shape legend: B utterances, T frames, D width, K steps ahead, N valid frames of all utterances,
M negatives, G groups, V codes per group.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, Loss, Objective
from speechssl.encoders.vq_conv import VqConvEncoder, joint_code
from speechssl.nn import collapse
from speechssl.nn.contrastive import draw_negatives
from speechssl.nn.draws import random_gumbel
from speechssl.nn.gumbel import CodeUsage, Quantised, annealed
from speechssl.nn.update_sums import UpdateSums

_NOISE, _NEGATIVES = 91, 92
"""Streams of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VqWav2vecConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain: speechssl.encoders.vq_conv.VqConvConfig."""
    steps: int = 8
    """K: frames ahead that are told, each by its own map of the context: 8 in the paper, 12 in the
    official recipe."""
    negatives: int = 10
    """Other frames that each is told from."""
    gumbel_start: float = 2.0
    """Temperature of the Gumbel softmax at the first update."""
    gumbel_end: float = 0.5
    """Its least."""
    gumbel_factor: float = 0.999995
    """Its factor per update."""
    diversity_weight: float = 0.0
    """Weight of the share of codes that are not used (Gumbel's only)."""
    kmeans_weight: float = 1.0
    """kmeans: weight of a frame's mean square distance from its codewords, which draws these."""
    commitment: float = 0.25
    """kmeans: gamma, how much of that distance draws the frame instead."""
    count_decay: float = 0.99
    """What remains in each update of earlier counts of combinations: these make the vocabulary."""
    collapse_after: int = 5000
    """Raise from this update on if nearly all frames take the same codes; 0: never."""
    least_perplexity: float = 1.5
    """Mean perplexity of a codebook's codes that counts as sound."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: found {self.steps}, want at least 1")

    def build(self) -> VqWav2vec:
        return VqWav2vec(self)


class VqWav2vec(Objective):
    """Binary cross entropy of products between contexts and codewords, ahead and elsewhere."""

    def __init__(self, config: VqWav2vecConfig) -> None:
        super().__init__()
        self.config = config
        encoder = config.encoder.build()
        if not isinstance(encoder, VqConvEncoder):
            raise ValueError(
                f"encoder: found {type(encoder).__name__}, want that of "
                "speechssl.encoders.vq_conv.VqConvConfig, which has the quantiser"
            )
        self.encoder = encoder
        if encoder.config.quantiser == "kmeans" and config.diversity_weight:
            raise ValueError(
                f"diversity_weight: found {config.diversity_weight}, want 0 with the encoder's "
                "quantiser kmeans, whose codes have no probabilities that could learn"
            )
        shape = encoder.config.groups, encoder.config.codes
        self.predict = nn.Linear(encoder.dim, encoder.dim * config.steps)
        self.usage = CodeUsage(*shape)
        self.sums = UpdateSums(
            probabilities=shape, codes=shape, pairs=encoder.pair_counts.shape, count=()
        )
        encoder.mask_emb.requires_grad_(False)

    def forward(self, batch: Batch) -> Loss:
        config, encoder = self.config, cast(VqConvEncoder, self.encoder)
        out = encoder(batch.wave, batch.wave_lengths, layers=[0])
        valid = ~out.padding_mask
        found = self.quantise(encoder.front_norm(out.front), valid, batch)
        words_BTD = out.last.new_zeros(out.last.shape, dtype=torch.float32)
        words_BTD[valid] = found.vectors
        context_BTD = encoder.context(words_BTD)
        contrast, hits, count = self.contrast(context_BTD, words_BTD, out.lengths, batch)
        frames = valid.sum()
        diversity = self.usage(found.probabilities)
        # The count is one of frames and steps.
        total = contrast + config.diversity_weight * config.steps * diversity
        codes = encoder.config.codes
        used = F.one_hot(found.codes, codes).sum(0)
        if not batch.filler:
            pairs = torch.bincount(
                joint_code(found.codes, codes), minlength=len(encoder.pair_counts)
            )
            self.sums.add(
                probabilities=found.probabilities.sum(0), codes=used, pairs=pairs, count=frames
            )
        logs = {
            "contrast_nats": (contrast.detach(), count),
            "contrast_accuracy": (hits, count),
            "diversity": (diversity.detach(), frames),
            "code_perplexity": (collapse.perplexity(used).sum() * count, count),
        }
        if found.distances is None:
            logs["gumbel_temperature"] = (self.gumbel_temperature() * count, count)
        else:
            codewords, drawn = found.distances.sum(1)
            penalty = codewords + config.commitment * drawn
            total = total + config.kmeans_weight * config.steps * penalty
            logs["kmeans_distance"] = (codewords.detach(), frames)
        return Loss(total, count, logs)

    def quantise(self, x_BTC: Tensor, valid: Tensor, batch: Batch) -> Quantised:
        """Codes of the N valid frames."""
        encoder, noise = cast(VqConvEncoder, self.encoder), None
        if self.training and encoder.config.quantiser == "gumbel":
            size = (valid.shape[1], encoder.config.groups, encoder.config.codes)
            noise = random_gumbel(batch.seeds.to(valid.device), _NOISE, *size)[valid]
        return encoder.projection.sample(x_BTC[valid], self.gumbel_temperature(), noise)

    def contrast(
        self, context_BTD: Tensor, words_BTD: Tensor, lengths: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the cross entropies, hits, and frames told over all steps."""
        config, size = self.config, words_BTD.shape[1]
        negatives_BTM = draw_negatives(lengths, batch.seeds, config.negatives, size, _NEGATIVES)
        guesses = self.predict(context_BTD).unflatten(-1, (config.steps, -1))
        place = torch.arange(size, device=lengths.device)
        loss, hits, count = words_BTD.new_zeros(()), lengths.new_zeros(()), lengths.new_zeros(())
        for step in range(1, min(config.steps, size - 1) + 1):
            told = (place >= step) & (place < lengths[:, None])
            with torch.autocast(words_BTD.device.type, enabled=False):
                guess_BTD = F.pad(guesses[:, : size - step, step - 1].float(), (0, 0, step, 0))
                products = guess_BTD @ words_BTD.transpose(1, 2)  # (B, T, T)
                positive = products.diagonal(dim1=1, dim2=2)[told]
                negative = products.gather(2, negatives_BTM)[told]
                loss = loss + F.softplus(-positive).sum() + F.softplus(negative).sum()
            hits = hits + (positive[:, None] > negative).all(1).sum()
            count = count + told.sum()
        return loss, hits, count

    def gumbel_temperature(self) -> Tensor:
        """Temperature of this update."""
        c = self.config
        return annealed(c.gumbel_start, c.gumbel_end, c.gumbel_factor, self.step)

    def after_update(self, step: int) -> None:
        super().after_update(step)
        sums = self.sums.take()
        self.usage.update(sums["probabilities"], sums["count"])
        counts = cast(VqConvEncoder, self.encoder).pair_counts
        counts.mul_(self.config.count_decay).add_(sums["pairs"])
        # What is left of one frame after some hundred updates is no unit any more.
        counts.masked_fill_(counts < 0.01, 0)
        if collapse.due(step, self.config.collapse_after):
            found = collapse.perplexity(sums["codes"]).mean()
            because = "nearly all frames take the same codes"
            collapse.require("code perplexity", found, self.config.least_perplexity, step, because)
