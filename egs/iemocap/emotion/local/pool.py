"""Join the answers of folds: mean and deviation of their figures, and one decoding of all.

python local/pool.py --decodings exp/fold*/test --output exp/pooled

Writes OUTPUT/predictions.jsonl (or values.jsonl) and decode.json, for `speechssl score`, and
OUTPUT/folds.json; transcripts and further fields come along. With --slot, one slot of a head for
several is taken as the class. Pooled figures weigh utterances alike; the mean over folds, as most
papers have it, weighs folds alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from speechssl.bin.score_utterances import entries, text_results
from speechssl.score.classification import Prediction, classification_results
from speechssl.score.regression import regression_results

Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decodings", nargs="+", type=Path, required=True)
    parser.add_argument("--slot", help="slot of slots.jsonl that is the class")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    name = "predictions.jsonl"
    if options.slot is not None:
        folds = [slot_rows(folder, options.slot) for folder in options.decodings]
    else:
        if (options.decodings[0] / "values.jsonl").is_file():
            name = "values.jsonl"
        folds = [[row for _, row in entries(folder / name)] for folder in options.decodings]
    ids = [row["id"] for rows in folds for row in rows]
    if len(set(ids)) < len(ids):
        raise SystemExit(
            f"pool: found {len(ids) - len(set(ids))} utterances in several folds, want each tested "
            "once; are these folds of one division?"
        )
    how = json.loads((options.decodings[0] / "decode.json").read_text())
    if name == "predictions.jsonl":
        names = {str(row[side]) for rows in folds for row in rows for side in ("ref", "hyp")}
        how["classes"] = sorted(names)
        found = [classified(rows, how["classes"]) for rows in folds]
    else:
        found = [regressed(rows) for rows in folds]
    # A fold may lack transcripts.
    figures = {k: [f[k] for f in found if k in f] for k in found[0]}
    options.output.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for rows in folds for row in rows]
    (options.output / name).write_text("".join(lines))
    (options.output / "decode.json").write_text(json.dumps(how, indent=2) + "\n")
    (options.output / "folds.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{len(ids)} utterances in {len(folds)} folds; mean over folds ± their deviation")
    for key, values in figures.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{key:>20} {statistics.mean(values):.4f}{spread}")


def slot_rows(folder: Path, slot: str) -> Rows:
    rows = [row for _, row in entries(folder / "slots.jsonl")]
    if rows and slot not in rows[0]["ref"]:
        raise SystemExit(f"pool: found slots {sorted(rows[0]['ref'])} in {folder}, want {slot}")
    return [{"id": r["id"], "ref": r["ref"][slot], "hyp": r["hyp"][slot]} for r in rows]


def classified(rows: Rows, classes: list[str]) -> dict[str, float]:
    predictions = [Prediction(r["id"], r["ref"], r["hyp"], r.get("speaker")) for r in rows]
    results = classification_results(predictions, classes)
    figures = {k: results[k] for k in ("uar", "accuracy", "macro_f1")}
    text = text_results(rows, "basic")
    return figures | ({"wer": text["wer"]} if text else {})


def regressed(rows: Rows) -> dict[str, float]:
    names = list(rows[0]["hyp"])
    sides = [[[r[side][n] for n in names] for r in rows] for side in ("ref", "hyp")]
    results = regression_results(sides[0], sides[1], names)
    own = {f"ccc_{n}": results["by_dimension"][n]["ccc"] for n in names}
    return {"ccc": results["ccc"], **own}


if __name__ == "__main__":
    main()
