"""Corpora of SUPERB's further tasks on miniatures of their layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_superb_corpora import rows, write_wave

from speechssl.corpora import (
    audio_snips,
    kaldi_rttm,
    librimix,
    librispeech_phones,
    voicebank_demand,
)
from speechssl.data.fields import field_of
from speechssl.score.slots import tagged_slots
from speechssl.score.wer import normalise

LEXICON = """A  AH0
A  EY1
AND  AE1 N D
BOAT  B OW1 T
CALM  K AA1 M
LAY  L EY1
NEAR  N IH1 R
SEA  S IY1
SHORE  SH AO1 R
SMALL  S M AO1 L
THE  DH AH0
WAS  W AA1 Z
"""


def make_snips(source: Path) -> None:
    lines = ""
    for split, who in (("train", "Ivy"), ("train", "Joey"), ("valid", "Amy"), ("test", "Emma")):
        for take in range(3):
            name = f"{who}-snips-{split}-{take}"
            write_wave(source / split / f"{name}.wav", 0.8)
            lines += f"{name} BOS play all night in paris EOS\tO O song song O city GetMusic\n"
    write_wave(source / "train" / "Emma-snips-train-9.wav")  # of another split's speaker
    (source / "all.iob.snips.txt").write_text(lines)


def make_diarization(source: Path, audio: Path) -> None:
    for split in ("train", "dev", "test"):
        (source / split).mkdir(parents=True)
        wavs = rttm = ""
        for number in range(3):
            name = f"{split}{number}"
            path = audio / "Libri2Mix/wav16k/max" / split / f"{name}.wav"
            write_wave(path, 2.0)
            wavs += f"{name} {path.relative_to(audio) if number else path}\n"
            rttm += f"SPEAKER {name} 1 0.50 1.50 <NA> <NA> 61 <NA> <NA>\n"
            rttm += f"SPEAKER {name} 1 0.00 1.00 <NA> <NA> 84 <NA> <NA>\n"
        (source / split / "wav.scp").write_text(wavs)
        (source / split / "rttm").write_text(rttm)


def write_sum(folder: Path, name: str, mixed: str, parts: tuple[str, ...], seconds: float) -> None:
    """Sources, and their sum; with noise, where there is but one."""
    random = np.random.default_rng(len(name))
    waves = 0.1 * random.standard_normal((max(2, len(parts)), round(16000 * seconds)))
    for part, wave in ((mixed, waves.sum(0)), *zip(parts, waves)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / part / name, wave, 16000)


def make_librimix(source: Path) -> None:
    for chapter, part in enumerate(("train-100", "dev", "test")):
        for number in range(2):
            name = f"61-{chapter}-000{number}_84-9-000{number}.wav"
            write_sum(source / "wav16k/min" / part, name, "mix_clean", ("s1", "s2"), 1.2)


def make_voicebank(source: Path) -> None:
    for part, speakers in (("trainset_28spk", ("p226", "p227", "p228")), ("testset", ("p232",))):
        for who in speakers:
            for number in (1, 2):
                write_sum(source, f"{who}_00{number}.wav", f"noisy_{part}_wav",
                          (f"clean_{part}_wav",), 0.8)  # fmt: skip


def test_phones_are_letters_that_scoring_leaves_apart(tmp_path: Path) -> None:
    letters = librispeech_phones.LETTERS
    assert len(letters) == len(set(letters.values())) == 69
    for letter in letters.values():
        assert normalise(letter) == letter == letter.upper() == letter.lower()
    chapter = tmp_path / "LibriSpeech/dev-clean/84/1"
    write_wave(chapter / "84-1-0000.flac")
    write_wave(chapter / "84-1-0001.flac")
    (chapter / "84-1.trans.txt").write_text("84-1-0000 THE SEA\n84-1-0001 A WHALE\n")
    (tmp_path / "lexicon.txt").write_text(LEXICON)
    given = {"source": str(tmp_path), "output": str(tmp_path / "out")}
    lexicon = [str(tmp_path / "lexicon.txt")]
    config = librispeech_phones.Config(**given, lexicon=lexicon, max_missing_fraction=0.6)
    (row,) = rows(librispeech_phones.prepare(config), "dev-clean")
    table = json.loads((tmp_path / "out/phones.json").read_text())
    assert [table[x] for x in field_of(row, "text")] == ["DH", "AH0", "S", "IY1"]
    assert field_of(row, "words") == "THE SEA" and not (tmp_path / "out/words").exists()
    assert "not in the lexicon: WHALE" in (tmp_path / "out/missing.txt").read_text()
    assert table[librispeech_phones.read_lexicon(lexicon)["A"]] == "AH0"
    with pytest.raises(ValueError, match="1 of 2 files missing"):
        librispeech_phones.prepare(librispeech_phones.Config(**given, lexicon=lexicon))
    (tmp_path / "lexicon.txt").write_text("SEA  S IY\n")
    with pytest.raises(ValueError, match="found 'IY' in the phones of 'SEA'"):
        librispeech_phones.read_lexicon(lexicon)
    with pytest.raises(ValueError, match=r"openslr\.org"):
        librispeech_phones.read_lexicon([str(tmp_path / "none.txt")])


def test_slots_become_short_tags(tmp_path: Path) -> None:
    make_snips(tmp_path)
    config = audio_snips.Config(source=str(tmp_path), output=str(tmp_path / "out"))
    paths = audio_snips.prepare(config)
    found = {s: rows(paths, s) for s in ("train", "valid", "test")}
    assert {s: len(x) for s, x in found.items()} == {"train": 6, "valid": 3, "test": 3}
    assert {field_of(r, "speaker") for r in found["train"]} == {"Ivy", "Joey"}
    text = str(field_of(found["test"][0], "text"))
    assert text == "play <b> all night </b> in <a> paris </a>"
    names = json.loads((tmp_path / "out/slots.json").read_text())
    slots = [(names[slot], value) for slot, value in tagged_slots(text)]
    assert slots == [("song", "all night"), ("city", "paris")]
    assert len(set(audio_snips.NAMES.lower())) == len(audio_snips.NAMES) >= 39
    for name in audio_snips.NAMES:
        assert tagged_slots(f"<{name}> x </{name}>") == [(name, "x")]
    (tmp_path / "all.iob.snips.txt").write_text("Ivy-1 BOS a EOS\tO O\n")
    with pytest.raises(ValueError, match="a slot or O for each word"):
        audio_snips.prepare(config)


def test_turns_of_kaldi_folders_become_supervisions(tmp_path: Path) -> None:
    make_diarization(tmp_path / "sd", tmp_path)
    given = {"source": str(tmp_path / "sd"), "output": str(tmp_path / "out")}
    paths = kaldi_rttm.prepare(kaldi_rttm.Config(**given, audio=str(tmp_path)))
    assert sorted(paths) == ["test", "train", "valid"]
    row = rows(paths, "valid")[1]
    turns = [(s["speaker"], s["start"], s["duration"]) for s in row["supervisions"]]
    assert row["id"] == "dev1" and turns == [("84", 0.0, 1.0), ("61", 0.5, 1.5)]
    assert len({s["id"] for s in row["supervisions"]}) == 2
    (tmp_path / "sd/dev/rttm").write_text("SPEAKER dev0 1 zero 1.0 <NA> <NA> 61\n")
    with pytest.raises(ValueError, match="found 'SPEAKER dev0 1 zero"):
        kaldi_rttm.prepare(kaldi_rttm.Config(**given, audio=str(tmp_path)))
    (tmp_path / "sd/train/wav.scp").write_text("train0 sox x.flac -t wav - |\n")
    with pytest.raises(ValueError, match="found the command"):
        kaldi_rttm.prepare(kaldi_rttm.Config(**given))


def wave_of(row: dict[str, Any]) -> np.ndarray:
    return soundfile.read(row["recording"]["sources"][0]["source"])[0]


def test_mixtures_name_their_sources(tmp_path: Path) -> None:
    make_librimix(tmp_path)
    paths = librimix.prepare(librimix.Config(source=str(tmp_path), output=str(tmp_path / "out")))
    train, test = rows(paths, "train"), rows(paths, "test")
    assert len(train) == 4 and {field_of(r, "speaker") for r in train} == {"61", "84"}
    # What is beside the source in its mixture is the other one of its pair.
    mixtures = {field_of(r, "mixture_of"): wave_of(r) for r in rows(paths, "mixtures")}
    waves = {}
    for row in train + rows(paths, "valid"):
        waves[row["id"]] = wave_of(row)
    assert mixtures.keys() == waves.keys() and len(waves) == 8
    for name, wave in waves.items():
        other = name[:-1] + {"1": "2", "2": "1"}[name[-1]]
        assert np.abs(mixtures[name] - wave - waves[other]).max() < 1e-3 < np.abs(wave).max()
    for row in test:
        sources = row["supervisions"][0]["custom"]["sources"]
        waves = [soundfile.read(p)[0] for p in (*sources, row["recording"]["sources"][0]["source"])]
        assert len(sources) == 2 and np.abs(waves[0] + waves[1] - waves[2]).max() < 1e-3


@pytest.mark.parametrize("suffix", ["", "_16k"])
def test_noise_is_what_was_added_to_clean_speech(suffix: str, tmp_path: Path) -> None:
    make_voicebank(tmp_path)
    for folder in list(tmp_path.iterdir()):
        folder.rename(folder.with_name(folder.name + suffix))
    config = voicebank_demand.Config(source=str(tmp_path), output=str(tmp_path / "out"))
    paths = voicebank_demand.prepare(config)
    found = {s: rows(paths, s) for s in ("train", "valid", "noise", "test")}
    assert {s: len(x) for s, x in found.items()} == {"train": 4, "valid": 2, "noise": 4, "test": 2}
    assert {field_of(r, "speaker") for r in found["valid"]} == {"p226"}
    noisy_ones = {
        field_of(r, "mixture_of"): r["recording"]["sources"][0]["source"]
        for r in rows(paths, "mixtures")
    }
    assert noisy_ones.keys() == {r["id"] for r in found["train"] + found["valid"]}
    assert all(f"noisy_trainset_28spk_wav{suffix}/{i}.wav" in p for i, p in noisy_ones.items())
    row = found["test"][0]
    assert "noisy_testset" in row["recording"]["sources"][0]["source"]
    (clean,) = row["supervisions"][0]["custom"]["sources"]
    assert f"clean_testset_wav{suffix}/" in clean
    noise = soundfile.read(tmp_path / "out/noise/p227_001.flac")[0]
    noisy, clean = (
        soundfile.read(tmp_path / f"{k}_trainset_28spk_wav{suffix}/p227_001.wav")[0]
        for k in ("noisy", "clean")
    )
    assert np.abs(noisy - clean - noise).max() < 1e-3 < 0.05 < np.abs(noise).max()


def test_other_rates_are_refused(tmp_path: Path) -> None:
    make_voicebank(tmp_path)
    path = tmp_path / "clean_trainset_28spk_wav/p226_001.wav"
    soundfile.write(path, np.zeros(4800), 48000)
    config = voicebank_demand.Config(source=str(tmp_path), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="found 48000 Hz"):
        voicebank_demand.prepare(config)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (audio_snips, "all.iob.snips.txt"),
        (kaldi_rttm, "train/rttm"),
        (librimix, "github.com/JorisCos/LibriMix"),
        (voicebank_demand, "datashare.ed.ac.uk"),
    ],
)
def test_a_folder_of_something_else_is_named(module: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        module.prepare(module.Config(source=str(tmp_path), output=str(tmp_path / "out")))
