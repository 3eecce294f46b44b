"""Effective rank of the front end's frames over a validation: a collapse that no loss shows.

Objectives that look at masked frames alone can fall in loss while the front end keeps a few
directions of its input; every later layer then holds no more than these
(egs/mini/objectives/RESULTS.md).

Shape legend: B utterances, T frames, C front-end channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from speechssl import dist
from speechssl.contract import EncoderOutput


class FrontRank:
    """Collects moments of `EncoderOutput.front`; the same over any number of ranks."""

    paused = False
    """Passes while this is True do not count."""

    def __init__(self) -> None:
        self.count: Tensor | None = None
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    @contextmanager
    def watch(self, encoder: nn.Module) -> Iterator[FrontRank]:
        """Collect from every forward pass of `encoder` within."""
        hook = encoder.register_forward_hook(self._collect)
        try:
            yield self
        finally:
            hook.remove()

    @torch.no_grad()
    def _collect(self, module: nn.Module, inputs: tuple, out: object) -> None:
        if self.paused or not isinstance(out, EncoderOutput) or out.front is None:
            return
        # No device of Apple's has float64.
        wide = torch.float32 if out.front.device.type == "mps" else torch.float64
        at = torch.arange(out.front.shape[1], device=out.front.device)
        x = out.front[at < out.lengths[:, None]].to(wide)  # (frames, C)
        if self.total is None:
            self.count, self.total = x.new_zeros(()), x.new_zeros(x.shape[1])
            self.products = x.new_zeros(x.shape[1], x.shape[1])
        assert self.products is not None and self.count is not None
        self.count += len(x)
        self.total += x.sum(0)
        self.products += x.T @ x

    def figures(self) -> dict[str, float]:
        """`front_rank`, from 1 to C; nothing if no frame was seen on some rank. A collective."""
        seen = dist.gather_objects(self.total is not None)
        if not all(seen):
            return {}
        assert self.count is not None and self.total is not None and self.products is not None
        count, total, products = (
            dist.all_reduce_sum(x.clone()) for x in (self.count, self.total, self.products)
        )
        if count < 2:
            return {}
        mean = total / count
        powers = torch.linalg.eigvalsh((products / count - mean.outer(mean)).cpu()).clamp(min=0)
        if powers.sum() <= 0:
            return {"front_rank": 0.0}
        return {"front_rank": float(torch.special.entr(powers / powers.sum()).sum().exp())}
