"""Cut waves into pieces on frame boundaries, and group pieces into padded batches.

A long wave is computed in windows of equal length that overlap; of each window only the frames
far from its borders are kept, and the kept ones tile the recording: every frame once, at exactly
the time it has in the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sample and frame arithmetic of an encoder: frame t sees samples [t*hop, t*hop + field).

    stride: frames that one of its lowest rate stands for; windows start at multiples of it.
    """

    sample_rate_hz: int
    hop_samples: int
    field_samples: int
    stride: int = 1

    def frames(self, samples: int) -> int:
        return max(0, (samples - self.field_samples) // self.hop_samples + 1)

    def samples(self, frames: int) -> int:
        """The fewest samples that give `frames` frames."""
        return (frames - 1) * self.hop_samples + self.field_samples


@dataclasses.dataclass(frozen=True)
class Piece:
    """Samples [start, stop) of item `item`, of whose frames [keep, keep + count) are wanted.

    They are frames [first, first + count) of the whole.
    """

    item: int
    start: int
    stop: int
    first: int
    keep: int
    count: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def cut(item: int, num_samples: int, geometry: Geometry, window: int, overlap: int) -> list[Piece]:
    """Pieces of one wave.

    window, overlap: frames of a window, and frames of context dropped at each of its inner
        borders; 2 * overlap + geometry.stride <= window.
    """
    total = geometry.frames(num_samples)
    if total <= window:
        return [Piece(item, 0, num_samples, 0, 0, total)]
    step = window - 2 * overlap - geometry.stride + 1
    pieces, first = [], 0
    while first < total:
        # The first and the last window keep their outer borders: there is nothing beyond them.
        begin = min(max(0, first - overlap), total - window)
        last = begin + window >= total
        begin -= begin % geometry.stride
        count = (total if last else begin + window - overlap) - first
        start = begin * geometry.hop_samples
        stop = num_samples if last else start + geometry.samples(window)
        pieces.append(Piece(item, start, stop, first, first - begin, count))
        first += count
    assert all(p.count >= min(step, total - p.first) for p in pieces)
    return pieces


def batches(pieces: Sequence[Piece], max_samples: int, batch_cost: int) -> list[list[Piece]]:
    """Group pieces, longest first, so that computing them takes the least time.

    max_samples: of a batch, padding included; a piece longer than that makes a batch alone.
    batch_cost: what a batch costs beyond its padded samples, in samples: with a small one, batches
        are small and have hardly any padding; with a large one, they are as large as may be.
    """
    order = sorted(pieces, key=lambda p: (-p.size, p.item, p.start))
    count = len(order)
    # cost[i]: of the best batches for the first i pieces; begin[i]: where the last of them begins.
    cost = np.full(count + 1, np.iinfo(np.int64).max)
    cost[0] = 0
    begin = np.zeros(count + 1, np.int64)
    for first, piece in enumerate(order):
        sizes = np.arange(1, min(count - first, max(1, max_samples // piece.size)) + 1)
        costs = cost[first] + batch_cost + piece.size * sizes
        better = sizes[costs < cost[first + sizes]]
        cost[first + better] = costs[better - 1]
        begin[first + better] = first
    groups: list[list[Piece]] = []
    while count:
        groups.append(order[begin[count] : count])
        count = int(begin[count])
    return groups[::-1]
