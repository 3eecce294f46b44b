"""`speechssl extract`: files on disk that match the Python interface; resumable; names faults."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechssl
from speechssl import dist
from speechssl.bin.extract import Progress, main
from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.store import file_name, read_index
from speechssl.model_file import save_model

SMALL = TransformerConfig(
    layers=2, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "exp", SMALL, SMALL.build().state_dict())
    return tmp_path / "exp"


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, samples, rate in (("a.wav", 16000, 16000), ("sub/b c.flac", 9000, 8000)):
        soundfile.write(folder / name, rng.standard_normal(samples) * 0.1, rate)
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "short.wav", np.zeros(80), 16000)
    return folder


def _run(model: Path, output: Path, *more: str) -> int:
    return main(["--model", str(model), "--output", str(output), *more])


def test_features_on_disk_equal_those_of_the_python_interface(
    model: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(model, tmp_path / "feats", "--audio", f"[{audio}]", "--layers", "[0,-1]") == 0
    shown = capsys.readouterr()
    assert "2 utterances" in shown.out and "RTF" in shown.out
    assert "2 left out" in shown.err
    lines = list(read_index(tmp_path / "feats"))
    assert [(Path(x["id"]).name, x["layer"]) for x in lines] == [
        ("a.wav", 0), ("a.wav", 2), ("b c.flac", 0), ("b c.flac", 2),
    ]  # fmt: skip
    opened = speechssl.load(model)
    for line in lines:
        values = np.load(tmp_path / "feats" / line["file"])
        want = opened.extract(line["id"], layers=[line["layer"]])[0]
        assert values.shape == (line["frames"], line["dim"]) and values.dtype == np.float32
        assert np.abs(values - want.hidden[line["layer"]]).max() < 1e-5
        assert line["frame_rate_hz"] == 50 and line["seconds"] == pytest.approx(want.seconds)
    skipped = (tmp_path / "feats" / "skipped.txt").read_text()
    assert "empty.wav" in skipped and "short.wav" in skipped and skipped.count("\n") == 2


def test_a_second_run_continues_and_repairs_a_torn_index(
    model: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "feats"
    options = ("--audio", f"[{audio}]", "--layers", "[1]")
    assert _run(model, output, *options) == 0
    index = output / "index.jsonl"
    whole = index.read_text()
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*.npy")}
    index.write_text(whole[:-30])
    assert _run(model, output, *options) == 0
    assert "1 of 4 are there already" in capsys.readouterr().out
    assert index.read_text() == whole
    kept = [p for p, t in before.items() if p.stat().st_mtime_ns == t]
    assert len(before) == 2 and len(kept) == 1


def test_another_model_may_not_continue_the_same_folder(
    model: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--audio", f"[{audio}/a.wav]")
    assert _run(model, tmp_path / "feats", *options) == 0
    assert _run(model, tmp_path / "feats", *options, "--layers", "[1]") == 2
    message = capsys.readouterr().err
    assert "layers: found [0, 1, 2], want [1]" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "want one of them"),
        (["--audio", "[nowhere/*.wav]"], "matches no audio file"),
        (["--cuts", "[nowhere.jsonl.gz]"], "nowhere.jsonl.gz"),
        (["--audio", "[AUDIO]", "--layers", "[7]"], "want numbers from 0"),
        (["--audio", "[AUDIO]", "--cuts", "[c.jsonl]"], "found both"),
        (["--audio", "[AUDIO]", "--format", "labels"], "found labels without clusters"),
        (["--audio", "[AUDIO]", "--format", "jsonl"], "found jsonl without clusters"),
        (["--audio", "[AUDIO]", "--format", "npy", "--clusters", "km"], "npy with clusters"),
        (["--audio", "[AUDIO]", "--format", "shar", "--clusters", "km"], "shar with clusters"),
        (["--audio", "[AUDIO]", "--pool", "mean", "--clusters", "km"], "pool: found mean with"),
        (["--audio", "[AUDIO]", "--dtype", "float16", "--clusters", "km"], "dtype: found float16"),
        (["--audio", "[AUDIO]", "--layers", "[1,2]", "--clusters", "km"], "the one layer that"),
        (["--audio", "[AUDIO]", "--shard_size", "9"], "shard_size: found 9 without format shar"),
        (["--audio", "[AUDIO]", "--format", "shar", "--shard_size", "0"], "want 1 or more"),
        (["--audio", "[AUDIO]", "--batch_seconds", "0"], "batch_seconds 0"),
        (["--audio", "[AUDIO]", "--readers", "0"], "readers 0"),
        (["--audio", "[AUDIO]", "--chunk_seconds", "6"], "overlap_seconds: found 4.0"),
        (["--audio", "[AUDIO]", "--chunk_seconds", "0"], "overlap_seconds: found 4.0"),
        (["--audio", "[AUDIO]", "--pool", "max"], "pool"),
        (["--audio", "[AUDIO]", "--output", "FILE"], "want a folder"),
    ],
)
def test_wrong_options_end_with_one_clear_line(
    model: Path,
    audio: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "file").write_text("")
    options = [o.replace("AUDIO", str(audio)) for o in options]
    options = [o.replace("FILE", str(tmp_path / "file")) for o in options]
    try:
        code = _run(model, tmp_path / "feats", *options)
    except SystemExit as end:
        code = end.code
    assert code == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err
    assert not list(tmp_path.rglob("*.npy"))


def test_float16_halves_the_files(model: Path, audio: Path, tmp_path: Path) -> None:
    options = ("--audio", f"[{audio}/a.wav]", "--layers", "[1]", "--dtype", "float16")
    assert _run(model, tmp_path / "feats", *options) == 0
    (line,) = read_index(tmp_path / "feats")
    assert np.load(tmp_path / "feats" / line["file"]).dtype == np.float16


@pytest.mark.parametrize("pool", ["none", "mean_std"])
def test_hdf5_holds_the_same_values_or_names_the_package(
    model: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pool: str
) -> None:
    feats = tmp_path / "feats"
    options = ("--audio", f"[{audio}]", "--layers", "[1]", "--format", "hdf5", "--pool", pool)
    code = _run(model, feats, *options)
    try:
        import h5py
    except ImportError:
        assert code == 2 and "pip install h5py" in capsys.readouterr().err
        assert not feats.exists()  # said before hours of computing, not after them
        return
    assert code == 0
    with h5py.File(feats / "features.h5") as file:
        for line in read_index(feats):
            found = file[f"1/{line['id'].lstrip('/')}"]
            want = np.load(feats / line["file"])
            assert want.ndim == (2 if pool == "none" else 1)
            assert np.array_equal(found[:], want) and found.attrs["id"] == line["id"]


def test_an_existing_folder_of_another_form_is_not_continued(
    model: Path, audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--audio", f"[{audio}]", "--layers", "[1]")
    assert _run(model, tmp_path / "feats", *options) == 0
    for more, message in (
        (("--pool", "mean"), "pool: found 'none', want 'mean'"),
        (("--format", "shar"), "format: found 'npy', want 'shar'"),
        (("--dtype", "float16"), "dtype: found 'float32', want 'float16'"),
        (("--chunk_seconds", "20"), "chunk_seconds: found 40.0, want 20.0"),
    ):
        assert _run(model, tmp_path / "feats", *options, *more) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("pool", "width"), [("mean", 32), ("mean_std", 64)])
def test_one_vector_per_utterance_and_layer(
    model: Path, audio: Path, tmp_path: Path, pool: str, width: int
) -> None:
    # Batches of very different lengths: padding must not come into the mean.
    more = ("--layers", "[0,2]", "--pool", pool)
    assert _run(model, tmp_path / "feats", "--audio", f"[{audio}]", *more) == 0
    opened = speechssl.load(model)
    lines = list(read_index(tmp_path / "feats"))
    assert len(lines) == 4
    for line in lines:
        found = np.load(tmp_path / "feats" / line["file"])
        frames = opened.extract(line["id"], layers=[line["layer"]])[0].hidden[line["layer"]]
        want = frames.astype(np.float64)
        want = np.concatenate([want.mean(0), want.std(0)])[:width]
        assert found.shape == (width,) and line["dim"] == width and line["frames"] == len(frames)
        assert np.abs(found - want).max() < 1e-5


def test_progress_outside_a_terminal_tells_hours_rate_and_time_left(
    model: Path,
    audio: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Progress, "every_seconds", 0.0)
    assert _run(model, tmp_path / "feats", "--audio", f"[{audio}]", "--layers", "[1]") == 0
    lines = capsys.readouterr().err.splitlines()
    form = r"([12]) of 4 utterances, 0\.00 h of audio, [\d.]+ h per hour, \d\d:\d\d left"
    assert [m[1] for line in lines if (m := re.fullmatch(form, line))] == ["1", "2"]


def test_progress_counts_what_this_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    with Progress(total=1000, done=200) as progress:  # 500 for this process, 100 of them done
        for _ in range(100):
            now[0] += 0.5
            progress(36.0, 1800)
    # 100 utterances and one hour of audio in 50 s: 300 more take 150 s.
    assert progress.line() == "200 of 500 utterances, 1.00 h of audio, 72.0 h per hour, 02:30 left"


def test_cuts_give_their_own_part_of_a_recording(model: Path, tmp_path: Path) -> None:
    wave = (np.random.default_rng(3).standard_normal(32000) * 0.1).astype(np.float32)
    soundfile.write(tmp_path / "r.wav", wave, 16000, subtype="FLOAT")
    source = {"type": "file", "channels": [0], "source": str(tmp_path / "r.wav")}
    recording = {
        "id": "r", "sources": [source],
        "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0, "channel_ids": [0],
    }  # fmt: skip
    cuts = [
        {"id": f"c{i}", "start": start, "duration": 0.75, "channel": 0, "supervisions": [],
         "recording": recording, "type": "MonoCut"}
        for i, start in enumerate((0.0, 0.5, 1.25))
    ]  # fmt: skip
    path = tmp_path / "cuts.jsonl"
    path.write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    assert _run(model, tmp_path / "feats", "--cuts", f"[{path}]", "--layers", "[2]") == 0
    opened = speechssl.load(model)
    lines = list(read_index(tmp_path / "feats"))
    assert [x["id"] for x in lines] == ["c0", "c1", "c2"]
    for line, cut in zip(lines, cuts, strict=True):
        begin = int(cut["start"] * 16000)
        want = opened.extract((wave[begin : begin + 12000], 16000), layers=[2])[0].hidden[2]
        assert np.abs(np.load(tmp_path / "feats" / line["file"]) - want).max() < 1e-4


def test_file_names_are_harmless_and_distinct() -> None:
    assert file_name("abc-1_2.x") == "abc-1_2.x"
    names = ["a/b", "a_b", "a b", "../x", "x" * 300, "ü", "x" * 299]
    made = [file_name(n) for n in names]
    assert len(set(made)) == len(names)
    assert all("/" not in m and not m.startswith(".") and len(m) < 130 for m in made)
