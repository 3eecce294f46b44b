"""Print the recipe's table, mean ± deviation over seeds; write EXP/table.md and EXP/table.json.

python local/table.py --exp exp --objectives "hubert data2vec random logmel"
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

STANDS_ON = {"discrete_bert": "vq_wav2vec", "continuous_bert": "vq_wav2vec"}
COLUMNS = {  # name -> (factor, digits)
    "native loss": (1, 3), "code perplexity": (1, 1), "RankMe": (1, 1), "PNMI": (1, 3),
    "phones %": (100, 1), "speakers %": (100, 1), "WER greedy %": (100, 1), "WER beam %": (100, 1),
    "step s": (1, 2), "step / HuBERT": (1, 2), "hours": (1, 2),
}  # fmt: skip
PROBED = {  # column -> (what chooses the layer, what is shown of it)
    "RankMe": ("phone_dev_accuracy", "rankme"), "PNMI": ("pnmi", "pnmi"),
    "phones %": ("phone_dev_accuracy", "phone_accuracy"),
    "speakers %": ("speaker_dev_accuracy", "speaker_accuracy"),
}  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def training(folder: Path) -> dict:
    """Last validation values, seconds of a step (median without the first line), hours."""
    path, valid, seconds, hours, done = folder / "metrics.jsonl", {}, [], 0.0, 0
    for line in map(json.loads, path.read_text().splitlines() if path.is_file() else ()):
        if line["split"] == "valid":
            valid = line
            continue
        seconds.append(line["update_seconds"])
        hours += line["update_seconds"] * (line["step"] - done) / 3600
        done = line["step"]
    return {
        "native loss": valid.get("loss"),
        "code perplexity": valid.get("code_perplexity", valid.get("unit_perplexity")),
        "step s": statistics.median(seconds[1:] or seconds) if seconds else None,
        "hours": hours or None,
    }


def row(seed: Path, name: str) -> dict:
    found, probe = training(seed / name), read(seed / f"probe_{name}/probe.json")
    layers, best = {x["layer"]: x for x in probe.get("layers", ())}, probe.get("best", {})
    for column, (choice, measure) in PROBED.items():
        found[column] = layers.get(best.get(choice), {}).get(measure)
    for method in ("greedy", "beam"):
        found[f"WER {method} %"] = read(seed / f"asr_{name}/{method}/results.json").get("wer")
    hubert = training(seed / "hubert")["step s"]
    if found["step s"] and hubert:
        found["step / HuBERT"] = found["step s"] / hubert
    if name in STANDS_ON and found["hours"]:
        found["hours"] += training(seed / STANDS_ON[name])["hours"] or 0.0
    return found


def cell(values: list[float | None], factor: float, digits: int) -> str:
    known = [factor * v for v in values if v is not None]
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}" if known else "-"


def not_better(rows: dict[str, list[dict]], column: str, sign: int) -> str:
    """Objectives that are not better than random weights with every seed."""
    found = []
    for name in rows.keys() - {"random", "logmel"}:
        pairs = [(a.get(column), b.get(column)) for a, b in zip(rows[name], rows["random"])]
        if any(a is None or b is None or sign * (a - b) <= 0 for a, b in pairs):
            found.append(name)
    return ", ".join(sorted(found)) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    parser.add_argument("--objectives", required=True, help="rows, separated by blanks")
    options = parser.parse_args()
    seeds = sorted(options.exp.glob("seed*"))
    rows = {name: [row(seed, name) for seed in seeds] for name in options.objectives.split()}
    lines = ["| " + " | ".join(["objective", *COLUMNS]) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, found in rows.items():
        cells = [cell([v.get(column) for v in found], *form) for column, form in COLUMNS.items()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    signs = {"phones %": 1, "WER greedy %": -1, "WER beam %": -1} if "random" in rows else {}
    for column, sign in signs.items():
        names = not_better(rows, column, sign)
        lines.append(f"\nNot better than random weights with every seed, {column}: {names}.")
    print(*lines, sep="\n")
    (options.exp / "table.md").write_text("\n".join([*lines, ""]))
    (options.exp / "table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
