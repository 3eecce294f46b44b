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
    """Collects moments of `EncoderOutput.front`, (B, T, C); the same over any number of ranks.

    Source: Roy and Vetterli, 2007, definition 1, of the covariance over valid frames; as
    `speechssl.score.rank.effective_rank`, of moments in place of the frames.
    """

    paused = False
    """Passes while this is True do not count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # No device of Apple's has float64.
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums: tuple[Tensor, Tensor, Tensor] | None = None

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
        valid = torch.arange(out.front.shape[1], device=self.device) < out.lengths[:, None]
        x = out.front[valid].to(self.dtype)  # (frames, C)
        count = torch.tensor(len(x), dtype=self.dtype, device=self.device)
        now = count, x.sum(0), x.T @ x
        self.sums = now if self.sums is None else _plus(self.sums, now)

    def figures(self) -> dict[str, float]:
        """`front_rank`, from 1 to C, or 0 if all frames are equal; nothing if none was seen. A
        collective."""
        width = max(dist.gather_objects(0 if self.sums is None else len(self.sums[1])))
        if not width:
            return {}
        sums = self.sums  # a rank may have had no utterance
        if sums is None:
            shapes = (), (width,), (width, width)
            sums = [torch.zeros(n, dtype=self.dtype, device=self.device) for n in shapes]
        count, total, products = (dist.all_reduce_sum(x.clone()) for x in sums)
        mean = total / count
        powers = torch.linalg.eigvalsh((products / count - mean.outer(mean)).cpu())
        # What rounding leaves of an offset is no direction.
        least = 100 * torch.finfo(self.dtype).eps * (products.trace() / count).cpu()
        powers = powers.masked_fill(powers <= least, 0)
        if powers.sum() == 0:
            return {"front_rank": 0.0}
        return {"front_rank": float(torch.special.entr(powers / powers.sum()).sum().exp())}


def _plus(
    a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
