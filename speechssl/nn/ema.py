"""A teacher whose weights are a moving average of its student's.

Source: Tarvainen and Valpola 2017 (mean teacher); Baevski et al. 2022 (data2vec), section 3.

Shape legend: B utterances, L samples, T frames, C front-end channels, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from speechssl.contract import Encoder


def linear_then_hold(start: float, end: float, over: int, step: int) -> float:
    """`start` at step 0, `end` from step `over` on, a line between them."""
    return end if step >= over else start + (end - start) * step / over


class EmaTeacher(nn.Module):
    """A copy of an encoder behind its front end, which it shares: it reads the student's output.

    averaged: how the names of averaged parameters begin; all others are copied after each update.
    The average is kept in float32: in bfloat16 a step of (1 - decay) would round to nothing. The
    teacher never trains: no gradient, no dropout, no dropped layers, in any mode.
    """

    def __init__(
        self, student: Encoder, averaged: Sequence[str] = ("layers.", "layer_norm.")
    ) -> None:
        super().__init__()
        self.averaged = tuple(averaged)
        self._given = _Given()
        # The front end has no copy: deepcopy takes it for already copied.
        memo = {id(cast(Any, student).front): self._given}
        self.encoder = copy.deepcopy(student, memo).float().requires_grad_(False)
        names = [name for name, _ in self.encoder.named_parameters()]
        for prefix in self.averaged:
            if not any(name.startswith(prefix) for name in names):
                raise ValueError(
                    f"averaged: found {prefix!r}, which begins the name of no parameter of "
                    f"{type(student).__name__}, want beginnings such as 'layers.'"
                )
        self.eval()

    def train(self, mode: bool = True) -> EmaTeacher:
        return super().train(False)

    @torch.no_grad()
    def update(self, student: Encoder, decay: float) -> None:
        """average <- decay * average + (1 - decay) * student; the rest <- student."""
        theirs = dict(student.named_parameters())
        pairs = [(n, local(p), local(theirs[n])) for n, p in self.encoder.named_parameters()]
        for averaged, weight in ((True, 1 - decay), (False, 1.0)):
            chosen = [(p, q) for n, p, q in pairs if n.startswith(self.averaged) == averaged]
            if chosen:
                mine, other = zip(*chosen, strict=True)
                torch._foreach_lerp_(list(mine), [q.to(mine[0].dtype) for q in other], weight)
        buffers = dict(student.named_buffers())
        for name, buffer in self.encoder.named_buffers():
            buffer.copy_(buffers[name])

    @torch.no_grad()
    def feed_forward_outputs(
        self, wave: Tensor, wave_lengths: Tensor, front: Tensor, top: int
    ) -> list[Tensor]:
        """What the feed-forward blocks of the `top` last layers add: `top` times (B, T, D).

        front: (B, T, C), the student's front-end output of the same waves. Nothing is masked.
        """
        layers = list(cast(Any, self.encoder).layers)[-top:]
        if not all(isinstance(getattr(layer, "fc2", None), nn.Module) for layer in layers):
            raise ValueError(
                f"encoder: found layers of {type(layers[0]).__name__}, want ones whose "
                "feed-forward block ends in `fc2`, as those of TransformerEncoder"
            )
        with self._given.lent(front), _outputs([x.fc2 for x in layers]) as outputs:
            self.encoder(wave, wave_lengths, layers=[-1])
        return outputs


class _Given(nn.Module):
    """Stands in place of a front end and returns what it was lent."""

    value: Tensor | None = None

    @contextmanager
    def lent(self, value: Tensor) -> Iterator[None]:
        self.value = value.detach()
        try:
            yield
        finally:
            self.value = None

    def forward(self, *_: object) -> Tensor:
        assert self.value is not None
        return self.value


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what `modules` return while the context lasts, in order of their calls."""
    outputs: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _m, _i, y: outputs.append(y)) for m in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor: student and teacher are cut alike."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
