"""Divide cuts into folds that share no speaker, for cross-validation on unseen speakers.

python tools/speaker_folds.py --cuts cuts_*.jsonl.gz --folds 4 --balance gender --output folds

Writes OUTPUT/fold1/cuts_{train,valid,test}.jsonl.gz and so on: fold i is tested on its own part,
validated on the next part, trained on the others. Each part has as many speakers of each value
of the --balance fields as can be.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows
from speechssl.data.splits import fold_parts, fold_splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--speaker", default="speaker", help="field that names the speaker")
    parser.add_argument("--balance", nargs="*", default=[], help="fields to spread evenly")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = list(cut_rows(options.cuts))
    given = (rows, options.folds, options.speaker, options.balance)
    try:
        part = fold_parts(*given)
    except ValueError as error:
        raise SystemExit(f"speaker_folds: {error}") from None
    for fold, splits in enumerate(fold_splits(*given), 1):
        for split, own in splits.items():
            writer = JsonlWriter(options.output / f"fold{fold}" / f"cuts_{split}.jsonl.gz")
            for row in own:
                writer.write(row)
            writer.close()
    for number in range(options.folds):
        names = sorted(s for s, p in part.items() if p == number)
        print(f"part {number + 1}: {' '.join(names)}")


if __name__ == "__main__":
    main()
