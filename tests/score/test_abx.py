"""ABX against every path and every triplet, and against what its definition demands."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch

from speechssl.score.abx import (
    abx_error,
    all_pairs,
    cell_error,
    frame_costs,
    token_distances,
    unit_costs,
    warped_means,
)
from speechssl.score.abx_cells import (
    Cell,
    cells_across,
    cells_within,
    group_tokens,
    present,
)
from speechssl.score.dtw import warp


class Spoken(NamedTuple):
    phone: str
    context: tuple[str, str]
    speaker: str
    name: str


def every_path(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    if rows == columns == 1:
        return [[(0, 0)]]
    found = []
    for r, c in ((rows - 1, columns - 1), (rows - 1, columns), (rows, columns - 1)):
        if r and c:
            found += [[*path, (rows - 1, columns - 1)] for path in every_path(r, c)]
    return found


def by_hand(cost: np.ndarray) -> float:
    sums = [(sum(cost[p] for p in path), len(path)) for path in every_path(*cost.shape)]
    total, places = min(sums)
    return total / places


def padded(costs: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = torch.tensor([c.shape[0] for c in costs])
    columns = torch.tensor([c.shape[1] for c in costs])
    whole = torch.full((len(costs), int(rows.max()), int(columns.max())), -7.0, dtype=torch.float64)
    for into, cost in zip(whole, costs):
        into[: cost.shape[0], : cost.shape[1]] = torch.from_numpy(cost)
    return whole, rows, columns


SHAPES = [(1, 1), (1, 5), (4, 1), (3, 4), (5, 3), (4, 4), (2, 5)]


def test_the_mean_is_that_of_the_cheapest_of_all_paths() -> None:
    random = np.random.default_rng(0)
    costs = [random.random(shape) for shape in SHAPES]
    found = warped_means(*padded(costs))
    assert found.numpy() == pytest.approx([by_hand(c) for c in costs], abs=1e-14)
    longer = [random.random((n, m)) for n, m in ((23, 31), (40, 9), (17, 17))]
    want = [cost[warp(cost)].mean() for cost in longer]
    assert warped_means(*padded(longer)).numpy() == pytest.approx(want, abs=1e-13)


def test_of_equal_paths_the_shortest_counts_and_sides_may_be_exchanged() -> None:
    random = np.random.default_rng(1)
    costs = [random.integers(0, 2, shape).astype(float) for shape in SHAPES * 6]
    found = warped_means(*padded(costs))
    assert found.tolist() == [by_hand(c) for c in costs]
    assert warped_means(*padded([c.T for c in costs])).tolist() == found.tolist()


def test_distances_of_frames_are_cosines_and_angles() -> None:
    frames = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [1, 1], [0, 0]])
    at = torch.arange(5)[None]
    cosine = frame_costs(frames, "cosine")(at, at)[0]
    angular = frame_costs(frames, "angular")(at, at)[0]
    half = 0.5**0.5
    assert cosine[0].tolist() == pytest.approx([0, 1, 2, 1 - half, 1])
    assert angular[0].tolist() == pytest.approx([0, 0.5, 1, 0.25, 0.5])
    assert torch.equal(cosine, cosine.T)
    with pytest.raises(ValueError, match="NaN or infinity"):
        frame_costs(frames / 0, "cosine")


def test_distances_of_units_are_those_of_their_codewords() -> None:
    units = torch.tensor([2, 0, 2, 1])
    at = torch.arange(4)[None]
    assert unit_costs(units)(at, at)[0, 0].tolist() == [0, 1, 0, 1]
    codewords = torch.tensor([[1.0, 0], [0, 2], [1, 1]])
    found = unit_costs(units, codewords, "angular")(at, at)[0]
    assert torch.allclose(found, frame_costs(codewords[units], "angular")(at, at)[0], atol=1e-7)
    assert found[0, 2] == 0
    with pytest.raises(ValueError, match="found 0 to 2, want 0 to 1"):
        unit_costs(units, codewords[:2])


def spoken(lengths: list[int], dim: int = 6, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    frames = torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(seed))
    return frames, np.cumsum([0, *lengths[:-1]])


def test_batches_and_the_order_of_a_pair_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.array([3, 1, 7, 4, 12, 5])
    frames, starts = spoken(lengths.tolist())
    pairs = np.array(list(itertools.combinations(range(6), 2)))
    costs = frame_costs(frames, "angular")
    found = token_distances(costs, starts, lengths, pairs, width=6)
    for (one, two), distance in zip(pairs, found):
        sides = [frames[starts[t] : starts[t] + lengths[t]].double().numpy() for t in (one, two)]
        rays = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in sides]
        cost = np.arccos((rays[0] @ rays[1].T).clip(-1, 1)) / np.pi
        assert distance == pytest.approx(cost[warp(cost)].mean(), abs=1e-12)
    turned = token_distances(costs, starts, lengths, pairs[::-1, ::-1].copy(), width=6)
    assert turned[::-1] == pytest.approx(found, abs=1e-12)
    monkeypatch.setattr("speechssl.score.abx.HELD_NUMBERS", 1)
    alone = token_distances(costs, starts, lengths, pairs, width=6)
    assert alone == pytest.approx(found, abs=1e-12)
    with pytest.raises(ValueError, match="found 0, want 1 frame"):
        token_distances(costs, starts, lengths * 0, pairs)


def test_ties_count_half_and_no_token_is_compared_with_itself() -> None:
    assert cell_error(np.array([[0.2, 0.5]]), np.array([[0.5, 0.1, 0.5]])) == pytest.approx(3 / 6)
    nothing = np.zeros((3, 3))
    assert cell_error(nothing, np.zeros((3, 2)), same=True) == 0.5
    to_a = np.array([[0.0, 0.9], [0.9, 0.0]])  # their own distance of 0 would count as right
    assert cell_error(to_a, np.full((2, 4), 0.5), same=True) == 1
    assert cell_error(to_a, np.full((2, 4), 0.5)) == 0.5


CONTEXTS = (("p", "t"), ("t", "p"), ("k", "k"))


def corpus(seed: int = 0, each: int = 4) -> tuple[list[Spoken], list[int]]:
    """Tokens of three phones, three contexts and four speakers, some of them missing."""
    random = np.random.default_rng(seed)
    tokens = []
    for context, speaker, phone in itertools.product(CONTEXTS, "wxyz", "aei"):
        for n in range(int(random.integers(0, each + 1))):
            tokens.append(Spoken(phone, context, speaker, f"{context} {speaker} {phone} {n}"))
    return tokens, random.integers(1, 6, len(tokens)).tolist()


def errors(tokens: list[Spoken], frames, starts, lengths, **limits: int) -> tuple[float, float]:
    groups = group_tokens(tokens, limits.get("most", 99), 0)
    limit, others = limits.get("cells", 10**6), limits.get("others", 99)
    found = []
    for cells in (
        cells_within(groups, limit=limit, seed=0),
        cells_across(groups, limit=limit, others=others, seed=0),
    ):
        pairs = all_pairs(cells)
        distances = token_distances(frame_costs(frames, "cosine"), starts, lengths, pairs)
        found.append(abx_error(cells, pairs, distances))
    return found[0], found[1]


def test_the_error_is_the_mean_over_triplets_contexts_speakers_and_pairs() -> None:
    tokens, lengths = corpus()
    frames, starts = spoken(lengths)
    sides = [frames[s : s + n].double().numpy() for s, n in zip(starts, lengths)]

    @functools.cache
    def distance(one: int, two: int) -> float:
        rays = [sides[i] / np.linalg.norm(sides[i], axis=1, keepdims=True) for i in (one, two)]
        cost = 1 - rays[0] @ rays[1].T
        return float(cost[warp(cost.clip(min=0))].mean())

    def expected(across: bool) -> float:
        by_phones = []
        for a, b in itertools.permutations("aei", 2):
            by_speakers = []
            for s, other in itertools.product("wxyz", "wxyz"):
                if (s != other) != across:
                    continue
                by_context = []
                for context in CONTEXTS:
                    of = {
                        key: [n for n, t in enumerate(tokens) if t[:3] == (key[0], context, key[1])]
                        for key in ((a, s), (b, s), (a, other))
                    }
                    wrong = [
                        (distance(x, one) > distance(x, two)) + 0.0
                        for x in of[a, other] for one in of[a, s] for two in of[b, s] if x != one
                    ]  # fmt: skip
                    by_context += [np.mean(wrong)] if wrong else []
                by_speakers += [np.mean(by_context)] if by_context else []
            by_phones += [np.mean(by_speakers)] if by_speakers else []
        return float(np.mean(by_phones))

    within, across = errors(tokens, frames, starts, np.array(lengths))
    assert within == pytest.approx(expected(False)) and across == pytest.approx(expected(True))
    assert within != across


def test_separated_classes_have_no_error_and_equal_ones_chance() -> None:
    tokens, lengths = corpus(1)
    noise, starts = spoken(lengths)
    phone = np.repeat([{"a": 0, "e": 1, "i": 2}[t.phone] for t in tokens], lengths)
    apart = 0.01 * noise
    apart[torch.arange(len(apart)), torch.from_numpy(phone)] += 1
    assert errors(tokens, apart, starts, np.array(lengths)) == (0, 0)
    assert errors(tokens, torch.ones_like(noise), starts, np.array(lengths)) == (0.5, 0.5)
    # Of one frame each, drawn alike: the mean of 8 draws has a deviation of about 0.015.
    tokens, one = corpus(2)[0], np.ones(len(corpus(2)[0]), dtype=np.int64)
    drawn = [errors(tokens, *spoken(one.tolist(), seed=seed), one) for seed in range(8)]
    assert np.mean(drawn, 0) == pytest.approx([0.5, 0.5], abs=0.04)


def test_the_order_of_tokens_does_not_matter_and_limits_hold() -> None:
    tokens, lengths = corpus(3, each=6)
    frames, starts = spoken(lengths)
    limits = {"most": 3, "cells": 20, "others": 2}
    one = errors(tokens, frames, starts, np.array(lengths), **limits)
    order = np.random.default_rng(0).permutation(len(tokens))
    mixed = [tokens[i] for i in order]
    other = errors(mixed, frames, starts[order], np.array(lengths)[order], **limits)
    assert one == pytest.approx(other, abs=1e-12)
    groups = group_tokens(tokens, 3, 0)
    kept = [n for speakers in groups.values() for p in speakers.values() for n in p.values()]
    assert max(map(len, kept)) == 3 and len(set(itertools.chain(*kept))) == sum(map(len, kept))
    within = cells_within(groups, limit=20, seed=0)
    across = cells_across(groups, limit=20, others=2, seed=0)
    assert len(within) == 20 and 20 < len(across) <= 40
    # Every ordered pair of the three phones has its share.
    for cells in (within, {(c.phones, c.context, c.speakers[0]): c for c in across}.values()):
        shares = [sum(c.phones == p for c in cells) for p in itertools.permutations("aei", 2)]
        assert sum(shares) == 20 and max(shares) - min(shares) <= 1
    assert cells_within(groups, limit=20, seed=1) != within
    assert group_tokens(tokens, 3, 1) != groups
    for cell in within + across:
        a, b = cell.phones
        assert a != b and cell.within == (cell in within)
        for numbers, phone, speaker in (
            (cell.x, a, cell.speakers[1]), (cell.a, a, cell.speakers[0]),
            (cell.b, b, cell.speakers[0]),
        ):  # fmt: skip
            assert numbers
            assert {tokens[n][:3] for n in numbers} == {(phone, cell.context, speaker)}


def test_cells_live_on_with_the_tokens_that_are_there() -> None:
    within = Cell(("a", "b"), ("p", "t"), ("s", "s"), (0, 1, 2), (0, 1, 2), (3, 4))
    across = Cell(("a", "b"), ("p", "t"), ("s", "z"), (5,), (0,), (3,))
    there = [True, False, True, True, False, True]
    one, two = present([within, across], there)
    assert one.x == one.a == (0, 2) and one.b == (3,) and two == across
    assert present([within], [True, False, False, True, True]) == []
    assert present([across], [True] * 5 + [False]) == []
    assert np.isnan(abx_error([], all_pairs([]), np.zeros(0)))
