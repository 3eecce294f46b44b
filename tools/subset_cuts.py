"""Keep the cuts of a language, or a fraction of cuts chosen by a hash of their ids.

python tools/subset_cuts.py --cuts cuts.jsonl.gz --fraction 0.1 --output cuts_10.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--language", help="keep only cuts of this language")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    with gzip.open(options.cuts, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    if options.language:
        rows = [r for r in rows if r["supervisions"][0].get("language") == options.language]
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    rows = sorted(rows[: round(len(rows) * options.fraction)], key=lambda row: row["id"])
    temporary = options.output.with_suffix(".tmp")
    with gzip.open(temporary, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(temporary, options.output)
    print(f"{len(rows)} cuts, {sum(row['duration'] for row in rows) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
