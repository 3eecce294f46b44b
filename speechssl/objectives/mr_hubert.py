"""MR-HuBERT: HuBERT's masked prediction at every rate of a multi-resolution encoder.

Source: Shi et al. 2024, "Multi-resolution HuBERT: Multi-resolution Speech Self-Supervised Learning
with Masked Unit Prediction", sections 3.1 and 3.2; fairseq
`models/multires_hubert/multires_hubert.py`.

Differs: as `speechssl.objectives.hubert`.

Shape legend: B utterances, T frames, S frames at a lower rate, D encoder width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput
from speechssl.encoders.multires import MultiresEncoder
from speechssl.objectives.hubert import (
    FrameScores,
    Hubert,
    HubertConfig,
    Labels,
    Logs,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MrHubertConfig(HubertConfig):
    """As HuBERT, with classifiers of their own at each lower rate of the encoder.

    A frame at a lower rate has the mask and the label of the encoder's frame that it begins with;
    only masked ones count there, whatever unmasked_weight is.
    Labels of a store at 25 Hz, which the data path repeats at 50 Hz, are thus found again at 40 ms.
    """

    strides: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Name of a label set -> the rates that it is predicted at, each as the number of the encoder's
    frames that one frame stands for: 1 (20 ms), 2 (40 ms), ... A set that is not named is predicted
    at all. With clusterings of their own: {km50: [1], km25: [2]}."""
    lower_weight: float = 1.0
    """Weight of the cross entropies at lower rates; 0: none, and no classifiers for them."""

    def build(self) -> MrHubert:
        return MrHubert(self)


class MrHubert(Hubert):
    """Masked cross entropy at each rate, summed; masked frames are counted at the highest."""

    config: MrHubertConfig

    def __init__(self, config: MrHubertConfig) -> None:
        super().__init__(config)
        encoder = self.encoder
        if not isinstance(encoder, MultiresEncoder):
            raise ValueError(
                f"encoder: found a {type(encoder).__name__}, want one of several rates: "
                "class_path: speechssl.encoders.multires.MultiresConfig"
            )
        sets = self._sets(list(encoder.resolution_layers))
        self.heads = nn.ModuleDict({name: self.heads[name] for name in sets.pop(1)})
        if config.lower_weight == 0:
            sets = {}
        self.frame_ms = 1000 / encoder.frame_rate_hz
        self.layer_at = {stride: encoder.resolution_layers[stride] for stride in sets}
        self.inner_layers = tuple(self.layer_at.values())
        self.lower_heads = nn.ModuleDict(
            {str(stride): self.classifiers(names) for stride, names in sets.items()}
        )

    def _sets(self, rates: list[int]) -> dict[int, list[str]]:
        """For each stride at which any is predicted, the label sets."""
        given, classes = self.config.strides, self.config.classes
        for name, wanted in given.items():
            if name not in classes or not wanted or not set(wanted) <= set(rates):
                raise ValueError(
                    f"strides: found {name}: {list(wanted)}, want a name among {sorted(classes)} "
                    f"and strides among {rates}, those of the encoder"
                )
        sets = {s: [name for name in classes if s in given.get(name, rates)] for s in rates}
        if not sets[1]:
            raise ValueError(
                f"strides: found {given}, want a label set at stride 1, by whose masked frames the "
                "loss is counted"
            )
        return {s: names for s, names in sets.items() if names}

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        terms = []
        for stride, number in self.layer_at.items():
            where = scored[:, ::stride]  # (B, S)
            scores = FrameScores(out.layer(number)[where], where)
            heads: Any = self.lower_heads[str(stride)]
            for name, head in heads.items():
                own = labels[name] if name in labels else self._labels(batch, name, scored)
                terms.append(scores.add(name, head, own[:, ::stride]))
            found = scores.logs("masked", where.sum())
            span = f"{round(stride * self.frame_ms)}ms"
            logs |= {f"{k}_{span}": found[k] for k in ("loss_nats", "masked_accuracy")}
        return self.config.lower_weight * torch.stack(terms).sum()
