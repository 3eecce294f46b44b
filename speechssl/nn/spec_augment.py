"""SpecAugment of what a head reads: stretches of frames and of channels set to 0.

Source: Park et al. 2019, section 2; in front of SUPERB's recognisers (Yang et al. 2021) two
stretches of up to 100 frames and two of up to 20 channels.
Differs: no warping of time. Draws are per utterance (see `speechssl.nn.draws`).

Shape legend: B utterances, T frames, D channels, M stretches.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from speechssl.nn.draws import random_uniform

_FRAMES, _CHANNELS = 61, 62


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    frame_masks: int = 0
    """Stretches of frames that are set to 0 in training; 0: none (SUPERB's recognisers: 2)."""
    frame_width: int = 100
    """Each is of 0 to so many frames."""
    frame_share: float = 1.0
    """And of at most this share of the utterance."""
    channel_masks: int = 0
    """Stretches of channels that are set to 0 in training; 0: none (SUPERB's recognisers: 2)."""
    channel_width: int = 20
    """Each is of 0 to so many channels."""

    def __post_init__(self) -> None:
        for name in ("frame_masks", "frame_width", "channel_masks", "channel_width"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"spec_augment.{name}: found {getattr(self, name)}, want 0 or more"
                )
        if not 0 < self.frame_share <= 1:
            raise ValueError(
                f"spec_augment.frame_share: found {self.frame_share}, want more than 0, at most 1"
            )


def spec_augment(x: Tensor, lengths: Tensor, seeds: Tensor, config: SpecAugmentConfig) -> Tensor:
    """(B, T, D) frames, (B,) valid ones, (B,) seeds -> (B, T, D).

    A stretch's width is uniform over 0 to the widest, then its place over all that hold it; so a
    row depends on its own seed and length alone.
    """
    if config.frame_masks:
        longest = (config.frame_share * lengths).long().clamp(max=config.frame_width)
        hidden = _stretches(seeds, _FRAMES, config.frame_masks, longest, lengths, x.shape[1])
        x = x.masked_fill(hidden[..., None], 0)
    if config.channel_masks:
        sizes = torch.full_like(lengths, x.shape[2])
        widest = sizes.clamp(max=config.channel_width)
        hidden = _stretches(seeds, _CHANNELS, config.channel_masks, widest, sizes, x.shape[2])
        x = x.masked_fill(hidden[:, None], 0)
    return x


def _stretches(
    seeds: Tensor, stream: int, count: int, widest: Tensor, sizes: Tensor, total: int
) -> Tensor:
    """(B, total) bool: `count` stretches in each row, of at most `widest` (B,) of `sizes` (B,)."""
    dice = random_uniform(seeds.to(sizes.device), stream, count, 2)  # (B, M, 2)
    widths = (dice[..., 0] * (widest[:, None] + 1)).long()
    starts = (dice[..., 1] * (sizes[:, None] - widths + 1)).long()
    places = torch.arange(total, device=sizes.device)
    inside = (places >= starts[..., None]) & (places < (starts + widths)[..., None])
    return inside.any(1)
