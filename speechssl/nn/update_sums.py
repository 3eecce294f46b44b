"""Sums over the micro-batches and ranks of one optimiser update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechssl import dist


class UpdateSums(nn.Module):
    """Named float32 sums that grow in training passes and are taken behind the update.

    What is made of the statistics of a batch (codebooks, usage of codes, spread of targets) is
    then the same however the batch is cut into micro-batches and ranks. The trainer switches to
    training mode at the start of each update; that forgets what a refused one left behind.
    """

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            # Zero between updates, so no checkpoint needs them.
            self.register_buffer(name, torch.zeros(shape), persistent=False)

    def train(self, mode: bool = True) -> UpdateSums:
        super().train(mode)
        self._forget()
        return self

    @torch.no_grad()
    def add(self, **values: Tensor) -> None:
        """Add in training mode; validation leaves the sums alone."""
        if self.training:
            for name, value in values.items():
                getattr(self, name).add_(value.detach())

    @torch.no_grad()
    def take(self) -> dict[str, Tensor]:
        """The sums over all ranks (a collective); they start anew."""
        taken = {n: dist.all_reduce_sum(getattr(self, n).clone()) for n in self.names}
        self._forget()
        return taken

    @torch.no_grad()
    def _forget(self) -> None:
        for name in self.names:
            getattr(self, name).zero_()
