"""Make trials for speaker verification of manifests: pairs of cuts of one speaker, and of two.

python tools/make_trials.py --cuts cuts_test.jsonl.gz --same corpus gender --output trials.txt

Each line is `1|0 ENROL TEST`, as `speechssl score --trials` reads it. Which pairs are kept is
decided by a hash of their ids, so the same cuts give the same list.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from speechssl.data.fields import cut_rows
from speechssl.data.splits import trial_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--speaker", default="speaker", help="field that names the speaker")
    parser.add_argument("--same", nargs="*", default=[], help="fields in which both sides agree")
    parser.add_argument("--different", nargs="*", default=[], help="fields in which they differ")
    parser.add_argument("--targets-per-speaker", type=int, default=100)
    parser.add_argument("--nontargets-per-target", type=float, default=4.0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        lines = trial_lines(
            cut_rows(options.cuts),
            options.speaker,
            options.same,
            options.different,
            options.targets_per_speaker,
            options.nontargets_per_target,
        )
    except ValueError as error:
        raise SystemExit(f"make_trials: {error}") from None
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.output.with_name(options.output.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, options.output)
    targets = sum(line.startswith("1") for line in lines)
    print(f"{targets} target trials, {len(lines) - targets} non-target trials")


if __name__ == "__main__":
    main()
