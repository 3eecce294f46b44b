"""LibriSpeech and mini LibriSpeech (read English, 1000 h), through lhotse.recipes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from speechssl.corpora.manifest import LeftOut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where LibriSpeech lies, and which of its parts to take."""

    source: str
    """Folder that holds train-clean-100, dev-clean, ..., or its parent."""
    output: str
    """Folder for cuts_<part>.jsonl.gz and missing.txt."""
    parts: list[str] = dataclasses.field(default_factory=list)
    """Parts to take, such as '[train-clean-100,dev-clean]'; empty takes all that are there."""
    alignments: str | None = None
    """Folder of LibriSpeech-Alignments (word and phone times), if there is one."""
    lower_case: bool = False
    """Turn the transcripts, which are in capitals, into lower case."""
    jobs: int = 0
    """Threads that read headers; 0 takes one per processor core."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def corpus_folder(source: str, parts: list[str]) -> Path:
    """The folder that holds the parts; `ValueError` naming those that are absent."""
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH

    known = [*LIBRISPEECH, *MINI_LIBRISPEECH]
    for folder in (Path(source), Path(source) / "LibriSpeech"):
        there = [part for part in known if (folder / part).is_dir()]
        if not there:
            continue
        absent = [part for part in parts if part not in there]
        if absent:
            raise ValueError(
                f"parts: found no {', '.join(absent)} in {folder}, want some of those that are "
                f"there: {', '.join(there)}"
            )
        return folder
    raise ValueError(
        f"source: found no part of LibriSpeech in {source} or {source}/LibriSpeech, want a folder "
        f"with one of: {', '.join(known)}"
    )


def genders(folder: Path) -> dict[str, str]:
    """Speaker -> 'female' or 'male' from SPEAKERS.TXT, if that file is there."""
    table = folder / "SPEAKERS.TXT"
    if not table.is_file():
        return {}
    found = {}
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = [field.strip() for field in line.split("|")]
        if not line.startswith(";") and len(fields) > 2 and fields[1] in ("F", "M"):
            found[fields[0]] = "female" if fields[1] == "F" else "male"
    return found


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every part; return part -> file.

    Raises `ValueError` for parts that are absent, and for too many unreadable files.
    """
    from speechssl.corpora.lhotse_recipe import pairs, run_recipe, write_cuts

    folder = corpus_folder(config.source, config.parts)
    arguments = {
        "corpus_dir": str(folder),
        "dataset_parts": config.parts or "auto",
        "normalize_text": "lower" if config.lower_case else "none",
        "num_jobs": config.jobs or os.cpu_count() or 1,
    }
    if config.alignments:
        arguments["alignments_dir"] = config.alignments
    left_out = LeftOut(config.max_missing_fraction)
    manifests, searched = run_recipe("librispeech", arguments, left_out)
    known = genders(folder)
    for _, _, _, supervisions in pairs(manifests):
        for supervision in supervisions:
            supervision.gender = known.get(str(supervision.speaker), supervision.gender)
            supervision.language = "en"
    return write_cuts(manifests, config.output, left_out, searched=searched, corpus="librispeech")
