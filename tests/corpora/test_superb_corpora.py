"""The corpora of SUPERB on miniatures of their published layouts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speechssl.corpora import fluent_speech_commands, iemocap, speech_commands, voxceleb1
from speechssl.data.fields import cut_rows, field_of
from speechssl.data.splits import fold_splits
from speechssl.score.verification import read_trials


def write_wave(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).standard_normal(round(16000 * seconds))
    soundfile.write(path, 0.1 * noise, 16000)


def make_speech_commands(source: Path, words: tuple[str, ...] = ("yes", "go", "bed")) -> None:
    own, test = source / "speech_commands_v0.01", source / "speech_commands_test_set_v0.01"
    for word in words:
        for take in range(4):
            write_wave(own / word / f"aa{take}_nohash_0.wav")
    write_wave(own / "_background_noise_/running_tap.wav", 2.5)
    write_wave(own / "_background_noise_/white_noise.wav", 3.5)
    (own / "validation_list.txt").write_text("".join(f"{w}/aa2_nohash_0.wav\n" for w in words))
    (own / "testing_list.txt").write_text("".join(f"{w}/aa3_nohash_0.wav\n" for w in words))
    for word in ("yes", "go", "_unknown_", "_silence_"):
        for take in range(2):
            write_wave(test / word / f"bb{take}_nohash_0.wav")


def make_voxceleb1(source: Path) -> None:
    lists = {"iden_split.txt": "", "veri_test.txt": ""}
    for speaker in range(1, 7):
        for take in range(1, 6):
            name = f"id1000{speaker}/video{take % 2}/0000{take}.wav"
            write_wave(source / "wav" / name, 2.1)
            lists["iden_split.txt"] += f"{max(1, take - 2)} {name}\n"
    for a, b in ((5, 5), (5, 6), (6, 6), (6, 5)):
        for take in (2, 4):
            lists["veri_test.txt"] += (
                f"{int(a == b)} id1000{a}/video1/00001.wav id1000{b}/video0/0000{take}.wav\n"
            )
    for name, text in lists.items():
        (source / name).write_text(text)


def make_fluent_speech_commands(source: Path) -> None:
    head = ",path,speakerId,transcription,action,object,location\n"
    for split, who in (("train", "a"), ("valid", "b"), ("test", "c")):
        rows = ""
        for i, intent in enumerate(("activate,lights,kitchen", "bring,shoes,none") * 3):
            path = f"wavs/speakers/{who}/{who}{i}.wav"
            write_wave(source / path)
            rows += f'{i},{path},{who},"Words, and {i}",{intent}\n'
        (source / "data").mkdir(exist_ok=True)
        (source / "data" / f"{split}_data.csv").write_text(head + rows)


def make_iemocap(source: Path) -> None:
    for session in range(1, 6):
        folder = source / f"Session{session}"
        name = f"Ses0{session}F_impro01"
        lines = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        spoken = "M: What?\n"
        for i, emotion in enumerate(("ang", "exc", "hap", "neu", "sad", "fru") * 2):
            turn = f"{name}_{'FM'[i % 2]}{i:03d}"
            write_wave(folder / "sentences/wav" / name / f"{turn}.wav", 0.6)
            lines += f"[{i}.2901 - {i}.8]\t{turn}\t{emotion}\t[2.5000, 2.5000, 3.0000]\n"
            lines += "C-E2:\tNeutral;\t()\n\n"
            words = ("Excuse me.", "[LAUGHTER] It's not [BREATHING] fair.", "[LAUGHTER]")[i % 3]
            spoken += f"{turn} [{i:03d}.2901-{i:03d}.8357]: {words}\n"
        (folder / "dialog/EmoEvaluation").mkdir(parents=True)
        (folder / "dialog/EmoEvaluation" / f"{name}.txt").write_text(lines)
        (folder / "dialog/transcriptions").mkdir()
        (folder / "dialog/transcriptions" / f"{name}.txt").write_text(spoken)


def rows(paths: dict[str, Path], split: str) -> list[dict[str, Any]]:
    return list(cut_rows([str(paths[split])]))


def test_speech_commands(tmp_path: Path) -> None:
    make_speech_commands(tmp_path)
    config = speech_commands.Config(source=str(tmp_path), output=str(tmp_path / "out"))
    paths = speech_commands.prepare(config)
    train, valid, test = (rows(paths, s) for s in ("train", "valid", "test"))
    assert [len(x) for x in (train, valid, test)] == [2 * 3 + 3, 3 + 2, 8]
    labels = {field_of(r, "label") for r in train}
    assert labels == {"yes", "go", "_unknown_", "_silence_"}
    noises = [r for r in train if field_of(r, "label") == "_silence_"]
    assert [r["start"] for r in noises] == [0, 1, 2] and {r["duration"] for r in noises} == {1.0}
    assert len({r["recording"]["id"] for r in noises}) == 1
    assert {field_of(r, "speaker") for r in test} == {"bb0", "bb1"}


def test_voxceleb1(tmp_path: Path) -> None:
    make_voxceleb1(tmp_path)
    given = {"source": str(tmp_path), "output": str(tmp_path / "out")}
    paths = voxceleb1.prepare(voxceleb1.Config(**given))
    found = {s: rows(paths, s) for s in ("train", "valid", "test")}
    assert {s: len(x) for s, x in found.items()} == {"train": 18, "valid": 6, "test": 6}
    assert len({field_of(r, "speaker") for r in found["test"]}) == 6
    paths = voxceleb1.prepare(voxceleb1.Config(**given, task="verification"))
    train, test = ({field_of(r, "speaker") for r in rows(paths, s)} for s in ("train", "test"))
    assert test == {"id10005", "id10006"} and not train & test and len(train) == 4
    ids = {r["id"] for r in rows(paths, "test")}
    assert all(i in ids for t in read_trials(tmp_path / "veri_test.txt") for i in (t.enrol, t.test))


def test_fluent_speech_commands(tmp_path: Path) -> None:
    make_fluent_speech_commands(tmp_path)
    config = fluent_speech_commands.Config(source=str(tmp_path), output=str(tmp_path / "out"))
    row = rows(fluent_speech_commands.prepare(config), "test")[1]
    assert field_of(row, "intent") == "bring/shoes/none"
    assert field_of(row, "slots.location") == "none" and field_of(row, "speaker") == "c"
    assert field_of(row, "text") == "Words, and 1"


def test_iemocap(tmp_path: Path) -> None:
    make_iemocap(tmp_path)
    config = iemocap.Config(source=str(tmp_path), output=str(tmp_path / "out"))
    found = rows(iemocap.prepare(config), "all")
    assert len(found) == 5 * 10
    assert {field_of(r, "emotion") for r in found} == {"angry", "happy", "neutral", "sad"}
    texts = {r["id"]: field_of(r, "text") for r in found}
    assert texts["Ses01F_impro01_F000"] == "Excuse me."
    assert texts["Ses05F_impro01_M001"] == "It's not fair." and texts["Ses01F_impro01_F002"] is None
    # Two actors a session: no speaker of a tested session is trained on.
    assert len({field_of(r, "speaker") for r in found}) == 10
    for parts in fold_splits(found, 5, "session", []):
        speakers = {s: {field_of(r, "speaker") for r in x} for s, x in parts.items()}
        assert not speakers["test"] & (speakers["train"] | speakers["valid"])
        assert len(speakers["test"]) == 2
    every = iemocap.Config(source=str(tmp_path), output=str(tmp_path / "b"), four=False)
    assert len(rows(iemocap.prepare(every), "all")) == 5 * 12
    (tmp_path / "Session2/dialog/transcriptions/Ses02F_impro01.txt").unlink()
    found = rows(iemocap.prepare(every), "all")
    assert sum(field_of(r, "text") is not None for r in found) == 4 * 8


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (speech_commands, "validation_list.txt"),
        (voxceleb1, "/wav"),
        (fluent_speech_commands, "train_data.csv"),
        (iemocap, "Session1"),
    ],
)
def test_a_folder_of_something_else_is_named(module: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        module.prepare(module.Config(source=str(tmp_path), output=str(tmp_path / "out")))
