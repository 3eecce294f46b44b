"""Keep some cuts of each class (or speaker) back, for validation on known classes.

python tools/hold_out.py --cuts cuts_train.jsonl.gz --field speaker --share 0.1 \\
  --train train.jsonl.gz --valid held.jsonl.gz

Which ones is decided by a hash of their ids. Classes of fewer than --least cuts stay whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of
from speechssl.data.splits import held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--field", default="speaker")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--least", type=int, default=4)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    options = parser.parse_args()
    rows = [row for row in cut_rows(options.cuts) if field_of(row, options.field) is not None]
    held = held_out(rows, options.field, options.share, options.least)
    values = {field_of(row, options.field) for row in rows}
    writers = {True: JsonlWriter(options.valid), False: JsonlWriter(options.train)}
    for row in rows:
        writers[row["id"] in held].write(row)
    for writer in writers.values():
        writer.close()
    print(f"{len(values)} values of {options.field}: {len(rows) - len(held)} cuts to train on, "
          f"{len(held)} held out")  # fmt: skip


if __name__ == "__main__":
    main()
