"""Sylber: each frame becomes the mean of its syllable-like segment, as a teacher sees both.

Source: Cho et al. 2024, "Sylber: Syllabic Embedding Representation of Speech from Raw Audio",
section 3; official code Berkeley-Speech-Group/sylber.

A copy of the encoder as it started (`init_from` of a run) is the teacher. Its frames are cut into
segments (`nn.segmentation`); the student's frames are drawn to the mean of the teacher's over
their segment, and to 0 outside of all. Nothing is masked. The published training has two stages,
each with a new teacher: one on segments made before (a label store, as `speechssl segment` writes
it), then one on the teacher's own.

Differs:
- Segments are found in linear time without a loop over frames; see there for what else differs.
- Which frames can be in a segment: published are those whose norm reaches the point where two
  running Gaussians, of signal and of noise, cross. That needs an encoder that gives silence small
  norms already, as SD-HuBERT does; `silence_db` takes the wave's level instead, for any encoder.
- The running Gaussians move once per update, by the frames of all micro-batches and ranks.
- A teacher may also follow its student (`ema`); published is 1, it does not.

Shape legend: B utterances, T frames, D encoder width.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import cast

import torch
from torch import Tensor, nn

from speechssl.config import EncoderConfig, ObjectiveConfig
from speechssl.contract import Batch, Encoder, Loss, Objective, padding_mask
from speechssl.nn import collapse
from speechssl.nn.draws import random_uniform
from speechssl.nn.ema import local
from speechssl.nn.segmentation import frame_levels_db, labelled_segments, segment, segment_means
from speechssl.nn.update_sums import UpdateSums
from speechssl.objectives.wavlm import VIEW

_THRESHOLD = 95
"""Stream of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SylberConfig(ObjectiveConfig):
    encoder: EncoderConfig
    """The encoder to train on, from its own start or, rather, from init_from."""
    layer: int = -1
    """The layer that is segmented and drawn, from 1; -1: the last. Published: 9 of HuBERT Base.
    Layers behind it stay as they are."""
    segments: str | None = None
    """Name of frame labels that are the segments (equal neighbours are one, 0 is none); none: the
    teacher's own."""
    merge_threshold: tuple[float, float] = (0.8, 0.9)
    """Range of the least cosine of a frame with the mean of its segment, drawn per utterance."""
    silence_db: float = 0.0
    """Frames so far below the loudest are in no segment; 0: those of small norm are not."""
    signal_norm: tuple[float, float] = (6.10, 0.87)
    """Mean and variance of the norms of frames of speech, at the start."""
    noise_norm: tuple[float, float] = (0.34, 0.34)
    """The same of other frames."""
    norm_decay: float = 0.9999
    """How much of either is kept in an update; 1: all, they are fixed."""
    ema: float = 1.0
    """How much of the teacher is kept in an update."""
    corrupted: bool = False
    """The student reads each batch's mixed view; the teacher never does."""
    collapse_after: int = 5000
    """Raise from this update on if hardly any frame is in a segment; 0: never."""
    least_share: float = 0.05
    """Share of frames in segments that counts as sound."""

    def __post_init__(self) -> None:
        low, high = self.merge_threshold
        if not -1 <= low <= high <= 1:
            raise ValueError(f"merge_threshold: found ({low}, {high}), want cosines (low, high)")
        if self.silence_db < 0 or not (0 < self.norm_decay <= 1 and 0 <= self.ema <= 1):
            raise ValueError(
                f"found silence_db {self.silence_db}, norm_decay {self.norm_decay} and ema "
                f"{self.ema}, want 0 or more, above 0 to 1, and 0 to 1"
            )
        if (
            self.noise_norm[0] >= self.signal_norm[0]
            or min(self.noise_norm[1], self.signal_norm[1]) <= 0
        ):
            raise ValueError(
                f"noise_norm, signal_norm: found {self.noise_norm} and {self.signal_norm}, want "
                "(mean, variance) each, with noise below signal and variances above 0"
            )

    def build(self) -> Sylber:
        return Sylber(self)


class Sylber(Objective):
    """Squared distance of frames from the teacher's mean over their segment."""

    norms: Tensor

    def __init__(self, config: SylberConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        encoder = cast(Encoder, self.encoder)
        last = encoder.num_layers
        if not (config.layer == -1 or 1 <= config.layer <= last):
            raise ValueError(f"layer: found {config.layer}, want 1 to {last}, or -1 for the last")
        self.layer = last if config.layer == -1 else config.layer
        self.teacher = Teacher(encoder)
        _freeze_unused(encoder, self.layer)
        # Signal, then noise: mean and variance of their norms.
        norms = torch.tensor([config.signal_norm, config.noise_norm])
        self.register_buffer("norms", norms)
        self.sums = UpdateSums(norms=(2, 3), frames=(), inside=())

    def forward(self, batch: Batch) -> Loss:
        encoder = cast(Encoder, self.encoder)
        out = encoder(self.input_wave(batch), batch.wave_lengths, layers=[self.layer])
        seen = self.teacher(batch.wave, batch.wave_lengths, self.layer)
        valid = ~padding_mask(out.lengths, seen.shape[1])
        alive = self.alive(batch, seen, valid)
        segments = self.segments(batch, seen, alive)
        target = segment_means(seen, segments)
        error = (out.last.float() - target).square().sum(-1)
        total, count, inside = error[valid].sum(), valid.sum(), (segments > 0).sum()
        if not batch.filler:
            self.sums.add(norms=_moments(seen, valid, alive), frames=count, inside=inside)
        number = segments.amax(1).sum()
        logs = {
            "squared_error": (total.detach(), count),
            "share_inside": (inside, count),
            "segments_per_second": (number * encoder.frame_rate_hz, count),
        }
        return Loss(total, count, logs)

    def input_wave(self, batch: Batch) -> Tensor:
        """The (B, L) signal that the student reads."""
        if not self.config.corrupted:
            return batch.wave
        if VIEW not in batch.views:
            raise ValueError(
                f"batch: found views {sorted(batch.views)}, want {VIEW!r}; set data.mixing (such "
                "as data.mixing.probability=0.2), or corrupted: false"
            )
        return batch.views[VIEW]

    def alive(self, batch: Batch, seen: Tensor, valid: Tensor) -> Tensor:
        """(B, T) frames that can be in a segment."""
        if self.config.silence_db > 0:
            hop = cast(Encoder, self.encoder).hop_samples
            levels = frame_levels_db(batch.wave, batch.wave_lengths, hop, seen.shape[1])
            return valid & (levels >= -self.config.silence_db)
        return valid & (seen.norm(dim=-1) >= self.norm_threshold())

    def segments(self, batch: Batch, seen: Tensor, alive: Tensor) -> Tensor:
        """(B, T) number of each frame's segment, 0 for none."""
        name = self.config.segments
        if name is None:
            low, high = self.config.merge_threshold
            draw = random_uniform(batch.seeds, _THRESHOLD, 1)[:, 0].to(seen.device)
            return segment(seen, alive, low + (high - low) * draw)
        if name not in batch.targets:
            raise ValueError(
                f"segments: found targets {sorted(batch.targets)}, want {name!r}; name the label "
                f"store of `speechssl segment` in data.labels, such as "
                f"data.labels.{name}=exp/segments/labels"
            )
        labels, size = batch.targets[name], alive.shape[1]
        if labels.ndim != 2 or labels.shape[1] < size:
            raise ValueError(
                f"segments: found target {name!r} of shape {tuple(labels.shape)}, want (B, T) with "
                f"T of {size} or more, the encoder's frames"
            )
        valid = ~padding_mask(self.frames(batch), size)
        return labelled_segments(labels[:, :size].masked_fill(~valid, 0))

    def frames(self, batch: Batch) -> Tensor:
        return cast(Encoder, self.encoder).frame_lengths(batch.wave_lengths)

    def norm_threshold(self) -> float:
        """Where the running Gaussians of the norms of signal and noise cross, between the means."""
        (signal, spread), (noise, width) = self.norms.tolist()
        return crossing(noise, width, signal, spread)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        super().after_update(step)
        if self.config.ema < 1:
            self.teacher.update(cast(Encoder, self.encoder), self.config.ema)
        sums = self.sums.take()
        if self.config.silence_db == 0 and self.config.norm_decay < 1:
            self._move_norms(sums["norms"])
        if collapse.due(step, self.config.collapse_after):
            found = sums["inside"] / sums["frames"].clamp(min=1)
            because = "hardly any frame is in a segment"
            collapse.require("share in segments", found, self.config.least_share, step, because)

    def _move_norms(self, sums: Tensor) -> None:
        count, total, square = sums.unbind(1)
        some, count = count > 0, count.clamp(min=1)
        decay = self.config.norm_decay
        mean = decay * self.norms[:, 0] + (1 - decay) * total / count
        around = square / count - 2 * mean * total / count + mean.square()
        variance = decay * self.norms[:, 1] + (1 - decay) * around
        self.norms.copy_(torch.where(some[:, None], torch.stack([mean, variance], 1), self.norms))


class Teacher(nn.Module):
    """A whole copy of an encoder, front end included, that never trains."""

    def __init__(self, student: Encoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(student).float().requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, wave: Tensor, wave_lengths: Tensor, layer: int) -> Tensor:
        """(B, T, D) float32."""
        return self.encoder(wave, wave_lengths, layers=[layer]).last.float()

    @torch.no_grad()
    def update(self, student: Encoder, keep: float) -> None:
        theirs = dict(student.named_parameters())
        for name, mine in self.encoder.named_parameters():
            local(mine).lerp_(local(theirs[name]).to(mine.dtype), 1 - keep)


def crossing(low: float, low_variance: float, high: float, high_variance: float) -> float:
    """Where two normal densities are equal, between their means; half-way where they are not."""
    a = 1 / high_variance - 1 / low_variance
    b = 2 * (low / low_variance - high / high_variance)
    c = high**2 / high_variance - low**2 / low_variance + math.log(high_variance / low_variance)
    if abs(a) < 1e-12:
        roots = [-c / b]
    else:
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        roots = [(-b + root) / (2 * a), (-b - root) / (2 * a)]
    between = [x for x in roots if low <= x <= high]
    return between[0] if between else (low + high) / 2


def _moments(seen: Tensor, valid: Tensor, alive: Tensor) -> Tensor:
    """(2, 3): count, sum and sum of squares of the norms of living, and of other frames."""
    norm = seen.norm(dim=-1)
    powers = torch.stack([torch.ones_like(norm), norm, norm.square()], -1)
    return torch.stack([powers[alive].sum(0), powers[valid & ~alive].sum(0)])


def _freeze_unused(encoder: Encoder, layer: int) -> None:
    """What the loss cannot reach has no place in the optimiser: it stays as it began."""
    mask_vector = getattr(encoder, "mask_emb", None)
    if mask_vector is not None:
        mask_vector.requires_grad_(False)
    if layer == encoder.num_layers:
        return
    for part in list(getattr(encoder, "layers", ()))[layer:]:
        part.requires_grad_(False)
    if getattr(encoder.config, "pre_norm", False):
        encoder.get_submodule("layer_norm").requires_grad_(False)
