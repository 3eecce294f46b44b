"""wav2vec 2.0: tell a masked frame's own quantised features from those of other masked frames.

Source: Baevski et al. 2020, "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech
Representations", sections 2 and 3; fairseq `models/wav2vec/wav2vec2.py`.

Differs:
- The diversity term looks at the codes of a whole update, one update late, so that it is a sum
  over frames (see `speechssl.nn.gumbel.CodeUsage`); the reference takes each rank's batch.
- A negative equals the positive if its codes do; the reference compares rounded vectors.
- The feature penalty weighs each utterance by its own masked count, as HuBERT's here.
- Masked rows are not cut to equal counts; Gumbel noise and negatives are drawn per utterance.

Shape legend: B utterances, T frames, C front-end channels, D encoder width, M packed masked
frames, N masked frames of all utterances, G groups, V codes per group, F final width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, EncoderOutput, Loss, Objective
from speechssl.nn import collapse
from speechssl.nn.contrastive import draw_negatives, info_nce
from speechssl.nn.draws import random_gumbel
from speechssl.nn.frame_masks import masked_frames, pack
from speechssl.nn.gumbel import CodeUsage, GumbelQuantiser, Quantised, annealed
from speechssl.nn.update_sums import UpdateSums
from speechssl.objectives.hubert import Logs, feature_penalty

_NOISE, _NEGATIVES = 11, 12
"""Streams of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2vec2Config(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain."""
    final_dim: int = 256
    """Width in which context and targets are compared: 256 Base, 768 Large."""
    groups: int = 2
    """Codebooks."""
    codes: int = 320
    """Codewords in each."""
    negatives: int = 100
    """Other masked frames that each is compared with."""
    temperature: float = 0.1
    """Cosines are divided by this."""
    gumbel_start: float = 2.0
    """Temperature of the Gumbel softmax at the first update."""
    gumbel_end: float = 0.5
    """Its least: 0.5 Base, 0.1 Large."""
    gumbel_factor: float = 0.999995
    """Its factor per update."""
    quantiser_dropout: float = 0.1
    """Dropout of the quantiser's input: 0.1 Base, 0 Large."""
    diversity_weight: float = 0.1
    """Weight of the share of codes that are not used."""
    feature_penalty: float = 10.0
    """Weight of the mean square of the front end's output: 10 Base, 0 Large."""
    mask_probability: float = 0.65
    """Span starts per frame times the span."""
    mask_span: int = 10
    """Frames per span."""
    mask_min_spans: int = 2
    """Least number of spans of an utterance."""
    collapse_after: int = 5000
    """Raise from this update on if nearly all frames take the same codes; 0: never."""
    least_perplexity: float = 1.5
    """Mean perplexity of a codebook's codes that counts as sound."""
    chance_after: int = 20_000
    """Raise from this update on if contexts tell frames no better than by chance; 0: never."""
    least_gain: float = 0.05
    """Nats by which the contrast must lie below those of chance."""

    def build(self) -> Wav2vec2:
        return Wav2vec2(self)


class Wav2vec2(Objective):
    """InfoNCE over quantised features of the same utterance, with diversity of codes."""

    def __init__(self, config: Wav2vec2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.context_layer = self.encoder.num_layers
        channels = cast(Any, self.encoder).front_norm.normalized_shape[0]
        width, groups, codes = config.final_dim, config.groups, config.codes
        self.quantiser = GumbelQuantiser(channels, groups, codes, width)
        self.project_target = nn.Linear(width, width)
        self.project_context = nn.Linear(self.encoder.dim, width)
        self.usage = CodeUsage(groups, codes)
        shape = groups, codes
        self.sums = UpdateSums(probabilities=shape, codes=shape, contrast=(), count=())

    def forward(self, batch: Batch) -> Loss:
        config = self.config
        mask, valid = masked_frames(
            self.encoder,
            batch,
            probability=config.mask_probability,
            span=config.mask_span,
            min_spans=config.mask_min_spans,
        )
        out, front = self.encode(batch, mask)
        # The quantiser reads what is behind the mask, through the norm that the encoder shares.
        chosen = self.quantised_frames(batch, mask, valid)
        found = self.quantise(cast(Any, self.encoder).front_norm(front), chosen, batch)
        counts, count = mask.sum(1), mask.sum()
        own = mask[chosen]
        context_BMC, packed = pack(out.layer(self.context_layer), mask)
        target_BMF = context_BMC.new_zeros(*packed.shape, config.final_dim, dtype=torch.float32)
        target_BMF[packed] = self.project_target(found.vectors[own]).float()
        codes_BMG = found.codes.new_zeros(*packed.shape, config.groups)
        codes_BMG[packed] = found.codes[own]
        negatives = draw_negatives(
            counts, batch.seeds, config.negatives, packed.shape[1], _NEGATIVES
        )
        contrast, hits = info_nce(
            self.project_context(context_BMC),
            target_BMF,
            packed,
            negatives,
            config.temperature,
            codes_BMG,
        )
        p_NGV = found.probabilities[own]
        diversity = self.usage(p_NGV)
        total = contrast + config.diversity_weight * diversity
        used = F.one_hot(codes_BMG[packed], config.codes).sum(0)
        if not batch.filler:
            self.sums.add(probabilities=p_NGV.sum(0), codes=used, contrast=contrast, count=count)
        logs: Logs = {
            "contrast_nats": (contrast.detach(), count),
            "contrast_accuracy": (hits, count),
            "diversity": (diversity.detach(), count),
            "code_perplexity": (collapse.perplexity(used).sum() * count, count),
            "gumbel_temperature": (self.gumbel_temperature() * count, count),
            "masked_fraction": (count, valid.sum()),
        }
        if config.feature_penalty > 0:
            penalty = feature_penalty(out.front, valid, counts)
            total = total + config.feature_penalty * penalty
            logs["feature_penalty"] = (penalty.detach(), count)
        return Loss(self.finish(total, batch, out, mask, chosen, found, logs), count, logs)

    def encode(self, batch: Batch, mask: Tensor) -> tuple[EncoderOutput, Tensor]:
        """The masked batch with the layers that are read, and (B, T, C), what is quantised."""
        layers = sorted({self.context_layer, self.encoder.num_layers})
        out = self.encoder(batch.wave, batch.wave_lengths, mask=mask, layers=layers)
        return out, out.front

    def quantised_frames(self, batch: Batch, mask: Tensor, valid: Tensor) -> Tensor:
        """(B, T) bool: the masked frames, and what variants quantise besides."""
        return mask

    def finish(
        self,
        total: Tensor,
        batch: Batch,
        out: EncoderOutput,
        mask: Tensor,
        chosen: Tensor,
        found: Quantised,
        logs: Logs,
    ) -> Tensor:
        """What variants make of the total, a sum of the same count; they add to `logs`."""
        return total

    def quantise(self, x_BTC: Tensor, chosen: Tensor, batch: Batch) -> Quantised:
        """Codes of the N chosen frames, in the order of `x_BTC[chosen]`."""
        config, noise = self.config, None
        if self.training:
            x_BTC = F.dropout(x_BTC, config.quantiser_dropout)
            seeds = batch.seeds.to(x_BTC.device)
            size = (chosen.shape[1], config.groups, config.codes)
            noise = random_gumbel(seeds, _NOISE, *size)[chosen]
        return self.quantiser(x_BTC[chosen], self.gumbel_temperature(), noise)

    def gumbel_temperature(self) -> Tensor:
        """Temperature of this update."""
        c = self.config
        return annealed(c.gumbel_start, c.gumbel_end, c.gumbel_factor, self.step)

    def after_update(self, step: int) -> None:
        super().after_update(step)
        sums = self.sums.take()
        self.usage.update(sums["probabilities"], sums["count"])
        if collapse.due(step, self.config.collapse_after):
            found = collapse.perplexity(sums["codes"]).mean()
            because = "nearly all frames take the same codes"
            collapse.require("code perplexity", found, self.config.least_perplexity, step, because)
        if collapse.due(step, self.config.chance_after):
            gain = math.log(1 + self.config.negatives) - sums["contrast"] / sums["count"]
            because = "contexts tell frames no better than by chance"
            least = self.config.least_gain
            collapse.require("gain of the contrast over chance", gain, least, step, because)
