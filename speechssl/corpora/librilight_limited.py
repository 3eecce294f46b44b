"""Libri-light's limited supervision (10 h of transcribed LibriSpeech), through lhotse.recipes.

Layout, as published: SOURCE/1h/0 to 5 (six sets of 10 minutes, together the hour) and SOURCE/9h
(with the hour the 10 hours), each with clean and other, below them LibriSpeech's folders and
transcripts. Each set is a split, so that no utterance is listed twice: train on cuts_10min-0, on
cuts_10min-0 to 5, or on these and cuts_9h.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from speechssl.corpora.manifest import LeftOut

SETS = {**{f"10min-{i}": f"1h/{i}" for i in range(6)}, "9h": "9h"}
"""Split -> its folder."""
QUALITIES = ("clean", "other")
URL = "https://dl.fbaipublicfiles.com/librilight/data/librispeech_finetuning.tgz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where the limited-supervision archive lies."""

    source: str
    """Folder librispeech_finetuning, which holds 1h and 9h, or its parent."""
    output: str
    """Folder for cuts_<set>.jsonl.gz and missing.txt."""
    sets: list[str] = dataclasses.field(default_factory=list)
    """Sets to take, such as '[10min-0]'; empty takes all seven."""
    jobs: int = 0
    """Threads that read headers; 0 takes one per processor core."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every set; return set -> file.

    Raises `ValueError` for a set that is unknown or absent, and for too many unreadable files.
    """
    from lhotse import combine

    from speechssl.corpora.lhotse_recipe import pairs, run_recipe, write_cuts

    wanted = config.sets or list(SETS)
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise ValueError(f"sets: found {', '.join(unknown)}, want some of {', '.join(SETS)}")
    folder = _folder(config.source, wanted)
    parts = {name: [f"{SETS[name]}/{q}" for q in QUALITIES] for name in wanted}
    arguments = {
        "corpus_dir": str(folder),
        "dataset_parts": [part for own in parts.values() for part in own],
        "num_jobs": config.jobs or os.cpu_count() or 1,
    }
    left_out = LeftOut(config.max_missing_fraction)
    manifests, searched = run_recipe("librispeech", arguments, left_out)
    for _, _, _, supervisions in pairs(manifests):
        for supervision in supervisions:
            supervision.language = "en"
    joined = {
        name: {k: combine([manifests[part][k] for part in own])
               for k in ("recordings", "supervisions")}
        for name, own in parts.items()
    }  # fmt: skip
    return write_cuts(
        joined, config.output, left_out, searched=searched, corpus="librilight_limited"
    )


def _folder(source: str, wanted: list[str]) -> Path:
    for folder in (Path(source), Path(source) / "librispeech_finetuning"):
        if (folder / "1h").is_dir() or (folder / "9h").is_dir():
            absent = [f"{SETS[s]}/{q}" for s in wanted for q in QUALITIES
                      if not (folder / SETS[s] / q).is_dir()]  # fmt: skip
            if absent:
                raise ValueError(
                    f"source: found no {', '.join(absent)} in {folder}, want them; the archive is "
                    f"{URL}"
                )
            return folder
    raise ValueError(
        f"source: found neither 1h nor 9h in {source} or {source}/librispeech_finetuning, want the "
        f"unpacked {URL}"
    )
