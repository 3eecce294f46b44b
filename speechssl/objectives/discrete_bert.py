"""Discrete BERT: predict masked units of vq-wav2vec from the others; or features by contrast.

Source: Baevski, Auli and Mohamed 2019, "Effectiveness of self-supervised pre-training for speech
recognition", section 3: discrete BERT, and continuous BERT (`inputs: features` of the encoder).

Differs:
- The units are made of the wave within the encoder, by the frozen front end and quantiser of a
  run of `speechssl.objectives.vq_wav2vec`, so that it is fine-tuned and used like any other.
- Spans are of one length; the paper draws theirs around 10 frames of 10 ms.
- The continuous variant compares cosines, as wav2vec 2.0 does.

Shape legend: B utterances, T frames, C front-end channels, N masked frames of all utterances.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, Loss, Objective
from speechssl.encoders.units import UnitTransformerEncoder
from speechssl.encoders.vq_conv import VqConvEncoder
from speechssl.model_file import open_model
from speechssl.nn import collapse
from speechssl.nn.contrastive import draw_negatives, info_nce
from speechssl.nn.frame_masks import masked_frames, pack
from speechssl.nn.update_sums import UpdateSums

_NEGATIVES = 101
"""Stream of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteBertConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain: speechssl.encoders.units.UnitTransformerConfig."""
    units: str | None = None
    """Folder of the exported vq-wav2vec run that makes the units; none: the encoder's own, which
    are random unless it starts from a model (init_from)."""
    mask_probability: float = 0.5
    """Span starts per frame times the span."""
    mask_span: int = 10
    """Frames per span."""
    mask_min_spans: int = 2
    """Least number of spans of an utterance."""
    negatives: int = 100
    """features: other masked frames that each is compared with."""
    temperature: float = 0.1
    """features: cosines are divided by this."""
    collapse_after: int = 1000
    """Raise from this update on if nearly all frames have the same unit; 0: never."""
    least_perplexity: float = 2.0
    """Perplexity of masked units that counts as sound."""

    def build(self) -> DiscreteBert:
        return DiscreteBert(self)


class DiscreteBert(Objective):
    """Cross entropy of masked units, or InfoNCE of masked features."""

    def __init__(self, config: DiscreteBertConfig) -> None:
        super().__init__()
        self.config = config
        encoder = config.encoder.build()
        if not isinstance(encoder, UnitTransformerEncoder):
            raise ValueError(
                f"encoder: found {type(encoder).__name__}, want that of "
                "speechssl.encoders.units.UnitTransformerConfig, which makes units"
            )
        self.encoder = encoder
        if config.units is not None:
            source = open_model(config.units).encoder
            if not isinstance(source, VqConvEncoder):
                raise ValueError(
                    f"units: found a {type(source).__name__} in {config.units}, want a run of "
                    "speechssl.objectives.vq_wav2vec.VqWav2vecConfig"
                )
            encoder.take_units(source)
        self.discrete = encoder.config.inputs == "units"
        vocabulary = encoder.config.vocabulary
        out_dim = vocabulary if self.discrete else encoder.config.front_dim
        self.head = nn.Linear(encoder.dim, out_dim)
        self.sums = UpdateSums(units=(vocabulary,))

    def forward(self, batch: Batch) -> Loss:
        config, encoder = self.config, cast(UnitTransformerEncoder, self.encoder)
        mask, valid = masked_frames(
            encoder,
            batch,
            probability=config.mask_probability,
            span=config.mask_span,
            min_spans=config.mask_min_spans,
        )
        count = mask.sum()
        given = batch.wave, batch.wave_lengths
        if self.discrete:
            with encoder.observed_units() as units:
                out = encoder(*given, mask=mask, layers=[-1])
            total, logs = self.predict(out.last[mask], units[0][mask], batch)
        else:
            out = encoder(*given, mask=mask, layers=[-1])
            total, logs = self.compare(out.last, out.front, mask, batch)
        return Loss(total, count, logs | {"masked_fraction": (count, valid.sum())})

    def predict(
        self, x_ND: Tensor, units_N: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        logits = self.head(x_ND).float()
        count = torch.tensor(len(units_N), device=x_ND.device)
        loss = F.cross_entropy(logits, units_N, reduction="sum")
        used = torch.bincount(units_N, minlength=logits.shape[1])
        if not batch.filler:
            self.sums.add(units=used)
        hits = (logits.detach().argmax(-1) == units_N).sum()
        return loss, {
            "loss_nats": (loss.detach(), count),
            "masked_accuracy": (hits, count),
            "unknown": ((units_N == 0).sum(), count),
            "unit_perplexity": (collapse.perplexity(used) * count, count),
        }

    def compare(
        self, x_BTD: Tensor, features_BTC: Tensor, mask: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        x_BMD, packed = pack(x_BTD, mask)
        targets_BMC = pack(features_BTC, mask)[0]
        negatives = draw_negatives(
            mask.sum(1), batch.seeds, self.config.negatives, packed.shape[1], _NEGATIVES
        )
        loss, hits = info_nce(
            self.head(x_BMD), targets_BMC, packed, negatives, self.config.temperature
        )
        count = mask.sum()
        return loss, {"loss_nats": (loss.detach(), count), "contrast_accuracy": (hits, count)}

    def after_update(self, step: int) -> None:
        super().after_update(step)
        used = self.sums.take()["units"]
        if self.discrete and collapse.due(step, self.config.collapse_after):
            because = "nearly all frames have the same unit; train vq-wav2vec anew, with diversity"
            found, least = collapse.perplexity(used), self.config.least_perplexity
            collapse.require("unit perplexity", found, least, step, because)
