"""The best one-to-one assignment of rows to columns."""

from __future__ import annotations

import numpy as np


def assign(costs: np.ndarray) -> list[tuple[int, int]]:
    """(R, C) costs -> min(R, C) pairs (row, column), each once, of least total cost.

    Source: Kuhn 1955 and Munkres 1957, by shortest augmenting paths (Jonker and Volgenant 1987).
    Raises `ValueError` for costs that are not finite.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if costs.ndim != 2 or not np.isfinite(costs).all():
        raise ValueError(f"costs: found shape {costs.shape}, want (R, C) of finite numbers")
    if costs.shape[0] > costs.shape[1]:
        return sorted((row, column) for column, row in assign(costs.T))
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    # Column 0 stands for "the row that is looking"; rows and columns count from 1.
    row_of, before = np.zeros(columns + 1, dtype=np.int64), np.zeros(columns + 1, dtype=np.int64)
    for row in range(1, rows + 1):
        row_of[0], at = row, 0
        slack, seen = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=bool)
        while row_of[at]:
            seen[at] = True
            here = row_of[at]
            reduced = costs[here - 1] - row_price[here] - column_price[1:]
            better = ~seen[1:] & (reduced < slack[1:])
            slack[1:][better] = reduced[better]
            before[1:][better] = at
            at_next = int(np.where(seen, np.inf, slack).argmin())
            step = slack[at_next]
            row_price[row_of[seen]] += step
            column_price[seen] -= step
            slack[~seen] -= step
            at = at_next
        while at:
            row_of[at] = row_of[before[at]]
            at = before[at]
    return sorted((int(row_of[c]) - 1, c - 1) for c in range(1, columns + 1) if row_of[c])
