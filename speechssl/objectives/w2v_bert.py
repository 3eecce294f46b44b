"""w2v-BERT: wav2vec 2.0's contrast at a layer between, and prediction of its codes at the last.

Source: Chung et al. 2021, "W2v-BERT: Combining Contrastive Learning and Masked Language Modeling
for Self-Supervised Speech Pre-Training", section 3; fairseq2 `models/w2vbert`.

Differs: as `speechssl.objectives.wav2vec2`, from which the contrast is; and
- The encoder is the one that is configured; the paper's is a Conformer on filterbank features.
- Masked frames become the encoder's learnt mask vector, as in fairseq2; the paper's become random
  vectors.
- Of several groups the cross entropy is the mean, so that its weight does not depend on their
  number; fairseq2 adds them up. Published is one.
- What w2v-BERT 2.0 adds, the codes of a random quantiser as further targets, is not here.

Shape legend: N masked frames, D encoder width, G groups, V codes per group.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput
from speechssl.nn.gumbel import Quantised
from speechssl.objectives.hubert import Logs
from speechssl.objectives.wav2vec2 import Wav2vec2, Wav2vec2Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class W2vBertConfig(Wav2vec2Config):
    """As wav2vec 2.0, with one codebook of 1024 and the classifier on top."""

    contrastive_layer: int
    """Layer that the contrast reads, below the last: 12 of 24 XL."""
    prediction_weight: float = 1.0
    """Weight of the cross entropy of codes at the last layer."""
    final_dim: int = 1024
    groups: int = 1
    codes: int = 1024
    gumbel_end: float = 0.1
    feature_penalty: float = 0.0

    def build(self) -> W2vBert:
        return W2vBert(self)


class W2vBert(Wav2vec2):
    """Contrastive term, diversity, and cross entropy of the quantiser's codes."""

    config: W2vBertConfig

    def __init__(self, config: W2vBertConfig) -> None:
        super().__init__(config)
        last = self.encoder.num_layers
        if not 1 <= config.contrastive_layer < last:
            raise ValueError(
                f"contrastive_layer: found {config.contrastive_layer}, want 1 to {last - 1}"
            )
        layerdrop = getattr(cast(Any, self.encoder.config), "layerdrop", 0.0)
        if layerdrop > 0:
            raise ValueError(
                f"encoder.layerdrop: found {layerdrop}, want 0: the contrast reads a fixed depth"
            )
        self.context_layer = config.contrastive_layer
        self.predict = nn.Linear(self.encoder.dim, config.groups * config.codes)

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
        return total + self.upper_terms(out.last[mask], found.codes, logs)

    def upper_terms(self, x_ND: Tensor, codes_NG: Tensor, logs: Logs) -> Tensor:
        """Cross entropy of the codes of masked frames, weighed."""
        logits_NGV = self.predict(x_ND).float().unflatten(-1, (-1, self.config.codes))
        # Indices carry no gradient: the quantiser learns from the contrast alone.
        loss = F.cross_entropy(logits_NGV.flatten(0, 1), codes_NG.flatten(), reduction="sum")
        loss = loss / self.config.groups
        count = logs["contrast_nats"][1]
        hits = (logits_NGV.detach().argmax(-1) == codes_NG).sum()
        logs["prediction_nats"] = (loss.detach(), count)
        logs["prediction_accuracy"] = (hits, count * self.config.groups)
        return self.config.prediction_weight * loss
