"""UniSpeech-SAT: HuBERT on mixed speech, and which frames of a batch are of the same utterance.

Source: Chen et al. 2022, "UniSpeech-SAT: Universal Speech Representation Learning with Speaker
Aware Pre-Training", section 3. The mixing of utterances is the data's (`data.mixing`).

Differs:
- Instances are drawn from all other masked frames of the micro-batch, with replacement; masked
  rows are not cut to equal counts. This one term knows only its micro-batch, so the loss depends
  on how an update is cut; one utterance alone has nothing to tell apart.
- The paper does not state the weights of its terms: the defaults here are ours.

transformers has this model's heads but computes no loss (UniSpeechSatForPreTraining gives None); a
test puts its heads and contrastive logits together, and finds the values here.

Shape legend: B utterances, N masked frames of all of them, I instances per frame, D encoder width,
F final width, G groups, V codes per group.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput
from speechssl.nn import collapse
from speechssl.nn.contrastive import draw_negatives
from speechssl.nn.draws import random_gumbel
from speechssl.nn.gumbel import CodeUsage, GumbelQuantiser, annealed
from speechssl.nn.update_sums import UpdateSums
from speechssl.objectives.hubert import Labels, Logs
from speechssl.objectives.wavlm import WavLM, WavLMConfig

_NOISE, _INSTANCES = 21, 22
"""Streams of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniSpeechSatConfig(WavLMConfig):
    """As WavLM, with the utterance-wise term."""

    utterance_layer: int = 6
    """The layer that it reads: 6 of 12 Base."""
    utterance_weight: float = 1.0
    """Weight of its binary cross entropy."""
    instances: int = 100
    """Other masked frames of the batch that each is compared with."""
    groups: int = 2
    """Codebooks of the quantised instances."""
    codes: int = 320
    """Codewords in each."""
    gumbel_start: float = 2.0
    """Temperature of the Gumbel softmax at the first update."""
    gumbel_end: float = 0.5
    """Its least."""
    gumbel_factor: float = 0.999995
    """Its factor per update."""
    diversity_weight: float = 0.1
    """Weight of the share of codes that are not used."""
    collapse_after: int = 5000
    """Raise from this update on if nearly all instances take the same codes; 0: never."""
    least_perplexity: float = 1.5
    """Mean perplexity of a codebook's codes that counts as sound."""

    def build(self) -> UniSpeechSat:
        return UniSpeechSat(self)


class UniSpeechSat(WavLM):
    """Masked prediction, and binary cross entropy of "same utterance" at a layer between."""

    config: UniSpeechSatConfig

    def __init__(self, config: UniSpeechSatConfig) -> None:
        super().__init__(config)
        dim, last, width = self.encoder.dim, self.encoder.num_layers, config.final_dim
        if not 1 <= config.utterance_layer < last:
            raise ValueError(
                f"utterance_layer: found {config.utterance_layer}, want 1 to {last - 1}"
            )
        self.inner_layers = (config.utterance_layer,)
        # Outputs of post-norm layers are normed already.
        pre_norm = getattr(config.encoder, "pre_norm", False)
        self.utterance_norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()
        self.project_utterance = nn.Linear(dim, width)
        self.quantiser = GumbelQuantiser(dim, config.groups, config.codes, width)
        self.project_instance = nn.Linear(width, width)
        self.usage = CodeUsage(config.groups, config.codes)
        shape = config.groups, config.codes
        self.sums = UpdateSums(probabilities=shape, codes=shape, count=())

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        config, count = self.config, scored.sum()
        x_ND = self.utterance_norm(out.layer(config.utterance_layer)[scored])
        found = self.quantiser(x_ND, self.gumbel_temperature(), self._noise(batch, scored))
        own, taken, same = self.instances(batch, scored)
        loss, hits = utterance_contrast(
            self.project_utterance(x_ND),
            self.project_instance(found.vectors),
            torch.cat([own, taken], 1),
            F.pad(same, (1, 0), value=True),
            config.temperature,
        )
        diversity = self.usage(found.probabilities)
        used = F.one_hot(found.codes, config.codes).sum(0)
        if not batch.filler:
            self.sums.add(probabilities=found.probabilities.sum(0), codes=used, count=count)
        logs["utterance_nats"] = (loss.detach(), count)
        logs["utterance_accuracy"] = (hits, count)
        logs["diversity"] = (diversity.detach(), count)
        logs["code_perplexity"] = (collapse.perplexity(used).sum() * count, count)
        return config.utterance_weight * loss + config.diversity_weight * diversity

    def instances(self, batch: Batch, scored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 1) each frame's own index, (N, I) those of its instances, (N, I) same utterance."""
        utterance = scored.nonzero()[:, 0]
        number = len(utterance)
        # One draw for the whole batch: it depends on its composition anyway.
        taken = draw_negatives(
            scored.sum()[None], batch.seeds[:1], self.config.instances, number, _INSTANCES
        )[0]
        own = torch.arange(number, device=scored.device)[:, None]
        return own, taken, utterance[taken] == utterance[:, None]

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
            because = "nearly all instances take the same codes"
            collapse.require("code perplexity", found, self.config.least_perplexity, step, because)

    def _noise(self, batch: Batch, scored: Tensor) -> Tensor | None:
        if not self.training:
            return None
        size = (scored.shape[1], self.config.groups, self.config.codes)
        return random_gumbel(batch.seeds.to(scored.device), _NOISE, *size)[scored]


def utterance_contrast(
    x_NF: Tensor, y_NF: Tensor, chosen_NI: Tensor, same_NI: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Sum over frames of the mean binary cross entropy of cosine / temperature, and of hits."""
    with torch.autocast(x_NF.device.type, enabled=False):
        x, y = F.normalize(x_NF.float(), dim=-1), F.normalize(y_NF.float(), dim=-1)
        logits = (x @ y.T / temperature).gather(1, chosen_NI)
        loss = F.binary_cross_entropy_with_logits(logits, same_NI.float(), reduction="none")
        return loss.mean(1).sum(), ((logits > 0) == same_NI).float().mean(1).sum()
