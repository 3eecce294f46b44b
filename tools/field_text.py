"""Take another field of the manifest for the text of cuts, such as the syllables of a song.

python tools/field_text.py --cuts cuts_train.jsonl.gz --field label_string --output out.jsonl.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--field", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    writer = JsonlWriter(options.output)
    count = 0
    for row in cut_rows(options.cuts):
        text = field_of(row, options.field)
        if text is None:
            raise SystemExit(f"field_text: found no {options.field!r} in {row['id']!r}, want text")
        row["supervisions"][0]["text"] = text
        writer.write(row)
        count += 1
    writer.close()
    print(f"{options.output}: {count} cuts")


if __name__ == "__main__":
    main()
