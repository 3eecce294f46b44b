"""What every encoder here shares: a front end, its projection, masks, and which layers to return.

Shape legend: B utterances, L samples, T frames, C front-end channels, D width.
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
from speechssl.nn.light_conv import LightWaveFrontEnd
from speechssl.nn.linear import Linear
from speechssl.nn.log_mel import LogMelFrontEnd
from speechssl.nn.strided_conv import scale_gradient
from speechssl.nn.wave_front import WaveFrontEnd


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameEncoderConfig(EncoderConfig):
    """Options of the front end; the defaults are those of HuBERT Base."""

    front_end: Literal["wave", "light_wave", "log_mel"] = "wave"
    """wave: strided convolutions on samples; light_wave: the last of them lightweight, as in
    Wav2Vec-Aug; log_mel: filterbank and subsampling (far cheaper)."""
    front_norm: Literal["group", "layer"] = "group"
    """group: the first convolution's channels normalised over valid frames; layer: over channels,
    after every convolution."""
    front_dim: int = 512
    """Channels of the front end's convolutions."""
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    light_layers: int = 2
    """light_wave: how many of the last convolutions are lightweight."""
    light_heads: int = 16
    """light_wave: groups of channels with the same taps."""
    light_dynamic: bool = True
    """light_wave: taps are made of each frame (dynamic convolutions), not learnt once for all."""
    normalize_wave: bool = False
    """Bring each utterance's samples to mean 0 and variance 1 first (Large and XLarge)."""
    mel_bins: int = 80
    mel_hop_samples: int = 320
    """Samples per frame of the log-mel front end: 320 or 640."""
    mel_kernel: int = 5
    mel_norm: Literal["utterance", "global"] = "utterance"
    """log_mel: utterance brings each band to mean 0 and variance 1 over the utterance, whose level
    and much of whose voice are lost so; global scales all alike, as speech at large asks for."""
    input_dropout: float = 0.1
    conv_gradient_scale: float = 0.1
    """Factor of the gradient into the front end; 0 freezes it."""
    layerdrop: float = 0.05
    """Probability that a layer is skipped in training; drawn alike on all ranks."""
    checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""


class FrameEncoder(Encoder):
    """wave -> front end -> projection -> mask; `_transform` of a subclass makes the layers of it.

    Differs from the official code of all its kind: frame lengths are exact, and padding changes
    nothing.
    """

    config: FrameEncoderConfig

    def __init__(self, config: FrameEncoderConfig, dim: int, num_layers: int) -> None:
        super().__init__()
        self.config = config
        self.dim, self.num_layers = dim, num_layers
        self.front = _front_end(config)
        self.hop_samples = self.front.hop_samples
        self.receptive_field_samples = self.front.receptive_field_samples
        self.front_norm = nn.LayerNorm(config.front_dim)
        self.projection = Linear(config.front_dim, dim)
        self.mask_emb = nn.Parameter(torch.empty(dim).uniform_())

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
        strides, rate = self.layer_strides, self.frame_rate_hz
        rates = tuple(rate / strides[i] for i in wanted) if max(strides) > 1 else None
        return EncoderOutput(hidden, wanted, lengths, rate, front, rates)

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
        """The input of the layers (B, T, D), zero on padding: what variants add positions to."""
        x = self.projection(self.front_norm(front))
        x = self._drop(x, self.config.input_dropout)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_emb.to(x.dtype), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask[:, None, :], 0)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        return x

    def _transform(
        self, x: Tensor, keep: Tensor | None, wanted: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        """The wanted hidden states of the input x (B, T, D).

        keep: (B, T) bool, True on valid frames, None if all are.
        """
        raise NotImplementedError

    def _run(self, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.config.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

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


def _front_end(config: FrameEncoderConfig) -> WaveFrontEnd | LogMelFrontEnd:
    shape = config.conv_kernels, config.conv_strides, config.front_dim
    if config.front_end == "wave":
        return WaveFrontEnd(*shape, norm=config.front_norm, bias=config.conv_bias)
    if config.front_end == "light_wave":
        return LightWaveFrontEnd(
            *shape,
            norm=config.front_norm,
            bias=config.conv_bias,
            light_layers=config.light_layers,
            heads=config.light_heads,
            dynamic=config.light_dynamic,
        )
    return LogMelFrontEnd(
        config.mel_bins,
        config.front_dim,
        config.mel_hop_samples,
        config.mel_kernel,
        norm=config.front_norm,
        mel_norm=config.mel_norm,
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
