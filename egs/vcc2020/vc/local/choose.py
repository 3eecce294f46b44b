"""Keep the cuts of some speakers; put every tenth apart, if asked to.

python local/choose.py --cuts cuts_train.jsonl.gz --speakers TEF1 --output tef1.jsonl.gz \
    --held tef1_valid.jsonl.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--speakers", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--held", type=Path, help="for every tenth cut, from the tenth on")
    options = parser.parse_args()
    rows = [r for r in cut_rows(options.cuts) if field_of(r, "speaker") in options.speakers]
    rows.sort(key=lambda row: row["id"])
    absent = set(options.speakers) - {field_of(r, "speaker") for r in rows}
    if absent:
        raise SystemExit(
            f"choose: found no cut of {', '.join(sorted(absent))} in {', '.join(options.cuts)}, "
            "want some of each speaker"
        )
    held = [r for i, r in enumerate(rows, 1) if options.held and i % 10 == 0]
    kept = [r for i, r in enumerate(rows, 1) if not (options.held and i % 10 == 0)]
    for path, part in ((options.output, kept), (options.held, held)):
        if path is not None:
            writer = JsonlWriter(path)
            for row in part:
                writer.write(row)
            writer.close()
    print(f"{len(kept)} cuts kept, {len(held)} held")


if __name__ == "__main__":
    main()
