"""Print a recipe's table: a row per upstream, folds pooled, mean and deviation over seeds.

python ../local/table.py --exp exp
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.score.classification import accuracy, macro_f1, uar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    exp = parser.parse_args().exp
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(exp.glob("*/seed*/**/test/results.json")):
        name, seed = path.relative_to(exp).parts[:2]
        found[name][seed].append(json.loads(path.read_text()))
    rows = [
        row(name, [figures(parts) for parts in seeds.values()], next(iter(seeds.values())))
        for name, seeds in found.items()
    ]
    if not rows:
        raise SystemExit(f"table: found no results.json below {exp}, want those of stage 4")
    head = list(rows[0])
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for one in rows:
        print("| " + " | ".join(one[k] for k in head) + " |")


def figures(parts: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of one seed; confusions of its folds are added up."""
    if "eer" in parts[0]:
        (one,) = parts
        plain = one.get("cosine", one)
        costs = {f"minDCF({p})": value for p, value in plain["min_dcf"].items()}
        better = f"EER % {one.get('scores', 'AS-norm')}"
        return {"EER %": 100 * plain["eer"], better: 100 * one["eer"], **costs}
    if any(p["classes"] != parts[0]["classes"] for p in parts):
        raise SystemExit("table: found folds of different classes, want the same in each")
    counts = np.sum([p["confusion"] for p in parts], axis=0)
    return {
        "UAR %": 100 * uar(counts),
        "accuracy %": 100 * accuracy(counts),
        "macro F1 %": 100 * macro_f1(counts),
    }


def row(name: str, seeds: list[dict[str, float]], parts: list[dict[str, Any]]) -> dict[str, str]:
    how = parts[0]["decode"]
    head = how["head"]["init_args"]
    cells = {"upstream": name, "head": head.get("network") or head["pooling"]}
    for key in seeds[0]:
        values = [s[key] for s in seeds]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        digits = 3 if key.startswith("minDCF") else 2
        cells[key] = f"{statistics.mean(values):.{digits}f}{spread}"
    scored = [p.get("utterances") or p["targets"] + p["nontargets"] for p in parts]
    cells |= {"trained parameters": str(how["trainable_parameters"]), "folds": str(len(parts))}
    return cells | {"scored": str(sum(scored)), "seeds": str(len(seeds))}


if __name__ == "__main__":
    main()
