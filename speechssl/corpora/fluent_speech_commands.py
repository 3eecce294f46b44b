"""Fluent Speech Commands: spoken commands with action, object and location.

Layout: SOURCE/data/{train,valid,test}_data.csv with columns path, speakerId, transcription, action,
object, location; SOURCE/wavs. The field `intent` is the three together: right only if all are.
Differs from lhotse.recipes.prepare_slu, which needs pandas and leaves the speaker out.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed

SLOTS = ("action", "object", "location")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where Fluent Speech Commands lies."""

    source: str
    """Folder that holds data and wavs."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is missing."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of train, valid and test; return split -> file."""
    return write_listed(
        _files(Path(config.source)),
        config.output,
        corpus="fluent_speech_commands",
        max_missing_fraction=config.max_missing_fraction,
    )


def _files(source: Path) -> Iterator[Listed]:
    for split in ("train", "valid", "test"):
        path = source / "data" / f"{split}_data.csv"
        if not path.is_file():
            raise ValueError(f"source: found no {path}, want the unpacked Fluent Speech Commands")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            absent = {"path", "speakerId", "transcription", *SLOTS} - set(reader.fieldnames or ())
            if absent:
                raise ValueError(f"{path}: found no column {', '.join(sorted(absent))}, want them")
            for row in reader:
                slots = {name: row[name] for name in SLOTS}
                yield Listed(
                    id=Path(row["path"]).stem, audio=source / row["path"], split=split,
                    text=row["transcription"], language="en", speaker=row["speakerId"],
                    custom={"intent": "/".join(slots.values()), "slots": slots},
                )  # fmt: skip
