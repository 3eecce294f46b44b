"""Give cuts a text of phones, one letter per phone, so that a letter recogniser hears phones.

python tools/phone_text.py --cuts cuts_train.jsonl.gz --output phones_train.jsonl.gz

--field holds a list of words, each the ARPAbet phones of one ("F_B IH0_I SH_E"); positions in the
word and stress are dropped. The letters are always the same; OUTPUT.phones.json lists them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from speechssl.corpora.arpabet import LETTERS, spelled
from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--field", default="phones")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    writer = JsonlWriter(options.output)
    count = 0
    for row in cut_rows(options.cuts):
        first = row["supervisions"][0]
        words = (first.get("custom") or {}).get(options.field)
        if not words:
            raise SystemExit(f"phone_text: found no {options.field!r} in {row['id']!r}, want words")
        try:
            first["text"] = " ".join(spelled(word, row["id"]) for word in words)
        except ValueError as error:
            raise SystemExit(f"phone_text: {error}") from None
        writer.write(row)
        count += 1
    writer.close()
    table = options.output.with_name(options.output.name + ".phones.json")
    table.write_text(json.dumps({v: k for k, v in LETTERS.items()}, indent=1) + "\n")
    print(f"{options.output}: {count} cuts")


if __name__ == "__main__":
    main()
