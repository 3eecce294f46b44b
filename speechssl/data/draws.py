"""Random draws as pure functions of integers: the same on every rank, worker and machine.

No generator state exists that a checkpoint would have to hold.
"""

from __future__ import annotations

import hashlib

import numpy as np

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash integers into 64 bits. Source: splitmix64's finaliser (Steele et al., 2014)."""
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def uniform(seed: int, stream: int) -> float:
    """A number in [0, 1); different streams of one seed are independent."""
    return (mix(seed, stream) >> 11) / (1 << 53)


def utterance_seed(seed: int, epoch: int, cut_id: str) -> int:
    """Seed of an utterance in an epoch, in [0, 2^63)."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{cut_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Permutation:
    """A shuffle of 0 .. size - 1 that takes no memory: any part of it is computed on request.

    A Feistel network over the next power of four, cycle-walked into the range. Source: Black and
    Rogaway (2002), "Ciphers with arbitrary finite domains".
    """

    def __init__(self, size: int, key: int, rounds: int = 6) -> None:
        self.size = size
        self._half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
        self._keys = [mix(key, i) for i in range(rounds)]

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """(N,) places in the shuffled order -> (N,) int64 elements there."""
        out = self._encrypt(np.asarray(places, dtype=np.uint64))
        outside = np.flatnonzero(out >= self.size)
        while len(outside):
            out[outside] = self._encrypt(out[outside])
            outside = outside[out[outside] >= self.size]
        return out.astype(np.int64)

    def _encrypt(self, x: np.ndarray) -> np.ndarray:
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = x >> bits, x & mask
        for key in self._keys:
            h = right ^ np.uint64(key)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((h ^ (h >> np.uint64(31))) & mask)
        return (left << bits) | right
