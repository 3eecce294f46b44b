"""The encoder of vq-wav2vec: quantised front-end frames, and causal convolutions over them.

Shape legend: B utterances, L samples, T frames, C front-end channels, D width, G groups of V codes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.encoders.frame_encoder import FrameEncoder, FrameEncoderConfig
from speechssl.encoders.kmeans_quantiser import KmeansQuantiser
from speechssl.nn.gumbel import GumbelQuantiser, Quantised
from speechssl.nn.linear import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class VqConvConfig(FrameEncoderConfig):
    """The defaults are vq-wav2vec's: frames of 10 ms, two codebooks of 320."""

    front_norm: Literal["group", "layer"] = "layer"
    conv_kernels: tuple[int, ...] = (10, 8, 4, 4, 4, 1, 1, 1)
    conv_strides: tuple[int, ...] = (5, 4, 2, 2, 2, 1, 1, 1)
    input_dropout: float = 0.0
    conv_gradient_scale: float = 1.0
    layerdrop: float = 0.0
    layers: int = 12
    """Causal convolutions; layer i sees its own frame and i before it."""
    dim: int = 512
    dropout: float = 0.0
    groups: int = 2
    """Codebooks."""
    codes: int = 320
    """Codewords in each."""
    quantiser: Literal["gumbel", "kmeans"] = "gumbel"
    """gumbel: codes are classes of a hidden layer; kmeans: the nearest codewords."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers: found {self.layers}, want at least 1")
        if self.codes**self.groups > 2**24:
            raise ValueError(
                f"codes, groups: found {self.codes} and {self.groups}, want at most 2 ** 24 "
                "combinations, each of which is counted"
            )

    def build(self) -> VqConvEncoder:
        return VqConvEncoder(self)


class QuantisedProjection(nn.Module):
    """Quantised frames: (..., C) -> (..., D), the best codewords; Gumbel's of a hidden layer."""

    def __init__(
        self, in_dim: int, dim: int, groups: int, codes: int, quantiser: str = "gumbel"
    ) -> None:
        super().__init__()
        if quantiser == "gumbel":
            self.linear = Linear(in_dim, dim)
            self.quantiser = GumbelQuantiser(dim, groups, codes, dim)
        else:
            self.linear = None
            self.quantiser = KmeansQuantiser(in_dim, dim, groups, codes)

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.sample(x.flatten(0, -2)).vectors
        return vectors.view(*x.shape[:-1], -1)

    def sample(
        self, x_NC: Tensor, temperature: Tensor | float = 1.0, noise_NGV: Tensor | None = None
    ) -> Quantised:
        """As `GumbelQuantiser`, which draws codes if it is given noise; k-means never draws."""
        if self.linear is None:
            return self.quantiser(x_NC)
        return self.quantiser(F.gelu(self.linear(x_NC)), temperature, noise_NGV)

    def pairs(self, x: Tensor) -> Tensor:
        """(..., C) -> (...) int64: the best codes of all groups as one number, the first counts
        most."""
        codes_NG = self.sample(x.flatten(0, -2)).codes
        return joint_code(codes_NG, self.quantiser.codes).view(x.shape[:-1])


def joint_code(codes_NG: Tensor, codes: int) -> Tensor:
    """(N, G) codes, each below `codes` -> (N,) one number for each combination."""
    number = codes_NG[:, 0]
    for group in codes_NG.T[1:]:
        number = number * codes + group
    return number


class CausalConv(nn.Module):
    """A convolution over the frames before, a norm over channels, GELU and a shortcut."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel)
        self.norm = nn.LayerNorm(dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        past = F.pad(x.transpose(1, 2), (self.conv.kernel_size[0] - 1, 0))
        y = F.gelu(self.norm(self.conv(past).transpose(1, 2)))
        if self.training and self.dropout > 0:
            y = F.dropout(y, self.dropout)
        return (x + y) * math.sqrt(0.5)


class VqConvEncoder(FrameEncoder):
    """wave -> front end -> hidden layer -> codewords -> causal convolutions.

    Layer 0 is the codewords of each frame, layer i the output of convolution i, whose kernel is
    i + 1. Frames see none behind them, so padding at the end changes nothing.

    Source: Baevski et al. 2020 (vq-wav2vec), sections 2 and 4.2; fairseq
    `models/wav2vec/wav2vec.py`.
    Differs: norms are over channels, where the reference norms over channels and time; each
    codebook has codewords of its own, which the reference's recipe shares (`combine-groups`); the
    hidden layer before them has the model's width, half of the reference's.
    """

    config: VqConvConfig
    pair_counts: Tensor
    """How often each combination of codes was taken of late, weighed down with time."""

    def __init__(self, config: VqConvConfig) -> None:
        super().__init__(config, config.dim, config.layers)
        self.projection = QuantisedProjection(
            config.front_dim, config.dim, config.groups, config.codes, config.quantiser
        )
        self.layers = nn.ModuleList(
            CausalConv(config.dim, i + 2, config.dropout) for i in range(config.layers)
        )
        self.register_buffer("pair_counts", torch.zeros(config.codes**config.groups))

    def context(self, x: Tensor) -> Tensor:
        """The last layer of (B, T, D) codewords."""
        return self._transform(x, None, (self.num_layers,))[0]

    def _transform(
        self, x: Tensor, keep: Tensor | None, wanted: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        states = {0: x}
        dropped = self._dropped_layers()
        for number, layer in enumerate(self.layers, start=1):
            if number > max(wanted):
                break
            if number not in dropped:
                x = self._run(layer, x)
            if number in wanted:
                states[number] = x
        return tuple(states[number] for number in wanted)
