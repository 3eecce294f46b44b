"""Cuts of manifests, for what they tell without their audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_cuts(paths: Sequence[str]) -> Iterator[Any]:
    """Lhotse's cuts of some manifests or Shar folders, in their order, lazily.

    Raises ValueError for a path that is neither.
    """
    from lhotse import CutSet

    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(path.glob("cuts.*.jsonl*"))
        if not files:
            raise ValueError(
                f"cuts: found no {path}, want a cuts_*.jsonl.gz or a Shar folder; "
                "`speechssl prepare` makes cuts"
            )
        for file in files:
            yield from CutSet.from_file(file)


def alignment_of(cut: Any, name: str) -> list[tuple[float, float, str]]:
    """(start, end, symbol) of a cut of Lhotse's, in seconds from the cut's start.

    Lhotse counts the times of alignments from the start of the recording (`AlignmentItem`), those
    of supervisions from the start of the cut.
    """
    tracks = [(track.cut, track.offset) for track in getattr(cut, "tracks", ())] or [(cut, 0.0)]
    return [
        (start, start + item.duration, item.symbol)
        for one, offset in tracks
        for supervision in one.supervisions
        for item in (supervision.alignment or {}).get(name, ())
        for start in (item.start - one.start + offset,)
    ]
