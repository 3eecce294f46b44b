"""Sentences of the synthetic corpus: grammars with open slots, split by a hash of the text."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import random
import re
from pathlib import Path
from types import ModuleType

SPLIT_SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
"""Shares of all sentences of a language; which split a sentence belongs to is its hash's choice."""
_FIELD = re.compile(r"\{(\w+)(?::(\w+))?\}")
_NOT_SPOKEN = re.compile(r"[^\w' -]")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """`written` goes to the synthesiser (with its commas), `text` is what a recogniser learns."""

    written: str
    text: str
    theme: str
    intent: str
    slots: dict[str, str]


def plain(written: str) -> str:
    """Lower-case words without punctuation; apostrophes stay, hyphens become spaces."""
    return " ".join(_NOT_SPOKEN.sub(" ", written.lower()).replace("-", " ").split())


def grammar_languages() -> list[str]:
    """Primary language tags that have a grammar."""
    return sorted(p.stem for p in (Path(__file__).parent / "grammars").glob("[a-z]*.py"))


def grammar(language: str) -> ModuleType:
    """The grammar of an eSpeak language such as 'en-gb' ('en'); `ValueError` if there is none."""
    primary = language.split("-")[0]
    if primary not in grammar_languages():
        raise ValueError(
            f"languages: found {language!r}, want languages with a grammar: "
            f"{', '.join(grammar_languages())} (with eSpeak's regions, such as en-gb)"
        )
    return importlib.import_module(f"speechssl.corpora.grammars.{primary}")


def split_of(language: str, text: str) -> str:
    """The only split in which this sentence may occur, under any seed."""
    digest = hashlib.sha256(f"{language.split('-')[0]}|{text}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SPLIT_SHARES.items():
        if place < share:
            return split
        place -= share
    return "test"


def _fill(rng: random.Random, module: ModuleType, slot: str) -> str:
    ranges = {"digit": (0, 9), "number": (0, 99), "large": (100, 999)}
    if slot in ranges:
        return module.number(rng.randint(*ranges[slot]))
    return rng.choice(module.SLOTS[slot])


def _make(rng: random.Random, module: ModuleType, theme: str) -> Sentence:
    intent, template = rng.choice(module.TEMPLATES[theme])
    slots: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        slot, name = match.group(1), match.group(2) or match.group(1)
        value = _fill(rng, module, slot)
        while value in slots.values() and slot not in ("digit", "number", "large"):
            value = _fill(rng, module, slot)  # never from Rome to Rome
        slots[name] = value
        return value

    written = _FIELD.sub(replace, template)
    return Sentence(written, plain(written), theme, intent, slots)


def sentence(rng: random.Random, language: str, split: str, themes: list[str]) -> Sentence:
    """Draw a sentence of `language` that belongs to `split`; empty `themes` means all themes.

    Raises `ValueError` for an unknown language or theme.
    """
    module = grammar(language)
    known = sorted(module.TEMPLATES)
    unknown = sorted(set(themes) - set(known))
    if unknown:
        raise ValueError(f"themes: found {', '.join(unknown)}, want some of: {', '.join(known)}")
    # The theme is drawn once and kept through the draws below, else rare sentences would shift it.
    theme = rng.choice(sorted(themes) or known)
    for _ in range(1000):
        made = _make(rng, module, theme)
        if split_of(language, made.text) == split:
            return made
    raise ValueError(
        f"themes: found no sentence of theme {theme!r} in {language} for split {split!r} in 1000 "
        "draws, want a grammar with more slots"
    )
