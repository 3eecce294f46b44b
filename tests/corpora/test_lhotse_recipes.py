"""LibriSpeech, Libri-light and other recipes of Lhotse, on miniature corpora of their layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, validate

from speechssl.corpora import lhotse_recipe, librilight, librispeech


def _noise(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-0.3, 0.3, round(seconds * 16000)).astype(np.float32)


@pytest.fixture
def mini_librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for part, speaker in (("train-clean-100", "19"), ("dev-clean", "84")):
        chapter = root / part / speaker / "198"
        chapter.mkdir(parents=True)
        lines = []
        for index in range(6):
            name = f"{speaker}-198-{index:04d}"
            soundfile.write(chapter / f"{name}.flac", _noise(1 + index / 10), 16000)
            lines.append(f"{name} THE WORDS OF {index}")
        (chapter / f"{speaker}-198.trans.txt").write_text("\n".join(lines) + "\n")
    (root / "SPEAKERS.TXT").write_text(
        ";ID  |SEX| SUBSET\n19  | F | train-clean-100 | 25.2 | Kara\n84  | M | dev-clean | 8 | X\n"
    )
    return root


def test_librispeech_parts_become_cuts_with_text_speaker_and_gender(
    mini_librispeech: Path, tmp_path: Path
) -> None:
    config = librispeech.Config(
        source=str(mini_librispeech.parent), output=str(tmp_path / "out"), lower_case=True, jobs=2
    )
    paths = librispeech.prepare(config)
    assert sorted(paths) == ["dev-clean", "train-clean-100"]
    assert paths["dev-clean"].name == "cuts_dev-clean.jsonl.gz"
    cuts = {cut.id: cut for cut in CutSet.from_file(paths["train-clean-100"])}
    assert len(cuts) == 6
    cut = cuts["19-198-0003"]
    validate(cut)
    only = cut.supervisions[0]
    assert (only.text, only.speaker, only.gender) == ("the words of 3", "19", "female")
    assert only.custom["corpus"] == "librispeech"
    assert cut.load_audio().shape == (1, 20800)


def test_one_corrupt_file_does_not_end_the_preparation(
    mini_librispeech: Path, tmp_path: Path
) -> None:
    (mini_librispeech / "dev-clean/84/198/84-198-0002.flac").write_bytes(b"garbage")
    config = librispeech.Config(source=str(mini_librispeech), output=str(tmp_path / "out"))
    paths = librispeech.prepare(config)
    cuts = list(CutSet.from_file(paths["dev-clean"]))
    assert [c.id[-1] for c in sorted(cuts, key=lambda c: c.id)] == ["0", "1", "3", "4", "5"]
    assert "84-198-0002.flac" in (tmp_path / "out/missing.txt").read_text()
    for cut in cuts:  # real paths, not those of the temporary view
        assert Path(cut.recording.sources[0].source).parent.parent.parent.parent == mini_librispeech
        cut.load_audio()


def test_an_absent_part_is_an_error_that_names_it(mini_librispeech: Path, tmp_path: Path) -> None:
    config = librispeech.Config(
        source=str(mini_librispeech), parts=["train-clean-360"], output=str(tmp_path / "out")
    )
    with pytest.raises(ValueError, match=r"no train-clean-360 .*dev-clean"):
        librispeech.prepare(config)


def test_any_recipe_runs_by_its_name(mini_librispeech: Path, tmp_path: Path) -> None:
    config = lhotse_recipe.Config(
        name="librispeech",
        source=str(mini_librispeech),
        arguments={"dataset_parts": ["dev-clean"]},
        output=str(tmp_path / "out"),
    )
    paths = lhotse_recipe.prepare(config)
    assert len(list(CutSet.from_file(paths["dev-clean"]))) == 6


def test_unknown_recipes_and_arguments_are_errors_that_name_the_known(tmp_path: Path) -> None:
    config = lhotse_recipe.Config(name="librispech", output=str(tmp_path))
    with pytest.raises(ValueError, match=r"'librispech'.*librispeech"):
        lhotse_recipe.prepare(config)
    config = lhotse_recipe.Config(name="librispeech", output=str(tmp_path), arguments={"part": 1})
    with pytest.raises(ValueError, match=r"found part, want some of: corpus_dir"):
        lhotse_recipe.prepare(config)


def test_librilight_speech_is_joined_into_cuts_of_bounded_length(tmp_path: Path) -> None:
    book = tmp_path / "ll/small/100/sea_fairies"
    book.mkdir(parents=True)
    soundfile.write(book / "chapter_01.flac", _noise(40), 16000)
    speech = [[0.5, 3.0], [3.3, 6.0], [6.2, 9.9], [14.0, 35.0], [38.0, 38.5]]
    info = {"speaker": "100", "voice_activity": speech}
    (book / "chapter_01.json").write_text(json.dumps(info))
    config = librilight.Config(
        source=str(tmp_path / "ll"), output=str(tmp_path / "out"), max_seconds=10.0
    )
    cuts = list(CutSet.from_file(librilight.prepare(config)["small"]))
    spans = [(round(cut.start, 2), round(cut.end, 2)) for cut in cuts]
    assert spans == [(0.5, 9.9), (14.0, 21.0), (21.0, 28.0), (28.0, 35.0)]
    for cut in cuts:
        validate(cut)
        assert cut.load_audio().shape == (1, cut.num_samples)
    assert len({cut.id for cut in cuts}) == 4 and len({cut.recording.id for cut in cuts}) == 1
