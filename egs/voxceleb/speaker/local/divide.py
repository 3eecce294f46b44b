"""Divide training cuts: to learn from, to validate, speakers to calibrate on, a cohort.

python local/divide.py --cuts cuts_dev.jsonl.gz --calibration-speakers 60 --output data/vox2

OUTPUT/cuts_calibration holds a few recordings of speakers who are left out of everything else, for
trials that turn scores into likelihood ratios. Of all others, cuts_valid has a share of the
recordings, cuts_train the rest, and cuts_cohort a few of each speaker's training recordings, for
AS-norm and PLDA. Few recordings of a speaker come from as many videos as can be. Choices are hashes
of names; nothing but names is kept in memory.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

from speechssl.corpora.manifest import JsonlWriter
from speechssl.data.fields import cut_rows, field_of
from speechssl.data.splits import held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", required=True)
    parser.add_argument("--share", type=float, default=0.02, help="of recordings, to validate")
    parser.add_argument("--calibration-speakers", type=int, default=60)
    parser.add_argument("--calibration-cuts", type=int, default=10, help="of each of them")
    parser.add_argument("--cohort-cuts", type=int, default=20, help="of each training speaker")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    speaker_of: dict[str, str] = {}
    videos: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in cut_rows([options.cuts]):
        who, video = str(field_of(row, "speaker")), str(field_of(row, "video"))
        speaker_of[row["id"]] = who
        videos[who][video].append(row["id"])
    if len(videos) < options.calibration_speakers + 2:
        raise SystemExit(
            f"divide: found {len(videos)} speakers in {options.cuts}, want 2 or more beside the "
            f"{options.calibration_speakers} of --calibration-speakers"
        )
    apart = set(sorted(videos, key=_order)[: options.calibration_speakers])
    known = [{"id": i, "supervisions": [{"speaker": who}]}
             for i, who in speaker_of.items() if who not in apart]  # fmt: skip
    valid = held_out(known, "speaker", options.share)
    calibration, cohort = set(), set()
    for who, own in videos.items():
        if who in apart:
            calibration.update(spread(own, options.calibration_cuts))
        else:
            cohort.update(spread(own, options.cohort_cuts, without=valid))
    names = ("train", "valid", "calibration", "cohort")
    writers = {n: JsonlWriter(options.output / f"cuts_{n}.jsonl.gz") for n in names}
    counts = dict.fromkeys(names, 0)
    for row in cut_rows([options.cuts]):
        name = row["id"]
        if speaker_of[name] in apart:
            into = ["calibration"] if name in calibration else []
        else:
            into = ["valid"] if name in valid else ["train"]
            into += ["cohort"] if name in cohort else []
        for part in into:
            writers[part].write(row)
            counts[part] += 1
    for writer in writers.values():
        writer.close()
    shown = ", ".join(f"{n} {name}" for name, n in counts.items())
    print(f"{len(videos) - len(apart)} speakers and {len(apart)} to calibrate on: {shown} cuts")


def spread(own: dict[str, list[str]], count: int, without: set[str] = frozenset()) -> list[str]:
    """`count` recordings of one speaker: one of each video, then a second one, and so on."""
    ordered = []
    for video, names in own.items():
        left = sorted((n for n in names if n not in without), key=_order)
        ordered += [(turn, _order(video), name) for turn, name in enumerate(left)]
    return [name for _, _, name in sorted(ordered)[:count]]


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


if __name__ == "__main__":
    main()
