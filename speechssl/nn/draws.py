"""Random numbers that are a pure function of an utterance's seed, on any device.

A counter is hashed, not a state advanced: entry n of a row depends on the row's seed, the stream
and n alone. Neither the batch's composition, its padding, the device nor the number of ranks
changes a draw, and nothing has to be saved to redraw it.

Source of the hash: Steele, Lea and Flood 2014 (SplitMix), the finaliser of variant 13.

Shape legend: B utterances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_FACTORS = (-4658895280553007687, -7723592293110705685)
_SHIFTS = (30, 27, 31)


def random_bits(seeds: Tensor, stream: int, *size: int) -> Tensor:
    """(B,) seeds -> (B, *size) int64, uniform over [0, 2 ** 62).

    `size` counts row-major, so a longer first axis leaves the entries before it as they were.
    stream: which of a seed's independent sequences.
    """
    key = _mix(seeds + _mix(seeds.new_full((), stream)))
    counter = torch.arange(1, math.prod(size) + 1, device=seeds.device)
    return (_mix(key[:, None] + counter * _GOLDEN) & (2**62 - 1)).view(-1, *size)


def random_uniform(seeds: Tensor, stream: int, *size: int) -> Tensor:
    """(B,) seeds -> (B, *size) float32 in the open interval (0, 1)."""
    # 23 bits and a half: one bit more would round to 1.
    return ((random_bits(seeds, stream, *size) >> 39) + 0.5) / 2**23


def random_gumbel(seeds: Tensor, stream: int, *size: int) -> Tensor:
    """(B,) seeds -> (B, *size) float32 from the standard Gumbel distribution."""
    return -torch.log(-torch.log(random_uniform(seeds, stream, *size)))


def random_normal(seeds: Tensor, stream: int, *size: int) -> Tensor:
    """(B,) seeds -> (B, *size) float32 from the standard normal distribution."""
    return torch.special.ndtri(random_uniform(seeds, stream, *size))


def _mix(x: Tensor) -> Tensor:
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        # torch shifts signed numbers arithmetically; the mask makes it a logical shift.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x
