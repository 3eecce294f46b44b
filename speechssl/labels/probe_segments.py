"""Phones and words of `speechssl probe` as segments: a mean of each layer's frames, and a class.

Source: Pasad, Chou, Livescu, 2021, "Layer-wise analysis of a self-supervised speech representation
model", section 3: CCA of segments' means with one-hot phones and words.

Shape legend: S segments, T frames of one utterance, D width, K classes.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.labels.cuts import alignment_of
from speechssl.labels.probe_phones import PAUSES, frames_between
from speechssl.labels.probe_sample import ProbeCut
from speechssl.labels.quality import strip_stress

LEAST = 2
"""A class of fewer segments says nothing of how alike its segments are."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """cut: its place in the list of cuts. first, end: its frames, the last one not included."""

    cut: int
    first: int
    end: int
    symbol: str


def phone_segments(
    cuts: Sequence[ProbeCut], rate: float, window: float, *, limit: int, seed: int
) -> list[Segment]:
    """Phones of the cuts' alignments, `limit` at most, drawn by hashes; no pauses, no stress."""
    items = [[(a, b, strip_stress(p)) for a, b, p in cut.items] for cut in cuts]
    return _drawn(cuts, items, rate, window, limit, seed, None)


def word_segments(
    cuts: Sequence[ProbeCut],
    alignment: str,
    rate: float,
    window: float,
    *,
    limit: int,
    most: int,
    seed: int,
) -> list[Segment]:
    """The `most` commonest words of the alignment of that name, `limit` segments at most."""
    from lhotse.serialization import deserialize_item

    items = []
    for cut in cuts:
        own = deserialize_item(copy.deepcopy(cut.row))  # which takes it apart
        items.append([(a, b, word.lower()) for a, b, word in alignment_of(own, alignment)])
    return _drawn(cuts, items, rate, window, limit, seed, most)


def _drawn(
    cuts: Sequence[ProbeCut],
    items: Sequence[Sequence[tuple[float, float, str]]],
    rate: float,
    window: float,
    limit: int,
    seed: int,
    most: int | None,
) -> list[Segment]:
    found = []
    for at, (cut, own) in enumerate(zip(cuts, items, strict=True)):
        for start, end, symbol in own:
            first, behind = frames_between(start, end, rate, window)
            if first < behind and symbol.lower() not in PAUSES:
                key = hashlib.blake2b(f"{seed}:{cut.id} {start:.6f}".encode(), digest_size=8)
                found.append((key.digest(), Segment(at, first, behind, symbol)))
    counts = collections.Counter(segment.symbol for _, segment in found)
    common = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))[:most]
    kept = {symbol for symbol in common if counts[symbol] >= LEAST}
    drawn = sorted((k, s) for k, s in found if s.symbol in kept)[:limit]
    return sorted((segment for _, segment in drawn), key=lambda s: (s.cut, s.first, s.end))


class SegmentMeans:
    """Takes the mean of each segment of each layer while utterances are read.

    Memory: layers x S x D float32.
    """

    def __init__(self, segments: Sequence[Segment], layers: int) -> None:
        self._by_cut: dict[int, list[Segment]] = {}
        for segment in segments:
            self._by_cut.setdefault(segment.cut, []).append(segment)
        self._means: list[list[Tensor]] = [[] for _ in range(layers)]
        self._taken: list[Segment] = []

    def add(self, cut: int, layers: Sequence[Tensor]) -> None:
        """Of an utterance's (T, D) frames of each layer; what lies behind its end is left out."""
        for segment in self._by_cut.get(cut, ()):
            end = min(segment.end, len(layers[0]))
            if segment.first < end:
                self._taken.append(segment)
                for means, layer in zip(self._means, layers, strict=True):
                    means.append(layer[segment.first : end].mean(0).cpu())

    def __len__(self) -> int:
        return len(self._taken)

    def layer(self, place: int) -> Tensor:
        """(S, D) of the layer in that place."""
        return torch.stack(self._means[place])

    def one_hot(self) -> Tensor:
        """(S, K) float64 of the segments' classes."""
        names = {name: i for i, name in enumerate(sorted({s.symbol for s in self._taken}))}
        classes = torch.tensor([names[s.symbol] for s in self._taken])
        return F.one_hot(classes, len(names)).double()

    def cuts(self) -> np.ndarray:
        """(S,) each segment's place in the list of cuts."""
        return np.array([s.cut for s in self._taken], dtype=np.int64)

    def info(self) -> dict[str, Any]:
        return {"segments": len(self), "classes": len({s.symbol for s in self._taken})}


def parts_of(cuts: np.ndarray, names: Sequence[str], parts: int, seed: int) -> Tensor | None:
    """(N,) part of each point by its utterance, 0 to `parts` - 1, as many utterances in each.

    cuts: (N,) places among `names`, the cuts' ids. None for fewer utterances than parts.
    """
    used = np.unique(cuts)
    if len(used) < parts:
        return None
    keys = {i: hashlib.sha256(f"{seed}:{names[i]}".encode()).digest() for i in used.tolist()}
    order = sorted(keys, key=keys.__getitem__)
    part = np.zeros(len(names), dtype=np.int64)
    part[order] = np.arange(len(order)) % parts
    return torch.from_numpy(part[cuts])
