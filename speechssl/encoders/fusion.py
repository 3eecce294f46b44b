"""Several encoders as one: their frames side by side, on one time axis.

Shape legend: B utterances, L samples, T frames, P parts, D width (the sum of the parts' widths).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from speechssl.config import EncoderConfig
from speechssl.contract import Encoder, EncoderOutput, padding_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig(EncoderConfig):
    parts: list[EncoderConfig]
    """The encoders, two or more; their frame rates are whole multiples of the lowest one."""

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError(f"parts: found {len(self.parts)} encoders, want two or more")

    def build(self) -> FusionEncoder:
        return FusionEncoder([part.build() for part in self.parts])


class FusionEncoder(Encoder):
    """wave -> each part's frames, brought to the lowest of their rates and put side by side.

    Layers are counted by the deepest part, L: layer i holds of a part with K layers the layer
    round(i K / L). So 0 is every part's input, -1 every part's last layer, and each layer of each
    part is in some layer; of log-mel, which has one, in all. `part_dims` tells heads which channels
    are whose: they normalise each part by itself, and a weighted sum has weights for each.

    Frame t is where its window of `receptive_field_samples`, the longest of the parts', has its
    centre. Of a part, the frames around that centre are averaged, weighed by a triangle that falls
    to 0 at one hop: of the same rate and window they are the part's own, of a higher rate all of
    them count.

    Source: Arunkumar et al. 2022, "Investigation of ensemble features of self-supervised pretrained
    models for automatic speech recognition", for joining several models' features.
    Differs: every layer of each takes part, and rates may differ.
    """

    config: FusionConfig

    def __init__(self, parts: Sequence[Encoder]) -> None:
        """Raises `ValueError` if the parts' rates do not go together."""
        super().__init__()
        self.config = FusionConfig(parts=[part.config for part in parts])
        self.parts = nn.ModuleList(parts)
        rates = {part.sample_rate_hz for part in parts}
        self.hop_samples = max(part.hop_samples for part in parts)
        hops = [part.hop_samples for part in parts]
        if len(rates) > 1 or any(self.hop_samples % hop for hop in hops):
            raise ValueError(
                f"parts: found hops of {hops} samples at {sorted(rates)} Hz, want one sample rate, "
                "and hops that divide the longest"
            )
        self.sample_rate_hz = rates.pop()
        self.receptive_field_samples = max(part.receptive_field_samples for part in parts)
        self.num_layers = max(part.num_layers for part in parts)
        self.dim = sum(self.part_dims)
        self._taps = [self._taps_of(part) for part in parts]

    @property
    def part_dims(self) -> tuple[int, ...]:
        return tuple(width for part in self._each() for width in part.part_dims)

    @property
    def layer_strides(self) -> tuple[int, ...]:
        """After how many frames one of every part begins in each layer. All have `frame_rate_hz`:
        of a multi-resolution part, frames are repeated."""
        hop, found = self.hop_samples, [1] * (self.num_layers + 1)
        for number, part in enumerate(self._each()):
            for i, own in enumerate(self.part_layers(number)):
                step = math.lcm(hop, part.layer_strides[own] * part.hop_samples)
                found[i] = math.lcm(found[i], step // hop)
        return tuple(found)

    @property
    def front(self) -> nn.ModuleList:
        """The front ends of those parts that have one."""
        fronts = [getattr(part, "front", None) for part in self.parts]
        return nn.ModuleList(front for front in fronts if isinstance(front, nn.Module))

    def _each(self) -> list[Encoder]:
        return list(self.parts)  # pyright: ignore

    def part_layers(self, part: int) -> tuple[int, ...]:
        """For each layer from 0 on, which one it holds of a part."""
        own, count = self._each()[part].num_layers, self.num_layers
        return tuple((2 * i * own + count) // (2 * count) if count else 0 for i in range(count + 1))

    def _taps_of(self, part: Encoder) -> list[tuple[int, float]]:
        """(offset, weight): frame t reads the part's frames t * hop / its hop + offset."""
        hop, own = self.hop_samples, part.hop_samples
        lag = (part.receptive_field_samples - self.receptive_field_samples) / 2
        near = range(math.floor((-hop - lag) / own), math.ceil((hop - lag) / own) + 1)
        weights = [(offset, 1 - abs(offset * own + lag) / hop) for offset in near]
        return [(offset, weight) for offset, weight in weights if weight > 0]

    def forward(
        self,
        wave: Tensor,
        wave_lengths: Tensor,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> EncoderOutput:
        """As `Encoder.forward`; a masked frame masks those of the parts that are nearest to it."""
        wanted = self._wanted(layers)
        least = int(wave_lengths.min()) if len(wave_lengths) else self.receptive_field_samples
        if least < self.receptive_field_samples:
            raise ValueError(
                f"wave_lengths: found {least} samples, want {self.receptive_field_samples} (one "
                "frame) or more; drop shorter utterances or pad them with silence"
            )
        lengths = self.frame_lengths(wave_lengths)
        size = torch.tensor(wave.shape[1])
        total = int(self.frame_lengths(size))
        columns: list[list[Tensor]] = [[] for _ in wanted]
        first = 0
        for number, part in enumerate(self._each()):
            own = self.part_layers(number)
            numbers = sorted({own[n] for n in wanted})
            own_mask = None
            if mask is not None:
                own_mask = mask[:, self._nearest(part, int(part.frame_lengths(size)), total)]
            channels = None
            if channel_mask is not None:
                channels = channel_mask[:, first : first + part.dim]
            first += part.dim
            out = part(wave, wave_lengths, mask=own_mask, channel_mask=channels, layers=numbers)
            found = {n: self._resampled(number, out, n, total) for n in numbers}
            for column, n in zip(columns, wanted):
                column.append(found[own[n]])
        padding = padding_mask(lengths, total)[..., None]
        hidden = tuple(torch.cat(column, -1).masked_fill(padding, 0) for column in columns)
        return EncoderOutput(hidden, wanted, lengths, self.frame_rate_hz)

    def _wanted(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        count = self.num_layers
        numbers = range(count + 1) if layers is None else layers
        if not numbers or not all(-1 <= n <= count for n in numbers):
            raise ValueError(f"layers: found {layers}, want some from 0 (the input) to {count}, -1")
        return tuple(count if n == -1 else n for n in numbers)

    def _resampled(self, part: int, out: EncoderOutput, layer: int, total: int) -> Tensor:
        """(B, total, its width): a part's layer on the common time axis."""
        x, taps = out.aligned(layer), self._taps[part]
        step = self.hop_samples // self._each()[part].hop_samples
        if taps == [(0, 1.0)] and step == 1:
            return x[:, :total]
        at = torch.arange(total, device=x.device) * step
        found, weights = torch.zeros(()), torch.zeros(())
        for offset, weight in taps:
            place = at + offset
            there = ((place >= 0) & (place < out.lengths[:, None]))[..., None]
            frames = x[:, place.clamp(0, x.shape[1] - 1)]
            found = found + weight * frames.masked_fill(~there, 0)
            weights = weights + weight * there
        # Every frame of an utterance has a tap inside it; behind its end there is none.
        return found / weights.clamp(min=1e-6)

    def _nearest(self, part: Encoder, count: int, total: int) -> Tensor:
        """(count,): for each frame of a part the frame whose centre is nearest."""
        lag = (part.receptive_field_samples - self.receptive_field_samples) / 2
        times = torch.arange(count) * part.hop_samples + lag
        return (times / self.hop_samples).round().long().clamp(0, total - 1)
