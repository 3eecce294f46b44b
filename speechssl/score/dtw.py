"""Dynamic time warping: the cheapest way to pair the frames of two utterances in their order.

Shape legend: N and M frames of the two, P pairs.
"""

from __future__ import annotations

import numpy as np


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, M) costs of pairing -> (P,) rows and (P,) columns, from (0, 0) to (N - 1, M - 1).

    A step goes on by one frame in either or in both, and each pair counts once, so a path of both
    costs less than one round the corner; among equal paths the one with most steps of both is
    preferred. P is at least max(N, M) and at most N + M - 1.
    Source: Sakoe and Chiba 1978, with symmetric steps without their double weight of the diagonal.
    Raises ValueError for an empty matrix, or costs that are negative, NaN or infinite.
    """
    cost = np.ascontiguousarray(cost, dtype=np.float64)
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(f"cost: found shape {cost.shape}, want (N, M), both 1 or more")
    if not np.isfinite(cost).all() or cost.min() < 0:
        raise ValueError("cost: found values that are negative, NaN or infinite, want distances")
    total = totals(cost)
    row, column = cost.shape
    rows, columns = [row - 1], [column - 1]
    while row > 1 or column > 1:
        corner, above, before = (
            total[row - 1, column - 1], total[row - 1, column], total[row, column - 1]
        )  # fmt: skip
        if corner <= above and corner <= before:
            row, column = row - 1, column - 1
        elif above <= before:
            row -= 1
        else:
            column -= 1
        rows.append(row - 1)
        columns.append(column - 1)
    return np.array(rows[::-1]), np.array(columns[::-1])


def totals(cost: np.ndarray) -> np.ndarray:
    """(N, M) costs -> (N + 1, M + 1) least cost of a path to each pair, behind a border.

    Antidiagonals depend on the two before them only, so each is computed at once: on the flat
    array it is a slice with the width less one for its step.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    flat, costs = total.reshape(-1), cost.reshape(-1)
    width = columns + 1
    for diagonal in range(rows + columns - 1):
        first = max(0, diagonal - columns + 1)
        count = min(rows, diagonal + 1) - first
        here = (first + 1) * width + diagonal - first + 1

        def along(start: int, step: int = width - 1, count: int = count) -> slice:
            return slice(start, start + (count - 1) * step + 1, max(step, 1))

        best = np.minimum(flat[along(here - width)], flat[along(here - 1)])
        np.minimum(best, flat[along(here - width - 1)], out=best)
        flat[along(here)] = best + costs[along(first * columns + diagonal - first, columns - 1)]
    return total
