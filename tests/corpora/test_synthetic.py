"""The synthetic corpus: determinism, disjoint splits, true alignments, continuation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, validate

pytest.importorskip("espeakng_loader")

from speechssl.corpora.espeak import PAUSE, Prosody, Synthesiser, unload
from speechssl.corpora.manifest import read_rows
from speechssl.corpora.synthetic import (
    Config,
    fingerprint,
    prepare,
    split_speakers,
)
from speechssl.corpora.synthetic_speakers import make_speakers

SMALL = {"utterances": 90, "speakers": 15, "jobs": 1, "heldout_languages": ["it"]}
LANGUAGES = ["en-us", "de", "es"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    prepare(Config(output=str(folder), languages=LANGUAGES, **SMALL))
    return folder


@pytest.fixture(scope="module")
def synthesiser() -> Iterator[Synthesiser]:
    yield Synthesiser()
    unload()


def _rows(folder: Path) -> dict[str, list[dict]]:
    return {
        path.name.removeprefix("cuts_").removesuffix(".jsonl.gz"): list(read_rows(path))
        for path in sorted(folder.glob("cuts_*.jsonl.gz"))
    }


def _audio(folder: Path) -> dict[str, bytes]:
    files = sorted((folder / "audio").rglob("*.flac"))
    return {
        str(p.relative_to(folder)): soundfile.read(p, dtype="int16")[0].tobytes() for p in files
    }


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_women_and_men_take_turns_in_each_language(count: int) -> None:
    languages = [f"language{n}" for n in range(count)]
    variants = {f"w{n}": "female" for n in range(9)} | {f"m{n}": "male" for n in range(9)}
    speakers = make_speakers(
        {"train": 4 * count}, {"train": languages}, variants, seed=1, reverb=False
    )
    for language in languages:
        genders = [s.gender for s in speakers if s.language == language]
        assert sorted(genders) == ["female", "female", "male", "male"]
        assert all(a != b for a, b in pairwise(genders))


def test_an_utterance_does_not_depend_on_what_was_spoken_before(synthesiser: Synthesiser) -> None:
    def speak(text: str, voice: str) -> bytes:
        return synthesiser.speak(text, voice=voice, prosody=Prosody(), seed=3).wave.tobytes()

    first = speak("where is the station", "en-us+f2")
    for other in ("de+m3", "fr+klatt3", "es+Alicia"):
        speak("other words before it", other)
    assert speak("where is the station", "en-us+f2") == first


@pytest.mark.parametrize("language", ["en-us", "en-gb", "fr-fr", "es-419", "de", "en-gb-scotland"])
def test_regions_are_spoken_by_their_tags(synthesiser: Synthesiser, language: str) -> None:
    voice = synthesiser.voice(language, "f2")
    assert len(synthesiser.speak("one", voice=voice, prosody=Prosody(), seed=0).wave) > 4000


def test_an_unknown_region_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    config = Config(output=str(tmp_path), utterances=3, speakers=3, languages=["en-xx"])
    with pytest.raises(ValueError, match=r"'en-xx'.*en-gb.*en-us"):
        prepare(config)


def test_a_library_held_by_others_is_warned_of(synthesiser: Synthesiser) -> None:
    import _ctypes
    import ctypes

    import espeakng_loader

    synthesiser.speak("a", voice="de", prosody=Prosody(), seed=3)
    other = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    with pytest.warns(UserWarning, match="stays loaded"):
        unload()
    _ctypes.dlclose(other._handle)


def test_phones_cover_the_audio_and_pauses_are_quiet(synthesiser: Synthesiser) -> None:
    for voice, text in (
        ("en-us+f2", "i would like a ticket to boston, on monday, please"),
        ("de+m3", "wo fährt der zug nach münchen ab, bitte?"),
        ("fr+m1", "je voudrais un billet pour lyon, lundi, s'il vous plaît"),
    ):
        speech = synthesiser.speak(text, voice=voice, prosody=Prosody(), seed=1)
        marks = speech.phones
        assert marks[0].start == 0 and marks[-1].end == len(speech.wave)
        assert all(a.end == b.start for a, b in pairwise(marks))
        assert all(mark.end > mark.start for mark in marks)

        def level(part: np.ndarray) -> float:
            return float(np.sqrt(np.mean(np.square(part.astype(np.float64)))))

        everything = level(speech.wave)
        inner = [m for m in marks[1:-1] if m.symbol == PAUSE and m.end - m.start > 2000]
        assert inner, "a comma should give a pause"
        assert all(level(speech.wave[m.start : m.end]) < 0.1 * everything for m in inner)
        vowels = [m for m in marks if m.symbol[0] in "aeiouɑɔɛɪʊ"]
        assert np.median([level(speech.wave[m.start : m.end]) for m in vowels]) > 0.5 * everything


def test_word_marks_are_the_tokens_in_order(synthesiser: Synthesiser) -> None:
    text = "ich hätte gern, für müller, zwei fahrkarten"
    words = synthesiser.speak(text, voice="de", prosody=Prosody(), seed=1).words
    assert " ".join(mark.symbol for mark in words) == text
    assert all(a.end <= b.start for a, b in pairwise(words))


def test_an_unknown_voice_is_an_error_that_names_it(synthesiser: Synthesiser) -> None:
    with pytest.raises(ValueError, match="'no-such-voice'"):
        synthesiser.speak("a", voice="no-such-voice", prosody=Prosody(), seed=0)


def test_cuts_are_valid_and_alignments_lie_within_the_audio_in_order(corpus: Path) -> None:
    for split in ("train", "valid", "test", "test_languages"):
        for cut in CutSet.from_file(corpus / f"cuts_{split}.jsonl.gz"):
            validate(cut)
            wave = cut.load_audio()
            assert wave.shape == (1, cut.num_samples) and cut.sampling_rate == 16000
            assert np.abs(wave).max() < 1.0 and np.sqrt(np.mean(wave**2)) > 0.005
            only = cut.supervisions[0]
            phones, words = only.alignment["phone"], only.alignment["word"]
            assert phones[0].start == 0 and phones[-1].end == pytest.approx(cut.duration, abs=1e-3)
            for a, b in pairwise(phones):
                assert b.start == pytest.approx(a.end, abs=1e-4)
            assert all(b.start >= a.end - 1e-4 for a, b in pairwise(words))
            assert words[-1].end <= cut.duration
            assert " ".join(item.symbol for item in words) == only.text
            assert {"theme", "intent", "slots", "emotion", "corpus"} <= set(only.custom)


def test_pauses_of_the_recordings_are_quieter_than_their_speech(corpus: Path) -> None:
    differences = []
    for cut in CutSet.from_file(corpus / "cuts_train.jsonl.gz"):
        wave = cut.load_audio()[0]
        power = {True: [], False: []}
        for item in cut.supervisions[0].alignment["phone"]:
            first, last = round(item.start * 16000), round(item.end * 16000)
            power[item.symbol == PAUSE].append(np.mean(wave[first:last] ** 2))
        differences.append(10 * np.log10(np.mean(power[False]) / np.mean(power[True])))
    assert np.percentile(differences, 5) > 8


def test_splits_share_no_speaker_no_voice_and_no_sentence(corpus: Path) -> None:
    rows = _rows(corpus)
    seen: dict[str, list[set]] = {"speaker": [], "variant": [], "text": []}
    for split, cuts in rows.items():
        only = [cut["supervisions"][0] for cut in cuts]
        seen["speaker"].append({s["speaker"] for s in only})
        seen["variant"].append({s["custom"]["variant"] for s in only})
        seen["text"].append({(s["language"].split("-")[0], s["text"]) for s in only})
        languages = {s["language"] for s in only}
        assert languages == ({"it"} if split == "test_languages" else set(LANGUAGES))
    for kind, sets in seen.items():
        assert sum(map(len, sets)) == len(set().union(*sets)), kind


def test_both_genders_and_several_moods_occur(corpus: Path) -> None:
    only = [cut["supervisions"][0] for cut in _rows(corpus)["train"]]
    assert {s["gender"] for s in only} == {"female", "male"}
    assert len({s["custom"]["emotion"] for s in only}) >= 4


def test_the_corpus_is_the_same_under_several_processes_and_continues_a_smaller_one(
    corpus: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "languages": LANGUAGES, "output": str(tmp_path)}
    prepare(Config(**{**options, "utterances": 40}))
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "audio").rglob("*-train-*.flac")}
    prepare(Config(**{**options, "jobs": 2}))
    assert first  # utterances of unfinished blocks are made again, the same
    assert _audio(tmp_path) == _audio(corpus)
    for split, rows in _rows(corpus).items():
        assert fingerprint(rows) == fingerprint(_rows(tmp_path)[split]), split


def test_another_seed_gives_other_audio_and_other_speakers(corpus: Path, tmp_path: Path) -> None:
    prepare(
        Config(output=str(tmp_path), languages=LANGUAGES, **{**SMALL, "utterances": 10}, seed=1)
    )
    assert not set(_audio(tmp_path).values()) & set(_audio(corpus).values())


def test_a_rerun_keeps_finished_files_and_repairs_missing_ones(
    corpus: Path, tmp_path: Path
) -> None:
    options = {"output": str(tmp_path), "languages": ["en-us"], "speakers": 3, "jobs": 1}
    config = Config(utterances=60, **options)
    prepare(config)
    before = _audio(tmp_path)
    files = sorted((tmp_path / "audio/train").rglob("*.flac"))
    assert len(files) == 48  # a whole block of 32 and a part of one
    files[-1].unlink()
    times = {path: path.stat().st_mtime_ns for path in files[:-1]}
    prepare(config)
    assert _audio(tmp_path) == before
    assert [p for p in files[:32] if p.stat().st_mtime_ns != times[p]] == []


def test_a_run_that_was_killed_is_continued_with_what_it_had(tmp_path: Path) -> None:
    import subprocess
    import sys
    import time

    options = {"utterances": 110, "languages": ["en-us"], "speakers": 3, "jobs": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code = "from speechssl.bin.synth import main; main(%r)"
    argv = ["--utterances", "110", "--languages", "[en-us]", "--speakers", "3", "--jobs", "1"]
    process = subprocess.Popen([sys.executable, "-c", code % [*argv, "--output", str(cut)]])
    until = time.monotonic() + 60
    while len(list(cut.glob("parts/*.jsonl"))) < 1 and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cut.glob("parts/*.jsonl")}
    assert 1 <= len(kept) < 5
    assert not list(cut.glob("cuts_*"))
    prepare(Config(output=str(cut), **options))
    prepare(Config(output=str(whole), **options))
    assert _audio(cut) == _audio(whole)
    assert not list(cut.rglob("*.tmp"))
    for path, time_ns in kept.items():
        assert path.stat().st_mtime_ns == time_ns


def test_other_options_for_the_same_folder_are_refused(tmp_path: Path) -> None:
    config = Config(
        output=str(tmp_path), utterances=3, speakers=3, languages=["en-us"], jobs=1, snr_db=[]
    )
    prepare(config)
    with pytest.raises(ValueError, match="other options"):
        prepare(dataclasses.replace(config, seed=5))


def test_hours_are_met_and_shares_kept(tmp_path: Path) -> None:
    config = Config(
        output=str(tmp_path), hours=0.05, speakers=3, languages=["en-us"], jobs=1, themes=["home"]
    )
    prepare(config)
    rows = _rows(tmp_path)
    seconds = {split: sum(row["duration"] for row in cuts) for split, cuts in rows.items()}
    assert 180 <= sum(seconds.values()) < 195
    assert 18 <= seconds["test"] < 23
    themes = {row["supervisions"][0]["custom"]["theme"] for cuts in rows.values() for row in cuts}
    assert themes == {"home"}


def test_splits_have_speakers_of_every_language_where_there_are_enough() -> None:
    assert split_speakers(Config(output="x")) == {"train": 42, "valid": 9, "test": 9}
    assert split_speakers(Config(output="x", speakers=20)) == {"train": 10, "valid": 5, "test": 5}
    assert sum(split_speakers(Config(output="x", speakers=3)).values()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["xx"]}, "'xx'"),
        ({"languages": []}, "languages: found none"),
        ({"heldout_languages": ["en-gb"]}, "heldout_languages: found en"),
        ({"themes": ["sport"]}, "themes: found sport"),
        ({"emotions": ["bored"]}, "emotions: found bored"),
        ({"speakers": 2}, "speakers: found 2"),
        ({"snr_db": [20.0, 10.0]}, "snr_db"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(output="x", **options)


def test_parallel_sentences_are_said_by_all_speakers_of_a_language(tmp_path: Path) -> None:
    options = {"languages": ["en-us", "es"], "speakers": 8, "jobs": 1, "parallel": True}
    prepare(Config(output=str(tmp_path / "a"), utterances=50, **options))
    for rows in _rows(tmp_path / "a").values():
        spoken: dict[tuple[str, int], list[dict]] = {}
        for row in rows:
            only = row["supervisions"][0]
            spoken.setdefault((only["language"], only["custom"]["sentence"]), []).append(only)
        for group in spoken.values():
            said = {(s["text"], s["custom"]["emotion"]) for s in group}
            assert len(said) == 1
            assert len({s["speaker"] for s in group}) == len(group)
    train = [r["supervisions"][0] for r in _rows(tmp_path / "a")["train"]]
    english = {s["speaker"] for s in train if s["language"] == "en-us"}
    first = [s for s in train if s["language"] == "en-us" and s["custom"]["sentence"] == 0]
    assert len(first) == len(english) == 2
    assert len({s["text"] for s in train if s["speaker"] == min(english)}) > 3
    # A longer corpus begins with the same; without the option it is another one.
    prepare(Config(output=str(tmp_path / "b"), utterances=70, **options))
    shorter, longer = _rows(tmp_path / "a")["train"], _rows(tmp_path / "b")["train"]
    assert fingerprint(longer[: len(shorter)]) == fingerprint(shorter)
    with pytest.raises(ValueError, match="other options"):
        prepare(Config(output=str(tmp_path / "a"), utterances=50, **options | {"parallel": False}))


def test_a_corpus_from_before_there_were_parallel_sentences_is_continued(tmp_path: Path) -> None:
    config = Config(output=str(tmp_path), utterances=3, speakers=3, languages=["en-us"], jobs=1)
    prepare(config)
    assert "parallel" not in (tmp_path / "synthetic.json").read_text()
    rows = _rows(tmp_path)
    assert all("sentence" not in r["supervisions"][0]["custom"] for x in rows.values() for r in x)
