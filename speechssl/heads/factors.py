"""Utterance embeddings by factor analysis: the posterior mean of what moves all units' frames.

Pretraining with `speechssl.objectives.nfa` leaves this head with its encoder: `speechssl decode`
writes embeddings, `speechssl score --trials` compares them. It knows no labels: frames are aligned
with the class under whose Gaussian they are likeliest. Fine-tuning it goes on with those
alignments, on speech without units.

Source: Lin et al. 2023 (NFA); see `speechssl.nn.factor_analysis`.

Shape legend: B utterances, L samples, T frames, R factors.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from speechssl.contract import Batch, Encoder, Loss, padding_mask
from speechssl.heads.frames import FramesHead
from speechssl.heads.utterance import UtteranceConfig
from speechssl.nn.factor_analysis import FactorModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorHeadConfig(UtteranceConfig):
    tensors: ClassVar[tuple[str, ...]] = ("factors.", "step")
    field: str = "speaker"
    """Field of the manifest that names whom the embeddings are to tell apart."""
    units: int = 100
    """Classes of frames."""
    factors: int = 100
    """R: width of the embedding."""
    variance_floor: float = 0.01
    """Least variance of a channel."""
    layer: int | None = -1
    """Encoder layer that is read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is None:
            raise ValueError("layer: found none, want the one layer that the factor model is of")

    def build(self, encoder: Encoder) -> FactorHead:
        return FactorHead(self, encoder)


class FactorHead(FramesHead):
    """A factor model of one layer's normalised frames."""

    config: FactorHeadConfig

    def __init__(self, config: FactorHeadConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.factors = FactorModel(config.units, encoder.dim, config.factors, config.variance_floor)

    def forward(self, batch: Batch) -> Loss:
        """The negative log-likelihood in nats per channel, a sum over frames."""
        x, lengths = self.frames(batch.wave, batch.wave_lengths)
        chosen = ~padding_mask(lengths, x.shape[1])
        units = torch.zeros_like(chosen, dtype=torch.int64)
        units[chosen] = self.factors.align(x[chosen].detach())
        found = self.factors.posterior(x, units, chosen)
        total = (-found.log_likelihood / x.shape[-1]).sum()
        number = lengths.sum()
        return Loss(total, number, {"nats": (total.detach(), number)})

    def embed(self, wave: Tensor, wave_lengths: Tensor) -> Tensor:
        """(B, L) and (B,) samples -> (B, R) float32 embeddings, of any length."""
        x, lengths = self.frames(wave, wave_lengths)
        return self.factors.embed(x, ~padding_mask(lengths, x.shape[1])).float()
