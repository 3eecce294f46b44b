"""Print the recipe's table: WER of each system, greedy and with beam search; mean over seeds.

python local/table.py --exp exp
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    exp = parser.parse_args().exp
    scores: dict[tuple[str, str, str], list[dict]] = {}
    for path in sorted(exp.glob("*/seed*/asr_*/*/results.json")):
        objective, system, method = path.parts[-5], path.parts[-3], path.parts[-2]
        scores.setdefault((objective, system, method), []).append(json.loads(path.read_text()))
    print("| objective | system | labels | decoding | WER % | CER % | seeds |")
    print("|---|---|---|---|---|---|---|")
    for (objective, system, method), found in scores.items():
        labels = "10 %" if system.endswith("_10") else "all"
        wer = [100 * row["wer"] for row in found]
        cer = [100 * row["cer"] for row in found]
        spread = f" ± {statistics.stdev(wer):.1f}" if len(wer) > 1 else ""
        name = system.removeprefix("asr_").removesuffix("_10")
        print(
            f"| {objective} | {name} | {labels} | {method} | {statistics.mean(wer):.1f}{spread} "
            f"| {statistics.mean(cer):.1f} | {len(wer)} |"
        )


if __name__ == "__main__":
    main()
