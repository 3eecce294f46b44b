"""ILS: HuBERT's masked prediction at the last layer and at layers between.

Source: Wang et al. 2022, "Self-Supervised Learning for Speech Recognition with Intermediate Layer
Supervision", section 3. The relative position bias of the paper is the encoder's.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput
from speechssl.objectives.hubert import (
    CosineHead,
    FrameScores,
    Hubert,
    HubertConfig,
    Labels,
    Logs,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IlsConfig(HubertConfig):
    """As HuBERT, with classifiers of their own at further layers."""

    supervised_layers: tuple[int, ...] = (4,)
    """Layers besides the last, from 1: 4 of 12 Base."""
    layer_weights: tuple[float, ...] = ()
    """Weight of each one's cross entropy; none given: 1 each."""

    def build(self) -> Ils:
        return Ils(self)


class Ils(Hubert):
    """Masked cross entropy at several layers, summed; masked frames are counted once."""

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
        self.inner_heads = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: CosineHead(self.encoder.dim, count, config.final_dim, config.temperature)
                    for name, count in config.classes.items()
                }
            )
            for _ in layers
        )

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        terms = []
        for number, weight, heads in zip(
            self.inner_layers, self.weights, self.inner_heads, strict=True
        ):
            scores = FrameScores(out.layer(number)[scored], scored)
            term = torch.stack([scores.add(n, h, labels[n]) for n, h in heads.items()]).sum()
            terms.append(weight * term)
            found = scores.logs("masked", scored.sum())
            logs |= {f"{k}_layer_{number}": found[k] for k in ("loss_nats", "masked_accuracy")}
        return torch.stack(terms).sum()
