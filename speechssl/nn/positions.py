"""Positions: the convolutional embeddings of wav2vec 2.0 and data2vec, WavLM's relative bias, and
the linear one of data2vec 2.0.

Shape legend: B utterances, T frames, D width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PositionalConv(nn.Module):
    """GELU of a grouped convolution over time whose weight is normed per tap: (B, T, D) -> same.

    The weight is g * v / |v|, with the length taken over both channel axes for each of the
    kernel's taps. `g` is (1, 1, kernel), `v` (D, D / groups, kernel).

    Source: Baevski et al., 2020, section 2; fairseq `make_conv_pos`.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.v = nn.Parameter(torch.empty(dim, dim // groups, kernel))
        self.g = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.v, std=math.sqrt(4 / (kernel * dim)))
        with torch.no_grad():
            self.g.copy_(self.v.norm(dim=(0, 1), keepdim=True))

    def weight(self) -> Tensor:
        v = self.v.float()
        return v * (self.g.float() / v.norm(dim=(0, 1), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight()
        if x.device.type == "cpu" and self.kernel % 2 == 0 and weight.shape[1] < 16:
            # A tap of zeros changes nothing but the kernel that is called: oneDNN's for AMX (torch
            # 2.13; pytorch issue 163347) is wrong altogether in bfloat16 where fewer than 16
            # channels times an even number of taps are a multiple of 32.
            weight = F.pad(weight, (0, 1))
        y = F.conv1d(
            x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups
        )
        # An even kernel yields one frame more than it was given, without that tap.
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


class PositionalConvStack(nn.Module):
    """Several shorter grouped convolutions, each with a layer norm and GELU: (B, T, D) -> same.

    The norms have no parameters. Padding is zeroed between the convolutions, so that frames beside
    it see what they would see at the end of an utterance alone.

    Source: Baevski et al., 2022 (data2vec), appendix A; fairseq `pos_conv_depth`.
    Differs: official code lets padding, once non-zero, into the next convolution.
    """

    def __init__(self, dim: int, kernel: int, groups: int, depth: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"pos_conv_kernel: found {kernel}, want an odd one in a stack")
        self.layers = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """padding: (B, T) bool, True on padding."""
        for conv in self.layers:
            x = conv(x.transpose(1, 2)).transpose(1, 2)
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
            if padding is not None:
                x = x.masked_fill(padding[..., None], 0)
        return x


def relative_bucket(offset: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Bucket of each offset (key frame - query frame), in [0, buckets).

    Half of the buckets serve each sign; in a half, the first half holds one distance each and the
    rest is logarithmic up to `max_distance`, where the last bucket takes all that is beyond.

    Source: Chen et al., 2022 (WavLM), section 3.1; Raffel et al., 2020, for the scheme.
    """
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + (offset > 0) * half


class RelativeBias(nn.Module):
    """The table of the relative position bias: one value per bucket and head.

    It belongs to the encoder and is looked up once per forward; layers only gate it, so any of
    them may be dropped.
    """

    def __init__(self, buckets: int, max_distance: int, heads: int) -> None:
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.table = nn.Parameter(torch.empty(buckets, heads))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, frames: int) -> Tensor:
        """(H, 2 * frames - 1): the bias of each offset from -(frames - 1) to frames - 1."""
        offset = torch.arange(1 - frames, frames, device=self.table.device)
        return self.table[relative_bucket(offset, self.buckets, self.max_distance)].t()


class Alibi(nn.Module):
    """A bias of attention that falls in proportion to distance, by a learnt scale per head.

    Source: Press et al., 2022 (ALiBi), section 3; Baevski et al., 2022 (data2vec 2.0), for both
    directions and the scale, which starts at 1 and counts as 0 where it is negative.
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)
        self.scale = nn.Parameter(torch.ones(heads))

    def forward(self, places: Tensor) -> Tensor:
        """(B, T) numbers of frames -> (B, H, T, T) bias per query and key."""
        distance = (places[:, :, None] - places[:, None, :]).abs()
        slopes = self.slopes * self.scale.float().clamp(min=0)
        return -slopes[:, None, None] * distance[:, None]


def alibi_slopes(heads: int) -> Tensor:
    """(H,) powers of 2: of exponents -8/H, -16/H, ..., -8 where H is a power of 2.

    Else those of the power of 2 below, then every other one of the power above.
    """
    below = 2 ** int(math.log2(heads))
    exponents = [(i + 1) / below for i in range(below)]
    exponents += [(i + 0.5) / below for i in range(heads - below)]
    return torch.tensor([2 ** (-8 * x) for x in exponents])


def expand_offsets(bias: Tensor) -> Tensor:
    """(H, 2T - 1) bias per offset -> (H, T, T) bias per query and key."""
    frames = (bias.shape[1] + 1) // 2
    index = torch.arange(frames, device=bias.device)
    return bias[:, index[None, :] - index[:, None] + frames - 1]
