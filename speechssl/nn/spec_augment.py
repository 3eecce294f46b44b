"""SpecAugment of what a head reads: time warped, stretches of frames and of channels set to 0.

Source: Park et al. 2019, section 2; in front of SUPERB's recognisers (Yang et al. 2021; s3prl's
configuration of ASR) frames moved by up to 5, two stretches of up to 39 frames and four of up to 49
channels, and of slot filling 0.04 stretches per frame (at most 20) of up to 0.04 of the frames.
Differs: draws are per utterance (see `speechssl.nn.draws`), where s3prl's places depend on the
widest stretch of the batch, and its adaptive number and width on the longest utterance.

Shape legend: B utterances, T frames, D channels, M stretches.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from speechssl.nn.draws import random_uniform

_FRAMES, _CHANNELS, _WARP = 61, 62, 63
_CUBIC = -0.75
"""The cubic convolution kernel's parameter, that of torch's bicubic interpolation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    time_warp: int = 0
    """A frame of each utterance is moved by up to so many frames in training, and what lies before
    and behind it stretched or compressed to fit; 0: none (SUPERB's recognisers: 5). Utterances of
    at most twice as many frames stay as they are."""
    frame_masks: int = 0
    """Stretches of frames that are set to 0 in training; 0: none (SUPERB's recognisers: 2)."""
    frame_width: int = 100
    """Each is of 0 to so many frames."""
    frame_share: float = 1.0
    """And of at most this share of the utterance."""
    frame_mask_rate: float = 0.0
    """So many stretches per frame of the utterance, at most `frame_masks`; 0: `frame_masks`."""
    channel_masks: int = 0
    """Stretches of channels that are set to 0 in training; 0: none (SUPERB's recognisers: 4)."""
    channel_width: int = 20
    """Each is of 0 to so many channels."""

    def __post_init__(self) -> None:
        for name in ("time_warp", "frame_masks", "frame_width", "frame_mask_rate", "channel_masks",
                     "channel_width"):  # fmt: skip
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
    if config.time_warp:
        x = warp_time(x, lengths, *warp_points(lengths, seeds, config.time_warp))
    if config.frame_masks:
        longest = (config.frame_share * lengths).long().clamp(max=config.frame_width)
        counts = None
        if config.frame_mask_rate:
            counts = (config.frame_mask_rate * lengths).long()
        hidden = _stretches(
            seeds, _FRAMES, config.frame_masks, longest, lengths, x.shape[1], counts
        )
        x = x.masked_fill(hidden[..., None], 0)
    if config.channel_masks:
        sizes = torch.full_like(lengths, x.shape[2])
        widest = sizes.clamp(max=config.channel_width)
        hidden = _stretches(seeds, _CHANNELS, config.channel_masks, widest, sizes, x.shape[2])
        x = x.masked_fill(hidden[:, None], 0)
    return x


def warp_points(lengths: Tensor, seeds: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(B,) frames and seeds -> (B,) where each utterance is cut, and where the cut is moved to.

    The cut is uniform over `window` to T - window - 1, its new place over the 2 `window` places
    from window - 1 before it to window behind it, as s3prl and ESPnet draw them. An utterance of at
    most 2 `window` frames has both at its end, which changes nothing.
    """
    dice = random_uniform(seeds.to(lengths.device), _WARP, 2)  # (B, 2)
    room = lengths - 2 * window
    cut = window + (dice[:, 0] * room).long()
    moved = cut + 1 - window + (dice[:, 1] * 2 * window).long()
    return torch.where(room > 0, cut, lengths), torch.where(room > 0, moved, lengths)


def warp_time(x: Tensor, lengths: Tensor, cut: Tensor, moved: Tensor) -> Tensor:
    """(B, T, D) frames -> (B, T, D): the first `cut` (B,) of `lengths` (B,) become `moved` (B,).

    The others fill what is left; padding stays as it is. Both parts are resampled by cubic
    convolution, each as if nothing lay beyond it: `interpolate(mode="bicubic")` of each part.
    """
    size = x.shape[1]
    place = torch.arange(size, device=x.device)
    left = place < moved[:, None]  # (B, T)
    zero = torch.zeros_like(cut)
    first, behind = (torch.where(left, a[:, None], b[:, None])
                     for a, b in ((zero, cut), (cut, lengths)))  # fmt: skip
    begin, end = (torch.where(left, a[:, None], b[:, None])
                  for a, b in ((zero, moved), (moved, lengths)))  # fmt: skip
    scale = (behind - first) / (end - begin).clamp(min=1)
    source = (place - begin + 0.5) * scale - 0.5
    base = source.floor()
    within = source - base
    found = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for tap in range(-1, 3):
        index = (first + base.long() + tap).clamp(min=first, max=behind - 1).clamp(0, size - 1)
        frames = x.gather(1, index[..., None].expand_as(x))
        found = found + _cubic((within - tap).abs())[..., None] * frames
    return torch.where((place < lengths[:, None])[..., None], found.to(x.dtype), x)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel (1981, equation 4, with `_CUBIC` for a) at distances from 0 to 2."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)


def _stretches(
    seeds: Tensor,
    stream: int,
    most: int,
    widest: Tensor,
    sizes: Tensor,
    total: int,
    counts: Tensor | None = None,
) -> Tensor:
    """(B, total) bool: `counts` (B,) stretches, at most and by default `most`, in each row, each of
    at most `widest` (B,) of `sizes` (B,)."""
    dice = random_uniform(seeds.to(sizes.device), stream, most, 2)  # (B, M, 2)
    widths = (dice[..., 0] * (widest[:, None] + 1)).long()
    if counts is not None:
        widths = widths * (torch.arange(most, device=sizes.device) < counts[:, None])
    starts = (dice[..., 1] * (sizes[:, None] - widths + 1)).long()
    places = torch.arange(total, device=sizes.device)
    inside = (places >= starts[..., None]) & (places < (starts + widths)[..., None])
    return inside.any(1)
