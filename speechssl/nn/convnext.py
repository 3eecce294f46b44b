"""ConvNeXt over frames: depthwise convolution in time, then a layer that widens each frame.

Source: Liu et al. 2022 (ConvNeXt), section 2; in one dimension Siuzdak 2023 (Vocos), section 3.
Differs: frames behind an utterance's end are zero before every convolution, so that padding is
inert; a condition may be added to what each block widens.

Shape legend: B utterances, T frames, D width, H widened, C width of the condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.nn.linear import Linear


class ConvNextBlock(nn.Module):
    """x + scale * W2 gelu(W1 norm(depthwise(x)) + W3 condition): (B, T, D) -> same.

    condition_dim: C, 0 for a block without condition.
    scale: what each channel of the branch is multiplied by at first; it is learnt.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        kernel: int = 7,
        *,
        scale: float = 1.0,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel: found {kernel}, want an odd number of frames")
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.widen = Linear(dim, hidden_dim)
        self.condition = Linear(condition_dim, hidden_dim, bias=False) if condition_dim else None
        self.narrow = Linear(hidden_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(
        self, x: Tensor, padding: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """padding: (B, T, 1) bool, True on padding, where x is zero and the result is too.

        condition: (B, C), one for all frames, or (B, T, C); of a block that was made for one.
        """
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        y = self.widen(self.norm(y))
        if self.condition is not None:
            if condition is None:
                raise ValueError("condition: found none, want (B, C) or (B, T, C)")
            shift = self.condition(condition)
            y = y + (shift[:, None] if shift.ndim == 2 else shift)
        x = x + self.scale * self.narrow(F.gelu(y))
        return x if padding is None else x.masked_fill(padding, 0)


class ConvNext(nn.Module):
    """Convolution of all channels, norm, blocks, norm: (B, T, in_dim) -> (B, T, D).

    A frame of the output sees `reach` frames of the input on each side.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        hidden_dim: int,
        blocks: int,
        kernel: int = 7,
        *,
        condition_dim: int = 0,
    ) -> None:
        super().__init__()
        if min(in_dim, dim, hidden_dim, blocks) < 1:
            raise ValueError(
                f"in_dim, dim, hidden_dim, blocks: found {in_dim}, {dim}, {hidden_dim}, {blocks}, "
                "want 1 or more of each"
            )
        self.input = nn.Conv1d(in_dim, dim, kernel, padding=kernel // 2)
        self.input_norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNextBlock(dim, hidden_dim, kernel, scale=1 / blocks, condition_dim=condition_dim)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.reach = (blocks + 1) * (kernel // 2)

    def forward(
        self, x: Tensor, padding: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """x: zero where padding (B, T, 1) is True; there the result means nothing."""
        x = self.input_norm(self.input(x.transpose(1, 2)).transpose(1, 2))
        if padding is not None:
            x = x.masked_fill(padding, 0)
        for block in self.blocks:
            x = block(x, padding, condition)
        return self.norm(x)
