"""data2vec 2.0: data2vec whose student encodes visible frames only, under many masks per target.

Source: Baevski et al. 2022, "Efficient Self-supervised Learning with Contextualized Target
Representations for Vision, Speech and Language", section 3; fairseq
`examples/data2vec/models/data2vec2.py` and `modalities/`.

Differs:
- As `speechssl.objectives.data2vec`: statistics over valid frames, and where collapse is judged.
- The noise in the place of masked frames is the same for all masks of an utterance.
- Padding is zero between the decoder's convolutions, so that it changes nothing.

Shape legend: B utterances, M masks of each, R = B * M rows, T frames, V visible frames of the
fullest row, D encoder width, E decoder width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.contract import Batch, Loss, padding_mask
from speechssl.nn.draws import random_normal
from speechssl.nn.masking import block_mask
from speechssl.objectives.data2vec import Data2vec, Data2vecConfig, watched

_NOISE = 61
"""Stream of an utterance's seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2vec2Config(Data2vecConfig):
    """As data2vec, with its own masks and schedule of the teacher; Base."""

    masks: int = 8
    """M: masks of an utterance in one update, which share its targets: 8 Base, 12 Large."""
    mask_probability: float = 0.5
    """Share of the frames that each masks, exactly: 0.5 Base, 0.55 Large."""
    mask_adjust: float = 0.05
    """Blocks are drawn for so much more, since they overlap: 0.05 Base, 0.1 Large."""
    mask_span: int = 5
    """Frames per block."""
    mask_min_spans: int = 1
    """Least number of blocks of an utterance."""
    mask_inverse: bool = False
    """The blocks are what stays visible (as published for images), not what is masked."""
    decoder_dim: int = 384
    """Width of the decoder: 384 Base, 768 Large."""
    decoder_layers: int = 4
    """Its convolutions."""
    decoder_kernel: int = 7
    """Frames that each of them sees."""
    decoder_groups: int = 16
    """Groups of channels that are convolved apart."""
    decoder_dropout: float = 0.1
    """Dropout of its input."""
    mask_noise: float = 0.01
    """Deviation of the normal noise that it reads in the place of masked frames."""
    ema_end: float = 0.99999
    ema_steps: int = 75_000

    def build(self) -> Data2vec2:
        return Data2vec2(self)


class Data2vec2(Data2vec):
    """Regression of one teacher pass by a convolutional decoder, from several masks."""

    config: Data2vec2Config

    def __init__(self, config: Data2vec2Config) -> None:
        super().__init__(config)
        dim = cast(Any, self.encoder).dim
        self.decoder = ConvDecoder(
            dim,
            config.decoder_dim,
            config.decoder_layers,
            config.decoder_kernel,
            config.decoder_groups,
        )
        self.head = nn.Linear(config.decoder_dim, dim)
        # Where positions are computed, masked frames are 0.
        cast(Any, self.encoder).mask_emb.requires_grad_(False).zero_()

    def averaged(self) -> tuple[str, ...]:
        if not hasattr(self.encoder, "encode_visible"):
            raise ValueError(
                f"encoder: found {type(self.encoder).__name__}, want one that encodes visible "
                "frames alone, such as speechssl.encoders.transformer.TransformerConfig"
            )
        scale = ("alibi.",) if getattr(self.encoder, "alibi", None) is not None else ()
        return (*super().averaged(), "pos_conv.", *scale)

    def forward(self, batch: Batch) -> Loss:
        config, encoder = self.config, cast(Any, self.encoder)
        front = encoder(batch.wave, batch.wave_lengths, layers=[0]).front
        size = front.shape[1]
        lengths = encoder.frame_lengths(batch.wave_lengths)
        masks_BMT = block_mask(
            lengths,
            batch.seeds,
            masks=config.masks,
            probability=config.mask_probability,
            block=config.mask_span,
            adjust=config.mask_adjust,
            min_blocks=config.mask_min_spans,
            inverse=config.mask_inverse,
            size=size,
        )
        padding = padding_mask(lengths, size)
        x_RVD, visible_RT = encoder.encode_visible(front, lengths, masks_BMT)
        x_RTE = self.decode(x_RVD, visible_RT, padding, batch)
        y_RTD = self.targets(batch, front, padding).repeat_interleave(config.masks, 0)
        valid_RT = ~padding.repeat_interleave(config.masks, 0)
        loss = self.regress(x_RTE, y_RTD, masks_BMT.flatten(0, 1), valid_RT, batch)
        return watched(loss, front, ~padding)

    def decode(self, x_RVD: Tensor, visible_RT: Tensor, padding: Tensor, batch: Batch) -> Tensor:
        """(R, T, E): visible frames at their places, noise at the others, through the decoder."""
        config = self.config
        if self.training and config.decoder_dropout > 0:
            x_RVD = F.dropout(x_RVD, config.decoder_dropout)
        own = ~padding_mask(visible_RT.sum(1), x_RVD.shape[1])
        size = visible_RT.shape[1], x_RVD.shape[2]
        noise = config.mask_noise * random_normal(batch.seeds.to(x_RVD.device), _NOISE, *size)
        noise = noise.masked_fill(padding[..., None], 0).to(x_RVD.dtype)
        rows = noise.repeat_interleave(config.masks, 0)
        rows = rows.masked_scatter(visible_RT[..., None], x_RVD[own])
        return self.decoder(rows, padding.repeat_interleave(config.masks, 0))


class ConvDecoder(nn.Module):
    """Grouped convolutions over time with norms that have no parameters: (R, T, D) -> (R, T, E).

    From the second on, each adds to what it reads.
    """

    def __init__(self, dim: int, out_dim: int, layers: int, kernel: int, groups: int) -> None:
        super().__init__()
        if kernel % 2 == 0 or layers < 1 or dim % groups or out_dim % groups:
            raise ValueError(
                f"decoder: found kernel {kernel}, {layers} layers and {groups} groups, want an odd "
                f"kernel, at least 1 layer, and groups that divide the widths {dim} and {out_dim}"
            )
        self.layers = nn.ModuleList(
            nn.Conv1d(
                dim if i == 0 else out_dim, out_dim, kernel, padding=kernel // 2, groups=groups
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x: zero on padding, as is the result. padding: (R, T) bool."""
        for i, conv in enumerate(self.layers):
            y = conv(x.transpose(1, 2)).transpose(1, 2)
            y = F.gelu(F.layer_norm(y, y.shape[-1:])).masked_fill(padding[..., None], 0)
            # The reference adds wherever the widths agree.
            x = x + y if i > 0 or x.shape == y.shape else y
        return x
