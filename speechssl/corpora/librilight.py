"""Libri-light (60 000 h of unlabelled English audiobooks), cut by its times of speech.

A file is a chapter, up to hours long, with the times of speech beside it. As in the corpus's own
cut_by_vad.py, neighbouring stretches of speech are joined into cuts of bounded length.

Differs from lhotse.recipes.prepare_librilight, which needs all three parts to be there, ends at the
first broken file, and makes a cut of every stretch of speech.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.audio_dir import find_audio
from speechssl.corpora.manifest import CutsWriter, LeftOut, Row, cut_row, read_header

PARTS = ("small", "medium", "large")


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
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def join_speech(
    speech: list[tuple[float, float]], *, max_seconds: float, max_gap_seconds: float
) -> Iterator[tuple[float, float]]:
    """Join (start, end) that follow closely; divide what is longer than `max_seconds` evenly."""
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


def _speech(audio: Path) -> tuple[str | None, list[tuple[float, float]]]:
    """Speaker and times of speech from the .json beside the audio."""
    beside = audio.with_suffix(".json")
    try:
        info = json.loads(beside.read_text(encoding="utf-8"))
        speech = [(float(start), float(end)) for start, end in info["voice_activity"]]
        return str(info["speaker"]), speech
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{audio}: found no speaker and voice_activity in {beside.name} "
            f"({type(error).__name__}: {error})"
        ) from None


def chapter_cuts(audio: Path, source: Path, config: Config) -> list[Row]:
    """Cuts of one chapter; raise `ValueError` naming the file if audio or times are unreadable."""
    header = read_header(audio)
    if header.num_samples == 0:
        raise ValueError(f"{audio}: holds no samples")
    speaker, speech = _speech(audio)
    recording = "-".join(audio.relative_to(source).with_suffix("").parts)
    rows = []
    limits = {"max_seconds": config.max_seconds, "max_gap_seconds": config.max_gap_seconds}
    for index, (start, end) in enumerate(join_speech(speech, **limits)):
        # On samples, and inside the file: the times of some chapters run over its end.
        first = max(0, round(start * header.sampling_rate))
        last = min(round(end * header.sampling_rate), header.num_samples)
        if last - first < config.min_seconds * header.sampling_rate:
            continue
        row = cut_row(
            id=recording,
            audio=audio,
            header=header,
            language="en",
            speaker=speaker,
            custom={"corpus": "librilight", "book": audio.parent.name},
        )
        duration = (last - first) / header.sampling_rate
        row.update(id=f"{recording}_{index}", start=first / header.sampling_rate, duration=duration)
        row["supervisions"][0].update(id=row["id"], duration=duration)
        rows.append(row)
    return rows


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every part; return part -> file.

    Chapters whose audio or times cannot be read are left out and listed in missing.txt.
    """
    from tqdm import tqdm

    source = Path(config.source).resolve()
    there = [part for part in PARTS if (source / part).is_dir()]
    absent = sorted(set(config.parts) - set(there))
    if not there or absent:
        raise ValueError(
            f"parts: found {', '.join(there) or 'none'} in {source}, want "
            f"{', '.join(absent) or 'small, medium or large'} there"
        )
    left_out = LeftOut(config.max_missing_fraction)
    total = 0
    with CutsWriter(config.output) as writer:
        for part in config.parts or there:
            files = find_audio(source / part, (".flac",))
            for audio in tqdm(files, desc=part, unit="chapter", disable=None):
                total += 1
                try:
                    rows = chapter_cuts(audio, source, config)
                except ValueError as error:
                    left_out.add(audio, str(error).removeprefix(f"{audio}: "))
                    continue
                for row in rows:
                    writer.add(part, row)
        left_out.finish(config.output, total=total)
    print(writer.table())
    return writer.paths
