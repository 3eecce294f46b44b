"""`speechssl extract --clusters`: the labels of `speechssl cluster apply`, without the features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from extract_corpus import digests, make_cuts, make_files, make_model

from speechssl import dist
from speechssl.bin import cluster
from speechssl.bin.extract import main
from speechssl.data.label_store import LabelStore
from speechssl.hub import store, units
from speechssl.hub.extract import Features
from speechssl.hub.units import UnitFile, read_units


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, cuts of recordings (one of 45 s), clusters of layer 1, and their labels."""
    folder = tmp_path_factory.mktemp("units")
    make_model(folder / "model")
    files = make_files(folder / "audio", 30)
    long = make_files(folder / "audio" / "long", 1, (45.0, 45.1))
    cuts = make_cuts(folder / "cuts.jsonl.gz", [*files, long[0].rename(folder / "long.wav")])
    common = ["--cuts", f"[{cuts}]"]
    fit = ["--model", folder / "model", "--layer", 1, "--classes", 20, "--normalise", "whiten"]
    assert _cluster("fit", *common, *fit, "--output", folder / "km") == 0
    assert _cluster("apply", *common, "--clusters", folder / "km", "--output", folder / "l") == 0
    return folder


def _cluster(*words: object) -> int:
    return cluster.main([str(w) for w in words])


def _units(folder: Path, output: Path, *more: object) -> int:
    source = () if "--audio" in more else ("--cuts", f"[{folder}/cuts.jsonl.gz]")
    words = ("--model", folder / "model", "--output", output, "--clusters", folder / "km")
    return main([str(w) for w in (*words, *source, *more)])


def test_the_label_store_is_that_of_cluster_apply(folder: Path, tmp_path: Path) -> None:
    assert _units(folder, tmp_path / "l") == 0
    want, found = LabelStore.open(folder / "l"), LabelStore.open(tmp_path / "l")
    assert found.meta == want.meta
    assert sorted(found.ids()) == sorted(want.ids()) and len(found) == 31
    for name in want.ids():
        assert np.array_equal(found.frames(name), want.frames(name)), name
    assert len(want.frames("long")) > 2000  # in one piece: 45 s are below both windows
    reports = [json.loads((f / "apply.json").read_text()) for f in (folder / "l", tmp_path / "l")]
    assert reports[0] == reports[1]
    assert not list(tmp_path.rglob("*.npy.tmp")) and not (tmp_path / "l" / "layer_01").exists()


def test_a_line_per_utterance_holds_the_same_units(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--format", "jsonl", "--layers", "[1]")
    assert _units(folder, tmp_path / "u", *options) == 0
    assert "units of layer 1, 20 classes" in capsys.readouterr().out
    want = LabelStore.open(folder / "l")
    lines = [json.loads(x) for x in (tmp_path / "u" / "units.jsonl").read_text().splitlines()]
    assert sorted(x["id"] for x in lines) == sorted(want.ids())
    for line in lines:
        assert line["units"] == want.frames(line["id"]).tolist()
        assert len(line["units"]) == (line["samples"] - 400) // 320 + 1
        assert line["seconds"] == pytest.approx(line["samples"] / 16000, abs=1e-6)
    meta = json.loads((tmp_path / "u" / "extract.json").read_text())
    assert meta["codebook_hash"] == want.meta["codebook_hash"] and meta["layers"] == [1]


def test_files_give_the_units_of_their_cuts(folder: Path, tmp_path: Path) -> None:
    assert _units(folder, tmp_path / "l", "--audio", f"[{folder}/audio]") == 0
    want, found = LabelStore.open(folder / "l"), LabelStore.open(tmp_path / "l")
    assert len(found) == 30
    for name in found.ids():
        assert np.array_equal(found.frames(name), want.frames(Path(name).stem))


@pytest.mark.parametrize("form", ["labels", "jsonl"])
def test_an_interrupted_run_is_continued(
    folder: Path,
    tmp_path: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--format", form, "--batch_seconds", 4)
    assert _units(folder, tmp_path / "a", *options) == 0
    real, seen = units.units_of, []

    def dies(features: Features, assign: units.Assign) -> np.ndarray:
        seen.append(features.id)
        if len(seen) == 12:
            raise KeyboardInterrupt
        return real(features, assign)

    monkeypatch.setattr(units, "units_of", dies)
    with pytest.raises(KeyboardInterrupt):
        _units(folder, tmp_path / "b", *options)
    if form == "jsonl":
        with (tmp_path / "b" / "units.jsonl").open("a") as file:
            file.write('{"id": "torn", "units": [1, 2')
    assert _units(folder, tmp_path / "b", *options) == 0
    assert "11 of 31 are there already" in capsys.readouterr().out
    assert sorted(seen) == sorted([*set(seen), seen[11]])  # nothing but the open one came twice
    if form == "jsonl":
        assert digests(tmp_path / "a") == digests(tmp_path / "b")
        return
    first, second = (LabelStore.open(tmp_path / n) for n in "ab")
    assert sorted(first.ids()) == sorted(second.ids())
    assert all(np.array_equal(first.frames(n), second.frames(n)) for n in first.ids())


def test_long_features_are_assigned_block_by_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_FRAMES", 37)
    assert _units(folder, tmp_path / "l") == 0
    want, found = LabelStore.open(folder / "l"), LabelStore.open(tmp_path / "l")
    same = [np.mean(found.frames(n) == want.frames(n)) for n in want.ids()]
    assert np.mean(same) > 0.999


def test_processes_share_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def writer() -> UnitFile:
        return UnitFile(tmp_path, {"layers": [1]}, lambda x: x[:, 0].astype(int), lambda x: None)

    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        into = writer()
        for number in range(rank, 5, 2):
            into.add(Features(f"u{number}", {1: np.full((3, 1), number)}, 50, 16000, 320, 400, 999))
    assert sorted(p.name for p in tmp_path.glob("units*")) == ["units.0.jsonl", "units.1.jsonl"]
    monkeypatch.undo()
    assert len(writer()) == 5 and writer().finish() == {}
    assert [p.name for p in tmp_path.glob("units*")] == ["units.jsonl"]
    assert {x["id"]: x["units"] for x in read_units(tmp_path)} == {
        f"u{n}": [n] * 3 for n in range(5)
    }


def test_what_cannot_be_read_is_listed_and_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    audio = f"[{folder}/audio/u000.wav,{tmp_path}/bad.wav,{tmp_path}/short.wav]"
    assert _units(folder, tmp_path / "l", "--audio", audio) == 0
    skipped = (tmp_path / "l" / "skipped.txt").read_text()
    assert "bad.wav" in skipped and "short.wav" in skipped
    assert len(LabelStore.open(tmp_path / "l")) == 1
    assert len(json.loads((tmp_path / "l" / "apply.json").read_text())["skipped"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "[2]"], "layers: found [2], want none given, or [1]"),
        (["--clusters", "MFCC"], "found clusters of mfcc"),
        (["--clusters", "nowhere"], "found no clusters.json"),
        (["--model", "OTHER"], "weights have changed"),
    ],
)
def test_clusters_of_something_else_are_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    if "MFCC" in options:
        common = ("--cuts", f"[{folder}/cuts.jsonl.gz]", "--output", tmp_path / "km")
        assert _cluster("fit", *common, "--classes", 5, "--max_iterations", 1) == 0
    if "OTHER" in options:
        import torch
        from extract_corpus import TINY

        from speechssl.model_file import save_model

        torch.manual_seed(7)
        save_model(tmp_path / "other", TINY, TINY.build().state_dict())
    places = {"MFCC": str(tmp_path / "km"), "OTHER": str(tmp_path / "other")}
    assert _units(folder, tmp_path / "l", *(places.get(o, o) for o in options)) == 2
    assert message in capsys.readouterr().err
