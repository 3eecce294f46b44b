"""A Transformer over the units that vq-wav2vec's frozen front end and quantiser make of a wave.

Shape legend: B utterances, L samples, T frames, C front-end channels, P combinations of codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.encoders.transformer import TransformerConfig, TransformerEncoder
from speechssl.encoders.vq_conv import QuantisedProjection, VqConvEncoder

UNKNOWN = 0
"""Unit of combinations outside the vocabulary."""
SHARED = (
    "front_end", "front_norm", "front_dim", "conv_kernels", "conv_strides", "conv_bias",
    "light_layers", "light_heads", "light_dynamic", "normalize_wave", "mel_bins", "mel_hop_samples",
    "mel_kernel", "mel_norm", "groups", "codes", "quantiser",
)  # fmt: skip
"""Fields that a model on units has in common with the one that makes them, as far as their kind
of front end reads them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitTransformerConfig(TransformerConfig):
    """The defaults are BERT Base on vq-wav2vec's units. The fields of the front end and of the
    quantiser are those of the vq-wav2vec model whose units these are."""

    inputs: Literal["units", "features"] = "units"
    """units: an embedding of each frame's unit; features: the front end's frames as they are."""
    vocabulary: int = 13_500
    """Units, the unknown one included; the paper has some 13 500."""
    groups: int = 2
    codes: int = 320
    quantiser: Literal["gumbel", "kmeans"] = "gumbel"
    quantised_dim: int = 512
    """Width of vq-wav2vec."""
    front_norm: Literal["group", "layer"] = "layer"
    conv_kernels: tuple[int, ...] = (10, 8, 4, 4, 4, 1, 1, 1)
    conv_strides: tuple[int, ...] = (5, 4, 2, 2, 2, 1, 1, 1)
    conv_gradient_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary < 2:
            raise ValueError(
                f"vocabulary: found {self.vocabulary}, want at least 2, the unknown unit included"
            )
        if self.conv_gradient_scale != 0:
            raise ValueError(
                f"conv_gradient_scale: found {self.conv_gradient_scale}, want 0: the units would "
                "change under the model"
            )

    def build(self) -> UnitTransformerEncoder:
        return UnitTransformerEncoder(self)


class UnitTransformerEncoder(TransformerEncoder):
    """wave -> units -> embeddings -> Transformer.

    `unit_of` maps a combination of codes to its unit; before `take_units`, the first ones in
    order are the vocabulary.

    Source: Baevski et al. 2019, "Effectiveness of self-supervised pre-training for speech
    recognition", section 3.
    """

    config: UnitTransformerConfig
    unit_of: Tensor

    def __init__(self, config: UnitTransformerConfig) -> None:
        super().__init__(config)
        channels = config.front_dim
        self.unit_norm = nn.LayerNorm(channels)
        self.tokenizer = QuantisedProjection(
            channels, config.quantised_dim, config.groups, config.codes, config.quantiser
        )
        for part in (self.front, self.unit_norm, self.tokenizer):
            part.requires_grad_(False)
        self.embedding = None
        if config.inputs == "units":
            self.embedding = nn.Embedding(config.vocabulary, channels)
        units = torch.arange(1, config.codes**config.groups + 1)
        self.register_buffer("unit_of", units.where(units < config.vocabulary, UNKNOWN))

    def _front(self, wave: Tensor, wave_lengths: Tensor, padded: bool) -> Tensor:
        # In float32 whatever the precision: else a wave's units would depend on it.
        with torch.autocast(wave.device.type, enabled=False):
            front = super()._front(wave.float(), wave_lengths, padded)
        return front if self.embedding is None else self.embedding(self.units(front))

    @torch.no_grad()
    def units(self, front: Tensor) -> Tensor:
        """(B, T, C) of the front end -> (B, T) int64 units."""
        with torch.autocast(front.device.type, enabled=False):
            return self.unit_of[self.tokenizer.pairs(self.unit_norm(front))]

    @contextmanager
    def observed_units(self) -> Iterator[list[Tensor]]:
        """Collect the (B, T) units of each batch that passes while the context lasts."""
        found: list[Tensor] = []
        assert self.embedding is not None
        hook = self.embedding.register_forward_pre_hook(lambda _m, x: found.append(x[0]))
        try:
            yield found
        finally:
            hook.remove()

    @torch.no_grad()
    def take_units(self, source: VqConvEncoder) -> None:
        """Copy the front end and the quantiser of vq-wav2vec; its most frequent combinations of
        codes become the vocabulary, the most frequent first.

        Raises `ValueError` if they are of another shape, or have never been counted.
        """
        own, theirs = self.config, source.config
        other = {
            "wave": ("mel_", "light_"),
            "light_wave": ("mel_",),
            "log_mel": ("conv_", "light_"),
        }
        same = {name: name for name in SHARED if not name.startswith(other[theirs.front_end])}
        same["quantised_dim"] = "dim"
        faults = [
            f"{mine}: found {getattr(own, mine)!r}, want {getattr(theirs, name)!r}"
            for mine, name in same.items()
            if getattr(own, mine) != getattr(theirs, name)
        ]
        if faults:
            raise ValueError(f"encoder: its units are not those given: {'; '.join(faults)}")
        self.front.load_state_dict(source.front.state_dict())
        self.unit_norm.load_state_dict(source.front_norm.state_dict())
        self.tokenizer.load_state_dict(source.projection.state_dict())
        counts = source.pair_counts
        seen = int((counts > 0).sum())
        if seen == 0:
            raise ValueError("units: found no combination of codes that was ever taken, want a "
                             "vq-wav2vec model that was trained here")  # fmt: skip
        order = counts.argsort(descending=True, stable=True)[: min(seen, own.vocabulary - 1)]
        self.unit_of.fill_(UNKNOWN)
        self.unit_of[order] = torch.arange(1, len(order) + 1, device=order.device)
