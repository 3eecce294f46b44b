"""`speechssl extract --format shar`: what lhotse reads back, and whole shards after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from extract_corpus import digests, make_cuts, make_files, make_model
from lhotse import CutSet
from lhotse.qa import validate
from lhotse.shar import LazySharIterator

from speechssl import dist
from speechssl.bin.extract import main
from speechssl.hub.cuts import CutItems
from speechssl.hub.model import Model
from speechssl.hub.shar import SharWriter
from speechssl.hub.store import read_index

META = {"layers": [1], "hop_samples": 320, "sample_rate_hz": 16000}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_files(tmp_path_factory.mktemp("audio"), 23)


@pytest.fixture(scope="module")
def cuts(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cuts(tmp_path_factory.mktemp("cuts") / "cuts.jsonl.gz", files, start=0.1)


def _run(model: Path, output: Path, *more: object) -> int:
    return main(["--model", str(model), "--output", str(output), *map(str, more)])


def _shar(model: Path, output: Path, cuts: object, *more: object) -> int:
    options = ("--cuts", f"[{cuts}]", "--layers", "[0,2]", "--format", "shar", "--shard_size", 5)
    return _run(model, output, *options, *more)


def _lines(folder: Path) -> dict[tuple[str, int], dict]:
    return {(line["id"], line["layer"]): line for line in read_index(folder)}


def test_lhotse_reads_the_frames_that_npy_holds(model: Path, cuts: Path, tmp_path: Path) -> None:
    assert _shar(model, tmp_path / "feats", cuts) == 0
    assert _run(model, tmp_path / "npy", "--cuts", f"[{cuts}]", "--layers", "[0,2]") == 0
    lines, before = _lines(tmp_path / "npy"), list(CutSet.from_file(cuts))
    found = list(CutSet.from_shar(in_dir=tmp_path / "feats" / "shar"))
    assert [c.id for c in found] == [c.id for c in before] and len(found) == 23
    assert len(list((tmp_path / "feats" / "shar").iterdir())) == 3 * 5
    for cut, plain in zip(found, before, strict=True):
        validate(cut)
        for layer in (0, 2):
            line = lines[cut.id, layer]
            want = np.load(tmp_path / "npy" / line["file"])
            got = cut.load_custom(f"layer_{layer:02d}")
            assert got.shape == want.shape == (line["frames"], 32)
            assert len(got) == (plain.num_samples - 400) // 320 + 1
            assert np.abs(got - want).max() < 1e-5
        assert cut.layer_02.frame_shift == 320 / 16000 and cut.layer_02.start == cut.start == 0.1
        assert cut.supervisions[0].text == f"TEXT {cut.id}"
        assert np.array_equal(cut.load_audio(), plain.load_audio())


def test_a_truncated_cut_has_the_frames_of_its_part(
    model: Path, cuts: Path, tmp_path: Path
) -> None:
    assert _shar(model, tmp_path / "feats", cuts) == 0
    cut = next(c for c in LazySharIterator(in_dir=tmp_path / "feats" / "shar") if c.duration > 1)
    part = cut.truncate(offset=0.2, duration=0.4)
    assert np.array_equal(part.load_layer_02(), cut.load_layer_02()[10:30])


@pytest.mark.parametrize("pool", ["mean", "mean_std"])
def test_pooled_vectors_of_half_precision(
    model: Path, cuts: Path, tmp_path: Path, pool: str
) -> None:
    assert _shar(model, tmp_path / "feats", cuts, "--pool", pool, "--dtype", "float16") == 0
    assert _shar(model, tmp_path / "frames", cuts) == 0
    frames = {c.id: c for c in CutSet.from_shar(in_dir=tmp_path / "frames" / "shar")}
    for cut in CutSet.from_shar(in_dir=tmp_path / "feats" / "shar"):
        found = cut.load_layer_02()
        want = frames[cut.id].load_layer_02().astype(np.float64)
        want = np.concatenate([want.mean(0), want.std(0)][: 1 + (pool == "mean_std")])
        assert found.dtype == np.float16 and found.shape == want.shape
        assert np.abs(found - want).max() < 2e-3


def test_files_of_any_rate_and_channels_become_cuts(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    for name, shape, rate in (("a b.wav", (9000, 2), 8000), ("ü.flac", (44100, 1), 44100)):
        soundfile.write(tmp_path / "audio" / name, rng.standard_normal(shape) * 0.1, rate)
    options = ("--audio", f"[{tmp_path}/audio]", "--layers", "[1]", "--format", "shar")
    assert _run(model, tmp_path / "feats", *options) == 0
    found = list(CutSet.from_shar(in_dir=tmp_path / "feats" / "shar"))
    assert [Path(c.id).name for c in found] == ["a b.wav", "ü.flac"]
    assert [c.load_layer_01().shape[0] for c in found] == [56, 49]
    assert [c.load_audio().shape for c in found] == [(2, 9000), (1, 44100)]


def test_complete_shards_stay_and_the_open_one_is_made_again(
    model: Path, cuts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feats = tmp_path / "feats"
    assert _shar(model, feats, cuts) == 0
    want = digests(feats)
    # As a kill leaves it while shard 3 is moved into place, and shard 4 not begun.
    for name in ("shards/000003.json", "shards/000004.json", "shar/cuts.000003.jsonl.gz",
                 *(f"shar/{n}.000004.{e}" for n, e in (("cuts", "jsonl.gz"), ("layer_00", "tar"),
                                                      ("layer_02", "tar")))):  # fmt: skip
        (feats / name).unlink()
    (feats / "shar" / "layer_02.000003.tar").write_bytes(b"half")
    (feats / "open" / "000003").mkdir(parents=True)
    (feats / "open" / "000003" / "layer_00").write_bytes(b"half")
    kept = {p: p.stat().st_mtime_ns for p in (feats / "shar").glob("*.00000[012].*")}
    assert _shar(model, feats, cuts) == 0
    shown = capsys.readouterr().out
    assert "15 of 23 are there already" in shown and "8 utterances" in shown
    assert digests(feats) == want
    assert len(kept) == 9 and all(p.stat().st_mtime_ns == t for p, t in kept.items())


def test_what_was_left_out_stays_listed(
    model: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [Path(shutil.copy(f, tmp_path / f.name)) for f in files[:7]]
    cuts = make_cuts(tmp_path / "cuts.jsonl.gz", copies)
    copies[1].write_bytes(b"")
    copies[6].unlink()
    for _ in range(2):
        assert _shar(model, tmp_path / "feats", cuts) == 0
        listed = (tmp_path / "feats" / "skipped.txt").read_text().splitlines()
        assert [line.split("\t")[0] for line in listed] == ["u001", "u006"]
    assert "5 of 7 are there already" in capsys.readouterr().out
    found = list(CutSet.from_shar(in_dir=tmp_path / "feats" / "shar"))
    assert [c.id for c in found] == ["u000", "u002", "u003", "u004", "u005"]


def test_a_shard_of_nothing_but_faults_leaves_no_empty_files(
    model: Path, files: list[Path], tmp_path: Path
) -> None:
    copies = [Path(shutil.copy(f, tmp_path / f.name)) for f in files[:11]]
    cuts = make_cuts(tmp_path / "cuts.jsonl.gz", copies)
    for path in copies[5:10]:
        path.unlink()
    assert _shar(model, tmp_path / "feats", cuts) == 0
    assert len(list(CutSet.from_shar(in_dir=tmp_path / "feats" / "shar"))) == 6
    assert not list((tmp_path / "feats" / "shar").glob("*.000001.*"))


def test_shards_of_other_cuts_are_not_continued(
    model: Path, cuts: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _shar(model, tmp_path / "feats", cuts) == 0
    other = make_cuts(tmp_path / "other.jsonl.gz", [*files[1:], files[0]], start=0.1)
    fewer = make_cuts(tmp_path / "fewer.jsonl.gz", files[:10], start=0.1)
    for changed in (other, fewer):
        assert _shar(model, tmp_path / "feats", changed) == 2
        assert "found shards of other utterances" in capsys.readouterr().err
    assert _shar(model, tmp_path / "feats", cuts, "--shard_size", 6) == 2
    assert "shard_size: found 5, want 6" in capsys.readouterr().err


def test_processes_take_whole_shards(
    model: Path, cuts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import speechssl

    opened: Model = speechssl.load(model)
    items = CutItems([str(cuts)])

    def work(folder: Path) -> None:
        store = SharWriter(folder, META, shard_size=5)
        for share in store.shares(items):
            for features in opened.extract_iter(share, [1], in_order=True, on_error=store.fault):
                store.add(features)

    work(tmp_path / "one")
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        work(tmp_path / "two")
        marks = sorted(int(p.stem) for p in (tmp_path / "two" / "shards").iterdir())
        assert marks == ([0, 2, 4], [0, 1, 2, 3, 4])[rank]
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_cuts_that_shar_cannot_carry_are_named(
    model: Path, files: list[Path], tmp_path: Path
) -> None:
    plain = list(CutSet.from_file(make_cuts(tmp_path / "plain.jsonl.gz", files[:3])))
    mixed = plain[0].mix(plain[1], snr=10).with_id("mixed")
    CutSet.from_cuts([mixed, plain[1].with_id("a//b"), plain[2]]).to_file(tmp_path / "c.jsonl.gz")
    assert _shar(model, tmp_path / "feats", tmp_path / "c.jsonl.gz") == 0
    skipped = (tmp_path / "feats" / "skipped.txt").read_text()
    assert "mixed\tmixed: found a MixedCut" in skipped and "found an id that is no" in skipped
    assert [c.id for c in CutSet.from_shar(in_dir=tmp_path / "feats" / "shar")] == ["u002"]
    mark = json.loads((tmp_path / "feats" / "shards" / "000000.json").read_text())
    assert mark["cuts"] == 1 and set(mark["skipped"]) == {"mixed", "a//b"}
