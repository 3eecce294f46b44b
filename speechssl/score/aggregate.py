"""One number for an upstream on several tasks, between pinned figures of a baseline and the best.

Source: SUPERB's leaderboard (SLT 2022 challenge, Feng et al. 2022): the mean over tasks, and over a
task's figures, of the share of the way from log-mel to the best known system, times 1000. It is
comparable only under the same pins and the same tasks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Mapping[str, float | None]]
"""Task -> figure -> value."""


@dataclasses.dataclass(frozen=True)
class Pins:
    """name: to tell pins apart. about: where the figures are from. tasks: task -> figure ->
    (baseline, best)."""

    name: str
    about: str
    tasks: Mapping[str, Mapping[str, tuple[float, float]]]


def pins_of(values: Any) -> Pins:
    """Pins of plain values (name, about, tasks: {task: {figure: [baseline, best]}}).

    Raises `ValueError` for values of another form, and for a baseline that is the best.
    """
    form = "name, about and tasks: {task: {figure: [baseline, best]}}"
    if not isinstance(values, Mapping) or set(values) != {"name", "about", "tasks"}:
        keys = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)[:60]
        raise ValueError(f"pins: found {keys}, want {form}")
    tasks: dict[str, dict[str, tuple[float, float]]] = {}
    if not isinstance(values["tasks"], Mapping) or not values["tasks"]:
        raise ValueError(f"pins: found tasks {values['tasks']!r:.60}, want {form}")
    for task, figures in values["tasks"].items():
        if not isinstance(figures, Mapping):
            raise ValueError(f"pins: found {task}: {figures!r:.60}, want {form}")
        for figure, pair in figures.items():
            try:
                low, high = (float(x) for x in pair)
            except (TypeError, ValueError):
                raise ValueError(f"pins: found {task}: {figure}: {pair!r}, want {form}") from None
            if low == high or not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(
                    f"pins: found {task}: {figure}: {pair}, want two different numbers"
                )
            tasks.setdefault(str(task), {})[str(figure)] = (low, high)
    return Pins(str(values["name"]), str(values["about"]), tasks)


def superb_score(figures: Figures, pins: Pins) -> tuple[float | None, list[str]]:
    """The score over those pinned tasks of which every figure is there, and which these are.

    0 is the baseline throughout, 1000 the best. None without any task.
    """
    shares: dict[str, float] = {}
    for task, pairs in pins.tasks.items():
        own = figures.get(task, {})
        found = {name: own.get(name) for name in pairs}
        parts = [
            (value - pairs[name][0]) / (pairs[name][1] - pairs[name][0])
            for name, value in found.items()
            if value is not None
        ]
        if len(parts) == len(pairs):
            shares[task] = sum(parts) / len(parts)
    return (1000 * sum(shares.values()) / len(shares) if shares else None), list(shares)
