"""Libri-light's limited supervision, on a miniature of the published layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.corpora import librilight_limited
from speechssl.data.fields import cut_rows, field_of

WORDS = ["THE", "SEA", "WAS", "CALM", "AND", "A", "SMALL", "BOAT", "LAY", "NEAR", "SHORE"]


def make_limited(source: Path) -> None:
    """One speaker of clean and of other speech in each of the seven sets, two utterances each."""
    random = np.random.default_rng(0)
    for number, name in enumerate([*(f"1h/{i}" for i in range(6)), "9h"]):
        for quality in ("clean", "other"):
            speaker = f"{number + 1}{'12'[quality == 'other']}"
            chapter = source / name / quality / speaker / "100"
            chapter.mkdir(parents=True)
            lines = []
            for take in range(2):
                utterance = f"{speaker}-100-{take:04d}"
                wave = 0.1 * random.standard_normal(random.integers(24000, 32000))
                soundfile.write(chapter / f"{utterance}.flac", wave, 16000)
                lines.append(f"{utterance} {' '.join(random.permutation(WORDS)[:4])}\n")
            (chapter / f"{speaker}-100.trans.txt").write_text("".join(lines))
    (source / "phones").mkdir()


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("corpora") / "librispeech_finetuning"
    make_limited(source)
    return source


@pytest.mark.parametrize("parent", [False, True])
def test_sets_share_nothing_and_are_the_hours_together(
    limited: Path, tmp_path: Path, parent: bool
) -> None:
    given = {"source": str(limited.parent if parent else limited), "output": str(tmp_path)}
    paths = librilight_limited.prepare(librilight_limited.Config(**given))
    assert sorted(paths) == [*(f"10min-{i}" for i in range(6)), "9h"]
    rows = {name: list(cut_rows([str(path)])) for name, path in paths.items()}
    assert {len(x) for x in rows.values()} == {4}
    ids = [r["id"] for x in rows.values() for r in x]
    assert len(set(ids)) == len(ids) == 28
    # Clean and other of the third set, with their transcripts.
    assert {field_of(r, "speaker") for r in rows["10min-2"]} == {"31", "32"}
    assert all(len(str(field_of(r, "text")).split()) == 4 for r in rows["9h"])


def test_some_sets_are_enough(limited: Path, tmp_path: Path) -> None:
    shutil.copytree(limited / "1h/3", tmp_path / "few/1h/3")
    given = {"source": str(tmp_path / "few"), "output": str(tmp_path / "out")}
    found = librilight_limited.prepare(librilight_limited.Config(**given, sets=["10min-3"]))
    assert list(found) == ["10min-3"]
    with pytest.raises(ValueError, match=r"found no 9h/clean, 9h/other .*librispeech_finetuning"):
        librilight_limited.prepare(librilight_limited.Config(**given, sets=["10min-3", "9h"]))


def test_something_else_is_named(limited: Path, tmp_path: Path) -> None:
    given = {"source": str(tmp_path), "output": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=re.escape("librispeech_finetuning.tgz")):
        librilight_limited.prepare(librilight_limited.Config(**given))
    given["source"] = str(limited)
    with pytest.raises(ValueError, match="found 1h, want some of 10min-0"):
        librilight_limited.prepare(librilight_limited.Config(**given, sets=["1h"]))
