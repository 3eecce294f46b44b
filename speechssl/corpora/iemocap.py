"""IEMOCAP's utterances with emotion, session and transcript: five sessions of two actors each.

Layout, as published: SOURCE/Session1/sentences/wav/DIALOGUE/UTTERANCE.wav and
SOURCE/Session1/dialog/EmoEvaluation/DIALOGUE.txt, whose lines give time, utterance, emotion, and
valence, activation, dominance. Transcripts are lines `UTTERANCE [006.2901-008.2357]: Excuse me.` of
SOURCE/Session1/dialog/transcriptions/DIALOGUE.txt; marks such as [LAUGHTER] are left out, and an
utterance without a word, or without its line, has none. The field `session` divides folds that
share no speaker. With `four` (SUPERB, and most studies) only angry, sad, neutral and happy with
excited remain.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed

LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t\[([\d.]+), ([\d.]+), ([\d.]+)\]")
SPOKEN = re.compile(r"^(\S+) +\[[\d. -]+\]: *(.*)$", re.MULTILINE)
MARK = re.compile(r"\[[^\]]*\]")
FOUR = {"ang": "angry", "sad": "sad", "neu": "neutral", "hap": "happy", "exc": "happy"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where IEMOCAP lies, and which emotions to keep."""

    source: str
    """Folder that holds Session1 to Session5 (IEMOCAP_full_release)."""
    output: str
    """Folder for cuts_all.jsonl.gz and missing.txt."""
    four: bool = True
    """Keep angry, sad, neutral and happy with excited; false: every label as it is."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is missing."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of all sessions, as the split "all"; return split -> file."""
    return write_listed(
        _files(config),
        config.output,
        corpus="iemocap",
        max_missing_fraction=config.max_missing_fraction,
    )


def _files(config: Config) -> Iterator[Listed]:
    sessions = sorted(p for p in Path(config.source).glob("Session*") if p.is_dir())
    if not sessions:
        raise ValueError(f"source: found no Session1 in {config.source}, want IEMOCAP's sessions")
    for session in sessions:
        for path in sorted(session.glob("dialog/EmoEvaluation/Ses*.txt")):
            texts = _texts(session / "dialog" / "transcriptions" / path.name)
            for found in LINE.finditer(path.read_text(encoding="utf-8", errors="replace")):
                name, emotion, *dimensions = found.groups()
                if config.four and emotion not in FOUR:
                    continue
                # Ses01F_impro01_M003: session 1, and the man of its two actors speaks.
                dialogue, turn = name.rsplit("_", 1)
                valence, activation, dominance = map(float, dimensions)
                yield Listed(
                    id=name, audio=session / "sentences" / "wav" / dialogue / f"{name}.wav",
                    split="all", text=texts.get(name), language="en",
                    speaker=f"{name[:5]}{turn[0]}", gender="female" if turn[0] == "F" else "male",
                    custom={
                        "emotion": FOUR[emotion] if config.four else emotion,
                        "session": session.name, "valence": valence, "activation": activation,
                        "dominance": dominance,
                    },
                )  # fmt: skip


def _texts(path: Path) -> dict[str, str]:
    """Utterance -> its words, of a dialogue's transcript; empty if there is no such file."""
    if not path.is_file():
        return {}
    found = SPOKEN.findall(path.read_text(encoding="utf-8", errors="replace"))
    texts = {name: " ".join(MARK.sub(" ", text).split()) for name, text in found}
    return {name: text for name, text in texts.items() if any(c.isalnum() for c in text)}
