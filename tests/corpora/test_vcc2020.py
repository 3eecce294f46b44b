"""The layout of the Voice Conversion Challenge 2020."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.corpora.manifest import read_rows
from speechssl.corpora.vcc2020 import Config, prepare

FILES = (
    "source/SEF1/E10001",
    "target_task1/TEM2/E10002",
    "target_task2/TFF1/F10001",
    "vcc2020_database_evaluation/SEF1/E30001",
    "vcc2020_database_groundtruth/TEM2/E30001",
)


def write(folder: Path) -> None:
    for name in FILES:
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(2400, 0.1), 24000)
    texts = folder / "transcriptions"
    texts.mkdir()
    (texts / "vcc2020_database_training_Eng_transcriptions.txt").write_text("E10001 Good day.\n")
    (texts / "eval_transcriptions.txt").write_text("E30001\tSee you, then.\nnot a line of it\n")


def test_folders_and_names_say_all(tmp_path: Path) -> None:
    write(tmp_path / "vcc")
    (tmp_path / "vcc/source/SEF1/notes.wav").write_bytes(b"")  # no sentence
    paths = prepare(Config(source=str(tmp_path / "vcc"), output=str(tmp_path / "cuts")))
    assert sorted(paths) == ["test", "train"]
    found = {
        row["id"]: (split, row["supervisions"][0])
        for split, path in paths.items()
        for row in read_rows(path)
    }
    assert sorted(found) == ["SEF1-E10001", "SEF1-E30001", "TEM2-E10002", "TEM2-E30001",
                             "TFF1-F10001"]  # fmt: skip
    split, said = found["SEF1-E30001"]
    assert split == "test" and said["text"] == "See you, then." and said["gender"] == "female"
    assert said["custom"] == {"corpus": "vcc2020", "sentence": "E30001"}
    split, said = found["TEM2-E10002"]
    assert split == "train" and "text" not in said and said["gender"] == "male"
    assert found["TFF1-F10001"][1]["language"] == "fi"
    assert found["SEF1-E10001"][1]["text"] == "Good day."


def test_a_folder_without_speakers_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no folder"):
        prepare(Config(source=str(tmp_path / "none"), output=str(tmp_path)))
    with pytest.raises(ValueError, match=r"found no recording such as SEF1/E10001\.wav"):
        prepare(Config(source=str(tmp_path), output=str(tmp_path)))


def test_a_sentence_twice_names_both_files(tmp_path: Path) -> None:
    write(tmp_path / "vcc")
    copy = tmp_path / "vcc/copy/SEF1"
    copy.mkdir(parents=True)
    soundfile.write(copy / "E10001.wav", np.full(2400, 0.1), 24000)
    with pytest.raises(ValueError, match="found 'SEF1-E10001' twice"):
        prepare(Config(source=str(tmp_path / "vcc"), output=str(tmp_path / "cuts")))
