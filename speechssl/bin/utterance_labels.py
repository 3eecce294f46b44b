"""Targets of heads with several answers per utterance, from fields of the manifest.

They become label stores of several integers per utterance in the run's folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.config import HeadConfig
    from speechssl.data.config import DataConfig

NONE = "none"
"""Value of a slot in a cut without its field."""


def with_targets(output: str, data: DataConfig, head: Any) -> tuple[DataConfig, HeadConfig]:
    """Data and head with the targets of head.slots, head.dimensions or head.further filled in.

    Raises `ValueError` for fields that no cut has, or that are no numbers where those are wanted.
    """
    from speechssl.data.fields import write_utterance_labels

    if hasattr(head, "further"):
        return _with_fields(output, data, head)
    if hasattr(head, "slots"):
        filled, rows, classes = _slots(data, head)
        name = "slots"
    elif hasattr(head, "dimensions"):
        filled, rows, classes = _numbers(data, head)
        name = "values"
    else:
        return data, head
    folder = Path(output) / name
    meta = {"name": name, "classes": classes, "values": len(next(iter(rows.values())))}
    write_utterance_labels(folder, meta, json.dumps(sorted(rows.items())), rows)
    return dataclasses.replace(data, labels=data.labels | {name: str(folder)}), filled


def _slots(data: DataConfig, head: Any) -> tuple[Any, dict[str, list[int]], int]:
    if not head.slots:
        raise ValueError("head.slots: found none, want fields, such as [slots.size,slots.drink]")
    train = _fields(data.train, head.slots)
    values = [list(v) for v in head.values]
    if not values:
        values = [
            sorted({row[i] or NONE for row in train.values()}) for i in range(len(head.slots))
        ]
    absent = [s for s, v in zip(head.slots, values) if v == [NONE]]
    if absent:
        raise ValueError(f"head.slots: found {absent} in no training cut, want others")
    places = [{v: i for i, v in enumerate(found)} for found in values]
    rows = {
        cut: [place.get(v or NONE, len(place)) for v, place in zip(row, places, strict=True)]
        for cut, row in (train | _fields(data.valid, head.slots)).items()
    }
    filled = dataclasses.replace(head, values=values)
    return filled, rows, 1 + max(len(v) for v in values)


def _with_fields(output: str, data: DataConfig, head: Any) -> tuple[DataConfig, HeadConfig]:
    """Places of the values of head.field and head.further; one behind the last in a cut without it.

    So is a further field's value that training never showed; such a class is an error.
    """
    from collections import Counter

    from speechssl.data.fields import write_utterance_labels

    if not head.field or data.classes is not None:
        raise ValueError(
            f"head.field, data.classes: found {head.field!r} and {data.classes!r}, want a field of "
            "the manifest, such as --head.field emotion, and no label store: it is made of it"
        )
    names = [head.field, *head.further]
    train = _fields(data.train, names)
    given = [head.classes, *(head.further_values or [[]] * len(head.further))]
    values = [
        list(own) or sorted({row[i] for row in train.values() if row[i] is not None})
        for i, own in enumerate(given)
    ]
    absent = [name for name, found in zip(names, values) if not found]
    if absent:
        raise ValueError(f"head.field, head.further: found {absent} in no training cut")
    cuts = train | _fields(data.valid, names)
    unknown = sorted({row[0] for row in cuts.values()} - {None, *values[0]})  # pyright: ignore
    if unknown:
        raise ValueError(
            f"{head.field}: found {', '.join(unknown[:8])} ({len(unknown)} values) beside the "
            f"classes {', '.join(values[0][:8])}, want each of them among the classes. Leave those "
            "cuts out, or train on cuts that hold them too"
        )
    places = [{v: i for i, v in enumerate(found)} for found in values]
    rows = {
        cut: [place.get(v, len(place)) for v, place in zip(row, places, strict=True)]  # pyright: ignore
        for cut, row in cuts.items()
    }
    meta = {"name": head.field, "classes": 1 + max(map(len, values)), "values": len(names)}
    folder = Path(output) / "classes"
    write_utterance_labels(folder, meta, json.dumps([names, values, sorted(rows.items())]), rows)
    counts = Counter(row[0] for row in train.values())
    filled = dataclasses.replace(
        head, classes=values[0], class_counts=[counts[name] for name in values[0]],
        further_values=values[1:],
    )  # fmt: skip
    return dataclasses.replace(data, classes=str(folder)), filled


def _numbers(data: DataConfig, head: Any) -> tuple[Any, dict[str, list[int]], int]:
    import numpy as np

    from speechssl.heads.regress import STEPS

    if not head.dimensions:
        raise ValueError("head.dimensions: found none, want fields, such as [arousal,valence]")
    train, valid = _fields(data.train, head.dimensions), _fields(data.valid, head.dimensions)
    numbers: dict[str, list[float]] = {}
    for cut, row in (train | valid).items():
        try:
            numbers[cut] = [float(v) for v in row]  # pyright: ignore
        except (TypeError, ValueError):
            numbers[cut] = [math.nan]
        if not np.isfinite(numbers[cut]).all():
            raise ValueError(
                f"head.dimensions: found {row} of {head.dimensions} in the cut {cut!r}, want a "
                "number of each in every cut; leave out cuts without them"
            )
    known = np.array([numbers[cut] for cut in train])
    low, high = known.min(0), known.max(0)
    same = [name for name, differs in zip(head.dimensions, high > low) if not differs]
    if same:
        raise ValueError(f"head.dimensions: found {same} alike in all training cuts, want others")
    # Those of other cuts may lie beyond; they are brought to the nearest value of training.
    rows = {
        cut: np.round((np.clip(x, low, high) - low) / (high - low) * STEPS).astype(int).tolist()
        for cut, x in numbers.items()
    }
    filled = dataclasses.replace(
        head, lows=low.tolist(), highs=high.tolist(),
        means=known.mean(0).tolist(), deviations=known.std(0).tolist(),
    )  # fmt: skip
    return filled, rows, STEPS + 1


def _fields(cuts: Sequence[str], fields: Sequence[str]) -> dict[str, list[str | None]]:
    from speechssl.data.fields import cut_rows, field_of

    return {cut["id"]: [field_of(cut, f) for f in fields] for cut in cut_rows(cuts)}
