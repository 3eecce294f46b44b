"""Waveform front end of wav2vec 2.0: strided convolutions, by default 25 ms windows every 20 ms.

Shape legend: B utterances, L samples, T frames, C channels, K taps of the first convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.contract import padding_mask
from speechssl.nn.strided_conv import gelu_conv


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one output frame sees."""
    field, hop = 1, 1
    for kernel, stride in zip(kernels, strides):
        field += (kernel - 1) * hop
        hop *= stride
    return field


class ConvLayer(nn.Module):
    """Parameters of one convolution and of the norm behind it; the front end computes them."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, bias: bool, norm: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, kernel))
        self.bias = nn.Parameter(torch.empty(c_out)) if bias else None
        self.norm = nn.LayerNorm(c_out) if norm else None
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            bound = 1 / math.sqrt(c_in * kernel)
            nn.init.uniform_(self.bias, -bound, bound)


class WaveFrontEnd(nn.Module):
    """wave (B, L), lengths (B,) -> (B, T, C), T = floor((L - receptive field) / hop) + 1.

    norm "group": each channel of the first convolution's output is normalised over the
    utterance's own frames. "layer": a layer norm over channels after each convolution.

    Source: Baevski et al., 2020, section 2; Hsu et al., 2021, section 3.
    Differs: the group norm leaves padding out of its statistics, so that an utterance has the
    same features alone and in a batch. And it is never applied to the convolution's output: the
    output's mean and variance follow from the mean and covariance of the K-sample windows of the
    wave, so the norm is folded into the weights (per utterance).
    """

    def __init__(
        self,
        kernels: Sequence[int],
        strides: Sequence[int],
        channels: int,
        *,
        norm: str,
        bias: bool,
    ) -> None:
        super().__init__()
        if len(kernels) != len(strides) or any(k < s for k, s in zip(kernels, strides)):
            raise ValueError(
                f"conv_kernels, conv_strides: found {tuple(kernels)} and {tuple(strides)}, want "
                "equally many, and each kernel at least as long as its stride"
            )
        self.kernels, self.strides = tuple(kernels), tuple(strides)
        self.dim = channels
        self.norm = norm
        self.hop_samples = math.prod(strides)
        self.receptive_field_samples = receptive_field(kernels, strides)
        self.layers = nn.ModuleList(
            ConvLayer(
                1 if i == 0 else channels,
                channels,
                kernel,
                bias=bias,
                norm=norm == "layer" or i == 0,
            )
            for i, kernel in enumerate(kernels)
        )

    def forward(self, wave: Tensor, lengths: Tensor, padded: bool) -> Tensor:
        frames = (wave.shape[1] - self.receptive_field_samples) // self.hop_samples + 1
        # Whole hops per utterance, enough of them to hold the last frame's samples: only then
        # do the rows of all utterances, laid end to end, stay aligned through every stride.
        hops = frames - 1 + math.ceil(self.receptive_field_samples / self.hop_samples)
        if self.norm == "group":
            x = self._first_group_normed(wave, lengths, hops, padded)
        else:
            x = self._first_plain(wave, hops)
        layers = list(self.layers)
        for layer, stride in zip(layers[1:], self.strides[1:]):
            x = self._convolve(layer, x, stride)
            if layer.norm is not None:
                x = layer.norm(x)
        return F.gelu(x.view(len(wave), hops, self.dim)[:, :frames])

    def _convolve(self, layer: nn.Module, x: Tensor, stride: int) -> Tensor:
        """GELU and convolution: (N, C) rows of all utterances -> (N / stride, C)."""
        return gelu_conv(x, layer.weight, layer.bias, stride)  # pyright: ignore

    def _windows(self, wave: Tensor, hops: int) -> Tensor:
        """(B, rows, K + 1): each output row's samples, and a 1 that the shift is added by."""
        kernel, stride = self.kernels[0], self.strides[0]
        rows = hops * self.hop_samples // stride
        need = (rows - 1) * stride + kernel
        wave = F.pad(wave, (0, max(0, need - wave.shape[1])))
        return F.pad(wave.unfold(1, kernel, stride)[:, :rows], (0, 1), value=1.0)

    def _first_plain(self, wave: Tensor, hops: int) -> Tensor:
        layer = self.layers[0]
        weight = layer.weight[:, 0]
        bias = weight.new_zeros(self.dim) if layer.bias is None else layer.bias
        x = self._windows(wave, hops).flatten(0, 1) @ torch.cat([weight.t(), bias[None]])
        return layer.norm(x)

    def _first_group_normed(self, wave: Tensor, lengths: Tensor, hops: int, padded: bool) -> Tensor:
        layer = self.layers[0]
        device = wave.device.type
        with torch.autocast(device, enabled=False):
            windows = wave.float().unfold(1, self.kernels[0], self.strides[0])
            # The variance of a channel that passes little of a loud wave is a small difference
            # of large numbers; float64 (of K x K numbers only) keeps it exact.
            windows = windows.to(torch.float32 if device == "mps" else torch.float64)
            count = windows.new_full((len(wave), 1, 1), windows.shape[1])
            if padded:
                rows = (lengths - self.kernels[0]) // self.strides[0] + 1
                windows = windows.masked_fill(padding_mask(rows, windows.shape[1])[..., None], 0)
                count = rows.to(windows.dtype)[:, None, None]
            mean = windows.sum(1, keepdim=True) / count
            moment = windows.transpose(1, 2) @ windows / count
            covariance = moment - mean.transpose(1, 2) * mean
            weight = layer.weight[:, 0].to(windows.dtype)
            variance = ((weight @ covariance) * weight).sum(-1).clamp(min=0)
            scale = layer.norm.weight * (variance + layer.norm.eps).rsqrt()  # (B, C)
            # A bias of the convolution would cancel against the mean.
            shift = layer.norm.bias - scale * (mean @ weight.t())[:, 0]
            folded = torch.cat([(weight * scale[..., None]).transpose(1, 2), shift[:, None]], 1)
            folded = folded.float()
        return torch.bmm(self._windows(wave, hops), folded).flatten(0, 1)
