"""Libri-light (60 000 h of unlabelled English audiobooks), through lhotse.recipes.

A file is a chapter, up to hours long, with the times of speech beside it. As in the corpus's own
cut_by_vad.py, neighbouring stretches of speech are joined into cuts of bounded length.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechssl.corpora.manifest import LeftOut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where Libri-light lies, and how long its cuts may be."""

    source: str
    """Folder that holds small, medium or large."""
    output: str
    """Folder for cuts_<part>.jsonl.gz and missing.txt."""
    parts: list[str] = dataclasses.field(default_factory=list)
    """Parts to keep: '[small]'; empty takes all that are there."""
    max_seconds: float = 30.0
    """Join neighbouring speech up to this length; longer speech is divided."""
    min_seconds: float = 2.0
    """Leave out what stays shorter."""
    max_gap_seconds: float = 1.0
    """Join only over pauses up to this length."""
    jobs: int = 0
    """Threads that read headers; 0 takes one per processor core."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""
    trim: bool = True
    """Cut recordings to their speech; without it a cut is a whole chapter."""


def join_speech(
    speech: list[tuple[float, float]], *, max_seconds: float, max_gap_seconds: float
) -> Iterator[tuple[float, float]]:
    """Join (start, end) that follow closely; divide what is longer than `max_seconds` evenly."""
    import math

    whole: list[tuple[float, float]] = []
    for start, end in sorted(speech):
        pieces = max(1, math.ceil((end - start) / max_seconds - 1e-9))
        size = (end - start) / pieces
        for piece in range(pieces):
            begin, stop = start + piece * size, start + (piece + 1) * size
            near = whole and begin - whole[-1][1] <= max_gap_seconds
            if near and stop - whole[-1][0] <= max_seconds:
                whole[-1] = (whole[-1][0], max(stop, whole[-1][1]))
            else:
                whole.append((begin, stop))
    yield from whole


def _joined(supervisions: Any, config: Config) -> Any:
    from lhotse import SupervisionSegment, SupervisionSet

    by_recording: dict[str, list[Any]] = {}
    for supervision in supervisions:
        by_recording.setdefault(supervision.recording_id, []).append(supervision)
    joined = []
    for recording, parts in by_recording.items():
        speech = [(part.start, part.end) for part in parts]
        for index, (start, end) in enumerate(
            join_speech(
                speech, max_seconds=config.max_seconds, max_gap_seconds=config.max_gap_seconds
            )
        ):
            if end - start < config.min_seconds:
                continue
            joined.append(
                SupervisionSegment(
                    id=f"{recording}_{index}",
                    recording_id=recording,
                    start=round(start, 4),
                    duration=round(end - start, 4),
                    language="en",
                    speaker=str(parts[0].speaker),
                )
            )
    return SupervisionSet.from_segments(joined)


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every part; return part -> file."""
    from speechssl.corpora.lhotse_recipe import pairs, run_recipe, write_cuts

    source = Path(config.source).resolve()
    there = [part for part in ("small", "medium", "large") if (source / part).is_dir()]
    absent = sorted(set(config.parts) - set(there))
    if not there or absent:
        raise ValueError(
            f"parts: found {', '.join(there) or 'none'} in {source}, want "
            f"{', '.join(absent) or 'small, medium or large'} there"
        )
    left_out = LeftOut(config.max_missing_fraction)
    arguments = {"corpus_dir": str(source), "num_jobs": config.jobs or os.cpu_count() or 1}
    manifests, searched = run_recipe("librilight", arguments, left_out)
    kept = {}
    for part, holder, recordings, supervisions in pairs(manifests):
        if part in (config.parts or there):
            kept[part] = {**holder, "recordings": recordings}
            kept[part]["supervisions"] = _joined(supervisions, config)
    return write_cuts(
        kept,
        config.output,
        left_out,
        searched=searched,
        corpus="librilight",
        trim=config.trim,
    )
