"""Make trials for speaker verification of manifests: pairs of cuts of one speaker, and of two.

python tools/make_trials.py --cuts cuts_test.jsonl.gz --same corpus gender --output trials.txt

Each line is `1|0 ENROL TEST`, as `speechssl score --trials` reads it. Which pairs are kept is
decided by a hash of their ids, so the same cuts give the same list.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
from collections import defaultdict
from pathlib import Path

from speechssl.data.fields import cut_rows, field_of

Pair = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--speaker", default="speaker", help="field that names the speaker")
    parser.add_argument("--same", nargs="*", default=[], help="fields in which both sides agree")
    parser.add_argument("--different", nargs="*", default=[], help="fields in which they differ")
    parser.add_argument("--targets-per-speaker", type=int, default=100)
    parser.add_argument("--nontargets-per-target", type=float, default=4.0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    targets, nontargets = pairs(
        options.cuts, options.speaker, tuple(options.same), tuple(options.different)
    )
    kept = {p for found in targets.values() for p in smallest(found, options.targets_per_speaker)}
    others = smallest(nontargets, round(options.nontargets_per_target * len(kept)))
    if not kept or not others:
        raise SystemExit(
            f"make_trials: found {len(kept)} target and {len(others)} non-target pairs, want some "
            "of both; look at --same and --different"
        )
    lines = [f"{int(p in kept)} {p[0]} {p[1]}\n" for p in sorted([*kept, *others])]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_name(options.output.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, options.output)
    print(f"{len(kept)} target trials of {len(targets)} speakers, {len(others)} non-target trials")


def pairs(
    cuts: list[str], speaker: str, same: tuple[str, ...], different: tuple[str, ...]
) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """Target pairs by speaker, and non-target pairs. Cuts without a speaker take no part."""
    rows = []
    for cut in cut_rows(cuts):
        who = field_of(cut, speaker)
        if who is not None:
            rows.append((cut["id"], who, [field_of(cut, f) for f in same],
                         [field_of(cut, f) for f in different]))  # fmt: skip
    targets: dict[str, list[Pair]] = defaultdict(list)
    nontargets: list[Pair] = []
    for a, b in itertools.combinations(sorted(rows), 2):
        if a[2] != b[2] or any(x == y and x is not None for x, y in zip(a[3], b[3], strict=True)):
            continue
        if a[1] == b[1]:
            targets[a[1]].append((a[0], b[0]))
        else:
            nontargets.append((a[0], b[0]))
    return targets, nontargets


def smallest(found: list[Pair], count: int) -> list[Pair]:
    return sorted(found, key=lambda p: hashlib.sha256(" ".join(p).encode()).digest())[:count]


if __name__ == "__main__":
    main()
