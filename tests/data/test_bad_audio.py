from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_corpus import make_audio, make_cut, write_cuts

from speechssl.contract import IGNORE, Update
from speechssl.data.config import DataConfig, MixingConfig
from speechssl.data.index import record_from_cut
from speechssl.data.label_store import LabelWriter
from speechssl.data.loader import CutSource, open_source, read_all
from speechssl.data.reader import AudioError, Conversions, read_part


@pytest.fixture
def good(tmp_path: Path) -> list[dict]:
    for i in range(4):
        make_audio(tmp_path / f"good{i}.flac", 1.0, i)
    return [make_cut(f"good{i}", tmp_path / f"good{i}.flac", 1.0) for i in range(4)]


def _bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.flac"
    if kind == "missing":
        return path
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "no_samples":
        path = path.with_suffix(".wav")
        soundfile.write(path, np.zeros(0, np.float32), 16000)
    elif kind == "garbage":
        path.write_bytes(b"not audio at all" * 50)
    elif kind == "truncated":
        make_audio(path, 1.0, 9)
        path.write_bytes(path.read_bytes()[:6000])
    elif kind == "shorter_than_manifest":
        make_audio(path, 0.6, 9)
    elif kind == "not_finite":
        path = path.with_suffix(".wav")
        soundfile.write(path, np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    return path


KINDS = {
    "missing": "no such file",
    "empty": "cannot be decoded",
    "no_samples": "no samples",
    "garbage": "cannot be decoded",
    "truncated": "bad|decoded|manifest says",
    "shorter_than_manifest": r"found 0\.60 s of audio .* the manifest says 1\.00 s",
    "not_finite": "not finite",
}


def _updates(folder: Path, cuts: list[dict], count: int, **options: object):
    values = {"batch_seconds": 10.0, "max_batch_seconds": 20.0, "num_workers": 0}
    values |= {"max_unreadable": 1.0}
    train = [write_cuts(folder / "cuts_t.jsonl.gz", cuts)]
    config = DataConfig(train=train, **{**values, **options})  # pyright: ignore
    source = open_source(config, hop_samples=320, split="train")
    return source, list(itertools.islice(source.updates(), count))


def _one(folder: Path, cuts: list[dict], **options: object) -> tuple[CutSource, Update]:
    source, updates = _updates(folder, cuts, 1, **options)
    return source, updates[0]


@pytest.mark.parametrize("kind", KINDS)
def test_unusable_audio_is_skipped_named_and_counted(
    tmp_path: Path, good: list[dict], kind: str
) -> None:
    bad = make_cut("bad", _bad_file(tmp_path, kind), 1.0)
    with pytest.raises(AudioError, match=KINDS[kind]):
        read_part(record_from_cut(bad), 0, 16000)
    mixing = MixingConfig(probability=1.0)
    source, update = _one(tmp_path, [*good, bad], mixing=mixing)
    assert sorted(n for b in update.batches for n in b.ids) == [c["id"] for c in good]
    assert len(update.skipped) == 1 and update.skipped[0].startswith("bad: ")
    assert (source.counter.num_read, source.counter.num_skipped) == (4, 1)
    batches = read_all([str(tmp_path / "cuts_t.jsonl.gz")], max_batch_seconds=10)
    assert sum(len(b) for b in batches) == 4 and batches.skipped[0].startswith("bad: ")


def test_a_batch_with_nothing_usable_becomes_a_filler(tmp_path: Path) -> None:
    bad = [make_cut(f"bad{i}", tmp_path / "none.flac", 1.0) for i in range(3)]
    _, update = _one(tmp_path, bad, mixing=MixingConfig())
    assert [b.filler for b in update.batches] == [True] and len(update.skipped) == 3
    assert update.batches[0].views["mixed"].isfinite().all()


def test_a_run_that_can_use_too_little_stops_and_says_why(tmp_path: Path, good: list[dict]) -> None:
    bad = make_cut("bad", tmp_path / "none.flac", 1.0)
    with pytest.raises(ValueError, match=r"max_unreadable.*want at most 5.0%.*no such file"):
        _updates(tmp_path, [*good, bad], 200, max_unreadable=0.05)
    _updates(tmp_path, [*good, bad], 100, max_unreadable=0.3)


def test_8_khz_stereo_becomes_16_khz_mono_with_a_notice(
    tmp_path: Path, good: list[dict], caplog: pytest.LogCaptureFixture
) -> None:
    time = np.arange(8000) / 8000
    left, right = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 1000 * time)
    path = tmp_path / "phone.wav"
    soundfile.write(path, 0.3 * np.stack([left, right], 1), 8000, subtype="FLOAT")
    cut = make_cut("phone", path, 1.0)
    cut["recording"] |= {"sampling_rate": 8000, "num_samples": 8000}
    wanted = 0.15 * sum(np.sin(2 * np.pi * f * np.arange(16000) / 16000) for f in (440, 1000))
    wave = read_part(record_from_cut(cut), 0, 16000)
    assert len(wave) == 16000 and np.abs(wave - wanted)[200:-200].max() < 2e-3
    # A part of it is the same part of the whole, up to the resampling filter's edges.
    part = read_part(record_from_cut(cut), 3200, 6400)
    assert len(part) == 6400 and np.abs(part - wave[3200:9600])[:-200].max() < 2e-3
    with caplog.at_level("INFO"):
        source, updates = _updates(tmp_path, [*good, cut], 3)
    assert source.counter.conversions == {"resampling from 8000 Hz": 3, "the mean of 2 channels": 3}
    assert sum("resampling from 8000 Hz" in r.message for r in caplog.records) == 1
    assert "phone" in updates[0].batches[0].ids


def test_one_channel_is_taken_where_the_cut_names_one(tmp_path: Path) -> None:
    audio = np.stack([np.full(16000, 0.25), np.full(16000, -0.5)], 1)
    soundfile.write(tmp_path / "two.wav", audio, 16000, subtype="FLOAT")
    cut = make_cut("two", tmp_path / "two.wav", 1.0)
    cut["recording"]["channel_ids"] = [0, 1]
    cut["channel"] = 1
    notes = Conversions()
    wave = read_part(record_from_cut(cut), 0, 16000, conversions=notes)
    assert (wave == -0.5).all() and not notes.counts


def test_cuts_that_are_not_one_file_are_read_by_lhotse(tmp_path: Path, good: list[dict]) -> None:
    from lhotse import CutSet

    path = write_cuts(tmp_path / "cuts_plain.jsonl.gz", good)
    first, second, *_ = CutSet.from_file(path)
    joined = first.append(second).with_id("joined")
    CutSet.from_cuts([joined]).to_file(tmp_path / "cuts_joined.jsonl.gz")
    batch = next(read_all([str(tmp_path / "cuts_joined.jsonl.gz")], max_batch_seconds=10))
    assert np.allclose(batch.wave[0].numpy(), joined.load_audio()[0], atol=1e-6)


def test_audio_shorter_than_a_frame_does_not_end_a_pass(tmp_path: Path, good: list[dict]) -> None:
    make_audio(tmp_path / "short.flac", 0.01, 8)
    cuts = [*good, make_cut("short", tmp_path / "short.flac", 0.01)]
    source, update = _one(tmp_path, cuts, min_seconds=0.1)
    assert all("short" not in b.ids for b in update.batches) and not update.skipped
    assert source._sampler is not None and source._sampler.counts["too_short"] == 1
    names = [n for b in read_all(source.config.train, max_batch_seconds=10) for n in b.ids]
    assert "short" in names


@pytest.mark.parametrize(("frames", "used"), [(44, False), (46, True), (54, True), (56, False)])
def test_labels_off_by_more_than_a_tenth_of_a_second_are_refused(
    tmp_path: Path, good: list[dict], frames: int, used: bool
) -> None:
    writer = LabelWriter(tmp_path / "km", {"classes": 9, "frame_rate_hz": 50})
    for cut in good[:3]:
        writer.add(cut["id"], [1] * 50)
    writer.add("good3", [1] * frames)
    writer.finish()
    _, update = _one(tmp_path, good, labels={"km": str(tmp_path / "km")})
    assert any("good3" in b.ids for b in update.batches) == used
    if not used:
        assert f"found {frames / 50:.2f} s of labels" in update.skipped[0]
        assert "for 1.00 s of audio" in update.skipped[0]


def test_an_utterance_without_labels_or_transcript_is_skipped_by_name(
    tmp_path: Path, good: list[dict]
) -> None:
    from speechssl.data.text import tokenizer_from_texts

    writer = LabelWriter(tmp_path / "km", {"classes": 9, "frame_rate_hz": 50})
    for cut in good[:3]:
        writer.add(cut["id"], [1] * 50)
    writer.finish()
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer_from_texts(["AB"]).save(tokenizer)
    del good[0]["supervisions"][0]["text"]
    good[1]["supervisions"][0]["text"] = "A?B Ω"
    options = {
        "labels": {"km": str(tmp_path / "km")},
        "tokenizer": str(tokenizer),
    }
    _, update = _one(tmp_path, good, **options)
    reasons = dict(s.split(": ", 1) for s in update.skipped)
    assert reasons.keys() == {"good0", "good1", "good3"}
    assert "no transcript" in reasons["good0"] and "Ω" in reasons["good1"]
    assert "none for 'good3'" in reasons["good3"]
    _, update = _one(tmp_path, good, **options, untranscribed="keep")
    (batch,) = update.batches
    own = dict(zip(batch.ids, batch.targets["text_lengths"].tolist(), strict=True))
    assert own == {"good0": 0, "good2": 2} and len(batch.targets["text"]) == 2
    assert sorted(s.split(": ")[0] for s in update.skipped) == ["good1", "good3"]


def test_labels_of_a_recording_serve_its_cuts_at_their_time(
    tmp_path: Path, good: list[dict]
) -> None:
    cut = good[0]
    cut |= {"id": "segment", "start": 0.4, "duration": 0.5}
    writer = LabelWriter(tmp_path / "km", {"classes": 99, "frame_rate_hz": 50})
    writer.add("good0", range(50))
    writer.finish()
    _, update = _one(tmp_path, [cut], labels={"km": str(tmp_path / "km")})
    assert update.batches[0].targets["km"].tolist() == [[*range(20, 45), IGNORE]]
