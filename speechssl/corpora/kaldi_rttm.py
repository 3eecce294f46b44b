"""Recordings of several speakers with times of turns: Kaldi folders with wav.scp and rttm.

Layout: SOURCE/{train,dev,test}/wav.scp (`NAME PATH`, the path absolute or relative to --audio)
and SOURCE/{train,dev,test}/rttm (NIST's format, SPEAKER lines), as SUPERB's preparation of
Libri2Mix for diarization writes them (prepare_diarization.py of
https://github.com/s3prl/LibriMix), and many other preparations.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

from speechssl.corpora.manifest import CutsWriter, LeftOut, cut_row, read_header


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where the Kaldi folders lie."""

    source: str
    """Folder that holds a folder for each split."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    splits: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "valid": "dev", "test": "test"}
    )
    """Split -> folder below the source."""
    audio: str = "."
    """Folder that relative paths start from."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write a cut of each recording, with one supervision per turn; return split -> file.

    Raises `ValueError` for a folder without the two files, and for a line of another form.
    """
    left_out, total = LeftOut(config.max_missing_fraction), 0
    with CutsWriter(config.output) as writer:
        for split, name in config.splits.items():
            folder = Path(config.source) / name
            turns = read_rttm(folder / "rttm")
            for recording, text in _lines(folder / "wav.scp"):
                total += 1
                audio = Path(config.audio) / text
                if text.endswith("|"):
                    raise ValueError(
                        f"{folder}/wav.scp: found the command {text[:60]!r}, want paths of files"
                    )
                try:
                    header = read_header(audio.resolve())
                except ValueError as error:
                    left_out.add(audio, str(error).removeprefix(f"{audio.resolve()}: "))
                    continue
                row = cut_row(id=recording, audio=audio.resolve(), header=header)
                row["supervisions"] = [
                    {"id": f"{recording}-{i}", "recording_id": recording, "start": start,
                     "duration": seconds, "channel": 0, "speaker": who}
                    for i, (who, start, seconds) in enumerate(turns.get(recording, []))
                ]  # fmt: skip
                writer.add(split, row)
        left_out.finish(config.output, total=total)
    if not writer.paths:
        raise ValueError(f"source: found no recording in {config.source}, want some")
    print(writer.table())
    return writer.paths


def read_rttm(path: Path) -> dict[str, list[tuple[str, float, float]]]:
    """Recording -> (speaker, start, seconds) of its turns, by their start."""
    found = defaultdict(list)
    for kind, line in _lines(path):
        words = line.split()
        if kind != "SPEAKER":
            continue
        try:
            found[words[0]].append((words[6], float(words[2]), float(words[3])))
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}: found 'SPEAKER {line[:60]}', want `SPEAKER NAME 1 START SECONDS <NA> "
                "<NA> WHO ...`"
            ) from None
    return {name: sorted(turns, key=lambda turn: turn[1]) for name, turns in found.items()}


def _lines(path: Path) -> list[tuple[str, str]]:
    """First word and rest of each line."""
    if not path.is_file():
        raise ValueError(f"source: found no {path}, want a Kaldi folder with wav.scp and rttm")
    pairs = (line.strip().split(maxsplit=1) for line in path.read_text().splitlines())
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
