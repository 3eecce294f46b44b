"""Divide VCTK for any-to-any conversion between speakers that training never hears.

python local/divide.py --cuts data/cuts_all.jsonl.gz --unseen p225 p226 --output data

The rainbow passage and the elicitation paragraph have equal texts for all: of the texts that every
unseen speaker says, `--test` are tested with; training leaves out all of them. Of the unseen
speakers' other recordings `--references` each tell the voice. Writes cuts_train, cuts_valid (one
recording of each training speaker), cuts_unseen (the tested sentences), for each unseen speaker
cuts_to_NAME (what the others say), and references_NAME.txt, lines of files.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--unseen", nargs="+", required=True)
    parser.add_argument("--test", type=int, default=5, help="sentences")
    parser.add_argument("--references", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = sorted(cut_rows(options.cuts), key=lambda row: row["id"])
    parts, references = divide(rows, options)
    for name, kept in parts.items():
        writer = JsonlWriter(options.output / f"cuts_{name}.jsonl.gz")
        for row in kept:
            writer.write(row)
        writer.close()
        print(f"{name:<12}{len(kept):>7} cuts")
    for name, files in references.items():
        text = "".join(f"{file}\n" for file in files)
        (options.output / f"references_{name}.txt").write_text(text)


def divide(
    rows: list[dict[str, Any]], options: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
    unseen = list(dict.fromkeys(options.unseen))
    by_speaker: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        text = field_of(row, "text")
        if text is not None:
            by_speaker[str(field_of(row, "speaker"))].setdefault(text, row)
    absent = [s for s in unseen if s not in by_speaker]
    if absent or len(unseen) < 2 or len(by_speaker) <= len(unseen):
        raise SystemExit(
            f"divide: found {len(by_speaker)} speakers with texts, not among them "
            f"{', '.join(absent) or 'nobody'} of --unseen; want two or more unseen ones, and others"
        )
    times = Counter(text for s in unseen for text in by_speaker[s])
    shared = sorted(text for text, n in times.items() if n == len(unseen))
    if len(shared) < options.test:
        raise SystemExit(
            f"divide: found {len(shared)} texts that {', '.join(unseen)} all say, want "
            f"{options.test}; choose other speakers, or a smaller --test"
        )
    tested = shared[: options.test]
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "valid": []}
    for speaker, said in sorted(by_speaker.items()):
        if speaker not in unseen:
            kept = [row for text, row in said.items() if text not in shared]
            parts["valid"] += kept[:1]
            parts["train"] += kept[1:]
    parts["unseen"] = [by_speaker[s][text] for s in unseen for text in tested]
    references = {}
    for target in unseen:
        parts[f"to_{target}"] = [
            by_speaker[s][text] for s in unseen if s != target for text in tested
        ]
        others = [row for text, row in by_speaker[target].items() if text not in tested]
        references[target] = [
            row["recording"]["sources"][0]["source"] for row in others[: options.references]
        ]
        if not others:
            raise SystemExit(f"divide: found no recording of {target} beside the tested ones")
    return parts, references


if __name__ == "__main__":
    main()
