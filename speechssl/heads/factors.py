"""Utterance embeddings by factor analysis: what moves all units' frames, by its posterior mean.

Pretraining with `speechssl.objectives.nfa` leaves this head with its encoder: `speechssl decode`
writes embeddings, `speechssl score --trials` compares them. It needs no labels: frames are aligned
with the class under whose Gaussian they are likeliest. `speechssl finetune` fits it anew, or goes
on with it, on a frozen encoder of any origin: with the units of a label store
(data.labels.units), or with its own alignments where there is none. The sums of EM are exported
with it (twice its size in the file), so that it can be fitted further.

Source: Lin et al. 2023 (NFA); see `speechssl.nn.factor_analysis`.

Shape legend: B utterances, L samples, T frames, R factors.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from speechssl.contract import IGNORE, Batch, Encoder, Loss, padding_mask
from speechssl.heads.frames import FramesHead
from speechssl.heads.utterance import UtteranceConfig
from speechssl.nn.factor_analysis import FactorModel
from speechssl.nn.online_factors import FactorStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorHeadConfig(UtteranceConfig):
    tensors: ClassVar[tuple[str, ...]] = ("factors.", "statistics.", "step")
    needs_classes: ClassVar[bool] = False
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
    update: Literal["em", "gradient"] = "em"
    """How fine-tuning moves the factor model: by online EM, or by gradients."""
    decay: float = 0.995
    """em: of the moving averages, per update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is None:
            raise ValueError("layer: found none, want the one layer that the factor model is of")
        if self.update not in ("em", "gradient"):
            raise ValueError(f"update: found {self.update!r}, want em or gradient")

    def build(self, encoder: Encoder) -> FactorHead:
        return FactorHead(self, encoder)


class FactorHead(FramesHead):
    """A factor model of one layer's normalised frames."""

    config: FactorHeadConfig

    def __init__(self, config: FactorHeadConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        learns = config.update == "gradient"
        sizes = (config.units, encoder.dim, config.factors, config.variance_floor)
        self.factors = FactorModel(*sizes, learns=learns)
        self.learns_in_buffers = not learns
        if not learns:
            self.statistics = FactorStatistics(self.factors, config.decay)

    def forward(self, batch: Batch) -> Loss:
        """The negative log-likelihood in nats per channel, a sum over frames."""
        x, lengths = self.frames(batch.wave, batch.wave_lengths)
        chosen = ~padding_mask(lengths, x.shape[1])
        if "units" in batch.targets:
            units = batch.targets["units"][:, : x.shape[1]]
            highest = int(units.max())
            if highest >= self.config.units:
                raise ValueError(
                    f"units: found label {highest} in data.labels.units, want less than "
                    f"{self.config.units}; set head.units to the number of its classes"
                )
            chosen = chosen & (units != IGNORE)
        else:
            units = torch.zeros_like(chosen, dtype=torch.int64)
            units[chosen] = self.factors.align(x[chosen].detach())
        found = self.factors.posterior(x, units, chosen)
        if self.config.update == "em" and not batch.filler:
            self.statistics.collect(x, units, chosen, found)
        total = (-found.log_likelihood / x.shape[-1]).sum()
        number = chosen.sum()
        return Loss(total, number, {"nats": (total.detach(), number)})

    def after_update(self, step: int) -> None:
        super().after_update(step)
        if self.config.update == "em":
            self.statistics.commit(self.factors, step)

    def embed(self, wave: Tensor, wave_lengths: Tensor) -> Tensor:
        """(B, L) and (B,) samples -> (B, R) float32 embeddings, of any length."""
        x, lengths = self.frames(wave, wave_lengths)
        return self.factors.embed(x, ~padding_mask(lengths, x.shape[1])).float()
