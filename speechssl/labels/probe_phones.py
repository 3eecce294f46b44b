"""Phones between two others, and their frames, for the ABX test of `speechssl probe`.

Shape legend: K tokens, F frames of all tokens, T frames of an utterance, D width of a layer.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from speechssl.data.label_store import LabelStore
from speechssl.labels.measure import labels_of
from speechssl.labels.probe_sample import ProbeCut
from speechssl.labels.quality import strip_stress

PAUSES = frozenset(("sil", "sp", "spn", "nsn", "pau", "h#", "epi", "<eps>", "<unk>", "_", ""))
"""Symbols, in lower case, that are no phones."""
GAP_SECONDS = 0.001
"""Two phones further apart than this are no neighbours."""


@dataclasses.dataclass(frozen=True)
class PhoneToken:
    """A phone of an utterance. cut: its place in the list of cuts. start, end: seconds."""

    cut: int
    start: float
    end: float
    phone: str
    context: tuple[str, str]
    speaker: str
    name: str

    def frames(self, frame_rate_hz: float, window_seconds: float) -> tuple[int, int]:
        return frames_between(self.start, self.end, frame_rate_hz, window_seconds)


def frames_between(
    start: float, end: float, frame_rate_hz: float, window_seconds: float
) -> tuple[int, int]:
    """First frame whose centre, t / rate + window / 2, lies between the seconds, and the one behind
    the last."""
    # Rounding to a microframe: a centre on the edge belongs to the phone that it opens.
    first, behind = (
        math.ceil(round((edge - window_seconds / 2) * frame_rate_hz, 6)) for edge in (start, end)
    )
    return max(first, 0), max(behind, 0)


def phones_in_context(
    cuts: Sequence[ProbeCut], frame_rate_hz: float, window_seconds: float
) -> list[PhoneToken]:
    """Every phone with a phone right before and right behind it that holds a frame's centre."""
    return [
        token
        for at, cut in enumerate(cuts)
        for token in _tokens(at, cut)
        if len(range(*token.frames(frame_rate_hz, window_seconds)))
    ]


def _tokens(at: int, cut: ProbeCut) -> Iterator[PhoneToken]:
    items = [(start, end, strip_stress(phone)) for start, end, phone in sorted(cut.items)]
    for before, (start, end, phone), behind in zip(items, items[1:], items[2:]):
        touching = start - before[1] <= GAP_SECONDS and behind[0] - end <= GAP_SECONDS
        if touching and not any(p.lower() in PAUSES for p in (before[2], phone, behind[2])):
            context = (before[2], behind[2])
            name = f"{cut.id} {start:.6f}"
            yield PhoneToken(at, start, end, phone, context, cut.group, name)


class PhoneFrames:
    """Keeps the frames of some tokens, of each layer; what no token needs is not kept.

    Memory: layers x F x D float32.
    """

    def __init__(
        self, tokens: Sequence[PhoneToken], wanted: Sequence[int], layers: int,
        frame_rate_hz: float, window_seconds: float,
    ) -> None:  # fmt: skip
        """wanted: numbers of the tokens to keep, each once."""
        self._by_cut: dict[int, list[tuple[int, int, int]]] = {}
        for number in wanted:
            token = tokens[number]
            span = token.frames(frame_rate_hz, window_seconds)
            self._by_cut.setdefault(token.cut, []).append((number, *span))
        self.starts = np.zeros(len(tokens), dtype=np.int64)
        self.lengths = np.zeros(len(tokens), dtype=np.int64)
        """(K,): 0 for a token whose utterance was not read, or ended before it."""
        self._layers: list[list[Tensor]] = [[] for _ in range(layers)]
        self._count = 0

    def add(self, cut: int, layers: Sequence[Tensor]) -> None:
        """Take what is wanted of an utterance's (T, D) frames of each layer."""
        total = len(layers[0])
        for number, first, end in self._by_cut.get(cut, ()):
            length = max(0, min(end, total) - first)
            self.starts[number], self.lengths[number] = self._count, length
            self._count += length
            if length:
                for kept, layer in zip(self._layers, layers):
                    kept.append(layer[first : first + length].cpu())

    def frames(self, layer: int) -> Tensor:
        """(F, D) of the layer in the place `layer`; of units (F,)."""
        return torch.cat(self._layers[layer]) if self._layers[layer] else torch.zeros(0, 1)


def unit_frames(
    store: LabelStore, cuts: Sequence[ProbeCut], tokens: Sequence[PhoneToken], wanted: Sequence[int]
) -> PhoneFrames:
    """The units of the tokens, at the store's own rate; utterances without labels are left out."""
    from lhotse.serialization import deserialize_item

    if not store.frame_rate_hz:
        raise ValueError(f"{store.folder}: found utterance labels, want labels per frame")
    window = float(store.meta.get("window_seconds", 0.025))
    found = PhoneFrames(tokens, wanted, 1, float(store.frame_rate_hz), window)
    for at in sorted({tokens[number].cut for number in wanted}):
        labels = labels_of(store, deserialize_item(copy.deepcopy(cuts[at].row)))
        if labels is not None:
            found.add(at, [torch.from_numpy(labels.astype(np.int64))])
    return found
