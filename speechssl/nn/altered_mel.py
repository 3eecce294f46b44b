"""Alter the filterbank features that a log-mel front end reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor

from speechssl.contract import Encoder
from speechssl.nn.log_mel import LogMelFrontEnd


@contextmanager
def altered_mel(encoder: Encoder, alter: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, the convolutions of `encoder` read alter(x) in place of x.

    x: (B, M, F), log-mel frames of 10 ms, normalised, 0 on padding. Result: the same shape.
    """
    front = cast(Any, encoder).front
    if not isinstance(front, LogMelFrontEnd):
        raise ValueError(
            f"encoder: found a front end of {type(front).__name__}, want front_end: log_mel, "
            "whose input this objective alters"
        )
    hook = front.layers[0].register_forward_pre_hook(lambda _m, x: (alter(x[0]), *x[1:]))
    try:
        yield
    finally:
        hook.remove()
