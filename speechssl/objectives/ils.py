"""ILS: HuBERT's masked prediction at the last layer and at layers between.

Source: Wang et al. 2022, "Self-Supervised Learning for Speech Recognition with Intermediate Layer
Supervision", section 3. The relative position bias of the paper is the encoder's.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput
from speechssl.nn import collapse
from speechssl.nn.update_sums import UpdateSums
from speechssl.objectives.hubert import FrameScores, Hubert, HubertConfig, Labels, Logs


@dataclasses.dataclass(frozen=True, kw_only=True)
class IlsConfig(HubertConfig):
    """As HuBERT, with classifiers of their own at further layers."""

    supervised_layers: tuple[int, ...] = (4,)
    """Layers besides the last, from 1: 4 of 12 Base."""
    layer_weights: tuple[float, ...] = ()
    """Weight of each one's cross entropy; none given: 1 each."""
    collapse_after: int = 5000
    """Raise from this update on if one of these layers predicts nearly the same class for all
    masked frames; 0: never."""
    least_perplexity: float = 1.2
    """Perplexity of a layer's predicted classes that counts as sound."""

    def build(self) -> Ils:
        return Ils(self)


class Ils(Hubert):
    """Masked cross entropy at several layers, summed; masked frames are counted once."""

    config: IlsConfig

    def __init__(self, config: IlsConfig) -> None:
        super().__init__(config)
        layers = config.supervised_layers
        last = self.encoder.num_layers
        if not layers or not all(1 <= n < last for n in layers) or len(set(layers)) < len(layers):
            raise ValueError(
                f"supervised_layers: found {layers}, want different ones from 1 to {last - 1}"
            )
        self.weights = config.layer_weights or (1.0,) * len(layers)
        if len(self.weights) != len(layers):
            raise ValueError(
                f"layer_weights: found {len(self.weights)}, want one for each of {layers}"
            )
        self.inner_layers = layers
        self.inner_heads = nn.ModuleList(self.classifiers(config.classes) for _ in layers)
        self.sums = UpdateSums(
            **{
                f"layer_{number}_set_{i}": (count,)
                for number in layers
                for i, count in enumerate(config.classes.values())
            }
        )

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        terms = []
        for number, weight, heads in zip(
            self.inner_layers, self.weights, self.inner_heads, strict=True
        ):
            x_MD = out.layer(number)[scored]
            scores = FrameScores(x_MD, scored)
            for i, (name, head) in enumerate(cast(nn.ModuleDict, heads).items()):
                logits = head(x_MD)
                given = cast(Any, lambda _x, y=logits: y)
                terms.append(weight * scores.add(name, given, labels[name]))
                if not batch.filler:
                    used = torch.bincount(logits.detach().argmax(-1), minlength=logits.shape[1])
                    self.sums.add(**{f"layer_{number}_set_{i}": used})
            found = scores.logs("masked", scored.sum())
            logs |= {f"{k}_layer_{number}": found[k] for k in ("loss_nats", "masked_accuracy")}
        return torch.stack(terms).sum()

    def after_update(self, step: int) -> None:
        super().after_update(step)
        sums = self.sums.take()
        if collapse.due(step, self.config.collapse_after):
            for name, used in sums.items():
                found, least = collapse.perplexity(used), self.config.least_perplexity
                because = f"{name} predicts nearly the same class for all frames"
                collapse.require("perplexity of predictions", found, least, step, because)
