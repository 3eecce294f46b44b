"""Divide a parallel corpus for any-to-one conversion: a target's speech to learn from, and
sentences that the target and the other speakers say, to test with.

python local/divide.py --cuts data/synth/cuts_train.jsonl.gz --language en-us --target 0 \
    --test 10 --valid 8 --output data

The target is a speaker's name, or a number in the order of their names. The last sentences in the
order of `--field` are the test's, those before them for validation (with --valid 0: a tenth of what
is left to train on); a text that occurs among these is never trained on. Writes target_train,
target_valid, target_test, source_test and natural (everybody's test sentences) as
cuts_NAME.jsonl.gz, and target.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--field", default="sentence", help="what numbers the sentences")
    parser.add_argument("--language", help="leave out cuts of other languages")
    parser.add_argument("--target", default="0", help="name of a speaker, or a number")
    parser.add_argument("--test", type=int, default=10, help="sentences to test with")
    parser.add_argument("--valid", type=int, default=8, help="sentences to validate on")
    parser.add_argument("--sources", type=int, help="speakers to convert, at most")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = [
        row
        for row in cut_rows(options.cuts)
        if options.language in (None, field_of(row, "language"))
    ]
    parts, target = divide(rows, options)
    for name, kept in parts.items():
        writer = JsonlWriter(options.output / f"cuts_{name}.jsonl.gz")
        for row in kept:
            writer.write(row)
        writer.close()
        minutes = sum(row["duration"] for row in kept) / 60
        speakers = len({field_of(row, "speaker") for row in kept})
        print(f"{name:<14}{len(kept):>5} cuts of {speakers} speakers, {minutes:.1f} min")
    (options.output / "target.txt").write_text(f"{target}\n")


def divide(
    rows: list[dict[str, Any]], options: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], str]:
    speakers = sorted({str(field_of(row, "speaker")) for row in rows})
    target = options.target
    if target.isdigit() and target not in speakers and int(target) < len(speakers):
        target = speakers[int(target)]
    if target not in speakers or len(speakers) < 2:
        raise SystemExit(
            f"divide: found no speaker {options.target} among {', '.join(speakers[:20])}, want one "
            "of several, by name or number"
        )
    key = {row["id"]: _order(field_of(row, options.field)) for row in rows}
    by_target = {key[row["id"]] for row in rows if field_of(row, "speaker") == target}
    others = [s for s in speakers if s != target][: options.sources]
    by_others = {key[row["id"]] for row in rows if field_of(row, "speaker") in others}
    shared = sorted(by_target & by_others)
    if len(shared) < options.test + options.valid + 1:
        raise SystemExit(
            f"divide: found {len(shared)} sentences that {target} and others say, want more than "
            f"{options.test} + {options.valid}"
        )
    test = set(shared[-options.test :])
    valid = set(shared[-options.test - options.valid : -options.test])
    held = {field_of(r, "text") for r in rows if key[r["id"]] in test | valid} - {None}
    parts: dict[str, list[dict[str, Any]]] = {
        name: []
        for name in ("target_train", "target_valid", "target_test", "source_test", "natural")
    }
    for row in rows:
        place, own = key[row["id"]], field_of(row, "speaker") == target
        if place in test:
            if own or field_of(row, "speaker") in others:
                parts["natural"].append(row)
                parts["target_test" if own else "source_test"].append(row)
        elif own and place in valid:
            parts["target_valid"].append(row)
        elif own and field_of(row, "text") not in held:
            parts["target_train"].append(row)
    if not options.valid:
        parts["target_valid"] = parts["target_train"][::10]
        parts["target_train"] = [r for i, r in enumerate(parts["target_train"]) if i % 10]
    return parts, target


def _order(value: str | None) -> tuple[int, str]:
    return (int(value), "") if value is not None and value.isdigit() else (-1, str(value))


if __name__ == "__main__":
    main()
