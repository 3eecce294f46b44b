"""The layout of the Voice Conversion Challenge 2020."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechssl.corpora.manifest import read_rows
from speechssl.corpora.vcc2020 import Config, prepare, transcripts

FILES = (
    "source/SEF1/E10001",
    "target_task1/TEM2/E10002",
    "target_task1/TEM2/E20003",
    "target_task2/TFF1/F10001",
    "vcc2020_database_evaluation/SEF1/E30001",
    "vcc2020_database_groundtruth/TEM2/E30001",
)


def write(folder: Path) -> None:
    for name in FILES:
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(2400, 0.1), 24000)
    # As the challenge's own archive has it, with what macOS adds to archives.
    texts = folder / "vcc2020_database_transcriptions"
    others = folder / "__MACOSX/vcc2020_database_transcriptions"
    for name, text in (
        ("training_Eng", "10001 Good day.\n20003 Thank you.\n"),
        ("training_Fin", "10001 Hyvää päivää.\n"),
        ("evaluation", "30001 See you, then.\nnot a line of it\n"),
    ):
        part = f"transcriptions_{name.partition('_')[0]}"
        path = texts / part / f"vcc2020_database_{name}_transcriptions.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        (others / part).mkdir(parents=True, exist_ok=True)
        (others / part / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\xff\xfe")
    (folder / "__MACOSX/source/SEF1").mkdir(parents=True)
    (folder / "__MACOSX/source/SEF1/._E10001.wav").write_bytes(b"\x00\x05\x16\x07")


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
    assert sorted(found) == ["SEF1-E10001", "SEF1-E30001", "TEM2-E10002", "TEM2-E20003",
                             "TEM2-E30001", "TFF1-F10001"]  # fmt: skip
    split, said = found["SEF1-E30001"]
    assert split == "test" and said["text"] == "See you, then." and said["gender"] == "female"
    assert said["custom"] == {"corpus": "vcc2020", "sentence": "E30001"}
    split, said = found["TEM2-E10002"]
    assert split == "train" and "text" not in said and said["gender"] == "male"
    # Of the targets' 70 training sentences 50 are numbered 2....
    split, said = found["TEM2-E20003"]
    assert split == "train" and said["text"] == "Thank you."
    said = found["TFF1-F10001"][1]
    assert said["language"] == "fi" and said["text"] == "Hyvää päivää."
    assert found["SEF1-E10001"][1]["text"] == "Good day."


def test_a_line_may_name_its_language(tmp_path: Path) -> None:
    (tmp_path / "transcriptions.txt").write_text("E10001 Good day.\nM10001\tNi hao.\n")
    assert transcripts(tmp_path) == {"E10001": "Good day.", "M10001": "Ni hao."}


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
