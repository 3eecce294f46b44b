"""Which phones an ABX test compares: cells of tokens between the same two neighbours.

What is drawn depends on names and the seed only, so that the order of the tokens does not matter.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

Context = tuple[str, str]


class Token(Protocol):
    """A spoken phone. name: which one it is, different for each; context: phones around it."""

    @property
    def phone(self) -> str: ...
    @property
    def context(self) -> Context: ...
    @property
    def speaker(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Cell:
    """Tokens (their numbers) x and a of the phone phones[0], and b of phones[1].

    speakers: of a and b, and of x. Within one speaker, x and a are the same tokens.
    """

    phones: tuple[str, str]
    context: Context
    speakers: tuple[str, str]
    x: tuple[int, ...]
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def within(self) -> bool:
        return self.speakers[0] == self.speakers[1]


Groups = dict[Context, dict[str, dict[str, tuple[int, ...]]]]
"""Context -> speaker -> phone -> tokens."""
Places = dict[tuple[str, str], list[tuple[Context, str]]]
"""Two phones -> where they can be compared: contexts and speakers."""


def group_tokens(tokens: Sequence[Token], limit: int, seed: int) -> Groups:
    """Tokens of each phone, context and speaker, `limit` at most; all in the order of names."""
    found: dict[tuple, list[int]] = {}
    for number, token in enumerate(tokens):
        found.setdefault((token.context, token.speaker, token.phone), []).append(number)
    groups: Groups = {}
    for (context, speaker, phone), numbers in sorted(found.items()):
        if len(numbers) > limit:
            numbers = sorted(numbers, key=lambda n: _key(seed, tokens[n].name))[:limit]
        kept = tuple(sorted(numbers, key=lambda n: tokens[n].name))
        groups.setdefault(context, {}).setdefault(speaker, {})[phone] = kept
    return groups


def cells_within(groups: Groups, *, limit: int, seed: int) -> list[Cell]:
    """Cells of one speaker each, `limit` at most: 2 tokens or more of phone a, and b's."""
    found: Places = {}
    for context, speakers in groups.items():
        for speaker, phones in speakers.items():
            for a, b in itertools.permutations(phones, 2):
                if len(phones[a]) > 1:
                    found.setdefault((a, b), []).append((context, speaker))
    cells = []
    for a, b, context, speaker in _spread(found, limit, seed):
        phones = groups[context][speaker]
        both = (speaker, speaker)
        cells.append(Cell((a, b), context, both, phones[a], phones[a], phones[b]))
    return cells


def cells_across(groups: Groups, *, limit: int, others: int, seed: int) -> list[Cell]:
    """Cells with a and b of one speaker and x of another, of `others` different ones at most.

    limit: of choices of a context, a speaker and two phones.
    """
    found: Places = {}
    for context, speakers in groups.items():
        voices = collections.Counter(phone for phones in speakers.values() for phone in phones)
        for speaker, phones in speakers.items():
            for a, b in itertools.permutations(phones, 2):
                if voices[a] > 1:
                    found.setdefault((a, b), []).append((context, speaker))
    cells = []
    for a, b, context, speaker in _spread(found, limit, seed):
        phones = groups[context][speaker]
        heard = [name for name, said in groups[context].items() if a in said and name != speaker]
        if len(heard) > others:
            cell = " ".join((a, b, *context, speaker))
            heard = sorted(sorted(heard, key=lambda name: _key(seed, f"{cell} {name}"))[:others])
        for other in heard:
            x = groups[context][other][a]
            cells.append(Cell((a, b), context, (speaker, other), x, phones[a], phones[b]))
    return cells


def present(cells: Iterable[Cell], there: Sequence[bool]) -> list[Cell]:
    """The cells with those of their tokens that are there, as far as they still compare some."""
    kept = []
    for cell in cells:
        x, a, b = (tuple(n for n in side if there[n]) for side in (cell.x, cell.a, cell.b))
        if x and b and len(a) > cell.within:
            kept.append(dataclasses.replace(cell, x=x, a=a, b=b))
    return kept


def _spread(found: Places, limit: int, seed: int) -> Iterator[tuple[str, str, Context, str]]:
    """(a, b, context, speaker) of `limit` places at most: each pair of phones gets its n-th, drawn
    at random, before any gets one more."""
    random = np.random.default_rng(seed)
    orders = {phones: random.permutation(len(found[phones])) for phones in sorted(found)}
    taken = 0
    for place in itertools.count():
        having = [phones for phones, order in orders.items() if place < len(order)]
        if not having or taken == limit:
            return
        if len(having) > limit - taken:
            drawn = np.sort(random.permutation(len(having))[: limit - taken])
            having = [having[i] for i in drawn]
        for phones in having:
            yield *phones, *found[phones][orders[phones][place]]
        taken += len(having)


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
