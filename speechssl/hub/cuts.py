"""What to extract from, in order: audio files, or cuts that read their own part of a recording.

Both kinds have `len`, iterate over `AudioItem`s, and give in the same order, each when asked,
Lhotse's plain values of the cut (what `Cut.to_dict` gives).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.data.index import SAMPLE_RATE, CutIndices, CutRecord, read_manifest
from speechssl.data.reader import read_part, reads_exactly
from speechssl.hub.audio import (
    BLOCK,
    LONG_SECONDS,
    AudioItem,
    find_audio,
    forget,
    on_disk,
    read_file,
)

PlainCut = Callable[[], dict[str, Any]]


class CutItems:
    """The cuts of some manifests or Shar folders."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.cuts = CutIndices(paths)

    def __len__(self) -> int:
        return len(self.cuts)

    def __iter__(self) -> Iterator[AudioItem]:
        for number in range(len(self.cuts)):
            yield item_of(self.cuts[number])

    def plain_cuts(self) -> Iterator[PlainCut]:
        for part in self.cuts.parts:
            path = part.path
            manifests = sorted(path.glob("cuts.*.jsonl*")) if path.is_dir() else [path]
            for manifest in manifests:
                for _, cut in read_manifest(manifest):
                    yield functools.partial(dict, cut)


class FileItems:
    """Audio files; the path becomes the id. patterns: files, folders or globs."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.paths = find_audio(patterns)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[AudioItem]:
        for path in self.paths:
            yield AudioItem(str(path), functools.partial(read_file, path))

    def plain_cuts(self) -> Iterator[PlainCut]:
        for path in self.paths:
            yield functools.partial(file_cut, path)


def item_of(record: CutRecord) -> AudioItem:
    def read() -> tuple[Any, int]:
        in_file = record.full is None and not record.size
        long = record.num_samples > LONG_SECONDS * SAMPLE_RATE
        if long and in_file and reads_exactly(record):
            return _read_long(record), SAMPLE_RATE
        return read_part(record, 0, record.num_samples), SAMPLE_RATE

    return AudioItem(record.id, read)


def _read_long(record: CutRecord) -> np.ndarray:
    """As `read_part` of the whole, block by block onto disk."""
    found = on_disk((record.num_samples,))
    end = 0
    for start in range(0, record.num_samples, BLOCK):
        part = read_part(record, start, min(BLOCK, record.num_samples - start))
        end = start + len(part)
        found[start:end] = part
        forget(found)
    return found[:end]


def file_cut(path: Path) -> dict[str, Any]:
    """The cut of a whole readable audio file, its path as the id."""
    import soundfile

    info = soundfile.info(str(path))
    channels = list(range(info.channels))
    duration = info.frames / info.samplerate
    recording = {
        "id": str(path),
        "sources": [{"type": "file", "channels": channels, "source": str(path)}],
        "sampling_rate": info.samplerate,
        "num_samples": info.frames,
        "duration": duration,
        "channel_ids": channels,
    }
    return {
        "id": str(path),
        "start": 0.0,
        "duration": duration,
        "channel": 0 if len(channels) == 1 else channels,
        "supervisions": [],
        "recording": recording,
        "type": "MonoCut" if len(channels) == 1 else "MultiCut",
    }
