"""HuBERTopic: HuBERT, and which topic the whole utterance has.

Source: Maekaku et al. 2024, "HuBERTopic: Enhancing Semantic Representation of HuBERT through
Self-supervision utilizing Topic Model". Topics are those of a topic model of the pseudo-labels
(`speechssl topics`), which the data path reads as a label, or a posterior, per utterance.

There is no public code. Ours by choice, since they are not published or we do not know them:
- Number of topics, weight and layer of the term are options.
- The classifier reads the mean over an utterance's frames, or what a class token gathers. That
  token attends to the frames of its layer and they do not attend to it (class attention, Touvron et
  al. 2021), so that the encoder remains HuBERT's, with or without it.
- An utterance weighs as much as its frames in the loss (one count per loss, see
  speechssl/README.md).

Shape legend: B utterances, T frames, D encoder width, N topics.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.contract import IGNORE, Batch, Encoder, EncoderOutput, padding_mask
from speechssl.objectives.hubert import Labels, Logs
from speechssl.objectives.mr_hubert import MrHubert, MrHubertConfig
from speechssl.objectives.wavlm import WavLM, WavLMConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubertopicConfig(WavLMConfig):
    """As HuBERT, or WavLM, with a term for the topic."""

    topics: int = 50
    """Number of topics."""
    topic_target: str = "topics"
    """Name of the target: labels (B,), or posteriors (B, topics) as whole numbers in proportion."""
    topic_weight: float = 0.1
    """Weight of the topic's cross entropy; 0: none, and no classifier: HuBERT."""
    topic_layer: int = -1
    """The layer that is classified, from 1; -1: the last."""
    topic_pooling: Literal["mean", "token"] = "mean"
    """How frames become one vector: their mean, or what a class token gathers by attention."""
    corrupted: bool = False
    """Read each batch's mixed view, as WavLM does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.topics < 2:
            raise ValueError(f"topics: found {self.topics}, want 2 or more")
        if self.topic_weight < 0:
            raise ValueError(f"topic_weight: found {self.topic_weight}, want 0 or more")
        if self.topic_target in self.classes:
            raise ValueError(
                f"topic_target: found {self.topic_target!r}, which is a set of frame labels; want "
                "a name of its own"
            )

    def build(self) -> Hubertopic:
        return Hubertopic(self)


class TopicHead(nn.Module):
    """Normalised frames, pooled, to logits of the topics."""

    def __init__(self, dim: int, topics: int, pooling: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        # At 0 it attends to all frames alike.
        self.token = nn.Parameter(torch.zeros(dim)) if pooling == "token" else None
        self.classify = nn.Linear(dim, topics)

    def forward(self, x_BTD: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) valid frames -> (B, N) float32 logits; what is on padding is not read."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            padding = padding_mask(lengths, x_BTD.shape[1])
            x = self.norm(x_BTD.float().masked_fill(padding[..., None], 0.0))
            scores = x.new_zeros(padding.shape)
            if self.token is not None:
                scores = x @ self.token.float() / math.sqrt(x.shape[2])
            weights = scores.masked_fill(padding, -torch.inf).softmax(1)
            return self.classify((weights[..., None] * x).sum(1))


class Hubertopic(WavLM):
    """Masked prediction, and cross entropy of the utterance's topic."""

    config: HubertopicConfig

    def __init__(self, config: HubertopicConfig) -> None:
        super().__init__(config)
        # What a base class reads itself (MR-HuBERT), before the topic's is added.
        self.own_layers = self.inner_layers
        if config.topic_weight == 0:
            return
        encoder = cast(Encoder, self.encoder)
        last = encoder.num_layers
        if not (config.topic_layer == -1 or 1 <= config.topic_layer <= last):
            raise ValueError(
                f"topic_layer: found {config.topic_layer}, want 1 to {last}, or -1 for the last"
            )
        self.layer = last if config.topic_layer == -1 else config.topic_layer
        self.inner_layers = (*self.own_layers, self.layer)
        self.topic_head = TopicHead(encoder.dim, config.topics, config.topic_pooling)

    def input_wave(self, batch: Batch) -> Tensor:
        return super().input_wave(batch) if self.config.corrupted else batch.wave

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        total = scored.new_zeros((), dtype=torch.float32)
        if self.own_layers:
            total = super().inner_terms(batch, out, labels, scored, logs)
        if self.config.topic_weight == 0:
            return total
        shares_BN, known = self._topics(batch)
        logits_BN = self.topic_head(out.layer(self.layer), out.lengths_of(self.layer))
        loss_B = -(shares_BN * logits_BN.log_softmax(-1)).sum(-1)
        hits = known & (logits_BN.detach().argmax(-1) == shares_BN.argmax(-1))
        logs["topic_nats"] = (loss_B.detach().sum(), known.sum())
        logs["topic_accuracy"] = (hits.sum(), known.sum())
        share_B = self._share(out, labels, scored)
        return total + self.config.topic_weight * (share_B * loss_B).sum()

    def _share(self, out: EncoderOutput, labels: Labels, scored: Tensor) -> Tensor:
        """(B,) each utterance's part of the count: masked frames, and unmasked ones by weight."""
        share, weight = scored.sum(1), self.config.unmasked_weight
        if weight == 0:
            return share
        labelled = torch.stack([target != IGNORE for target in labels.values()]).any(0)
        valid = ~padding_mask(out.lengths, scored.shape[1])
        return share + weight * (labelled & valid & ~scored).sum(1)

    def _topics(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, N) shares of the topics, all 0 where none is known; and (B,) where one is."""
        name, topics = self.config.topic_target, self.config.topics
        if name not in batch.targets:
            raise ValueError(
                f"topics: found targets {sorted(batch.targets)}, want {name!r}; name the label "
                f"store of `speechssl topics apply` in data.labels, such as "
                f"data.labels.{name}=exp/topics/labels, or set topic_weight to 0"
            )
        target = batch.targets[name]
        if target.ndim == 2 and target.shape[1] == topics:
            sums = target.sum(1, keepdim=True)
            return target / sums.clamp(min=1), sums[:, 0] > 0
        if target.ndim != 1:
            raise ValueError(
                f"topics: found target {name!r} of shape {tuple(target.shape)}, want (B,) labels "
                f"or (B, {topics}) posteriors of utterances; are these labels of frames?"
            )
        # As for frame labels: on a GPU the check would wait for the device.
        if not target.is_cuda and target.numel() and int(target.max()) >= topics:
            raise ValueError(
                f"topics: found label {int(target.max())}, want fewer than {topics}, the number "
                "of topics that the objective was given"
            )
        known = target != IGNORE
        shares = F.one_hot(target.masked_fill(~known, 0), topics).float()
        return shares * known[:, None], known


@dataclasses.dataclass(frozen=True, kw_only=True)
class MrHubertopicConfig(HubertopicConfig, MrHubertConfig):
    """Both: units at every rate of a multi-resolution encoder, and the topic."""

    def build(self) -> MrHubertopic:
        return MrHubertopic(self)


class MrHubertopic(Hubertopic, MrHubert):
    """MR-HuBERT with HuBERTopic's term; nobody has published the two together."""

    config: MrHubertopicConfig
