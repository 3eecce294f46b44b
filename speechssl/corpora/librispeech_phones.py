"""LibriSpeech with phones for text, by a pronunciation lexicon: SUPERB's phone recognition.

Each word becomes the phones of its first pronunciation in the lexicon (ARPAbet with stress, as in
librispeech-lexicon.txt), and each phone one letter of a script without upper and lower case,
without anything between: a recogniser of letters then recognises phones, and its character error
rate is the phone error rate. phones.json names each letter's phone; the words stay in the field
`words`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from speechssl.corpora import librispeech
from speechssl.corpora.manifest import CutsWriter, LeftOut, read_rows

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T",
    "TH", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
PHONES = (*(f"{vowel}{stress}" for vowel in VOWELS for stress in range(3)), *CONSONANTS)
FIRST_LETTER = 0x1200  # Ethiopic syllables: letters, caseless, none composed of others
LETTERS = {phone: chr(FIRST_LETTER + i) for i, phone in enumerate(PHONES)}
URL = "https://www.openslr.org/resources/11/librispeech-lexicon.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where LibriSpeech and its lexicon lie."""

    source: str
    """Folder that holds train-clean-100, dev-clean, ..., or its parent."""
    output: str
    """Folder for cuts_<part>.jsonl.gz, phones.json and missing.txt."""
    lexicon: list[str]
    """Files with lines of `WORD PHONE PHONE ...`; the first one that has a word counts."""
    parts: list[str] = dataclasses.field(default_factory=list)
    """Parts to take, such as '[train-clean-100,dev-clean]'; empty takes all that are there."""
    jobs: int = 0
    """Threads that read headers; 0 takes one per processor core."""
    max_missing_fraction: float = 0.05
    """Stop with an error when a larger share of the utterances has words that are not in the
    lexicon, or of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every part; return part -> file.

    Utterances with a word that is not in the lexicon are left out and listed in missing.txt.
    Raises `ValueError` for a lexicon that is absent or has other phones.
    """
    lexicon = read_lexicon(config.lexicon)
    words = Path(config.output) / "words"
    plain = librispeech.Config(
        source=config.source,
        output=str(words),
        parts=config.parts,
        jobs=config.jobs,
        max_missing_fraction=config.max_missing_fraction,
    )
    left_out, total = LeftOut(config.max_missing_fraction), 0
    with CutsWriter(config.output) as writer:
        for part, path in librispeech.prepare(plain).items():
            for row in read_rows(path):
                total += 1
                first = row["supervisions"][0]
                unknown = [w for w in first["text"].split() if w not in lexicon]
                if unknown:
                    left_out.add(row["id"], f"not in the lexicon: {' '.join(unknown)}")
                    continue
                first["custom"] = {**(first.get("custom") or {}), "words": first["text"]}
                first["text"] = "".join(lexicon[word] for word in first["text"].split())
                writer.add(part, row)
        left_out.finish(config.output, total=total)
    shutil.rmtree(words)
    table = {letter: phone for phone, letter in LETTERS.items()}
    text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    (Path(config.output) / "phones.json").write_text(text, encoding="utf-8")
    print(writer.table())
    return writer.paths


def read_lexicon(paths: list[str]) -> dict[str, str]:
    """Word -> letters of its first pronunciation."""
    found: dict[str, str] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"lexicon: found no file {path}, want {URL}")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            word, *phones = line.split() or [""]
            if not phones:
                continue
            unknown = [p for p in phones if p not in LETTERS]
            if unknown:
                raise ValueError(
                    f"{path}:{number}: found {unknown[0]!r} in the phones of {word!r}, want "
                    "ARPAbet's, vowels with stress 0, 1 or 2"
                )
            found.setdefault(word, "".join(LETTERS[p] for p in phones))
    if not found:
        raise ValueError(f"lexicon: found no word in {paths}, want lines of `WORD PHONE PHONE ...`")
    return found
