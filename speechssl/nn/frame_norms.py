"""Norms with statistics over frames, of one utterance or of a batch; padding never counts.

Shape legend: B utterances, T frames, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speechssl import dist


class UtteranceNorm(nn.Module):
    """Group norm of a single group: one mean and variance per utterance, over all its channels and
    valid frames: (B, T, D) -> same, float32, zero on padding.

    Differs: torch's group norm counts padding, so that features depend on it.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """padding: (B, T) bool, True on padding, None if there is none."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            count = x.new_full((len(x), 1, 1), x.shape[1] * x.shape[2])
            if padding is not None:
                x = x.masked_fill(padding[..., None], 0)
                count = (~padding).sum(1)[:, None, None] * x.shape[2]
            centred = x - x.sum((1, 2), keepdim=True) / count
            if padding is not None:
                centred = centred.masked_fill(padding[..., None], 0)
            variance = centred.square().sum((1, 2), keepdim=True) / count
            y = centred * (variance + self.eps).rsqrt() * self.weight + self.bias
            return y if padding is None else y.masked_fill(padding[..., None], 0)


class FrameBatchNorm(nn.Module):
    """Batch norm of each channel over the valid frames of a batch: (B, T, D) -> same, float32.

    In training the statistics are those of the micro-batches that all ranks compute together, in
    evaluation the running averages. Hence one rank equals many at the same micro-batches, but the
    only one of our norms it is by which an utterance's loss depends on its batch and on how an
    update is accumulated. It is there for published weights; train with another norm.

    Differs: torch's batch norm counts padding, and each rank for itself.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """padding: (B, T) bool, True on padding, None if there is none."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if not self.training:
                scale = self.weight * (self.running_var + self.eps).rsqrt()
                return (x - self.running_mean) * scale + self.bias
            count = x.new_tensor([x.shape[0] * x.shape[1]])
            if padding is not None:
                x = x.masked_fill(padding[..., None], 0)
                count = (~padding).sum()[None].to(x.dtype)
            sums = _sum_over_ranks(torch.cat([x.sum((0, 1)), count]))
            mean, count = sums[:-1] / sums[-1], sums[-1]
            centred = x - mean
            if padding is not None:
                centred = centred.masked_fill(padding[..., None], 0)
            variance = _sum_over_ranks(centred.square().sum((0, 1))) / count
            self._average(mean, variance * count / (count - 1).clamp(min=1))
            return centred * (variance + self.eps).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _average(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return dist.all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's frames.
        return dist.all_reduce_sum(grads[0].clone())


def _sum_over_ranks(x: Tensor) -> Tensor:
    return _SumOverRanks.apply(x)  # pyright: ignore
