"""Detect representations that collapsed to a constant, and say so in place of a flat loss."""

from __future__ import annotations

import torch
from torch import Tensor

EVERY = 50
"""Updates between looks: each waits for the device."""


class Collapsed(ValueError):
    """Training goes on but learns nothing."""


def due(step: int, after: int) -> bool:
    """Whether to look behind update `step`: from update `after` on; 0: never."""
    return 0 < after <= step and (step - after) % EVERY == 0


def require(name: str, found: Tensor, least: float, step: int, because: str) -> None:
    """Raise `Collapsed` if `found` is less than `least`."""
    value = float(found)
    if not value >= least:
        raise Collapsed(
            f"collapsed at update {step}: {name} is {value:.3g}, want at least {least:g}: "
            f"{because}. Start again with a lower learning rate, a longer warm-up or larger batches"
        )


def spread(total: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    """Mean over channels of the standard deviation over frames.

    total, squares: (D,) sums of the values and of their squares over `count` frames.
    """
    mean = total / count
    return (squares / count - mean.square()).clamp(min=0).sqrt().mean()


@torch.no_grad()
def deviation_over_time(x_BTC: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over valid frames of the standard deviation over time within their utterance, mean over
    channels, and how many frames there are: a pair to log."""
    keep, count = valid_BT[..., None], valid_BT.sum(1)
    x = x_BTC.float().masked_fill(~keep, 0)
    mean = x.sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]
    squares = (x - mean).masked_fill(~keep, 0).square().sum(1)
    deviation = (squares / count.clamp(min=1)[:, None]).sqrt().mean(1)
    return (deviation * count).sum(), count.sum()


def perplexity(counts: Tensor) -> Tensor:
    """(..., V) counts or probabilities -> (...) exp of the entropy: codes used, from 1 to V."""
    p = counts.float() / counts.float().sum(-1, keepdim=True).clamp(min=1e-9)
    return torch.special.entr(p).sum(-1).exp()
