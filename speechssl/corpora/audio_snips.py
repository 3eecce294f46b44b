"""Audio SNIPS: spoken requests to an assistant with the slots of each, for slot filling.

Layout, as prepared for SUPERB: SOURCE/all.iob.snips.txt, whose lines are `ID BOS word ... EOS`, a
tab, and for each of these O or its slot (behind B- or I-, or without), and the recordings
SOURCE/{train,valid,test}/ID.wav. An ID begins with its synthetic speaker; SUPERB trains, validates
and tests on different ones.

The text is the words with their slots as tags, `play <a> all night </a>`: slots have names of one
character, so that a recogniser's frames suffice for them; slots.json names them in full.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed

SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "valid": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
NAMES = "abcdefghijklmnopqrstuvwxyz0123456789@#%&*+=~!$^|"
"""Names of the slots in texts, which no case changes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where Audio SNIPS lies."""

    source: str
    """Folder that holds all.iob.snips.txt, train, valid and test."""
    output: str
    """Folder for cuts_<split>.jsonl.gz, slots.json and missing.txt."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of train, valid and test; return split -> file.

    Raises `ValueError` for a folder without the list, and for a list of another form.
    """
    source = Path(config.source)
    listed = read_list(source / "all.iob.snips.txt")
    slots = sorted({slot for pairs in listed.values() for _, slot in pairs if slot is not None})
    if len(slots) > len(NAMES):
        raise ValueError(f"source: found {len(slots)} slots, want at most {len(NAMES)}")
    names = dict(zip(slots, NAMES))
    paths = write_listed(
        _files(source, listed, names),
        config.output,
        corpus="audio_snips",
        max_missing_fraction=config.max_missing_fraction,
    )
    text = json.dumps({name: slot for slot, name in names.items()}, indent=1) + "\n"
    (Path(config.output) / "slots.json").write_text(text)
    return paths


def read_list(path: Path) -> dict[str, list[tuple[str, str | None]]]:
    """Utterance -> its words, each with its slot; None: outside of any."""
    if not path.is_file():
        raise ValueError(f"source: found no {path}, want Audio SNIPS as prepared for SUPERB")
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        texts, tab, tags = line.partition("\t")
        name, *words = texts.split()
        slots = tags.split()
        if not tab or len(words) != len(slots) or words[:1] != ["BOS"] or words[-1:] != ["EOS"]:
            raise ValueError(
                f"{path}:{number}: found {line[:60]!r}, want `ID BOS word ... EOS`, a tab, and a "
                "slot or O for each word"
            )
        plain = [s.removeprefix("B-").removeprefix("I-") for s in slots[1:-1]]
        found[name] = [(w, None if s == "O" else s) for w, s in zip(words[1:-1], plain)]
    return found


def tagged(pairs: list[tuple[str, str | None]], names: dict[str, str]) -> str:
    """Words with tags around each run of one slot."""
    parts = []
    for slot, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        words = " ".join(word.replace("<", " ").replace(">", " ") for word, _ in run)
        parts.append(words if slot is None else f"<{names[slot]}> {words} </{names[slot]}>")
    return " ".join(parts)


def _files(
    source: Path, listed: dict[str, list[tuple[str, str | None]]], names: dict[str, str]
) -> Iterator[Listed]:
    for split, speakers in SPEAKERS.items():
        for audio in sorted((source / split).rglob("*.wav")):
            who = next((s for s in speakers if audio.stem.startswith(s)), None)
            if who is None or audio.stem not in listed:
                continue
            yield Listed(
                id=audio.stem, audio=audio, split=split, text=tagged(listed[audio.stem], names),
                language="en", speaker=who,
            )  # fmt: skip
