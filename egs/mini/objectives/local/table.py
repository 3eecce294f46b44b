"""Print the recipe's table, mean ± deviation over seeds; write EXP/table.md and EXP/table.json.

python local/table.py --exp exp --objectives "hubert data2vec random logmel"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from figures import STANDS_ON, by_cut, error_counts, interval, probed, read, table, training

COLUMNS = {  # name -> (factor, digits)
    "native loss": (1, 3), "code perplexity": (1, 1), "RankMe": (1, 1), "PNMI": (1, 3),
    "phones %": (100, 1), "speakers %": (100, 1), "WER greedy %": (100, 1), "WER beam %": (100, 1),
    "step s": (1, 2), "step / HuBERT": (1, 2), "hours": (1, 2),
}  # fmt: skip
COMPARED = {"phones %": 1, "WER greedy %": -1, "WER beam %": -1}
"""With the row `random`; -1: less is better."""


def row(seed: Path, name: str) -> dict:
    found = training(seed / name) | probed(seed / f"probe_{name}", "phone")
    for method in ("greedy", "beam"):
        folder, column = seed / f"asr_{name}/{method}", f"WER {method} %"
        results = read(folder / "results.json")
        found |= {column: results.get("wer"), interval(column): results.get("wer_ci95")}
        found[by_cut(column)] = error_counts(folder).get("wer")
    hubert = training(seed / "hubert")["step s"]
    if found["step s"] and hubert:
        found["step / HuBERT"] = found["step s"] / hubert
    if name in STANDS_ON and found["hours"]:
        found["hours"] += training(seed / STANDS_ON[name])["hours"] or 0.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    parser.add_argument("--objectives", required=True, help="rows, separated by blanks")
    options = parser.parse_args()
    seeds = sorted(options.exp.glob("seed*"))
    rows = {name: [row(seed, name) for seed in seeds] for name in options.objectives.split()}
    lines = table(rows, COLUMNS, COMPARED)
    print(*lines, sep="\n")
    (options.exp / "table.md").write_text("\n".join([*lines, ""]))
    (options.exp / "table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
