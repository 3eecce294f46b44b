"""What an utterance may sound like as a graph of states, and the likeliest way through it.

Each phone has three states from left to right; a pause may stand before, between and behind words;
a word of several pronunciations has them side by side.

Shape legend: S states of a graph, P predecessors of a state at most, T frames, K state kinds of
the model: 3 of each phone, those of the pause (phone 0) first.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STATES = 3
"""States of a phone, and so its least number of frames."""
PAUSE_PROBABILITY = 0.5

Pronunciation = Sequence[int]
"""Phones by number; 0 is the pause."""


class Part(NamedTuple):
    """One phone that may be said. word: its place among the words, -1 for a pause. way: which of
    the word's pronunciations it is of."""

    word: int
    phone: int
    way: int


@dataclasses.dataclass(frozen=True)
class Graph:
    """kind: (S,) of K. part: (S,) number of the phone or pause in `parts` that a state is of.

    before: (S, P) predecessors, the first the state itself; enter: (S, P) log probabilities of
    choosing the way, -inf where there are fewer. first: (S,) log probability to begin there; last:
    (S,) that to end there. parts: (word or -1 for a pause, phone) of each phone that may be said.
    """

    kind: np.ndarray
    part: np.ndarray
    before: np.ndarray
    enter: np.ndarray
    first: np.ndarray
    last: np.ndarray
    parts: tuple[Part, ...]

    @property
    def shortest(self) -> int:
        """Frames that the shortest way through takes."""
        phones = collections.Counter((p.word, p.way) for p in self.parts if p.word >= 0)
        least: dict[int, int] = {}
        for (word, _), number in phones.items():
            least[word] = min(number, least.get(word, number))
        return STATES * sum(least.values())


class _Builder:
    def __init__(self) -> None:
        self.kind: list[int] = []
        self.part: list[int] = []
        self.ways: list[list[tuple[int, float]]] = []
        self.first: dict[int, float] = {}
        self.parts: list[Part] = []

    def say(
        self, entries: list[tuple[int, float]], phones: Pronunciation, word: int, way: int = 0
    ) -> int:
        """Append phones that may follow `entries`, (state or -1, log probability); the end."""
        for phone in phones:
            self.parts.append(Part(word, phone, way))
            for state in range(STATES):
                here = len(self.kind)
                self.kind.append(STATES * phone + state)
                self.part.append(len(self.parts) - 1)
                self.ways.append([(e, p) for e, p in entries if e >= 0])
                for _, p in (pair for pair in entries if pair[0] < 0):
                    self.first[here] = p
                entries = [(here, 0.0)]
        return entries[0][0]


def graph(words: Sequence[Sequence[Pronunciation]]) -> Graph:
    """Of words, each given by its pronunciations, which are equally likely."""
    build = _Builder()
    ends = [(-1, 0.0)]
    for number, ways in enumerate([*words, None]):
        skipped = [(e, p + math.log(1 - PAUSE_PROBABILITY)) for e, p in ends]
        pause = build.say([(e, p + math.log(PAUSE_PROBABILITY)) for e, p in ends], (0,), -1)
        ends = [*skipped, (pause, 0.0)]
        if ways is not None:
            chance = -math.log(len(ways))
            entries = [(e, p + chance) for e, p in ends]
            ends = [(build.say(entries, w, number, way), 0.0) for way, w in enumerate(ways)]
    size, width = len(build.kind), 1 + max(map(len, build.ways))
    before = np.zeros((size, width), dtype=np.int64)
    enter = np.full((size, width), -np.inf)
    before[:, 0], enter[:, 0] = np.arange(size), 0.0
    for state, ways_in in enumerate(build.ways):
        for place, (other, chance) in enumerate(ways_in, start=1):
            before[state, place], enter[state, place] = other, chance
    first, last = np.full(size, -np.inf), np.full(size, -np.inf)
    first[list(build.first)] = list(build.first.values())
    for state, chance in ends:
        if state >= 0:
            last[state] = chance
    kind, part = np.array(build.kind), np.array(build.part)
    return Graph(kind, part, before, enter, first, last, tuple(build.parts))


def best_path(
    g: Graph, emitted: np.ndarray, column: np.ndarray, stay: np.ndarray
) -> tuple[np.ndarray, float]:
    """(T,) states of the likeliest way and its log probability; -inf: no way is so short.

    emitted: (T, E) log densities of a frame; column: (S,) which of them is of a state; stay: (K,)
    probability to stay in a state for one more frame. The Viterbi algorithm.
    """
    leave = np.log1p(-stay)
    cost = g.enter + leave[g.kind[g.before]]
    cost[:, 0] = np.log(stay)[g.kind]
    rows = np.arange(len(g.kind))
    back = np.zeros((len(emitted), len(rows)), dtype=np.min_scalar_type(g.before.shape[1]))
    score = g.first + emitted[0, column]
    for t in range(1, len(emitted)):
        ways = score[g.before] + cost
        chosen = ways.argmax(1)
        back[t] = chosen
        score = ways[rows, chosen] + emitted[t, column]
    total = score + g.last + leave[g.kind]
    states = np.zeros(len(emitted), dtype=np.int64)
    states[-1] = total.argmax()
    for t in range(len(emitted) - 1, 0, -1):
        states[t - 1] = g.before[states[t], back[t, states[t]]]
    return states, float(total.max())


def even_path(g: Graph, frames: int) -> np.ndarray | None:
    """(T,) states that share the frames evenly: first pronunciations, pauses at both ends only.

    Where training starts from. None: fewer frames than states.
    """
    ends = (0, len(g.parts) - 1)
    wanted = [n for n, p in enumerate(g.parts) if (p.way == 0 if p.word >= 0 else n in ends)]
    states = np.flatnonzero(np.isin(g.part, wanted))
    if len(states) > frames:
        return None
    return states[np.arange(frames) * len(states) // frames]
