"""VoxCeleb1 by its published lists of identification and of verification.

Layout: SOURCE/wav/id10001/VIDEO/00001.wav, or SOURCE/dev/wav and SOURCE/test/wav, as the archives
of dev and test are unpacked, into one folder or two; SOURCE/iden_split.txt and
SOURCE/veri_test.txt. A cut's id is the file's path below wav, as the lists have it, so that
veri_test.txt, veri_test2.txt, list_test_all2.txt and list_test_hard2.txt hold trials as `speechssl
score --trials` reads them.

Differs from lhotse.recipes.prepare_voxceleb, which fetches its list of trials and makes no
identification split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from speechssl.corpora.listed import Listed, write_listed

PARTS = {"1": "train", "2": "valid", "3": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where VoxCeleb1 lies, and by which list it is divided."""

    source: str
    """Folder that holds wav, or dev/wav and test/wav."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    task: Literal["identification", "verification"] = "identification"
    """identification: train, valid, test of the same speakers; verification: test has the speakers
    of the trials, train all others."""
    split_list: str | None = None
    """Lines of `1|2|3 FILE`: train, valid, test; default: SOURCE/iden_split.txt."""
    trials: str | None = None
    """Lines of `1|0 FILE FILE`; default: SOURCE/veri_test.txt. By list_test_all2.txt (VoxCeleb1-E)
    every speaker is tested, and there is no train."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is missing."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every split; return split -> file."""
    source = Path(config.source)
    _roots(source)
    files = _identification if config.task == "identification" else _verification
    return write_listed(
        files(config, source),
        config.output,
        corpus="voxceleb1",
        max_missing_fraction=config.max_missing_fraction,
    )


def _roots(source: Path) -> list[Path]:
    """Folders of speakers, in their order."""
    found = [source / part / "wav" for part in (".", "dev", "test")]
    found = [path for path in found if path.is_dir()]
    if not found:
        raise ValueError(
            f"source: found no folder {source}/wav, {source}/dev/wav or {source}/test/wav, want "
            "VoxCeleb1's recordings there"
        )
    return found


def _lines(path: Path, words: int) -> Iterator[list[str]]:
    if not path.is_file():
        raise ValueError(f"found no {path}, want the list published with VoxCeleb1")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            if len(line.split()) != words:
                raise ValueError(f"{path}:{number}: found {line!r}, want {words} words")
            yield line.split()


def _identification(config: Config, source: Path) -> Iterator[Listed]:
    path, roots = Path(config.split_list or source / "iden_split.txt"), _roots(source)
    for part, name in _lines(path, 2):
        if part not in PARTS:
            raise ValueError(f"{path}: found {part} {name}, want 1, 2 or 3 first")
        there = (root for root in roots if (root / name).is_file())
        yield _listed(next(there, roots[0]) / name, name, PARTS[part])


def _verification(config: Config, source: Path) -> Iterator[Listed]:
    path = Path(config.trials or source / "veri_test.txt")
    tested = {name.split("/")[0] for _, *pair in _lines(path, 3) for name in pair}
    for root in _roots(source):
        for audio in sorted(root.glob("*/*/*.wav")):
            name = audio.relative_to(root).as_posix()
            yield _listed(audio, name, "test" if name.split("/")[0] in tested else "train")


def _listed(audio: Path, name: str, split: str) -> Listed:
    speaker, video, _ = name.split("/")
    return Listed(id=name, audio=audio, split=split, speaker=speaker, custom={"video": video})
