"""TERA: restore filterbank features that were altered along time, frequency and magnitude.

Source: Liu, Li and Lee 2021, "TERA: Self-Supervised Learning of Transformer Encoder Representation
for Speech", section III; S3PRL `pretrain/tera`.

Differs:
- The encoder is this toolkit's with its strided front end, whose input is altered; each of its
  frames restores all the 10 ms frames that begin within its step.
- Frames that are copied come from one random distance within the utterance.
- The loss is a mean over altered cells of all utterances, counted over the whole update.

Shape legend: B utterances, M mel frames, F mel bins, T encoder frames, S mel frames per encoder
frame, D encoder width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, Loss, Objective, padding_mask
from speechssl.nn import collapse
from speechssl.nn.altered_mel import altered_mel
from speechssl.nn.draws import random_normal, random_uniform
from speechssl.nn.log_mel import SHIFT_SAMPLES, mel_lengths
from speechssl.nn.masking import span_mask
from speechssl.nn.update_sums import UpdateSums

_DICE, _NOISE = 31, 32
"""Streams of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeraConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to pretrain, with front_end: log_mel."""
    time_probability: float = 0.15
    """Starts of altered blocks per mel frame, times the block; 0: no alteration along time."""
    time_span: int = 7
    """Mel frames (10 ms) per block."""
    zero_share: float = 0.8
    """Share of utterances whose blocks are zeroed."""
    copy_share: float = 0.1
    """Share of utterances whose blocks hold other frames; in the rest they stay as they are."""
    frequency_share: float = 0.2
    """A block of up to this share of the bins is zeroed in each utterance; 0: none."""
    noise_probability: float = 0.0
    """Share of utterances with Gaussian noise on all cells (paper 0.15, its default code 0)."""
    noise_deviation: float = 0.2
    """Deviation of that noise."""
    collapse_after: int = 1000
    """Raise from this update on if all frames are restored alike; 0: never."""
    least_deviation: float = 0.01
    """Mean over bins of the restored cells' deviation over frames that counts as sound."""

    def __post_init__(self) -> None:
        if self.time_probability <= 0 and self.frequency_share <= 0:
            raise ValueError(
                "time_probability, frequency_share: found 0 for both, want one of them above 0: "
                "else nothing is altered"
            )
        if not 0 <= self.zero_share + self.copy_share <= 1:
            raise ValueError(
                f"zero_share, copy_share: found {self.zero_share} and {self.copy_share}, want a "
                "sum of at most 1"
            )

    def build(self) -> Tera:
        return Tera(self)


class Tera(Objective):
    """L1 distance to the original on altered cells."""

    def __init__(self, config: TeraConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        dim, bins = self.encoder.dim, cast(Any, self.encoder.config).mel_bins
        self.stack = self.encoder.hop_samples // SHIFT_SAMPLES
        self.head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, self.stack * bins)
        )
        self.sums = UpdateSums(restored=(2, self.stack * bins), count=())
        # Nothing is masked behind the front end.
        cast(Any, self.encoder).mask_emb.requires_grad_(False)

    def forward(self, batch: Batch) -> Loss:
        kept: list[Tensor] = []

        def alter(x_BMF: Tensor) -> Tensor:
            altered, cells = self.alter(x_BMF, batch)
            kept.extend((x_BMF, cells))
            return altered

        with altered_mel(self.encoder, alter):
            out = self.encoder(batch.wave, batch.wave_lengths, layers=[-1])
        x_BMF, cells = kept
        # (B, T, S * F) -> (B, T * S, F); the last step may reach beyond the last mel frame.
        steps = self.head(out.last).float()
        restored = steps.unflatten(2, (self.stack, -1)).flatten(1, 2)
        error = (restored[:, : x_BMF.shape[1]] - x_BMF.float())[cells]
        total, count = error.abs().sum(), cells.sum()
        if not batch.filler:
            frames = steps.detach()[~out.padding_mask]
            moments = torch.stack([frames.sum(0), frames.square().sum(0)])
            self.sums.add(restored=moments, count=out.lengths.sum())
        logs = {
            "distance": (total.detach(), count),
            "distance_of_zero": (x_BMF[cells].abs().sum(), count),
            "altered_fraction": (count, mel_lengths(batch.wave_lengths).sum() * x_BMF.shape[2]),
        }
        return Loss(total, count, logs)

    def after_update(self, step: int) -> None:
        super().after_update(step)
        sums = self.sums.take()
        if collapse.due(step, self.config.collapse_after):
            found = collapse.spread(sums["restored"][0], sums["restored"][1], sums["count"])
            least, because = self.config.least_deviation, "all frames are restored alike"
            collapse.require("deviation of restored frames", found, least, step, because)

    @torch.no_grad()
    def alter(self, x_BMF: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The altered features, and (B, M, F) bool: cells to restore."""
        config, bins = self.config, x_BMF.shape[2]
        lengths = mel_lengths(batch.wave_lengths)
        dice = random_uniform(batch.seeds.to(x_BMF.device), _DICE, 5)[..., None, None]
        how, distance, width, start, noisy = dice.unbind(1)
        valid = ~padding_mask(lengths, x_BMF.shape[1])[..., None]

        block = span_mask(
            lengths,
            batch.seeds,
            probability=config.time_probability,
            span=config.time_span,
            min_spans=1,
            size=x_BMF.shape[1],
        )[..., None]
        frame = torch.arange(x_BMF.shape[1], device=x_BMF.device)[None, :, None]
        many = lengths[:, None, None]
        other = (frame + 1 + (distance * (many - 1)).long()) % many.clamp(min=1)
        copied = x_BMF.gather(1, other.expand(-1, -1, bins))
        content = torch.where(how < config.zero_share + config.copy_share, copied, x_BMF)
        content = content.masked_fill(how < config.zero_share, 0)
        altered = torch.where(block, content, x_BMF)

        wide = (width * (config.frequency_share * bins + 1)).long()
        first = (start * (bins - wide + 1)).long()
        channel = torch.arange(bins, device=x_BMF.device)
        band = (channel >= first) & (channel < first + wide) & valid
        altered = altered.masked_fill(band, 0)
        if config.noise_probability > 0:
            noise = random_normal(batch.seeds.to(x_BMF.device), _NOISE, *x_BMF.shape[1:])
            noise = config.noise_deviation * noise * (noisy < config.noise_probability)
            altered = altered + noise.masked_fill(~valid, 0)
        return altered, block.expand_as(x_BMF) | band
