"""`speechssl check`: every kind of bad input is named, and the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from speechssl.bin.check import BAD, CheckConfig, main, run, table
from speechssl.corpora.manifest import AudioHeader, CutsWriter, cut_row, read_header, read_rows


def _noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.3, 0.3, (samples, channels)).astype(np.float32)


class Corpus:
    """Rows in a manifest, written by `save`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict] = []

    def add(
        self, id: str, wave: np.ndarray, rate: int = 16000, kind: str = "flac", **row: object
    ) -> Path:
        path = self.folder / f"{id}.{kind}"
        soundfile.write(path, wave, rate, subtype="FLOAT" if kind == "wav" else None)
        header = read_header(path)
        self.rows.append(cut_row(id=id, audio=path, header=header, text="a b", **row))
        return path

    def save(self) -> str:
        path = self.folder / "cuts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        return str(path)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    made = Corpus(tmp_path)
    for index in range(3):
        made.add(f"good{index}", _noise(16000, seed=index))
    return made


def _check(corpus: Corpus, **options: object) -> dict:
    config = CheckConfig(
        cuts=corpus.save(),
        output=str(corpus.folder / "clean.jsonl.gz"),
        report=str(corpus.folder / "report.json"),
        jobs=1,
        **options,
    )
    report = run(config)
    assert json.loads((corpus.folder / "report.json").read_text()) == report
    return report


def _bad(report: dict) -> dict[str, set[str]]:
    return {entry["id"]: set(entry) & set(BAD) for entry in report["bad"]}


def _clean(corpus: Corpus) -> list[str]:
    return [row["id"] for row in read_rows(corpus.folder / "clean.jsonl.gz")]


def test_good_cuts_pass_unchanged(corpus: Corpus) -> None:
    report = _check(corpus)
    assert report["bad"] == report["noted"] == []
    assert list(read_rows(corpus.folder / "clean.jsonl.gz")) == corpus.rows
    assert report["clean_hours"] == pytest.approx(3 / 3600)


def test_corrupt_truncated_empty_and_missing_files_are_named(corpus: Corpus) -> None:
    corpus.add("garbage", _noise(16000)).write_bytes(b"fLaC" + b"garbage" * 100)
    torn = corpus.add("torn", _noise(160000))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    corpus.add("zero", _noise(16000)).write_bytes(b"")
    corpus.add("gone", _noise(16000)).unlink()
    damaged = corpus.add("damaged", _noise(160000))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    damaged.write_bytes(bytes(data))
    found = _bad(_check(corpus))
    assert found == {
        "garbage": {"broken"},
        "torn": {"broken"},
        "zero": {"empty"},
        "gone": {"missing"},
        "damaged": {"broken"},
    }
    assert _clean(corpus) == ["good0", "good1", "good2"]


def test_a_file_without_samples_is_empty(corpus: Corpus) -> None:
    path = corpus.add("none", _noise(100), kind="wav")
    soundfile.write(path, np.zeros(0, np.float32), 16000)
    assert _bad(_check(corpus)) == {"none": {"empty"}}


def test_short_silent_and_non_finite_audio_is_bad(corpus: Corpus) -> None:
    corpus.add("short", _noise(399))
    corpus.add("enough", _noise(400))
    corpus.add("silent", np.zeros((16000, 1), np.float32))
    wave = _noise(16000)
    wave[77] = np.nan
    corpus.add("nan", wave, kind="wav")
    found = _bad(_check(corpus))
    assert found == {"short": {"too_short"}, "silent": {"silent"}, "nan": {"not_finite"}}
    assert "enough" in _clean(corpus)


def test_a_short_sound_in_a_long_silence_is_not_silent(corpus: Corpus) -> None:
    wave = np.zeros((160000, 1), np.float32)
    wave[4000:4100] = _noise(100) / 50
    corpus.add("click", wave)
    assert _bad(_check(corpus)) == {}


def test_8_khz_stereo_and_clipping_are_kept_with_a_note(corpus: Corpus) -> None:
    corpus.add("phone", _noise(8000, channels=2), rate=8000)
    corpus.add("loud", np.clip(_noise(16000) * 10, -1, 1))
    report = _check(corpus)
    assert report["bad"] == []
    assert {entry["id"]: set(entry) - {"id", "audio"} for entry in report["noted"]} == {
        "phone": {"rate", "channels"},
        "loud": {"clipped"},
    }
    assert {"phone", "loud"} <= set(_clean(corpus))
    assert "another sampling rate" in table(report)


def test_a_short_8_khz_file_is_measured_by_its_length_at_16_khz(corpus: Corpus) -> None:
    corpus.add("fine", _noise(200), rate=8000)
    corpus.add("short", _noise(199), rate=8000)
    assert _bad(_check(corpus)) == {"short": {"too_short"}}


def test_a_manifest_of_another_length_than_the_file_is_bad(corpus: Corpus) -> None:
    for id, stated in (("longer", 20000), ("shorter", 12000), ("near", 16100)):
        path = corpus.add(id, _noise(16000))
        header = AudioHeader(stated, 16000, 1)
        corpus.rows[-1] = cut_row(id=id, audio=path, header=header, text="a")
    assert _bad(_check(corpus)) == {"longer": {"duration"}, "shorter": {"duration"}}


def test_only_the_cut_of_a_long_recording_is_judged(corpus: Corpus) -> None:
    wave = _noise(48000)
    wave[16000:32000] = 0
    corpus.add("long", wave)
    for index in range(3):
        row = json.loads(json.dumps(corpus.rows[3]))
        row.update(id=f"part{index}", start=float(index), duration=1.0)
        row["supervisions"][0].update(duration=1.0)
        corpus.rows.append(row)
    del corpus.rows[3]
    assert _bad(_check(corpus)) == {"part1": {"silent"}}


def test_duplicate_ids_are_left_out_after_the_first(corpus: Corpus) -> None:
    corpus.rows.append(json.loads(json.dumps(corpus.rows[0])))
    report = _check(corpus)
    assert _bad(report) == {"good0": {"duplicate"}}
    assert sorted(_clean(corpus)) == ["good0", "good1", "good2"]


def test_labels_longer_than_the_audio_by_a_tenth_of_a_second_are_bad(corpus: Corpus) -> None:
    corpus.add("supervision", _noise(16000))
    corpus.rows[-1]["supervisions"][0]["duration"] = 1.2
    corpus.add("words", _noise(16000), alignment={"word": [("a", 0.5, 1.15)]})
    corpus.add("fine", _noise(16000), alignment={"word": [("a", 0.5, 1.05)]})
    found = _bad(_check(corpus))
    assert found == {"supervision": {"labels"}, "words": {"labels"}}


def test_label_stores_of_another_length_than_the_audio_are_bad(
    corpus: Corpus, tmp_path: Path
) -> None:
    label_store = pytest.importorskip("speechssl.data.label_store")
    for index in range(3):
        corpus.add(f"l{index}", _noise(16000, seed=index))
    folder = tmp_path / "labels"
    meta = {"name": "km", "classes": 8, "frame_rate_hz": 50.0, "codebook_hash": "x"}
    writer = label_store.LabelWriter(folder, {**meta, "source": "test", "layer": None})
    for index in range(3):
        writer.add(f"good{index}", np.zeros(49, np.int64))
    for index, frames in enumerate((49, 43, 56)):
        writer.add(f"l{index}", np.zeros(frames, np.int64))
    writer.finish()
    corpus.add("unlabelled", _noise(16000))
    found = _bad(_check(corpus, labels=str(folder)))
    assert found == {"l1": {"labels"}, "l2": {"labels"}, "unlabelled": {"labels"}}


def test_rows_without_a_recording_are_malformed_and_do_not_end_the_run(corpus: Corpus) -> None:
    corpus.rows.insert(1, {"id": "odd"})
    assert _bad(_check(corpus)) == {"odd": {"malformed"}}
    assert len(_clean(corpus)) == 3


def test_a_sample_decodes_so_many_and_keeps_the_rest(corpus: Corpus) -> None:
    for index in range(40):
        corpus.add(f"gone{index}", _noise(800)).unlink()
    report = _check(corpus, sample=10)
    assert report["decoded"] == 10
    assert 7 <= len(report["bad"]) <= 10
    assert report["clean"] == 43 - len(report["bad"]) == len(_clean(corpus))


def test_several_processes_give_the_same_report_in_the_same_order(corpus: Corpus) -> None:
    path = corpus.folder / "good0.flac"
    header = read_header(path)
    rows = [cut_row(id=f"x{i}", audio=path, header=header, text="a") for i in range(300)]
    rows[7]["recording"]["sources"][0]["source"] = "/nowhere.flac"
    corpus.rows = rows
    one = _check(corpus)
    clean = _clean(corpus)
    config = CheckConfig(cuts=corpus.save(), output=str(corpus.folder / "two.jsonl.gz"), jobs=2)
    assert run(config) == one
    assert [row["id"] for row in read_rows(corpus.folder / "two.jsonl.gz")] == clean
    assert len(clean) == 299


def test_the_clean_manifest_is_read_by_lhotse(corpus: Corpus) -> None:
    _check(corpus)
    assert [cut.load_audio().shape for cut in CutSet.from_file(corpus.folder / "clean.jsonl.gz")]


def test_exit_status(corpus: Corpus, capsys: pytest.CaptureFixture) -> None:
    cuts = ["--cuts", corpus.save(), "--jobs", "1"]
    assert main([*cuts, "--strict", "true"]) == 0
    (corpus.folder / "good1.flac").unlink()
    assert main(cuts) == 0
    assert "good1" in capsys.readouterr().out
    assert main([*cuts, "--strict", "true"]) == 1
    for index in (0, 2):
        (corpus.folder / f"good{index}.flac").unlink()
    assert main(cuts) == 1
    assert "no clean cut is left" in capsys.readouterr().err
    assert main(["--cuts", str(corpus.folder / "absent.jsonl")]) == 1


def test_nothing_is_left_when_the_manifest_breaks_half_way(corpus: Corpus) -> None:
    cuts = corpus.save()
    with open(cuts, "a") as file:
        file.write("{broken\n")
    out = corpus.folder / "clean.jsonl.gz"
    with pytest.raises(ValueError, match="line 4"):
        run(CheckConfig(cuts=cuts, output=str(out), jobs=1))
    assert not [path for path in corpus.folder.iterdir() if "clean" in path.name]


def test_writers_and_checkers_agree(corpus: Corpus) -> None:
    with CutsWriter(corpus.folder / "written") as writer:
        for row in corpus.rows:
            writer.add("all", row)
    assert run(CheckConfig(cuts=str(writer.paths["all"]), jobs=1))["clean"] == 3
