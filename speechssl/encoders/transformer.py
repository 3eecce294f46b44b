"""The Transformer encoder of wav2vec 2.0, HuBERT and WavLM, and its log-mel variant.

Shape legend: B utterances, L samples, T frames, C front-end channels, D width, N layers.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.contract import padding_mask
from speechssl.encoders.frame_encoder import FrameEncoder, FrameEncoderConfig
from speechssl.nn.frame_masks import pack
from speechssl.nn.positions import Alibi, PositionalConv, PositionalConvStack, RelativeBias
from speechssl.nn.transformer_layer import TransformerLayer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(FrameEncoderConfig):
    """The defaults are HuBERT Base; `large()`, `xlarge()`, `wavlm_base()` and `wavlm_large()`
    give the other published sizes."""

    layers: int = 12
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    pre_norm: bool = False
    """Layer norms before each block, and one behind the last layer (Large and XLarge)."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    pos_conv_depth: int = 1
    """Convolutions that give positions; above 1 they have norms between them (data2vec: 5 of kernel
    19)."""
    relative_buckets: int = 0
    """Buckets of WavLM's gated relative position bias (320 in all published models); 0: none."""
    relative_max_distance: int = 800
    alibi: bool = False
    """Attention falls with distance, by a learnt scale per head (data2vec 2.0)."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Kernel where there is a relative bias: flex never holds the (B, H, T, T) bias but knows no
    attention dropout; auto takes it on CUDA when there is none. Without bias always sdpa."""

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % self.pos_conv_groups:
            raise ValueError(
                f"dim: found {self.dim}, want a multiple of heads ({self.heads}) and of "
                f"pos_conv_groups ({self.pos_conv_groups})"
            )
        if self.layers < 1:
            raise ValueError(f"layers: found {self.layers}, want at least 1")
        if self.relative_buckets % 4:
            raise ValueError(
                f"relative_buckets: found {self.relative_buckets}, want a multiple of 4, or 0"
            )
        if self.alibi and self.relative_buckets:
            raise ValueError(
                f"alibi: found true with relative_buckets {self.relative_buckets}, want one of them"
            )
        if self.attention == "flex" and self.attention_dropout > 0:
            raise ValueError(
                f"attention: found flex with attention_dropout {self.attention_dropout}, want "
                "attention_dropout 0, which flex attention cannot apply, or attention: sdpa"
            )

    def build(self) -> TransformerEncoder:
        return TransformerEncoder(self)

    @classmethod
    def large(cls, **changes: object) -> TransformerConfig:
        """HuBERT Large."""
        values: dict[str, object] = {
            "front_norm": "layer",
            "normalize_wave": True,
            "layers": 24,
            "dim": 1024,
            "ffn_dim": 4096,
            "heads": 16,
            "pre_norm": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "input_dropout": 0.0,
            "layerdrop": 0.0,
            "conv_gradient_scale": 1.0,
        }
        return cls(**(values | changes))  # pyright: ignore

    @classmethod
    def xlarge(cls, **changes: object) -> TransformerConfig:
        """HuBERT XLarge."""
        return cls.large(**({"layers": 48, "dim": 1280, "ffn_dim": 5120} | changes))

    @classmethod
    def wavlm_base(cls, **changes: object) -> TransformerConfig:
        """WavLM Base and Base+."""
        return cls(**({"relative_buckets": 320} | changes))  # pyright: ignore

    @classmethod
    def wavlm_large(cls, **changes: object) -> TransformerConfig:
        """WavLM Large."""
        return cls.large(**({"relative_buckets": 320} | changes))

    @classmethod
    def data2vec_base(cls, **changes: object) -> TransformerConfig:
        """data2vec (audio) Base; Large adds layers, dim, ffn_dim and heads of `large()`."""
        values: dict[str, object] = {
            "front_norm": "layer",
            "normalize_wave": True,
            "pos_conv_depth": 5,
            "pos_conv_kernel": 19,
        }
        return cls(**(values | changes))  # pyright: ignore


class TransformerEncoder(FrameEncoder):
    """wave -> front end -> projection -> mask -> positions -> layers, with every layer's output.

    Source: Baevski et al., 2020 (wav2vec 2.0); Hsu et al., 2021 (HuBERT); Chen et al., 2022
    (WavLM).
    Differs: frame lengths are exact, and padding changes nothing (official code counts up to one
    frame more and lets padding into the group norm); the table of the relative bias belongs to
    the encoder, not to the first layer.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, config.dim, config.layers)
        self.pos_conv = _positions(config)
        self.relative_bias = None
        if config.relative_buckets:
            self.relative_bias = RelativeBias(
                config.relative_buckets, config.relative_max_distance, config.heads
            )
        self.alibi = Alibi(config.heads) if config.alibi else None
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.dim)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _input(
        self,
        front: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        channel_mask: Tensor | None,
    ) -> Tensor:
        """The transformer's input (B, T, D): layer 0."""
        x = super()._input(front, padding, mask, channel_mask)
        x = x + (self.pos_conv(x) if self.config.pos_conv_depth == 1 else self.pos_conv(x, padding))
        return x if self.config.pre_norm else self.layer_norm(x)

    def encode_visible(
        self, front: Tensor, lengths: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode only the frames that stay visible, under each of M masks per utterance.

        front: (B, T, C), as `EncoderOutput` has it. lengths: (B,) frames. masks: (B, M, T) bool.
        Returns the last layer of visible frames (B * M, V, D) in their order, each row's own
        first, and which frames of the utterance they are, (B * M, T) bool.
        """
        if self.relative_bias is not None:
            raise ValueError(
                f"relative_buckets: found {self.config.relative_buckets}, want 0: that bias is one "
                "of offsets, which differ from row to row where masked frames are left out"
            )
        many, frames = masks.shape[1:]
        padding = padding_mask(lengths, frames).repeat_interleave(many, 0)
        mask = masks.flatten(0, 1)
        x = self._input(front.repeat_interleave(many, 0), padding, mask, None)
        visible = ~(mask | padding)
        x, keep = pack(x, visible)
        numbers = torch.arange(frames, device=x.device)[None, :, None].expand(len(x), -1, 1)
        places = pack(numbers, visible)[0][..., 0]
        (last,) = self._transform(x, keep, (self.num_layers,), places)
        return last, visible

    def _transform(
        self,
        x: Tensor,
        keep: Tensor | None,
        wanted: tuple[int, ...],
        places: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """places: (B or 1, T) numbers of the frames in their utterance; None: 0, 1, ..."""
        states = {0: x}
        last = max(wanted)
        bias = None
        if self.relative_bias is not None and last > 0:
            bias = self.relative_bias(x.shape[1])
        if self.alibi is not None and last > 0:
            if places is None:
                places = torch.arange(x.shape[1], device=x.device)[None]
            bias = self.alibi(places)
        x = self._drop(x, self.config.dropout)
        dropped = self._dropped_layers()
        for number, layer in enumerate(self.layers, start=1):
            if number > last:
                break
            if number not in dropped:
                x = self._run(layer, x, keep, bias)
            if number in wanted:
                final = number == self.num_layers and self.config.pre_norm
                states[number] = self.layer_norm(x) if final else x
        return tuple(states[number] for number in wanted)


def _positions(config: TransformerConfig) -> PositionalConv | PositionalConvStack:
    shape = config.dim, config.pos_conv_kernel, config.pos_conv_groups
    if config.pos_conv_depth == 1:
        return PositionalConv(*shape)
    return PositionalConvStack(*shape, config.pos_conv_depth)


def _layer(config: TransformerConfig) -> TransformerLayer:
    return TransformerLayer(
        config.dim,
        config.ffn_dim,
        config.heads,
        pre_norm=config.pre_norm,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        gated_bias=config.relative_buckets > 0,
        attention_kernel=config.attention,
    )
