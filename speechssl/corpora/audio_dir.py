"""Any folder of audio files (wav, flac, ogg, opus, mp3, ...), searched through to the bottom.

Without transcripts; a file `x.txt` beside `x.wav` is taken as its text when asked for. Splits are
decided by a hash of the speaker (or of the file, where there are no speakers), so that a file
keeps its split when others come or go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.manifest import CutsWriter, LeftOut, Row, cut_row, read_header

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph", ".w64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which folder, and how it becomes splits."""

    source: str
    """Folder with audio at any depth."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    name: str | None = None
    """Name of the corpus, put before every id; by default the folder's own name."""
    speaker: str = "none"
    """Where the speaker is written: 'none', 'parent' (name of the file's folder), 'top' (name of
    the first folder below `source`)."""
    text_beside: bool = False
    """Take the text of x.txt beside x.wav as its transcript."""
    language: str | None = None
    """Language of all files, if it is one."""
    valid_share: float = 0.05
    """Share of the speakers (or files) for the split valid."""
    test_share: float = 0.0
    """Share of the speakers (or files) for the split test."""
    suffixes: list[str] = dataclasses.field(default_factory=lambda: list(SUFFIXES))
    """Endings of audio files."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""

    def __post_init__(self) -> None:
        if self.speaker not in ("none", "parent", "top"):
            raise ValueError(f"speaker: found {self.speaker!r}, want 'none', 'parent' or 'top'")
        if not (self.valid_share >= 0 and self.test_share >= 0):
            raise ValueError("valid_share, test_share: want both 0 or more")
        if self.valid_share + self.test_share >= 1:
            raise ValueError(
                f"valid_share + test_share: found {self.valid_share + self.test_share}, "
                "want less than 1"
            )


def find_audio(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Audio files below `folder` in a fixed order; hidden files and folders are passed over."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield Path(root) / name


def split_by_hash(key: str, *, valid_share: float, test_share: float) -> str:
    """Split of a speaker or file; its own name alone decides."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test_share:
        return "test"
    return "valid" if place < test_share + valid_share else "train"


def _speaker(path: Path, source: Path, where: str) -> str | None:
    relative = path.relative_to(source)
    if where == "none" or len(relative.parts) == 1:
        return None
    return relative.parts[0] if where == "top" else relative.parts[-2]


def _cut(path: Path, source: Path, corpus: str, config: Config) -> tuple[str, Row]:
    """Split and cut of a file; raise `ValueError` if it cannot be used."""
    header = read_header(path)
    if header.num_samples == 0:
        raise ValueError(f"{path}: holds no samples")
    relative = path.relative_to(source)
    text = None
    beside = path.with_suffix(".txt")
    if config.text_beside and beside.is_file():
        text = " ".join(beside.read_text(encoding="utf-8").split())
    speaker = _speaker(path, source, config.speaker)
    # The ending is part of the id: a.wav and a.flac may lie side by side.
    row = cut_row(
        id=f"{corpus}-{relative.as_posix().replace('/', '-')}",
        audio=path,
        header=header,
        text=text,
        language=config.language,
        speaker=None if speaker is None else f"{corpus}-{speaker}",
        custom={"corpus": corpus},
    )
    key = speaker or relative.as_posix()
    split = split_by_hash(key, valid_share=config.valid_share, test_share=config.test_share)
    return split, row


def prepare(config: Config) -> dict[str, Path]:
    """Write cuts of all readable files; return split -> file.

    Files without a readable header are left out and listed in missing.txt. Raises `ValueError`
    when no audio is found or more than `max_missing_fraction` of it is unreadable.
    """
    from tqdm import tqdm

    source = Path(config.source).resolve()
    if not source.is_dir():
        raise ValueError(f"source: found no folder {config.source}, want a folder of audio files")
    left_out = LeftOut(config.max_missing_fraction)
    total = 0
    suffixes = tuple(s.lower() if s.startswith(".") else f".{s.lower()}" for s in config.suffixes)
    with CutsWriter(config.output) as writer:
        for path in tqdm(find_audio(source, suffixes), desc="audio_dir", unit="file", disable=None):
            total += 1
            try:
                split, row = _cut(path, source, config.name or source.name, config)
            except ValueError as error:
                left_out.add(path, str(error).removeprefix(f"{path}: "))
                continue
            writer.add(split, row)
        if total == 0:
            raise ValueError(f"source: found no audio in {source}, want {' '.join(suffixes)} files")
        left_out.finish(config.output, total=total)
    print(writer.table())
    return writer.paths
