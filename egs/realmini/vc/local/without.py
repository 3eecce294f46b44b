"""Leave out of a manifest the cuts that others hold, and those with a text that these have.

python local/without.py --cuts all.jsonl.gz --without test.jsonl.gz --output rest.jsonl.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--without", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    held = list(cut_rows(options.without))
    ids = {row["id"] for row in held}
    texts = {field_of(row, "text") for row in held} - {None}
    writer = JsonlWriter(options.output)
    kept = total = 0
    for row in cut_rows(options.cuts):
        total += 1
        if row["id"] not in ids and field_of(row, "text") not in texts:
            writer.write(row)
            kept += 1
    writer.close()
    print(f"{kept} of {total} cuts kept")


if __name__ == "__main__":
    main()
