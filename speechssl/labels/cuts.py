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
