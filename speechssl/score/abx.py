"""ABX discrimination: is a phone nearer to another of its kind than to one of another kind?

A cell has tokens x and a of one phone and tokens b of another, all between the same two phones.
Its error is P[d(x, a) > d(x, b)] over all triplets, ties half. d is the mean cost along the
cheapest warping path of the two tokens' frames.
Source: Schatz et al. 2013, "Evaluating speech features with the minimal-pair ABX task", section 2;
Kahn et al. 2020 (Libri-light), section 4.1, for the distances.

Shape legend: K tokens, F frames of all tokens, P pairs of tokens, N and M frames of a pair's two,
D width, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.score.abx_cells import Cell

Distance = Literal["cosine", "angular"]
Costs = Callable[[Tensor, Tensor], Tensor]
"""Frame numbers (P, N) and (P, M) -> (P, N, M) float64 distances between the frames."""

TIE = 1e-7
"""Distances nearer to each other than this are equal: what rounding leaves of equal tokens."""
HELD_NUMBERS = 1 << 23
"""float64 numbers that a batch of pairs holds at a time: 64 MiB."""


def frame_costs(frames: Tensor, distance: Distance) -> Costs:
    """Of (F, D) features: cosine is 1 - cos, 0 to 2; angular is the angle in units of pi, 0 to 1.

    A frame of zeros is at right angles to all others. Computed in float64.
    Raises ValueError for NaN or infinite features.
    """
    norms = torch.linalg.vector_norm(frames, dim=-1, dtype=torch.float64)
    if not bool(norms.isfinite().all()):
        raise ValueError("frames: found NaN or infinity, want finite features")
    inverse = torch.where(norms > 0, 1 / norms, 0.0)

    def costs(rows: Tensor, columns: Tensor) -> Tensor:
        products = torch.bmm(frames[rows].double(), frames[columns].double().transpose(1, 2))
        cosine = products * inverse[rows][..., None] * inverse[columns][:, None]
        cosine = cosine.clamp(-1, 1)
        return 1 - cosine if distance == "cosine" else cosine.acos() / np.pi

    return costs


def unit_costs(units: Tensor, codewords: Tensor | None = None, distance: Distance = "cosine"
               ) -> Costs:  # fmt: skip
    """Of (F,) units: 0 between equal ones and 1 between others; with (U, D) `codewords` the
    distance between theirs."""
    if codewords is None:
        return lambda rows, columns: (units[rows][..., None] != units[columns][:, None]).double()
    count = len(codewords)
    if len(units) and not 0 <= int(units.min()) <= int(units.max()) < count:
        raise ValueError(
            f"units: found {int(units.min())} to {int(units.max())}, want 0 to {count - 1}, one "
            "codeword for each"
        )
    every = torch.arange(count, device=codewords.device)[None]
    table = frame_costs(codewords, distance)(every, every)[0]
    table.fill_diagonal_(0)  # a codeword of zeros has no angle, even with itself
    return lambda rows, columns: table[units[rows][..., None], units[columns][:, None]]


def warped_means(costs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean cost along the cheapest path of each pair: (P, N, M), (P,), (P,) -> (P,).

    rows, columns: frames that each pair has, at least 1; what lies behind them plays no part.
    A path leads from the first frames to the last; each step goes on by one frame in either or in
    both, and each of its places counts once. Of equally cheap paths the one of fewest places is
    taken, so that the two sides may be exchanged. An antidiagonal depends on the two before it
    only, so all its places, of all pairs, are computed at once.
    """
    pairs, height, width = costs.shape
    # Each row moved on by its number: column d of `moved` is antidiagonal d, infinite outside.
    moved = costs.new_full((pairs, height, width + height), torch.inf)
    moved[:, :, :width] = costs
    moved = moved.reshape(pairs, -1)[:, : height * (width + height - 1)]
    moved = moved.reshape(pairs, height, -1).permute(2, 0, 1).contiguous()
    # Row i lies at i + 1; place 0 is outside, and where a path comes from at first.
    outside = costs.new_full((pairs, height + 1), torch.inf)
    before, last = outside.clone(), outside
    before[:, 0] = 0
    steps_before, steps_last = torch.zeros_like(outside), torch.zeros_like(outside)
    means = costs.new_zeros(pairs)
    ends, final = rows + columns - 2, rows[:, None]
    for diagonal in range(height + width - 1):
        ways = torch.stack([before[:, :-1], last[:, :-1], last[:, 1:]])
        lengths = torch.stack([steps_before[:, :-1], steps_last[:, :-1], steps_last[:, 1:]])
        best = ways.amin(0)
        fewest = lengths.masked_fill(ways > best, torch.inf).amin(0)
        before, steps_before = last, steps_last
        last = F.pad(best + moved[diagonal], (1, 0), value=torch.inf)
        steps_last = F.pad(fewest + 1, (1, 0))
        here = (last.gather(1, final) / steps_last.gather(1, final))[:, 0]
        means = torch.where(ends == diagonal, here, means)
    return means


def token_distances(
    costs: Costs, starts: np.ndarray, lengths: np.ndarray, pairs: np.ndarray,
    device: torch.device | str = "cpu", width: int = 1,
) -> np.ndarray:  # fmt: skip
    """(P, 2) pairs of tokens -> (P,) float64 distances.

    starts, lengths: (K,) where each token's frames begin among all frames, and how many they are.
    width: D of the frames, by which batches are cut to `HELD_NUMBERS`.
    Raises ValueError for a token without frames.
    """
    used = lengths[pairs]
    if len(pairs) and used.min() < 1:
        raise ValueError(f"lengths: found {used.min()}, want 1 frame or more for each token")
    # The longer token first, and pairs by length: a batch holds little padding.
    turned = np.where((used[:, 0] < used[:, 1])[:, None], pairs[:, ::-1], pairs)
    order = np.lexsort((-lengths[turned[:, 1]], -lengths[turned[:, 0]]))
    found = np.empty(len(pairs))
    first = 0
    while first < len(order):
        longest = int(lengths[turned[order[first], 0]])
        # Gathered frames of both, their products, and what the warping keeps of them.
        size = max(1, HELD_NUMBERS // (longest * (2 * width + 6 * longest)))
        chosen = order[first : first + size]
        sides = []
        for side in (0, 1):
            tokens = turned[chosen, side]
            count = lengths[tokens]
            at = starts[tokens][:, None] + np.minimum(np.arange(count.max()), count[:, None] - 1)
            sides.append((torch.from_numpy(at).to(device), torch.from_numpy(count).to(device)))
        (rows, heights), (columns, widths) = sides
        means = warped_means(costs(rows, columns), heights, widths)
        found[chosen] = means.cpu().numpy()
        first += size
    return found


def cell_error(to_a: np.ndarray, to_b: np.ndarray, same: bool = False) -> float:
    """P[d(x, a) > d(x, b)], ties half, of distances (X, A) and (X, B).

    same: tokens x and a are the same ones, in the same order; none is compared with itself.
    """
    difference = to_a[:, :, None] - to_b[:, None, :]
    wrong = np.where(np.abs(difference) <= TIE, 0.5, difference > 0)
    if not same:
        return float(wrong.mean())
    return float(wrong[~np.eye(len(to_a), dtype=bool)].mean())


def all_pairs(cells: Sequence[Cell]) -> np.ndarray:
    """(P, 2): every pair of tokens that the cells compare, once, the lower number first."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for cell in cells:
        for others in (cell.a, cell.b):
            sides = np.repeat(cell.x, len(others)), np.tile(others, len(cell.x))
            found.append(np.stack(sides, 1))
    pairs = np.sort(np.concatenate(found), 1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def abx_error(cells: Sequence[Cell], pairs: np.ndarray, distances: np.ndarray) -> float:
    """Mean over contexts, then over speakers, then over ordered pairs of phones; NaN of no cell.

    pairs, distances: of `all_pairs` and `token_distances`.
    """
    tokens = int(pairs.max(initial=0)) + 1
    codes = pairs[:, 0] * tokens + pairs[:, 1]  # rising, as the pairs are sorted

    def between(ones: Sequence[int], others: Sequence[int]) -> np.ndarray:
        row, column = np.array(ones)[:, None], np.array(others)
        code = np.minimum(row, column) * tokens + np.maximum(row, column)
        found = distances[np.searchsorted(codes, code).clip(max=len(codes) - 1)]
        return np.where(row == column, 0.0, found)

    by_phones: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for cell in cells:
        error = cell_error(between(cell.x, cell.a), between(cell.x, cell.b), cell.within)
        by_phones.setdefault(cell.phones, {}).setdefault(cell.speakers, []).append(error)
    if not by_phones:
        return float("nan")
    return float(np.mean([np.mean([np.mean(c) for c in s.values()]) for s in by_phones.values()]))
