"""Print the recipe's table over seeds: PNMI, masked accuracy, WER; write it to EXP/table.json.

python local/table.py --exp exp
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def last_logged(folder: Path, name: str) -> float | None:
    """The newest validation value of `name` in an experiment's metrics."""
    value = None
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        row = json.loads(line)
        if row.get("split") == "valid":
            value = row.get(name, value)
    return value


def row(exp: Path, seed: Path) -> dict[str, float | None]:
    return {
        "PNMI, MFCC": read(exp / "km_mfcc/quality.json").get("pnmi"),
        "PNMI, learned": read(seed / "km_it1/quality.json").get("pnmi"),
        "masked accuracy, it. 1": last_logged(seed / "hubert_it1", "masked_accuracy"),
        "masked accuracy, it. 2": last_logged(seed / "hubert_it2", "masked_accuracy"),
        **{
            f"WER {start}, {method}": read(seed / f"asr_{start}/{method}/results.json").get("wer")
            for method in ("beam", "greedy")
            for start in ("pretrained", "scratch")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    exp = parser.parse_args().exp
    rows = {seed.name: row(exp, seed) for seed in sorted(exp.glob("seed*"))}
    names = list(next(iter(rows.values())))
    print("| " + " | ".join(["", *names]) + " |")
    print("|" + "---|" * (len(names) + 1))
    for seed, values in rows.items():
        cells = ["-" if v is None else f"{100 * v:.1f} %" for v in values.values()]
        print("| " + " | ".join([seed, *cells]) + " |")
    for name in names:
        known = [v[name] for v in rows.values() if v[name] is not None]
        if len(known) > 1:
            spread = statistics.stdev(known)
            print(f"{name}: mean {100 * statistics.mean(known):.2f} %, std {100 * spread:.2f}")
    for better, worse in (
        ("PNMI, learned", "PNMI, MFCC"),
        ("WER scratch, beam", "WER pretrained, beam"),
        ("WER scratch, greedy", "WER pretrained, greedy"),
    ):
        pairs = [(v[better], v[worse]) for v in rows.values()]
        gaps = [f"{100 * (a - b):+.1f}" for a, b in pairs if a is not None and b is not None]
        print(f"{better} minus {worse}, by seed: {', '.join(gaps)}")
    (exp / "table.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
