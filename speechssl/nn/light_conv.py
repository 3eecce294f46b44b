"""Waveform front end whose last convolutions are lightweight or dynamic ones, as in Wav2Vec-Aug.

Shape legend: B utterances, N input rows, M = N / stride output rows, C channels, H heads, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.nn.wave_front import WaveFrontEnd


class LightConv(nn.Module):
    """GELU, a strided convolution of each channel by itself, and a linear map: (N, C) -> (M, C).

    The taps of a channel are its head's, and sum to 1 by a softmax; dynamic: they are a linear map
    of the row in the middle of the taps. Rows behind the end count as zero, as in
    `speechssl.nn.strided_conv`.

    Source: Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions",
    sections 3 and 4.
    Differs: there is no gated linear unit before and no dropout of taps, and rows are left out.
    """

    def __init__(
        self, channels: int, kernel: int, heads: int, *, dynamic: bool, bias: bool, norm: bool
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"light_heads: found {heads}, want a divisor of the front end's {channels} channels"
            )
        self.kernel, self.heads = kernel, heads
        self.taps: nn.Linear | nn.Parameter
        if dynamic:
            self.taps = nn.Linear(channels, heads * kernel)
        else:
            self.taps = nn.Parameter(torch.empty(heads, kernel))
            nn.init.xavier_uniform_(self.taps)
        self.mix = nn.Linear(channels, channels, bias=bias)
        nn.init.kaiming_normal_(self.mix.weight)
        self.norm = nn.LayerNorm(channels) if norm else None

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """x: (N, C), N a multiple of the stride, which is at most the number of taps."""
        x = F.gelu(x)
        windows = F.pad(x, (0, 0, 0, self.kernel - stride)).unfold(0, self.kernel, stride)
        windows_MHCK = windows.unflatten(1, (self.heads, -1))
        if isinstance(self.taps, nn.Linear):
            logits = self.taps(windows[..., (self.kernel - 1) // 2])
            taps = logits.unflatten(1, (self.heads, 1, self.kernel))  # (M, H, 1, K)
        else:
            taps = self.taps[:, None]  # (H, 1, K)
        taps = taps.float().softmax(-1).to(windows.dtype)
        return self.mix((windows_MHCK * taps).sum(-1).flatten(1))


class LightWaveFrontEnd(WaveFrontEnd):
    """As `WaveFrontEnd`, the last `light_layers` of its convolutions lightweight.

    Source: Sriram, Auli and Baevski 2022 (Wav2Vec-Aug), section 3, which replaces some of the
    front end's convolutions; how many here, and their heads, are to be chosen.
    """

    def __init__(
        self,
        kernels: Sequence[int],
        strides: Sequence[int],
        channels: int,
        *,
        norm: str,
        bias: bool,
        light_layers: int,
        heads: int,
        dynamic: bool,
    ) -> None:
        super().__init__(kernels, strides, channels, norm=norm, bias=bias)
        if not 1 <= light_layers < len(self.kernels):
            raise ValueError(
                f"light_layers: found {light_layers}, want 1 to {len(self.kernels) - 1}: the first "
                "convolution reads samples, which are one channel"
            )
        for i in range(len(self.kernels) - light_layers, len(self.kernels)):
            self.layers[i] = LightConv(
                channels, self.kernels[i], heads, dynamic=dynamic, bias=bias, norm=norm == "layer"
            )

    def _convolve(self, layer: nn.Module, x: Tensor, stride: int) -> Tensor:
        if isinstance(layer, LightConv):
            return layer(x, stride)
        return super()._convolve(layer, x, stride)
