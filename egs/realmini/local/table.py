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

PLAIN = {  # what results.json calls a figure -> how it is shown, and its factor
    "der": ("DER %", 100),
    "jer": ("JER %", 100),
    "ccc": ("CCC", 1),
    "exact_match": ("all slots right %", 100),
    "slot_f1": ("slot F1 %", 100),
    "slot_value_cer": ("slot value CER %", 100),
    "si_sdr_improvement_db": ("SI-SDR improvement, dB", 1),
    "si_sdr_db": ("SI-SDR, dB", 1),
    "stoi": ("STOI", 1),
    "pesq": ("PESQ", 1),
    "auc": ("AUC %", 100),
    "map": ("mAP %", 100),
    "mtwv": ("MTWV", 1),
    "cer": ("CER %", 100),
}


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
    plain = {shown: factor * parts[0][k] for k, (shown, factor) in PLAIN.items()
             if parts[0].get(k) is not None}  # fmt: skip
    if plain:
        if len(parts) > 1:
            raise SystemExit("table: found folds, want one result per seed for this task")
        return plain
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
    # A recogniser's decoding does not say what its head is.
    described = how.get("head") or {"class_path": "CtcConfig", "init_args": {}}
    head = described["init_args"]
    kind = described["class_path"].rsplit(".", 1)[-1].removesuffix("Config").lower()
    cells = {"upstream": name, "head": head.get("network") or head.get("pooling") or kind}
    for key in seeds[0]:
        values = [s[key] for s in seeds]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        digits = 3 if key.startswith("minDCF") else 2
        cells[key] = f"{statistics.mean(values):.{digits}f}{spread}"
    scored = [next(p[k] for k in ("utterances", "recordings", "targets", "phones") if k in p)
              + p.get("nontargets", 0) for p in parts]  # fmt: skip
    cells |= {
        "trained parameters": str(how.get("trainable_parameters", "—")),
        "folds": str(len(parts)),
    }
    return cells | {"scored": str(sum(scored)), "seeds": str(len(seeds))}


if __name__ == "__main__":
    main()
