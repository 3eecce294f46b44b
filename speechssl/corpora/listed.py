"""Cuts of files that a corpus's own lists or folders name: what several corpora share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechssl.corpora.manifest import CutsWriter, LeftOut, cut_row, read_header


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """One file, or `seconds` of it from `start` on."""

    id: str
    audio: Path
    split: str
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    gender: str | None = None
    custom: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: float = 0.0
    seconds: float | None = None


def write_listed(
    files: Iterable[Listed], output: str, *, corpus: str, max_missing_fraction: float
) -> dict[str, Path]:
    """Write the cuts of every split; return split -> file.

    Raises `ValueError` if there are none, and if too many files are missing or unreadable.
    """
    from tqdm import tqdm

    left_out, total = LeftOut(max_missing_fraction), 0
    with CutsWriter(output) as writer:
        for one in tqdm(files, desc=corpus, unit="file", leave=False, disable=None):
            total += 1
            try:
                header = read_header(one.audio.resolve())
            except ValueError as error:
                left_out.add(one.audio, str(error).removeprefix(f"{one.audio.resolve()}: "))
                continue
            if header.num_samples == 0:
                left_out.add(one.audio, "holds no samples")
                continue
            row = cut_row(
                id=one.id,
                audio=one.audio.resolve(),
                header=header,
                text=one.text,
                language=one.language,
                speaker=one.speaker,
                gender=one.gender,
                custom={"corpus": corpus, **one.custom},
            )
            if one.seconds is not None:
                # Several cuts of one file are of one recording.
                recording = f"{corpus}-{one.audio.stem}"
                row["recording"]["id"] = row["supervisions"][0]["recording_id"] = recording
                row |= {"start": one.start, "duration": one.seconds}
                row["supervisions"][0]["duration"] = one.seconds
            writer.add(one.split, row)
        left_out.finish(output, total=total)
        if not writer.paths:
            raise ValueError(f"{corpus}: found no recordings, want some; is the folder right?")
    print(writer.table())
    return writer.paths
