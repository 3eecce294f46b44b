"""Cuts of manifests as audio items: each reads its own part of its recording, when asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from speechssl.data.index import SAMPLE_RATE, CutIndices, CutRecord
from speechssl.data.reader import read_part
from speechssl.hub.audio import AudioItem


class CutItems:
    """The cuts of some manifests or Shar folders, in order: `len`, and iteration over items."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.cuts = CutIndices(paths)

    def __len__(self) -> int:
        return len(self.cuts)

    def __iter__(self) -> Iterator[AudioItem]:
        for number in range(len(self.cuts)):
            yield _item(self.cuts[number])


def _item(record: CutRecord) -> AudioItem:
    def read() -> tuple[Any, int]:
        return read_part(record, 0, record.num_samples), SAMPLE_RATE

    return AudioItem(record.id, read)
