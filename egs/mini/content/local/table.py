"""Three tables of the recipe, mean and deviation over seeds: table.md and table.json in --exp."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def probes(seeds: list[Path], name: str) -> dict[str, list[float]]:
    """At the layer that is best for phones on held-out data: phones, and speakers there; and the
    best layer for speakers."""
    rows: dict[str, list[float]] = {"phones %": [], "speakers % there": [], "speakers %": []}
    for seed in seeds:
        found = read(seed / f"probe_{name}/probe.json")
        if found is None:
            continue
        layers = {row["layer"]: row for row in found["layers"]}
        best = found["best"]
        phone = layers[best["phone_dev_accuracy"]]
        rows["phones %"].append(100 * phone["phone_accuracy"])
        rows["speakers % there"].append(100 * phone["speaker_accuracy"])
        speaker = layers[best["speaker_dev_accuracy"]]
        rows["speakers %"].append(100 * speaker["speaker_accuracy"])
    return rows


def values(files: list[Path], names: dict[str, tuple[str, float]]) -> dict[str, list[float]]:
    found = [x for x in map(read, files) if x is not None]
    return {title: [factor * x[key] for x in found] for title, (key, factor) in names.items()}


def lines(title: str, rows: dict[str, dict[str, list[float]]]) -> list[str]:
    names = list(next(iter(rows.values())))
    table = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row, columns in rows.items():
        cells = []
        for name in names:
            found = columns[name]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            cells.append(f"{statistics.mean(found):.1f} ± {spread:.1f}" if found else "-")
        table.append(f"| {row} | {' | '.join(cells)} |")
    return [*table, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", required=True, type=Path)
    exp = parser.parse_args().exp
    seeds = sorted(exp.glob("seed*"))
    pairs = {"EER %": ("eer", 100.0)}
    scores = {"precision %": ("precision", 100.0), "recall %": ("recall", 100.0),
              "F1 %": ("f1", 100.0), "R-value %": ("r_value", 100.0),
              "segments / s": ("segments_per_second", 1.0)}  # fmt: skip
    tables = {
        "probe": {name: probes(seeds, name) for name in ("hubert", "contentvec", "nfa")},
        "embedding": {
            name: values([s / name / "pairs.json" for s in seeds], pairs)
            for name in ("mean_hubert", "mean_nfa", "factors", "factors_hubert", "factors_nfa")
        },
        "syllables": {
            **{
                name: values([exp / f"segments_{name}/results.json"], scores)
                for name in ("rate", "energy")
            },
            **{
                name: values([s / f"segments_{name}/results.json" for s in seeds], scores)
                for name in ("hubert", "sylber1", "sylber2")
            },
        },
    }
    text = "\n".join(line for title, rows in tables.items() for line in lines(title, rows))
    (exp / "table.md").write_text(text)
    (exp / "table.json").write_text(json.dumps(tables, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
