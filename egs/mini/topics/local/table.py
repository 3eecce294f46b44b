"""Print what topics tell, by number of topics, and what they teach, by model and seed.

python local/table.py --exp exp
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def last_logged(folder: Path) -> dict:
    """The newest validation values of an experiment."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return next((row for row in reversed(rows) if row.get("split") == "valid"), {})


def number_of(folder: Path) -> int:
    return int(re.findall(r"topics(\d+)$", folder.name)[0])


def told(folders: list[Path], split: str) -> list[list[str]]:
    """One row per field: NMI, by chance, and z, of every number of topics."""
    shown = {number_of(f): read(f / f"show_{split}.json").get("associations", {}) for f in folders}
    table = [["field", *(f"{n} topics: NMI (chance, z)" for n in shown)]]
    for field in dict.fromkeys(field for rows in shown.values() for field in rows):
        cells = [field]
        for rows in shown.values():
            row = rows.get(field) or {}
            z = f"{row['z']:.0f}" if row.get("z") is not None else "-"
            cells.append(f"{row['nmi']:.3f} ({row['baseline']:.3f}, {z})" if row else "-")
        table.append(cells)
    return table


def worth(folders: list[Path]) -> list[list[str]]:
    """One row per number of topics: how coherent and how used."""
    table = [["topics", "perplexity", "coherence", "of all top words", "empty", "used"]]
    for folder in folders:
        fit = read(folder / "fit.json")
        figures = [f"{fit['perplexity'][-1]:.1f}", f"{fit['coherence']:.3f}"]
        figures += [f"{fit['coherence_baseline']:.3f}", str(len(fit["empty_topics"]))]
        table.append([str(number_of(folder)), *figures, f"{fit['topics_used']:.1f}"])
    return table


def taught(exp: Path) -> dict[str, dict[str, list[float]]]:
    """Model -> measure -> one value per seed: accuracies in validation, probes on test speakers."""
    found: dict[str, dict[str, list[float]]] = {}
    for folder in sorted(exp.glob("seed*/*hubert*_it*")):
        values = {k: v for k, v in last_logged(folder).items() if k.endswith("_accuracy")}
        probe = read(folder / "probe/probe.json")
        for name in ("phone", "speaker"):
            # The layer that is best on held-out data; what is shown is of test data.
            best = probe.get("best", {}).get(f"{name}_dev_accuracy")
            for row in probe.get("layers", []):
                if row["layer"] == best:
                    values[f"best layer's {name}_accuracy"] = row[f"{name}_accuracy"]
        for results in sorted(folder.glob("probe_*/test/results.json")):
            values[f"{results.parts[-3][6:]} (UAR)"] = read(results)["uar"]
        wer = read(folder / "asr/beam/results.json").get("wer")
        values |= {} if wer is None else {"ASR (WER)": wer}
        for name, value in values.items():
            found.setdefault(folder.name, {}).setdefault(name, []).append(value)
    return found


def markdown(table: list[list[str]]) -> str:
    head, *rows = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    exp = parser.parse_args().exp
    folders = sorted((f.parent for f in exp.glob("topics*/fit.json")), key=number_of)
    print(markdown(worth(folders)))
    for split in ("train", "valid"):
        print(f"\nWhat topics tell, {split}:\n\n{markdown(told(folders, split))}")
    models = taught(exp)
    names = list(dict.fromkeys(n for measures in models.values() for n in measures))
    table = [["model", *names]]
    for model, measures in models.items():
        cells = []
        for name in names:
            seeds = measures.get(name, [])
            spread = f" ± {statistics.stdev(seeds):.3f}" if len(seeds) > 1 else ""
            cells.append(f"{statistics.mean(seeds):.3f}{spread}" if seeds else "-")
        table.append([model, *cells])
    print(f"\nWhat topics teach:\n\n{markdown(table)}")
    (exp / "table.json").write_text(json.dumps(models, indent=2))


if __name__ == "__main__":
    main()
