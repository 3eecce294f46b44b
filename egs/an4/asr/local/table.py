"""Print the recipe's tables: WER of each system, and figures of each objective, mean ± deviation
over seeds; write them to EXP/table.md, and the second's to EXP/table.json.

python local/table.py --exp exp
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "mini/objectives/local"))
from figures import STANDS_ON, by_cut, cell, error_counts, interval, probed, read, table, training

COLUMNS = {  # name -> (factor, digits)
    "native loss": (1, 3), "code perplexity": (1, 1), "RankMe": (1, 1), "PNMI": (1, 3),
    "phones %": (100, 1), "speakers %": (100, 1),
    "keywords %": (100, 1), "letters 10 %: CER %": (100, 1), "letters: CER %": (100, 1),
    "10 %: WER greedy %": (100, 1), "10 %: WER beam %": (100, 1), "WER greedy %": (100, 1),
    "WER beam %": (100, 1), "step s": (1, 2), "step / HuBERT": (1, 2), "hours": (1, 2),
}  # fmt: skip
COMPARED = {"phones %": 1, "keywords %": 1} | {c: -1 for c in COLUMNS if "WER" in c or "CER" in c}
"""With the row `random`; -1: less is better."""
BASELINES = {"random": ("random", "scratch"), "logmel": (None, "logmel")}
"""Row without pretraining -> its recognisers on a frozen and on a trained encoder."""


def recognisers(exp: Path) -> list[str]:
    """Lines of Markdown, one per objective, system, share of labels and decoding; of one seed with
    the 95 % interval over utterances."""
    scores: dict[tuple[str, str, str], list[dict]] = {}
    for path in sorted(exp.glob("*/seed*/asr_*/*/results.json")):
        objective, system, method = path.parts[-5], path.parts[-3], path.parts[-2]
        scores.setdefault((objective, system, method), []).append(read(path))
    lines = ["| objective | system | labels | decoding | WER % | CER % | seeds |", "|---" * 7 + "|"]
    for (objective, system, method), found in scores.items():
        labels = "10 %" if system.endswith("_10") else "all"
        rates = [error_rate(found, name) for name in ("wer", "cer")]
        name = system.removeprefix("asr_").removesuffix("_10")
        cells = [objective, name, labels, method, *rates, str(len(found))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def error_rate(found: list[dict], name: str) -> str:
    """In percent: mean and deviation over seeds, or of one seed its interval over utterances."""
    text = cell([one.get(name) for one in found], 100, 1)
    if len(found) == 1 and (bounds := found[0].get(f"{name}_ci95")):
        text += f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"
    return text


def row(folder: Path, probe: str, frozen: str | None, tuned: str) -> dict:
    """folder: EXP/OBJECTIVE/seedN; the others: names of what lies there."""
    found = probed(folder / f"probe_{probe}", "phone")
    scores = {"keywords %": (f"keyword_{probe}/test", "accuracy")}
    for suffix, share in (("", ""), ("_10", "10 %")):
        letters = f"letters {share}: CER %" if share else "letters: CER %"
        scores[letters] = (f"asr_{frozen}{suffix}/greedy", "cer")
        for method in ("greedy", "beam"):
            column = f"{share}: WER {method} %" if share else f"WER {method} %"
            scores[column] = (f"asr_{tuned}{suffix}/{method}", "wer")
    for column, (place, measure) in scores.items():
        results = read(folder / place / "results.json")
        found[column] = results.get(measure)
        found[interval(column)] = results.get(f"{measure}_ci95")
        found[by_cut(column)] = error_counts(folder / place).get(measure)
    return found


def pretrained(folder: Path) -> dict:
    """Figures of the last iteration, hours of all and of what they stand on."""
    runs = sorted(folder.glob("it*"), key=lambda path: int(path.name.removeprefix("it")))
    if not runs:
        return {}
    found = row(folder, "encoder", "frozen", "pretrained") | training(runs[-1])
    name = folder.parent.name
    if name in STANDS_ON:
        runs.append(folder.parents[1] / STANDS_ON[name] / folder.name / "it1")
    found["hours"] = sum(training(run)["hours"] or 0.0 for run in runs) or None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    exp = parser.parse_args().exp
    seeds = sorted({path.name for path in exp.glob("*/seed*")})
    names = sorted({path.parts[-3] for path in exp.glob("*/seed*/it1")})
    rows = {name: [pretrained(exp / name / seed) for seed in seeds] for name in names}
    for name, systems in BASELINES.items():
        rows[name] = [row(exp / "baselines" / seed, name, *systems) for seed in seeds]
    for found in rows.values():
        for one, hubert in zip(found, rows.get("hubert", [])):
            if one.get("step s") and hubert.get("step s"):
                one["step / HuBERT"] = one["step s"] / hubert["step s"]
    lines = [*recognisers(exp), "", *table(rows, COLUMNS, COMPARED)]
    print(*lines, sep="\n")
    (exp / "table.md").write_text("\n".join([*lines, ""]))
    (exp / "table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
