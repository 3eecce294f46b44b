"""NFA: HuBERT, and a factor model of its frames given their units, whose factors are the utterance.

Source: Lin et al. 2023, "Self-supervised Neural Factor Analysis for Disentangling Utterance-level
Speech Representations", section 3. The units say what is said; what moves the frames of all units
together is who says it and how. The likelihood of a layer's frames is maximised, through the
encoder too, and the posterior mean of the factors is the utterance's embedding: `speechssl decode`
writes it (`heads.factors`).

Ours by choice, since they are not published or we do not know them:
- Layer, number of factors and weight of the term are options; it is counted in nats per channel.
- Means, diagonal variances and loadings follow the frames by online EM (`nn.online_factors`); with
  factor_update: gradient the optimiser learns them, which wants far more updates.
- Frames are brought to mean 0 and variance 1 first: shrinking them would make them likelier. With
  em, what is maximised is the ratio to their likelihood under one Gaussian of all frames: the
  likelihood alone draws all frames to one (measured: masked accuracy fell to a quarter).
- All frames that have a unit and are not masked count: embeddings are of whole speech. An utterance
  weighs as much as its frames in HuBERT's loss (one count per loss, see speechssl/README.md).

Shape legend: B utterances, T frames, D encoder width, R factors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor

from speechssl.contract import IGNORE, Batch, Encoder, EncoderOutput, padding_mask
from speechssl.nn.factor_analysis import FactorModel
from speechssl.nn.online_factors import FactorStatistics
from speechssl.objectives.hubert import Hubert, HubertConfig, Labels, Logs


@dataclasses.dataclass(frozen=True, kw_only=True)
class NfaConfig(HubertConfig):
    """As HuBERT, with a factor model of a layer's frames."""

    factors: int = 100
    """R: width of the utterance's embedding."""
    factor_layer: int = 6
    """The layer whose frames are modelled, from 1; -1: the last."""
    factor_weight: float = 0.1
    """Weight of the log-likelihood (em: of its ratio), in nats per channel; 0: none, HuBERT."""
    factor_update: Literal["em", "gradient"] = "em"
    """How the model's own parameters learn: by online EM, or with the encoder's by gradients."""
    factor_decay: float = 0.995
    """em: of the moving averages, per update."""
    factor_target: str | None = None
    """The frame labels that align the frames; none: the first of `classes`."""
    variance_floor: float = 0.01
    """Least variance of a channel, whose frames have variance 1 over all channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor_weight < 0:
            raise ValueError(f"factor_weight: found {self.factor_weight}, want 0 or more")
        if self.factor_update not in ("em", "gradient"):
            raise ValueError(f"factor_update: found {self.factor_update!r}, want em or gradient")
        if self.factor_target is not None and self.factor_target not in self.classes:
            raise ValueError(
                f"factor_target: found {self.factor_target!r}, want one of {sorted(self.classes)}"
            )

    def build(self) -> Nfa:
        return Nfa(self)


class Nfa(Hubert):
    """Masked prediction, and the likelihood of a layer's frames under a factor model."""

    config: NfaConfig

    def __init__(self, config: NfaConfig) -> None:
        super().__init__(config)
        if config.factor_weight == 0:
            return
        encoder = cast(Encoder, self.encoder)
        last = encoder.num_layers
        if not (config.factor_layer == -1 or 1 <= config.factor_layer <= last):
            raise ValueError(
                f"factor_layer: found {config.factor_layer}, want 1 to {last}, or -1 for the last"
            )
        self.layer = last if config.factor_layer == -1 else config.factor_layer
        self.inner_layers = (self.layer,)
        self.units = config.factor_target or next(iter(config.classes))
        self.factors = FactorModel(
            config.classes[self.units],
            encoder.dim,
            config.factors,
            config.variance_floor,
            learns=config.factor_update == "gradient",
        )
        if config.factor_update == "em":
            self.statistics = FactorStatistics(self.factors, config.factor_decay)

    def inner_terms(
        self, batch: Batch, out: EncoderOutput, labels: Labels, scored: Tensor, logs: Logs
    ) -> Tensor:
        units = labels[self.units]
        x = out.aligned(self.layer).float()
        chosen = (units != IGNORE) & ~padding_mask(out.lengths, units.shape[1]) & ~scored
        x = F.layer_norm(x, x.shape[-1:])
        found = self.factors.posterior(x, units, chosen)
        if self.config.factor_update == "em" and not batch.filler:
            self.statistics.collect(x, units, chosen, found)
        nats_B = -found.log_likelihood / x.shape[-1]
        gain_B = -nats_B
        if self.config.factor_update == "em":
            plain = self.statistics.plain(x, self.config.variance_floor)
            gain_B = gain_B - plain.masked_fill(~chosen, 0).sum(1) / x.shape[-1]
        frames_B = chosen.sum(1)
        logs["factor_nats"] = (nats_B.detach().sum(), frames_B.sum())
        logs["factor_gain"] = (gain_B.detach().sum(), frames_B.sum())
        size = found.mean.detach().square().mean(1)
        logs["factor_size"] = (size.sum(), (frames_B > 0).sum())
        share_B = scored.sum(1) / frames_B.clamp(min=1)
        return self.config.factor_weight * (share_B * -gain_B).sum()

    def after_update(self, step: int) -> None:
        super().after_update(step)
        if self.config.factor_weight > 0 and self.config.factor_update == "em":
            self.statistics.commit(self.factors, step)

    def exported_head(self) -> Mapping[str, Any] | None:
        if self.config.factor_weight == 0:
            return None
        sizes = {
            "units": self.config.classes[self.units],
            "factors": self.config.factors,
            "variance_floor": self.config.variance_floor,
            "layer": self.layer,
            "update": self.config.factor_update,
            "decay": self.config.factor_decay,
        }
        return {"class_path": "speechssl.heads.factors.FactorHeadConfig", "init_args": sizes}
