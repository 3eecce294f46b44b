"""Change of frame rate between the stacks of a multi-resolution encoder.

Shape legend: B utterances, T frames, D width; u frames become d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.nn.frame_norms import UtteranceNorm
from speechssl.nn.linear import Linear

SCALE = math.sqrt(0.4)
"""Factor of every sum with a skip."""


class Sampler(nn.Module):
    """(B, T, D) -> (B, ceil(T * up / down), D): up-sample by `up`, then down-sample by `down`.

    Up: a transposed convolution of kernel 1 and stride `up`, which leaves zeros between its frames;
    down: a convolution of kernel 1 and stride `down`. Each has no bias, is followed by a group norm
    of one group and GELU, and is added to the frames that it started from, repeated or skipped;
    the whole is added to those too.

    simple: only the one of the two that changes the rate, and no sum over the whole.

    Source: Shi et al., 2024 (MR-HuBERT), section 3.1; fairseq `ConvAdapter`, and `ConvDownsampler`
    and `ConvUpsampler` for the simple one, all with kernel 1 as in published models.
    Differs: the norm leaves padding out of its statistics.
    """

    def __init__(self, dim: int, up: int, down: int, *, simple: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.simple = up, down, simple
        if not simple or up > 1:
            self.up_conv, self.up_norm = Linear(dim, dim, bias=False), UtteranceNorm(dim)
        if not simple or down > 1:
            self.down_conv, self.down_norm = Linear(dim, dim, bias=False), UtteranceNorm(dim)

    def forward(self, x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """padding: (B, T) bool, True on padding, None if there is none; and that of the result."""
        start = x.repeat_interleave(self.up, 1)
        if padding is not None:
            padding = padding.repeat_interleave(self.up, 1)
        x = start
        if not self.simple or self.up > 1:
            x = self.up_conv(x[:, :: self.up])
            x = torch.stack([x, *[torch.zeros_like(x)] * (self.up - 1)], 2).flatten(1, 2)
            x = SCALE * (F.gelu(self.up_norm(x, padding)) + start)
        x, start = x[:, :: self.down], start[:, :: self.down]
        padding = None if padding is None else padding[:, :: self.down]
        if not self.simple or self.down > 1:
            x = SCALE * (F.gelu(self.down_norm(self.down_conv(x), padding)) + x)
        return (x if self.simple else SCALE * (x + start)), padding
