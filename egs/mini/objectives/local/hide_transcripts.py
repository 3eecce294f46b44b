"""Copy cuts with the transcripts of some of them, the others' empty; a letters tokenizer of those.

Kept are those of --keep, and with --hide of all that are not among --hide.

python local/hide_transcripts.py --cuts a.jsonl.gz --keep labelled.jsonl.gz --output b.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from pathlib import Path


def rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True, help="cuts whose transcripts to keep")
    parser.add_argument("--hide", type=Path, help="cuts whose transcripts to hide, but for --keep")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="file for the letters of those kept")
    options = parser.parse_args()
    cuts, texts = rows(options.cuts), []
    kept = {row["id"] for row in rows(options.keep)}
    if options.hide:
        kept |= {row["id"] for row in cuts} - {row["id"] for row in rows(options.hide)}
    for row in cuts:
        for supervision in row["supervisions"]:
            if row["id"] not in kept or not supervision.get("text"):
                supervision["text"] = ""
            else:
                texts.append(supervision["text"])
    if not texts:
        raise SystemExit(f"--keep: found none of the cuts of {options.cuts} in {options.keep}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_suffix(".tmp")
    with gzip.open(temporary, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in cuts)
    os.replace(temporary, options.output)
    if options.tokenizer:
        from speechssl.data.text import tokenizer_from_texts

        tokenizer_from_texts(texts, "letters").save(options.tokenizer)
    print(f"{len(texts)} of {len(cuts)} cuts keep their transcripts")


if __name__ == "__main__":
    main()
