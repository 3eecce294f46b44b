"""What the rooms exchange: Batch, Update, EncoderOutput, Encoder, Loss, Objective.

Shape legend: B utterances, L samples, T frames, D width. Lengths are int64 and count valid
entries; everything behind a length is padding and must never influence what is before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from speechssl.config import EncoderConfig

IGNORE = -100
"""Frame label of frames that have none (padding, outside the recording): never scored."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some utterances, padded at the end to one length.

    wave: (B, L) float32, zero behind each length; L may exceed all. wave_lengths: (B,) samples.
    targets: name -> frame labels (B, T) int64 with IGNORE outside the utterance; utterance labels
        (B,), or (B, N) of a store with N values each; ragged text as "text" (sum of U,) with
        "text_lengths" (B,).
    views: name -> (B, L) another version of the same utterances (e.g. "mixed": corrupted).
    seeds: (B,) int64, drawn from run seed, epoch and utterance id alone. Per-utterance randomness
        (span masks) is drawn from it, so that it depends neither on the batch's composition nor
        on the number of ranks.
    filler: True for a stand-in whose utterances were all unreadable: the trainer weighs it 0.
    """

    wave: Tensor
    wave_lengths: Tensor
    targets: Mapping[str, Tensor]
    views: Mapping[str, Tensor]
    seeds: Tensor
    ids: tuple[str, ...]
    filler: bool = False

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        return dataclasses.replace(
            self,
            wave=move(self.wave),
            wave_lengths=move(self.wave_lengths),
            targets={k: move(v) for k, v in self.targets.items()},
            views={k: move(v) for k, v in self.views.items()},
            seeds=self.seeds,
        )

    def pin_memory(self) -> Batch:
        return dataclasses.replace(
            self,
            wave=self.wave.pin_memory(),
            wave_lengths=self.wave_lengths.pin_memory(),
            targets={k: v.pin_memory() for k, v in self.targets.items()},
            views={k: v.pin_memory() for k, v in self.views.items()},
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimiser update's share of this rank.

    batches: the micro-batches to accumulate; every rank gets the same number of them.
    position: the source's position *behind* this update; a run resumed from it continues with
        the very next update.
    skipped: "id: reason" of utterances that could not be read.
    """

    batches: tuple[Batch, ...]
    position: Mapping[str, int]
    skipped: tuple[str, ...] = ()


class BatchSource(Protocol):
    """What the trainer reads: an endless stream of updates, and single passes for validation."""

    def updates(self, position: Mapping[str, int] | None = None) -> Iterator[Update]:
        """Updates from `position` (None: from the start), without end."""
        ...

    def one_pass(self) -> Iterator[Batch]:
        """This rank's share of one pass in fixed order, without randomness."""
        ...


@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """Hidden states of an encoder.

    hidden: one (B, T, D) tensor per entry of `layers`.
    layers: layer numbers of `hidden`: 0 is the transformer's input (after positions, and after
        the encoder norm if the encoder is post-norm), i is the output of layer i.
    lengths: (B,) valid frames.
    frame_rate_hz: frames per second.
    front: (B, T, C) front-end output before its layer norm (for HuBERT's feature penalty).
    rates_hz: frame rate of each entry of `hidden`, for multi-resolution encoders; None: all have
        `frame_rate_hz`, which is a whole multiple of each.
    """

    hidden: tuple[Tensor, ...]
    layers: tuple[int, ...]
    lengths: Tensor
    frame_rate_hz: float
    front: Tensor | None = None
    rates_hz: tuple[float, ...] | None = None

    @property
    def last(self) -> Tensor:
        return self.hidden[-1]

    def layer(self, number: int) -> Tensor:
        if number not in self.layers:
            raise ValueError(f"layer: found {number}, want one of those computed: {self.layers}")
        return self.hidden[self.layers.index(number)]

    def stride(self, number: int) -> int:
        """Frames of `frame_rate_hz` that one frame of layer `number` stands for: 1, or more."""
        if self.rates_hz is None:
            return 1
        return round(self.frame_rate_hz / self.rates_hz[self.layers.index(number)])

    def lengths_of(self, number: int) -> Tensor:
        """(B,) valid frames of layer `number`, at its own rate."""
        stride = self.stride(number)
        return (self.lengths + stride - 1) // stride

    def aligned(self, number: int) -> Tensor:
        """(B, T, D): layer `number` at `frame_rate_hz`, its frames repeated if it has fewer."""
        state, stride = self.layer(number), self.stride(number)
        if stride == 1:
            return state
        sizes = [x.shape[1] for n, x in zip(self.layers, self.hidden) if self.stride(n) == 1]
        if self.front is not None:
            sizes.append(self.front.shape[1])
        size = sizes[0] if sizes else int(self.lengths.max())
        return state.repeat_interleave(stride, 1)[:, :size]

    @property
    def padding_mask(self) -> Tensor:
        """(B, T) bool, True on padding, of the first of `hidden`."""
        return padding_mask(self.lengths_of(self.layers[0]), self.hidden[0].shape[1])


class Encoder(nn.Module):
    """(wave, lengths) -> EncoderOutput. Features of an utterance do not depend on its padding."""

    config: EncoderConfig
    dim: int
    """Width D of every layer's output."""
    num_layers: int
    hop_samples: int
    """Samples per frame step; frame t starts at sample t * hop_samples."""
    sample_rate_hz: int = 16000
    receptive_field_samples: int = 400

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.hop_samples

    @property
    def layer_strides(self) -> tuple[int, ...]:
        """For each layer from 0, the frames of `frame_rate_hz` that one of its frames stands for:
        1 everywhere but in multi-resolution encoders. Its frame j starts with frame j * stride."""
        return (1,) * (self.num_layers + 1)

    @property
    def part_dims(self) -> tuple[int, ...]:
        """Widths of the blocks of channels that belong together: one, but of several encoders side
        by side. They add up to `dim`."""
        return (self.dim,)

    def frame_lengths(self, wave_lengths: Tensor) -> Tensor:
        """(B,) samples -> (B,) frames: floor((L - receptive field) / hop) + 1, at least 0."""
        frames = (wave_lengths - self.receptive_field_samples) // self.hop_samples + 1
        return frames.clamp(min=0)

    def forward(
        self,
        wave: Tensor,
        wave_lengths: Tensor,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> EncoderOutput:
        """wave (B, L) float32, wave_lengths (B,) samples.

        mask: (B, T) bool, frames whose transformer input is replaced by the learnt mask vector.
        channel_mask: (B, D) bool, channels of the transformer input set to 0 over all frames.
        layers: which hidden states to return, None for all; -1 is the last.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Loss:
    """A sum over `count` scored items, with its gradient, and what to log.

    total: scalar float32, the weighted SUM that is minimised; the trainer divides the gradient
        once by the global sum of `count`, so batch shape, accumulation and the number of ranks
        do not matter. An auxiliary term per utterance therefore carries its utterance's share
        of `count` as weight.
    count: scalar, items summed (masked frames, utterances, ...).
    logs: name -> (sum, count), detached scalars; logged as sum / count over ranks and batches.
    """

    total: Tensor
    count: Tensor
    logs: Mapping[str, tuple[Tensor, Tensor]]


class Objective(nn.Module):
    """A training objective, or a head: all that the trainer knows of a model.

    State belongs in parameters or buffers, so that a checkpoint holds it; schedules are pure
    functions of `step`, the number of optimiser updates done.
    """

    encoder: nn.Module
    step: Tensor
    learns_in_buffers = False
    """Whether `after_update` is how it learns, so that it may have no trainable parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Loss:
        raise NotImplementedError

    def after_update(self, step: int) -> None:
        """Called after each optimiser update; overriders (EMA, codebooks) call super."""
        self.step.fill_(step)

    def summary(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """What a validation reports, given its means: default these. For figures that are not the
        mean of anything, such as a correlation, which follow from means of other things."""
        return means

    def exported_head(self) -> Mapping[str, Any] | None:
        """class_path and init_args of the head that is exported with the encoder, from the tensors
        of the same names here; default: none."""
        return None

    def sharded(self) -> Iterable[nn.Module]:
        """Modules to shard one by one (FSDP2); default: the encoder's layers."""
        layers: Any = getattr(self.encoder, "layers", ())
        return tuple(layers)


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths -> (B, size) bool, True on padding."""
    return torch.arange(size, device=lengths.device)[None, :] >= lengths[:, None]
