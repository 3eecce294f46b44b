"""Numbers per utterance, such as arousal and valence, by the concordance correlation.

Source: Lin 1989 (concordance correlation coefficient); Trigeorgis et al. 2016 for 1 - CCC as a
loss. CCC of predictions x and truths y, with y of mean 0 and variance 1, is 2 E[xy] / D where
D = E[x^2] + 1.
Differs: moments of a batch would make the loss depend on who is in it. Here the loss of one
utterance is 1 - C + C / D + (C x^2 - 2 x y) / D, with C and D from the updates before: its
gradient is that of 1 - CCC where they are the true ones, and so is its mean.

Shape legend: B utterances, L samples, N numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.contract import Batch, Encoder, Loss
from speechssl.heads.pooled import PooledConfig, PooledHead
from speechssl.nn.update_sums import UpdateSums

STEPS = 65535
"""A label store holds integers: a number is the place of its value between low and high."""

MOMENTS = ("predicted", "true", "predicted_squared", "true_squared", "product")
"""Means over a validation's utterances, of each dimension, that its CCC follows from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressConfig(PooledConfig):
    dimensions: list[str] = dataclasses.field(default_factory=list)
    """Fields of the manifest that hold numbers: [arousal, valence, dominance]."""
    lows: list[float] = dataclasses.field(default_factory=list)
    """Least training value of each; fine-tuning fills in this and the following."""
    highs: list[float] = dataclasses.field(default_factory=list)
    """Largest training value of each."""
    means: list[float] = dataclasses.field(default_factory=list)
    """Mean of each over the training cuts."""
    deviations: list[float] = dataclasses.field(default_factory=list)
    """Deviation of each."""
    loss: Literal["ccc", "mse"] = "ccc"
    """Concordance correlation, or squared error of standardised numbers."""
    memory: float = 0.9
    """ccc: how much of the moments stays from update to update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory: found {self.memory}, want 0 to below 1")
        if any(d <= 0 for d in self.deviations):
            raise ValueError(f"deviations: found {self.deviations}, want numbers that differ")

    def build(self, encoder: Encoder) -> RegressHead:
        return RegressHead(self, encoder)


class RegressHead(PooledHead):
    """Numbers of whole utterances, on the scale of the manifest."""

    config: RegressConfig
    moments: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: RegressConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        number = len(config.dimensions)
        given = (config.lows, config.highs, config.means, config.deviations)
        if not number or any(len(x) != number for x in given):
            raise ValueError(
                f"dimensions: found {config.dimensions} with {len(config.means)} means, want "
                "fields of the manifest; `speechssl finetune` fills in what follows from them"
            )
        self.output = nn.Linear(self.pooled_dim, number)
        self.sums = UpdateSums(square=(number,), product=(number,), count=())
        # Of standardised predictions: mean square, and mean product with the truth.
        self.register_buffer("moments", torch.zeros(2, number))
        self.register_buffer("mean", torch.tensor(config.means), persistent=False)
        self.register_buffer("deviation", torch.tensor(config.deviations), persistent=False)

    def forward(self, batch: Batch) -> Loss:
        y = self._truth(batch)
        x = self._standardised(batch.wave, batch.wave_lengths)
        count = torch.tensor(len(y), device=y.device)
        if not batch.filler:
            self.sums.add(square=x.square().sum(0), product=(x * y).sum(0), count=count)
        errors = (x - y).square()
        losses = errors
        if self.config.loss == "ccc":
            spread = self.moments[0] + 1
            ccc = 2 * self.moments[1] / spread
            losses = 1 - ccc + ccc / spread + (ccc * x.square() - 2 * x * y) / spread
        total = losses.mean(1).sum()
        squares = errors.detach().mean(1).sum()
        logs = {"loss": (total.detach(), count), "mse": (squares, count)}
        if not self.training:
            parts = torch.stack([x, y, x.square(), y.square(), x * y]).sum(1)  # (5, N)
            for name, row in zip(self.config.dimensions, parts.T, strict=True):
                logs |= {f"{part}_{name}": (z, count) for part, z in zip(MOMENTS, row, strict=True)}
        return Loss(total, count, logs)

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """With `ccc`: the concordance correlation over the whole validation, mean over N."""
        kept, found = dict(means), []
        for name in self.config.dimensions:
            x, y, xx, yy, xy = (kept.pop(f"{part}_{name}") for part in MOMENTS)
            spread = xx - x * x + yy - y * y + (x - y) ** 2
            found.append(2 * (xy - x * y) / spread if spread > 0 else 0.0)
        return kept | {"ccc": sum(found) / len(found)}

    def after_update(self, step: int) -> None:
        super().after_update(step)
        taken = self.sums.take()
        if taken["count"] > 0:
            now = torch.stack([taken["square"], taken["product"]]) / taken["count"]
            # The first updates are averaged evenly.
            keep = min(self.config.memory, 1 - 1 / max(step, 1))
            self.moments.mul_(keep).add_((1 - keep) * now)

    def values(self, wave: Tensor, wave_lengths: Tensor) -> tuple[Tensor, None]:
        """(B, N) float32 numbers of `config.dimensions`."""
        return self._standardised(wave, wave_lengths) * self.deviation + self.mean, None

    def _standardised(self, wave: Tensor, wave_lengths: Tensor) -> Tensor:
        return self.output(self.pooled(wave, wave_lengths)).float()

    def _truth(self, batch: Batch) -> Tensor:
        """(B, N) standardised numbers."""
        if "values" not in batch.targets:
            raise ValueError(
                f"values: found targets {sorted(batch.targets)}, want 'values'; `speechssl "
                "finetune` makes them of head.dimensions"
            )
        places = batch.targets["values"].reshape(len(batch), -1).float() / STEPS
        low, high = (places.new_tensor(x) for x in (self.config.lows, self.config.highs))
        return (low + (high - low) * places - self.mean) / self.deviation
