"""A uniform sample of frames from a stream, in fixed memory.

Each frame gets a 64-bit key from a hash of (seed, utterance id, frame number), and the sample
is the frames of lowest key. So the sample is uniform without replacement, and is the same
however the stream is cut, ordered or spread over ranks.
Source: Cohen and Kaplan, 2007, "Summarizing data using bottom-k sketches".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speechssl import dist

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def frame_keys(name: str, frames: int) -> np.ndarray:
    """One pseudo-random uint64 for each frame of `name`: (frames,).

    Source: the output function of SplitMix64 (Steele, Lea, Flood, 2014), as a counter-based
    generator keyed by a hash of the name.
    """
    start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        x = np.uint64(start) + (np.arange(frames, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _MIX_A
        x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))


class FrameReservoir:
    """Keeps the `capacity` frames of lowest key among all that were added on this rank.

    Memory: (1.25 capacity + 4096) x dim of `dtype`, allocated once; pages that the stream never
    fills are not touched.
    """

    def __init__(
        self, capacity: int, dim: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: found {capacity}, want at least 1 frame")
        room = capacity + capacity // 4 + 4096
        self.capacity = capacity
        self.seed = seed
        self.seen = 0
        self._frames = torch.empty(room, dim, dtype=dtype)
        self._keys = np.empty(room, dtype=np.uint64)
        self._size = 0
        self._limit: int = 2**64
        """Keys at or above it cannot be among the lowest `capacity`."""

    def add(self, ids: Sequence[str], features: Sequence[Tensor]) -> None:
        """Offer the frames (T_i, D) of some utterances. Ids must be unique in the stream."""
        for name, frames in zip(ids, features):
            keys = frame_keys(f"{self.seed}:{name}", len(frames))
            self.seen += len(frames)
            chosen = np.arange(len(keys))
            if self._limit < 2**64:
                chosen = np.flatnonzero(keys < np.uint64(self._limit))
            self._append(keys[chosen], frames.detach().cpu()[torch.from_numpy(chosen)])

    def _append(self, keys: np.ndarray, frames: Tensor) -> None:
        start = 0
        while start < len(keys):
            if self._size == len(self._keys):
                self._prune(self.capacity)
            count = min(len(keys) - start, len(self._keys) - self._size)
            here = slice(self._size, self._size + count)
            self._keys[here] = keys[start : start + count]
            self._frames[here] = frames[start : start + count].to(self._frames.dtype)
            self._size += count
            start += count

    def _prune(self, keep: int) -> None:
        """Drop all but the `keep` lowest keys, in place."""
        if self._size <= keep:
            return
        keys = self._keys[: self._size]
        limit = int(np.partition(keys, keep)[keep])
        self._limit = min(self._limit, limit)
        kept = keys < np.uint64(limit)
        count = int(kept.sum())
        holes = np.flatnonzero(~kept[:count])
        movers = count + np.flatnonzero(kept[count:])
        self._keys[holes] = self._keys[movers]
        self._frames[torch.from_numpy(holes)] = self._frames[torch.from_numpy(movers)]
        self._size = count

    def sample(self) -> tuple[Tensor, np.ndarray]:
        """This rank's frames (n, D), at most `capacity`, in key order, and their keys (n,)."""
        self._prune(self.capacity)
        order = np.argsort(self._keys[: self._size], kind="stable")
        return self._frames[torch.from_numpy(order)], self._keys[order]

    def shared_sample(self, total: int) -> tuple[Tensor, np.ndarray, int]:
        """This rank's part of the `total` lowest keys over all ranks, and all frames seen.

        Exact as long as no rank dropped a frame that belongs to it: give each rank a capacity
        somewhat above total / world size. Otherwise the sample is smaller, and still uniform.
        """
        frames, keys = self.sample()
        limits = dist.gather_objects((keys[:total], self._limit, self.seen))
        everyone = np.sort(np.concatenate([k for k, _, _ in limits]))
        limit = min(limit for _, limit, _ in limits)
        if len(everyone) > total:
            limit = min(limit, int(everyone[total]))
        count = len(keys) if limit >= 2**64 else int(np.searchsorted(keys, np.uint64(limit)))
        return frames[:count], keys[:count], sum(seen for _, _, seen in limits)


def rank_capacity(total: int) -> int:
    """Room per rank: its share and a fifth more, since shares are not equal to the frame."""
    world = dist.world_size()
    return total if world == 1 else min(total, total * 6 // (5 * world) + 4096)
