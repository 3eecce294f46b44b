"""The Transformer encoder of wav2vec 2.0, HuBERT and WavLM, and its log-mel variant.

Shape legend: B utterances, L samples, T frames, C front-end channels, D width, N layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechssl import dist
from speechssl.config import EncoderConfig
from speechssl.contract import Encoder, EncoderOutput, padding_mask
from speechssl.nn.linear import Linear
from speechssl.nn.log_mel import LogMelFrontEnd
from speechssl.nn.positions import PositionalConv, PositionalConvStack, RelativeBias
from speechssl.nn.strided_conv import scale_gradient
from speechssl.nn.transformer_layer import TransformerLayer
from speechssl.nn.wave_front import WaveFrontEnd


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(EncoderConfig):
    """The defaults are HuBERT Base; `large()`, `xlarge()`, `wavlm_base()` and `wavlm_large()`
    give the other published sizes."""

    front_end: Literal["wave", "log_mel"] = "wave"
    """wave: strided convolutions on samples; log_mel: filterbank and subsampling (far cheaper)."""
    front_norm: Literal["group", "layer"] = "group"
    """group: the first convolution's channels normalised over valid frames; layer: over channels,
    after every convolution."""
    front_dim: int = 512
    """Channels of the front end's convolutions."""
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    normalize_wave: bool = False
    """Bring each utterance's samples to mean 0 and variance 1 first (Large and XLarge)."""
    mel_bins: int = 80
    mel_hop_samples: int = 320
    """Samples per frame of the log-mel front end: 320 or 640."""
    mel_kernel: int = 5
    mel_norm: Literal["utterance", "global"] = "utterance"
    layers: int = 12
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    pre_norm: bool = False
    """Layer norms before each block, and one behind the last layer (Large and XLarge)."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layerdrop: float = 0.05
    """Probability that a layer is skipped in training; drawn alike on all ranks."""
    conv_gradient_scale: float = 0.1
    """Factor of the gradient into the front end; 0 freezes it."""
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    pos_conv_depth: int = 1
    """Convolutions that give positions; above 1 they have norms between them (data2vec: 5 of kernel
    19)."""
    relative_buckets: int = 0
    """Buckets of WavLM's gated relative position bias (320 in all published models); 0: none."""
    relative_max_distance: int = 800
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Kernel where there is a relative bias: flex never holds the (B, H, T, T) bias but knows no
    attention dropout; auto takes it on CUDA when there is none. Without bias always sdpa."""
    checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

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


class TransformerEncoder(Encoder):
    """wave -> front end -> projection -> mask -> positions -> layers, with every layer's output.

    Source: Baevski et al., 2020 (wav2vec 2.0); Hsu et al., 2021 (HuBERT); Chen et al., 2022
    (WavLM).
    Differs: frame lengths are exact, and padding changes nothing (official code counts up to one
    frame more and lets padding into the group norm); the table of the relative bias belongs to
    the encoder, not to the first layer.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.dim, self.num_layers = config.dim, config.layers
        self.front = _front_end(config)
        self.hop_samples = self.front.hop_samples
        self.receptive_field_samples = self.front.receptive_field_samples
        self.front_norm = nn.LayerNorm(config.front_dim)
        self.projection = Linear(config.front_dim, config.dim)
        self.mask_emb = nn.Parameter(torch.empty(config.dim).uniform_())
        self.pos_conv = _positions(config)
        self.relative_bias = None
        if config.relative_buckets:
            self.relative_bias = RelativeBias(
                config.relative_buckets, config.relative_max_distance, config.heads
            )
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.dim)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        wave: Tensor,
        wave_lengths: Tensor,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> EncoderOutput:
        wanted = self._wanted(layers)
        padded = self._check(wave, wave_lengths)
        lengths = self.frame_lengths(wave_lengths)
        if padded:
            wave = wave.masked_fill(padding_mask(wave_lengths, wave.shape[1]), 0)
        if self.config.normalize_wave:
            wave = normalise_wave(wave, wave_lengths)
        front = self._front(wave, wave_lengths, padded)
        padding = padding_mask(lengths, front.shape[1]) if padded else None
        if padding is not None:
            front = front.masked_fill(padding[..., None], 0)
        x = self._input(front, padding, mask, channel_mask)
        hidden = self._transform(x, None if padding is None else ~padding, wanted)
        return EncoderOutput(hidden, wanted, lengths, self.frame_rate_hz, front)

    def _wanted(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        if layers is None:
            return tuple(range(self.num_layers + 1))
        if not layers:
            raise ValueError("layers: found none, want at least one, or None for all")
        for layer in layers:
            if not -1 <= layer <= self.num_layers:
                raise ValueError(
                    f"layers: found {layer}, want 0 (the input) to {self.num_layers}, or -1"
                )
        return tuple(self.num_layers if layer == -1 else layer for layer in layers)

    def _check(self, wave: Tensor, wave_lengths: Tensor) -> bool:
        """Raise `ValueError` if an utterance has no frame; return whether there is padding."""
        if wave.ndim != 2 or wave_lengths.shape != wave.shape[:1]:
            raise ValueError(
                f"wave, wave_lengths: found shapes {tuple(wave.shape)} and "
                f"{tuple(wave_lengths.shape)}, want (B, L) and (B,)"
            )
        lengths = wave_lengths.tolist()
        for index, length in enumerate(lengths):
            if not self.receptive_field_samples <= length <= wave.shape[1]:
                raise ValueError(
                    f"wave_lengths[{index}]: found {length} samples, want at least "
                    f"{self.receptive_field_samples} (one frame) and at most the wave's "
                    f"{wave.shape[1]}; drop shorter utterances or pad them with silence"
                )
        return min(lengths) < wave.shape[1]

    def _front(self, wave: Tensor, wave_lengths: Tensor, padded: bool) -> Tensor:
        scale = self.config.conv_gradient_scale
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0):
            front = self.front(wave, wave_lengths, padded)
        return scale_gradient(front, scale) if front.requires_grad else front

    def _input(
        self,
        front: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        channel_mask: Tensor | None,
    ) -> Tensor:
        """The transformer's input (B, T, D): layer 0."""
        x = self.projection(self.front_norm(front))
        x = self._drop(x, self.config.input_dropout)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_emb.to(x.dtype), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        x = x + (self.pos_conv(x) if self.config.pos_conv_depth == 1 else self.pos_conv(x, padding))
        return x if self.config.pre_norm else self.layer_norm(x)

    def _transform(
        self, x: Tensor, keep: Tensor | None, wanted: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        states = {0: x}
        last = max(wanted)
        bias = None
        if self.relative_bias is not None and last > 0:
            bias = self.relative_bias(x.shape[1])
        x = self._drop(x, self.config.dropout)
        dropped = self._dropped_layers()
        for number, layer in enumerate(self.layers, start=1):
            if number > last:
                break
            if number not in dropped:
                if self.config.checkpointing and torch.is_grad_enabled():
                    x = checkpoint(layer, x, keep, bias, use_reentrant=False)
                else:
                    x = layer(x, keep, bias)
            if number in wanted:
                final = number == self.num_layers and self.config.pre_norm
                states[number] = self.layer_norm(x) if final else x
        return tuple(states[number] for number in wanted)

    def _dropped_layers(self) -> set[int]:
        if not self.training or self.config.layerdrop == 0:
            return set()
        # One draw for all ranks: sharded layers gather their weights together or not at all.
        draw = dist.broadcast(torch.rand(self.num_layers))
        return {i for i, p in enumerate(draw.tolist(), start=1) if p < self.config.layerdrop}

    def _drop(self, x: Tensor, probability: float) -> Tensor:
        if not self.training or probability == 0:
            return x
        return nn.functional.dropout(x, probability)


def _front_end(config: TransformerConfig) -> WaveFrontEnd | LogMelFrontEnd:
    if config.front_end == "wave":
        return WaveFrontEnd(
            config.conv_kernels,
            config.conv_strides,
            config.front_dim,
            norm=config.front_norm,
            bias=config.conv_bias,
        )
    return LogMelFrontEnd(
        config.mel_bins,
        config.front_dim,
        config.mel_hop_samples,
        config.mel_kernel,
        norm=config.front_norm,
        mel_norm=config.mel_norm,
    )


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


def normalise_wave(wave: Tensor, lengths: Tensor) -> Tensor:
    """Each utterance to mean 0 and variance 1 over its valid samples; padding stays 0.

    Differs: epsilon 1e-7 as in transformers' feature extractor; fairseq has 1e-5, which shows on
    very quiet recordings only.
    """
    # Sums in float64: in float32 their rounding would differ with the length of the padding.
    wide = torch.float32 if wave.device.type == "mps" else torch.float64
    valid = ~padding_mask(lengths, wave.shape[1])
    count = lengths[:, None]
    mean = (wave * valid).sum(1, keepdim=True, dtype=wide) / count
    centred = (wave - mean.to(wave.dtype)) * valid
    variance = centred.square().sum(1, keepdim=True, dtype=wide) / count
    return centred * (variance + 1e-7).rsqrt().to(wave.dtype)
