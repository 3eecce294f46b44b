"""How cuts are divided for tests: folds over speakers, held-out parts, trials, few labels.

Every choice is a sort or a hash of ids, so the same cuts are divided the same way everywhere.
Rows are plain values of cuts, as `data.fields.cut_rows` yields them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from speechssl.data.fields import field_of

Row = dict[str, Any]
Pair = tuple[str, str]


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def fold_parts(rows: Sequence[Row], folds: int, field: str, balance: Sequence[str]) -> dict:
    """Value of `field` -> part, 0 .. folds - 1, with as many of each value of `balance` as can be.

    Raises `ValueError` for a cut without the field, and for more folds than values.
    """
    groups: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    group_of: dict[str, tuple[str, ...]] = {}
    for row in rows:
        who = field_of(row, field)
        if who is None:
            raise ValueError(f"folds: found no {field!r} in {row['id']!r}, want one")
        # A speaker whose value differs between cuts counts with the first.
        group = group_of.setdefault(who, tuple(str(field_of(row, f)) for f in balance))
        groups[group][who] = None
    if not 3 <= folds <= len(group_of):
        raise ValueError(
            f"folds: found {folds} of {len(group_of)} values of {field}, want 3 or more, and at "
            "most as many as there are values"
        )
    dealt = [who for _, names in sorted(groups.items()) for who in sorted(names)]
    return {who: i % folds for i, who in enumerate(dealt)}


def fold_splits(
    rows: Sequence[Row], folds: int, field: str, balance: Sequence[str]
) -> list[dict[str, list[Row]]]:
    """For each fold the cuts of train, valid and test, which share no value of `field`.

    Fold i is tested on its own part, validated on the next part, trained on the others.
    """
    part = fold_parts(rows, folds, field, balance)
    found = []
    for fold in range(folds):
        split = {fold: "test", (fold + 1) % folds: "valid"}
        own: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
        for row in rows:
            own[split.get(part[str(field_of(row, field))], "train")].append(row)
        found.append(own)
    return found


def held_out(rows: Iterable[Row], field: str, share: float, least: int = 4) -> set[str]:
    """Ids of a share of the cuts of each value of `field`; values of fewer cuts stay whole."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_class[str(field_of(row, field))].append(row["id"])
    held: set[str] = set()
    for ids in by_class.values():
        if len(ids) >= least:
            ids.sort(key=_order)
            held.update(ids[: max(1, round(share * len(ids)))])
    return held


def few(rows: Sequence[Row], fraction: float) -> list[Row]:
    """A fraction of the cuts, in the order of their ids."""
    kept = sorted(rows, key=lambda row: _order(row["id"]))[: round(len(rows) * fraction)]
    return sorted(kept, key=lambda row: row["id"])


def trial_pairs(
    rows: Iterable[Row], speaker: str, same: Sequence[str], different: Sequence[str]
) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """Pairs of one speaker, by speaker, and pairs of two. Cuts without a speaker take no part.

    same, different: fields in which both sides agree, or differ.
    """
    known = []
    for row in rows:
        who = field_of(row, speaker)
        if who is not None:
            known.append((row["id"], who, [field_of(row, f) for f in same],
                          [field_of(row, f) for f in different]))  # fmt: skip
    targets: dict[str, list[Pair]] = defaultdict(list)
    nontargets: list[Pair] = []
    for a, b in itertools.combinations(sorted(known), 2):
        if a[2] != b[2] or any(x == y and x is not None for x, y in zip(a[3], b[3], strict=True)):
            continue
        if a[1] == b[1]:
            targets[a[1]].append((a[0], b[0]))
        else:
            nontargets.append((a[0], b[0]))
    return targets, nontargets


def trial_lines(
    rows: Iterable[Row],
    speaker: str = "speaker",
    same: Sequence[str] = (),
    different: Sequence[str] = (),
    targets_per_speaker: int = 100,
    nontargets_per_target: float = 4.0,
) -> list[str]:
    """Lines `1|0 ENROL TEST` of trials; raises `ValueError` if there are none of a kind."""
    targets, nontargets = trial_pairs(rows, speaker, same, different)
    kept = {p for found in targets.values() for p in _smallest(found, targets_per_speaker)}
    others = _smallest(nontargets, round(nontargets_per_target * len(kept)))
    if not kept or not others:
        raise ValueError(
            f"trials: found {len(kept)} target and {len(others)} non-target pairs, want some of "
            "both; look at the fields that have to be the same or different"
        )
    return [f"{int(p in kept)} {p[0]} {p[1]}\n" for p in sorted([*kept, *others])]


def _smallest(found: list[Pair], count: int) -> list[Pair]:
    return sorted(found, key=lambda p: _order(" ".join(p)))[:count]
