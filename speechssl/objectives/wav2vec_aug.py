"""Wav2Vec-Aug: wav2vec 2.0 for little unlabelled speech, by augmentation and richer projections.

Source: Sriram, Auli and Baevski 2022, "Wav2Vec-Aug: Improved self-supervised training with limited
data", section 3.

Differs:
- Waves are augmented here, by each utterance's seed, in pitch, by a room's echo and by noise; how
  often and how much is ours. Speed is the data's (`data.speeds`), recorded noise and rooms too
  (`data.mixing`, read with `mixed`).
- The projections have layer norms, so that no frame depends on its batch.
- The context network is the encoder that is configured: the paper's Conformer is
  `speechssl.encoders.conformer.ConformerConfig`, and its lightweight and dynamic convolutions are
  that one's `front_end: light_wave` (see `speechssl.nn.light_conv`), of sizes to be chosen.

Without augmentation and with plain projections it is wav2vec 2.0, to the bit.

Shape legend: B utterances, L samples, T frames, C front-end channels, F final width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor, nn

from speechssl.contract import Batch, EncoderOutput
from speechssl.nn.wave_augment import AugmentConfig, augment_waves
from speechssl.objectives.wav2vec2 import Wav2vec2, Wav2vec2Config
from speechssl.objectives.wavlm import VIEW

_CONTEXT, _TARGET = 81, 84
"""First streams of an utterance's seed for each augmentation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wav2vecAugConfig(Wav2vec2Config):
    """As wav2vec 2.0, with augmentation and deeper projections."""

    augmented: Literal["context", "both", "independent"] = "independent"
    """context: targets are of the wave as it is; both: context and targets are of one augmented
    wave; independent: each is of its own."""
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    """The augmentation, in training only."""
    mixed: bool = False
    """Start from the data's mixed view in place of the clean wave."""
    projection_layers: int = 2
    """Linear maps in each projection, with norms and GELU between: 1 is wav2vec 2.0's."""
    projection_dim: int = 2048
    """Width between them."""

    def build(self) -> Wav2vecAug:
        return Wav2vecAug(self)


class Wav2vecAug(Wav2vec2):
    """InfoNCE between contexts and quantised targets of differently augmented waves."""

    config: Wav2vecAugConfig

    def __init__(self, config: Wav2vecAugConfig) -> None:
        super().__init__(config)
        if config.projection_layers < 1:
            raise ValueError(f"projection_layers: found {config.projection_layers}, want 1 or more")
        if config.projection_layers > 1:
            shape = config.final_dim, config.projection_layers, config.projection_dim
            self.project_context = _projection(self.encoder.dim, *shape)
            self.project_target = _projection(config.final_dim, *shape)

    def encode(self, batch: Batch, mask: Tensor) -> tuple[EncoderOutput, Tensor]:
        context, target = self.waves(batch)
        layers = sorted({self.context_layer, self.encoder.num_layers})
        out = self.encoder(context, batch.wave_lengths, mask=mask, layers=layers)
        if target is context:
            return out, out.front
        return out, self.encoder(target, batch.wave_lengths, layers=[0]).front

    def waves(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The (B, L) waves that contexts and targets are made of."""
        config = self.config
        if config.mixed and VIEW not in batch.views:
            raise ValueError(
                f"batch: found views {sorted(batch.views)}, want {VIEW!r}; set data.mixing (such "
                "as data.mixing.probability=0.5), or mixed: false"
            )
        wave = batch.views[VIEW] if config.mixed else batch.wave
        if not self.training or config.augment.touches_nothing():
            return wave, batch.wave if config.augmented == "context" else wave
        given = batch.wave_lengths, batch.seeds, config.augment
        context = augment_waves(wave, *given, _CONTEXT)
        if config.augmented == "both":
            return context, context
        if config.augmented == "context":
            return context, batch.wave
        return context, augment_waves(wave, *given, _TARGET)


def _projection(dim: int, out_dim: int, layers: int, between: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(dim, between), nn.LayerNorm(between), nn.GELU()]
        dim = between
    return nn.Sequential(*parts, nn.Linear(dim, out_dim))
