"""Print an experiment's validation curve as a Markdown table, for a recipe's RESULTS.md.

python tools/loss_curve.py exp/seed1/hubert_it1 [--fields loss,masked_accuracy]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fields", default="loss_bits,masked_accuracy,unmasked_accuracy")
    options = parser.parse_args()
    fields = options.fields.split(",")
    print("| step | " + " | ".join(fields) + " |")
    print("|---" * (len(fields) + 1) + "|")
    for line in (options.folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("split") == "valid":
            cells = [f"{row[name]:.3f}" if name in row else "-" for name in fields]
            print(f"| {row['step']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
