"""Google Speech Commands with SUPERB's twelve classes: ten words, _unknown_ and _silence_.

Layout, as the published archives unpack: SOURCE/speech_commands_v0.01 with a folder per word,
_background_noise_, validation_list.txt and testing_list.txt; SOURCE/speech_commands_test_set_v0.01
with a folder per class. Training and validation hold one-second parts of the background noise as
_silence_: those of running_tap.wav validate, as in lhotse and SUPERB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed
from speechssl.corpora.manifest import read_header

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NOISE, SILENCE, UNKNOWN = "_background_noise_", "_silence_", "_unknown_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where Speech Commands lies."""

    source: str
    """Folder that holds speech_commands_v0.01 and speech_commands_test_set_v0.01."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    version: str = "0.01"
    """Version in the folders' names; SUPERB takes 0.01."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of train, valid and test; return split -> file."""
    source = Path(config.source)
    own = source / f"speech_commands_v{config.version}"
    test = source / f"speech_commands_test_set_v{config.version}"
    for path in (own / "validation_list.txt", own / "testing_list.txt", own / NOISE, test):
        if not path.exists():
            raise ValueError(
                f"source: found no {path}, want the unpacked speech_commands_v{config.version} and "
                f"speech_commands_test_set_v{config.version}"
            )
    return write_listed(
        _files(own, test),
        config.output,
        corpus="speech_commands",
        max_missing_fraction=config.max_missing_fraction,
    )


def _files(own: Path, test: Path) -> Iterator[Listed]:
    valid = set((own / "validation_list.txt").read_text().split())
    # Of the archive's own test words only those of the test set count.
    left_out = set((own / "testing_list.txt").read_text().split())
    for path in sorted(own.glob("*/*.wav")):
        word, name = path.parent.name, f"{path.parent.name}/{path.name}"
        if word == NOISE:
            split = "valid" if path.stem == "running_tap" else "train"
            yield from _silences(path, split)
        elif name not in left_out:
            yield _word(path, word, "valid" if name in valid else "train")
    for path in sorted(test.glob("*/*.wav")):
        yield _word(path, path.parent.name, "test")


def _word(path: Path, word: str, split: str) -> Listed:
    label = word if word in (*WORDS, SILENCE) else UNKNOWN
    speaker = path.stem.split("_nohash_")[0] if "_nohash_" in path.stem else None
    return Listed(
        id=f"{split}-{word}-{path.stem}", audio=path, split=split, language="en", speaker=speaker,
        custom={"label": label, "word": word},
    )  # fmt: skip


def _silences(path: Path, split: str) -> Iterator[Listed]:
    for second in range(int(read_header(path).duration)):
        yield Listed(
            id=f"{split}-{SILENCE}-{path.stem}-{second}", audio=path, split=split,
            custom={"label": SILENCE, "word": SILENCE}, start=float(second), seconds=1.0,
        )  # fmt: skip
