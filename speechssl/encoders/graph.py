"""The Transformer encoder in operations that every runtime has, for graphs of open shapes.

Shape legend: B utterances, L samples, T frames, C channels, D width, H heads, E = D / H.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask
from speechssl.encoders.frame_encoder import normalise_wave
from speechssl.encoders.transformer import TransformerEncoder
from speechssl.nn.attention import BiasGate, SelfAttention
from speechssl.nn.positions import expand_offsets
from speechssl.nn.wave_front import WaveFrontEnd


class EncoderGraph(nn.Module):
    """The encoder in operations that every runtime has, with its own parameters.

    Differs from the encoder: the front end is made of plain convolutions, and the group norm is
    computed of their output; results agree to rounding.
    """

    def __init__(
        self, encoder: TransformerEncoder, layers: Sequence[int], output: nn.Linear | None = None
    ) -> None:
        super().__init__()
        if encoder.config.front_end != "wave":
            raise ValueError(
                f"front_end: found {encoder.config.front_end}, want wave, the only one with a graph"
            )
        self.encoder, self.output = copy.deepcopy(encoder), output
        for layer in self.encoder.layers:
            layer.attention = GraphAttention(layer.attention)
        self.layers = tuple(layers)

    @property
    def output_names(self) -> list[str]:
        names = [f"layer_{i}" for i in self.layers]
        return [*names, *(["log_probs"] if self.output is not None else []), "frame_lengths"]

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        encoder = self.encoder
        wave = wave.masked_fill(padding_mask(lengths, wave.shape[1]), 0)
        if encoder.config.normalize_wave:
            wave = normalise_wave(wave, lengths)
        front = self._front(encoder.front, wave, lengths)  # pyright: ignore
        frame_lengths = encoder.frame_lengths(lengths)
        padding = padding_mask(frame_lengths, front.shape[1])
        front = front.masked_fill(padding[..., None], 0)
        x = encoder._input(front, padding, None, None)
        top = encoder.num_layers
        wanted = self.layers if self.output is None else (*self.layers, top)
        hidden = encoder._transform(x, ~padding, wanted)
        results = list(hidden[: len(self.layers)])
        if self.output is not None:
            results.append(self.output(hidden[-1]).log_softmax(-1))
        return (*results, frame_lengths)

    def _front(self, front: WaveFrontEnd, wave: Tensor, lengths: Tensor) -> Tensor:
        """(B, L) -> (B, T, C)."""
        x = wave[:, None]
        for i, (layer, stride) in enumerate(zip(front.layers, front.strides, strict=True)):
            x = F.conv1d(x, layer.weight, layer.bias, stride)  # pyright: ignore
            if i == 0 and front.norm == "group":
                rows = (lengths - front.kernels[0]) // front.strides[0] + 1
                x = _group_norm(x, rows, layer.norm)  # pyright: ignore
            elif layer.norm is not None:
                x = layer.norm(x.transpose(1, 2)).transpose(1, 2)  # pyright: ignore
            x = F.gelu(x)
        # Laid out anew: shapes of transposed views end up in a tracer's conditions.
        return x.transpose(1, 2).contiguous()


class GraphAttention(nn.Module):
    """Self-attention written out: fused kernels choose by the number of frames, a graph cannot."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = attention.heads, attention.qkv, attention.out
        self.gate = attention.gate

    def forward(self, x: Tensor, keep: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if bias is not None and bias.ndim == 4:
            scores = scores + bias
        elif bias is not None and self.gate is not None:
            scores = scores + self._gates(x, self.gate)[..., None] * expand_offsets(bias)
        weights = scores.masked_fill(~keep[:, None, None, :], float("-inf")).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).contiguous().flatten(2))

    def _gates(self, x: Tensor, gate: BiasGate) -> Tensor:
        """As `BiasGate`, with its sums taken over the weights; no view that a tracer must prove."""
        split = x.unflatten(-1, (self.heads, -1))  # (B, T, H, E)
        weight = gate.projection.weight.unflatten(0, (2, 4)).sum(1)
        bias = gate.projection.bias.unflatten(0, (2, 4)).sum(1)
        first, second = (
            ((split * weight[i]).sum(-1) + bias[i]).sigmoid().transpose(1, 2) for i in (0, 1)
        )
        return first * (second * gate.scale[..., 0] - 1) + 2


def _group_norm(x: Tensor, rows: Tensor, norm: nn.LayerNorm) -> Tensor:
    """(B, C, rows): each channel normalised over the utterance's own rows."""
    valid = (~padding_mask(rows, x.shape[2]))[:, None].to(x.dtype)
    count = rows[:, None, None].to(x.dtype)
    centred = x - (x * valid).sum(2, keepdim=True) / count
    variance = (centred * valid).square().sum(2, keepdim=True) / count
    return centred * (variance + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]
