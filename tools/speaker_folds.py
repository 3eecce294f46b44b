"""Divide cuts into folds that share no speaker, for cross-validation on unseen speakers.

python tools/speaker_folds.py --cuts cuts_*.jsonl.gz --folds 4 --balance gender --output folds

Writes OUTPUT/fold1/cuts_{train,valid,test}.jsonl.gz and so on: fold i is tested on its own part,
validated on the next part, trained on the others. Each part has as many speakers of each value
of the --balance fields as can be.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--speaker", default="speaker", help="field that names the speaker")
    parser.add_argument("--balance", nargs="*", default=[], help="fields to spread evenly")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = list(cut_rows(options.cuts))
    part = parts(rows, options.folds, options.speaker, options.balance)
    for fold in range(options.folds):
        split = {fold: "test", (fold + 1) % options.folds: "valid"}
        folder = options.output / f"fold{fold + 1}"
        names = ("train", "valid", "test")
        writers = {s: JsonlWriter(folder / f"cuts_{s}.jsonl.gz") for s in names}
        for row in rows:
            writers[split.get(part[str(field_of(row, options.speaker))], "train")].write(row)
        for writer in writers.values():
            writer.close()
    for number in range(options.folds):
        names = sorted(s for s, p in part.items() if p == number)
        print(f"part {number + 1}: {' '.join(names)}")


def parts(
    rows: list[dict[str, Any]], folds: int, speaker: str, balance: list[str]
) -> dict[str, int]:
    """Speaker -> part, 0 .. folds - 1."""
    groups: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    group_of: dict[str, tuple[str, ...]] = {}
    for row in rows:
        who = field_of(row, speaker)
        if who is None:
            raise SystemExit(f"speaker_folds: found no {speaker!r} in {row['id']!r}, want one")
        # A speaker whose value differs between cuts counts with the first.
        group = group_of.setdefault(who, tuple(str(field_of(row, f)) for f in balance))
        groups[group][who] = None
    if not 3 <= folds <= len(group_of):
        raise SystemExit(
            f"speaker_folds: found {folds} folds of {len(group_of)} speakers, want 3 or more, and "
            "at most as many as speakers"
        )
    dealt = [who for _, names in sorted(groups.items()) for who in sorted(names)]
    return {who: i % folds for i, who in enumerate(dealt)}


if __name__ == "__main__":
    main()
