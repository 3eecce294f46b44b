"""Voice Conversion Challenge 2020: sources, targets of both tasks, evaluation and ground truth.

The archives unpack into different folders; what counts is that a speaker's folder (SEF1, TEM2,
TFF1, ...) holds files named by their sentences: E10001.wav. SOURCE and everything below it is
looked through. Sentences 1.... and 2.... are for training (the targets of task 1 have 20 of the
former, which sources say as well, and 50 of the latter, which none of them says), 3.... for
evaluation. Transcripts are lines of `10001 TEXT` in text files whose names end with
Eng_transcriptions.txt, Fin_, Ger_, Man_, or transcriptions.txt alone, which is English, as that of
the evaluation; a line may have the letter of its language, `E10001 TEXT`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed

SPEAKER = re.compile(r"[ST][EFGM][FM]\d")
SENTENCE = re.compile(r"([EFGM])(\d)\d{4}")
TRANSCRIPT = re.compile(r"([EFGM]?)(\d{5})\s+(.+)")
FILE_LANGUAGE = re.compile(r"([EFGM])(?:ng|in|er|an)_transcriptions\.txt$")
LANGUAGES = {"E": "en", "F": "fi", "G": "de", "M": "zh"}
SPLITS = {"1": "train", "2": "train", "3": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where the challenge's data lies."""

    source: str
    """Folder into which the archives were unpacked."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of train and test; return split -> file.

    Raises `ValueError` for a folder without speakers, or a sentence that a speaker has twice.
    """
    source = Path(config.source)
    if not source.is_dir():
        raise ValueError(f"source: found no folder {source}, want the unpacked archives")
    files = list(_files(source, transcripts(source)))
    if not files:
        raise ValueError(
            f"source: found no recording such as SEF1/E10001.wav below {source}, want the unpacked "
            "archives of the challenge"
        )
    return write_listed(
        files, config.output, corpus="vcc2020", max_missing_fraction=config.max_missing_fraction
    )


def transcripts(source: Path) -> dict[str, str]:
    """Sentence -> text, of all files of transcripts below `source`."""
    found = {}
    for path in sorted(source.rglob("*transcriptions.txt")):
        if path.name.startswith("."):
            continue  # __MACOSX/._NAME, of the archives: no text
        language = FILE_LANGUAGE.search(path.name)
        letter = language[1] if language else "E"
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if match := TRANSCRIPT.fullmatch(line.strip()):
                found[(match[1] or letter) + match[2]] = match[3]
    return found


def _files(source: Path, texts: dict[str, str]) -> Iterator[Listed]:
    for path in sorted(source.rglob("*.wav")):
        speaker, sentence = path.parent.name, SENTENCE.fullmatch(path.stem)
        if sentence is None or not SPEAKER.fullmatch(speaker):
            continue
        yield Listed(
            id=f"{speaker}-{path.stem}",
            audio=path,
            split=SPLITS.get(sentence[2], "other"),
            text=texts.get(path.stem),
            language=LANGUAGES[sentence[1]],
            speaker=speaker,
            gender={"F": "female", "M": "male"}[speaker[2]],
            custom={"sentence": path.stem},
        )
