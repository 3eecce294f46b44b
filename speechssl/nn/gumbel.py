"""Product quantisation by straight-through Gumbel softmax.

Source: Jang et al. 2017 and Baevski et al. 2020 (vq-wav2vec; wav2vec 2.0, section 2); fairseq
`modules/gumbel_vector_quantizer.py`.

Shape legend: N frames, C input channels, G groups, V codes per group, F output width.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Quantised:
    """vectors: (N, F), with a gradient to codes and logits. codes: (N, G) which were taken.
    probabilities: (N, G, V) of the codes, without noise or temperature. distances: (2, N), of
    quantisers by distance only: mean squares over channels that draw codewords to frames, and
    frames to codewords."""

    vectors: Tensor
    codes: Tensor
    probabilities: Tensor
    distances: Tensor | None = None


class GumbelQuantiser(nn.Module):
    """Each frame takes one of V codewords in each of G groups; they stand side by side."""

    def __init__(self, dim: int, groups: int, codes: int, out_dim: int) -> None:
        super().__init__()
        if out_dim % groups:
            raise ValueError(f"quantiser: found width {out_dim}, want a multiple of {groups}")
        self.groups, self.codes = groups, codes
        self.logits = nn.Linear(dim, groups * codes)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codewords = nn.Parameter(torch.rand(groups, codes, out_dim // groups))

    def forward(
        self, x_NC: Tensor, temperature: Tensor | float = 1.0, noise_NGV: Tensor | None = None
    ) -> Quantised:
        """noise_NGV: standard Gumbel noise, with which codes are sampled; None takes the best."""
        with torch.autocast(x_NC.device.type, enabled=False):
            logits = F.linear(x_NC.float(), self.logits.weight.float(), self.logits.bias.float())
            logits_NGV = logits.view(-1, self.groups, self.codes)
            probabilities = logits_NGV.softmax(-1)
            if noise_NGV is None:
                codes = logits_NGV.argmax(-1)
                chosen = F.one_hot(codes, self.codes).float()
            else:
                soft = ((logits_NGV + noise_NGV) / temperature).softmax(-1)
                codes = soft.argmax(-1)
                chosen = F.one_hot(codes, self.codes).float() + soft - soft.detach()
            vectors = torch.einsum("ngv,gve->nge", chosen, self.codewords.float()).flatten(1)
        return Quantised(vectors, codes, probabilities)


def annealed(start: float, end: float, factor: float, step: Tensor) -> Tensor:
    """Temperature behind `step` updates: exponential decay from `start`, not below `end`."""
    return (start * torch.exp(step.float() * math.log(factor))).clamp(min=end)


class CodeUsage(nn.Module):
    """Diversity of codes over whole updates, as a term that is a sum over frames.

    The published term is a function f of the mean probabilities over a batch,
        f(p) = (G V - sum over groups of exp(entropy(p_g))) / (G V),
    and so depends on how an update is cut into batches and ranks. Here each frame contributes
    f's linear expansion about the mean of the update before, which `usage` holds. Summed over
    frames with that very mean, value and gradient are the published ones of the whole update.
    """

    usage: Tensor

    def __init__(self, groups: int, codes: int) -> None:
        super().__init__()
        self.register_buffer("usage", torch.full((groups, codes), 1 / codes))

    def forward(self, p_NGV: Tensor) -> Tensor:
        """Sum of the term over frames."""
        # A clone, since autograd keeps what the update's end will overwrite.
        mean = self.usage.clone()
        logs = (mean + 1e-7).log()
        used = torch.exp(-(mean * logs).sum(-1))  # (G,)
        slope = used[:, None] * (logs + mean / (mean + 1e-7)) / mean.numel()
        value = 1 - used.sum() / mean.numel()
        return len(p_NGV) * (value - (slope * mean).sum()) + (slope * p_NGV).sum()

    @torch.no_grad()
    def update(self, total_GV: Tensor, count: Tensor) -> None:
        """Hold the mean of `count` frames whose probabilities sum to `total_GV`."""
        self.usage.copy_(torch.where(count > 0, total_GV / count.clamp(min=1), self.usage))
