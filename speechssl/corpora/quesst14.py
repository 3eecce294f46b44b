"""QUESST 2014: spoken queries and the recordings to find them in; SUPERB takes the English ones.

Layout, as published: SOURCE/Audio, dev_queries and eval_queries, and
SOURCE/scoring/language_key_{utterances,dev,eval}.lst with lines of `quesst14Database/FILE
LANGUAGE`. Which recordings hold a query is known to the corpus's own scorer,
SOURCE/scoring/score-TWV-Cnxe.sh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed

LISTS = {"recordings": "utterances", "dev": "dev", "eval": "eval"}
"""Split -> its list."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where QUESST 2014 lies, and which language to take."""

    source: str
    """Folder quesst14Database."""
    output: str
    """Folder for cuts_recordings, cuts_dev, cuts_eval and missing.txt."""
    language: str = "nnenglish"
    """Language to keep, as the lists name it: albanian, basque, czech, nnenglish, romanian or
    slovak."""
    max_missing_fraction: float = 0.0
    """Stop with an error when a larger share of the files is missing: the scorer wants all."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of recordings and of both sets of queries; return split -> file."""
    return write_listed(
        _files(config),
        config.output,
        corpus="quesst14",
        max_missing_fraction=config.max_missing_fraction,
    )


def _files(config: Config) -> Iterator[Listed]:
    source = Path(config.source)
    for split, name in LISTS.items():
        path = source / "scoring" / f"language_key_{name}.lst"
        if not path.is_file():
            raise ValueError(
                f"source: found no {path}, want the unpacked "
                "https://speech.fit.vutbr.cz/files/quesst14Database.tgz"
            )
        languages = set()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split()
            if len(words) not in (0, 2):
                raise ValueError(f"{path}:{number}: found {line!r}, want `FILE LANGUAGE`")
            if not words:
                continue
            languages.add(words[1])
            if words[1] == config.language:
                audio = source / words[0].partition("/")[2]
                yield Listed(id=audio.stem, audio=audio, split=split)
        if config.language not in languages:
            raise ValueError(
                f"language: found no {config.language!r} in {path}, want one of "
                f"{', '.join(sorted(languages))}"
            )
