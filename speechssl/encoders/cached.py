"""A frozen encoder's layers, read from disk instead of computed.

Shape legend: B utterances, T frames, K layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from speechssl.contract import Encoder, EncoderOutput, padding_mask


class CachedEncoder(Encoder):
    """Stands in for a frozen `encoder`, in front of whose head batches hold features.

    The "wave" of such a batch is an utterance's features, frame after frame and in each frame
    layer after layer: (B, T * K * D), and its "samples" are numbers of them. So frame counts,
    seconds and padding come out as they do with the encoder, and no head has to know. Layers of
    lower rates are those of `EncoderOutput.aligned`.
    """

    def __init__(self, encoder: Encoder, layers: Sequence[int]) -> None:
        super().__init__()
        self.config = encoder.config
        self.dim = encoder.dim
        self._part_dims = encoder.part_dims
        self.num_layers = encoder.num_layers
        self.layer_numbers = tuple(layers)
        self.hop_samples = self.receptive_field_samples = len(layers) * encoder.dim
        self._frame_rate_hz = encoder.frame_rate_hz
        self.sample_rate_hz = round(self.hop_samples * encoder.frame_rate_hz)

    @property
    def frame_rate_hz(self) -> float:
        return self._frame_rate_hz

    @property
    def part_dims(self) -> tuple[int, ...]:
        return self._part_dims

    def forward(
        self,
        wave: Tensor,
        wave_lengths: Tensor,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> EncoderOutput:
        """As `Encoder.forward`; raises `ValueError` for masks and for layers that are not there."""
        if mask is not None or channel_mask is not None:
            raise ValueError(
                "mask: found one with cached features, want none: it acts inside the encoder"
            )
        wanted = range(self.num_layers + 1) if layers is None else layers
        numbers = tuple(self.num_layers if n == -1 else n for n in wanted)
        absent = sorted(set(numbers) - set(self.layer_numbers))
        if absent:
            raise ValueError(
                f"layers: found {absent}, want some of those cached: {list(self.layer_numbers)}"
            )
        states = wave.unflatten(1, (-1, len(self.layer_numbers), self.dim))
        lengths = self.frame_lengths(wave_lengths)
        padding = padding_mask(lengths, states.shape[1])[..., None]
        hidden = tuple(
            states[:, :, self.layer_numbers.index(n)].masked_fill(padding, 0) for n in numbers
        )
        return EncoderOutput(hidden, numbers, lengths, self._frame_rate_hz)
