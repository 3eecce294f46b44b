"""`speechssl cluster` from audio files to quality, on generated tones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechssl.bin import cluster
from speechssl.data.label_store import LabelStore
from speechssl.encoders.transformer import TransformerConfig
from speechssl.labels.codebook import load_codebook
from speechssl.model_file import open_model, save_model

TONES = {"a": 300.0, "b": 900.0, "c": 2000.0, "d": 4500.0}


def make_corpus(folder: Path, utterances: int, seed: int = 0, tag: str = "u") -> Path:
    """Cuts whose phones are tones of 0.1 to 0.3 s, with their alignment."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.supervision import AlignmentItem

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    cuts = []
    for number in range(utterances):
        waves, items, at = [], [], 0.0
        for _ in range(int(rng.integers(4, 12))):
            phone = str(rng.choice(list(TONES)))
            samples = int(rng.integers(1600, 4800))
            time = np.arange(samples) / 16000
            waves.append(0.3 * np.sin(2 * np.pi * TONES[phone] * time + rng.uniform(0, 6)))
            items.append(AlignmentItem(phone, round(at, 6), samples / 16000))
            at += samples / 16000
        wave = np.concatenate(waves) + 0.003 * rng.standard_normal(round(at * 16000))
        path, name = folder / f"{tag}{number}.wav", f"{tag}{number}"
        soundfile.write(path, wave, 16000)
        recording = Recording.from_file(path, recording_id=name)
        supervision = SupervisionSegment(
            name, name, 0.0, recording.duration, alignment={"phone": items}
        )
        cuts.append(MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording))
    path = folder / "cuts.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = TransformerConfig(
        front_end="log_mel", front_dim=16, layers=2, dim=32, ffn_dim=48, heads=4
    )
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, config, config.build().state_dict())
    return folder


def run(*words: object) -> int:
    return cluster.main([str(w) for w in words])


def fit(corpus: Path, output: Path, *more: object) -> int:
    return run("fit", "--cuts", f"[{corpus}]", "--output", output, "--classes", 12, *more)


def labels_of(corpus: Path, clusters: Path, output: Path, *more: object) -> LabelStore:
    code = run("apply", "--clusters", clusters, "--cuts", f"[{corpus}]", "--output", output, *more)
    assert code == 0
    return LabelStore.open(output)


def test_tones_become_clusters_that_tell_them_apart(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(corpus, tmp_path / "km") == 0
    info = json.loads((tmp_path / "km" / "clusters.json").read_text())
    assert info["classes"] == 12 and info["features"] == {"kind": "mfcc"}
    assert info["frame_rate_hz"] == 100 and info["data"]["frames_seen"] > 1000
    assert sorted(p.name for p in (tmp_path / "km").iterdir()) == [
        "centroids.npy", "clusters.json", "fit.json"
    ]  # fmt: skip
    store = labels_of(corpus, tmp_path / "km", tmp_path / "labels")
    assert len(store) == 20 and store.classes == 12 and store.frame_rate_hz == 100
    assert store.meta["codebook_hash"] == load_codebook(tmp_path / "km").hash
    quality = tmp_path / "quality.json"
    words = ("--labels", tmp_path / "labels", "--cuts", f"[{corpus}]", "--output", quality)
    assert run("quality", *words) == 0
    report = json.loads(quality.read_text())
    assert report["pnmi"] > 0.8 and report["phone_purity"] > 0.9
    assert report["phones"] == 4 and report["empty"] == 0
    assert report["frame_difference"] == 0 and report["cuts_without_labels"] == 0
    assert report["mean_run_length"] > 3
    rates = report["bits_per_second"]
    assert 0 < rates["collapsed_bits"] < rates["coded_bits"] <= rates["bits"]
    assert "PNMI" in capsys.readouterr().out
    assert run("quality", *words[:4], "--output", tmp_path / "25.json", "--rate_hz", 25) == 0
    slow = json.loads((tmp_path / "25.json").read_text())
    assert slow["frame_rate_hz"] == 25 and slow["frame_difference"] == 0
    assert abs(slow["frames"] - report["frames"] / 4) <= 20  # of 20 cuts
    assert run("quality", *words, "--rate_hz", 30) == 1
    assert "want that rate divided by a whole number" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    assert (tmp_path / "quality.png").stat().st_size > 10_000


def test_normalised_features_are_remembered_by_their_clusters(corpus: Path, tmp_path: Path) -> None:
    assert fit(corpus, tmp_path / "km", "--cmvn", "true") == 0
    store = labels_of(corpus, tmp_path / "km", tmp_path / "labels")
    assert fit(corpus, tmp_path / "plain") == 0
    plain = labels_of(corpus, tmp_path / "plain", tmp_path / "plain-labels")
    assert store.meta["codebook_hash"] != plain.meta["codebook_hash"]
    assert load_codebook(tmp_path / "km").info["features"] == {"kind": "mfcc", "cmvn": True}
    points = load_codebook(tmp_path / "km").centroids[:, :13]
    assert points.abs().max() < 10 < load_codebook(tmp_path / "plain").centroids[:, :13].abs().max()


def test_labels_depend_neither_on_shard_order_nor_on_batches(corpus: Path, tmp_path: Path) -> None:
    other = make_corpus(tmp_path / "more", 8, seed=1, tag="v")
    for name, cuts, seconds in (("x", f"[{corpus},{other}]", 100), ("y", f"[{other},{corpus}]", 5)):
        words = ("--cuts", cuts, "--max_batch_seconds", seconds)
        assert run("fit", *words, "--output", tmp_path / name, "--classes", 12,
                   "--sample_frames", 1500) == 0  # fmt: skip
        assert run("apply", *words, "--clusters", tmp_path / name,
                   "--output", tmp_path / f"{name}-labels") == 0  # fmt: skip
    first, second = (LabelStore.open(tmp_path / f"{name}-labels") for name in "xy")
    assert sorted(first.ids()) == sorted(second.ids()) and len(first) == 28
    for name in first.ids():
        assert np.array_equal(first.frames(name), second.frames(name))


def test_a_layer_of_a_model_is_clustered_and_applied(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    more = ("--model", model, "--layer", 2, "--normalise", "whiten", "--whiten_dim", 8)
    assert fit(corpus, tmp_path / "km", *more) == 0
    store = labels_of(corpus, tmp_path / "km", tmp_path / "labels")
    assert store.frame_rate_hz == 50 and store.meta["layer"] == 2
    from lhotse import CutSet

    cut = next(iter(CutSet.from_file(corpus)))
    with torch.inference_mode():
        wave = torch.from_numpy(cut.load_audio())
        out = open_model(model).encoder(wave, torch.tensor([wave.shape[1]]))
    assert len(store.frames(cut.id)) == int(out.lengths[0])


def test_other_weights_in_the_models_place_are_refused(
    corpus: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(corpus, tmp_path / "km", "--model", model, "--layer", 1) == 0
    config = TransformerConfig(
        front_end="log_mel", front_dim=16, layers=2, dim=32, ffn_dim=48, heads=4
    )
    save_model(tmp_path / "other", config, config.build().state_dict())
    words = ("--clusters", tmp_path / "km", "--cuts", f"[{corpus}]", "--output", tmp_path / "l")
    assert run("apply", *words, "--model", tmp_path / "other") == 1
    assert "weights have changed" in capsys.readouterr().err


def test_layers_are_compared_in_one_pass(corpus: Path, model: Path, tmp_path: Path) -> None:
    words = ("--cuts", f"[{corpus}]", "--model", model, "--output", tmp_path / "layers.json")
    assert run("layers", *words, "--classes", 10, "--sample_frames", 800) == 0
    report = json.loads((tmp_path / "layers.json").read_text())
    assert [row["layer"] for row in report["layers"]] == [0, 1, 2]
    assert all(0.2 < row["pnmi"] <= 1 for row in report["layers"])
    assert {row["aligned_frames"] for row in report["layers"]} == {800}
    assert report["best_layer"] in (0, 1, 2)


def test_a_corrupt_file_is_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuts = make_corpus(tmp_path / "corpus", 12)
    (tmp_path / "corpus" / "u3.wav").write_bytes(b"not audio")
    (tmp_path / "corpus" / "u5.wav").unlink()
    assert fit(cuts, tmp_path / "km") == 0
    skipped = json.loads((tmp_path / "km" / "fit.json").read_text())["skipped"]
    assert len(skipped) == 2 and "u3" in skipped[0] and "u5" in skipped[1]
    assert "skipped 2" in capsys.readouterr().err
    store = labels_of(cuts, tmp_path / "km", tmp_path / "labels")
    assert len(store) == 10 and "u3" not in store
    assert len(json.loads((tmp_path / "labels" / "apply.json").read_text())["skipped"]) == 2


def test_a_second_fit_is_free_and_one_with_other_options_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(corpus, tmp_path / "km") == 0
    before = (tmp_path / "km" / "centroids.npy").stat().st_mtime_ns
    assert fit(corpus, tmp_path / "km") == 0
    assert (tmp_path / "km" / "centroids.npy").stat().st_mtime_ns == before
    assert fit(corpus, tmp_path / "km", "--seed", 5) == 1
    assert "other options" in capsys.readouterr().err


def test_a_fit_killed_while_clustering_goes_on_without_reading_audio(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import speechssl.data.loader as loader
    import speechssl.labels.kmeans as kmeans

    assert fit(corpus, tmp_path / "whole") == 0
    real, calls = kmeans.one_pass, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(kmeans, "one_pass", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(corpus, tmp_path / "killed")
    monkeypatch.setattr(kmeans, "one_pass", real)

    def no_reading(*args, **kwargs):
        raise AssertionError("the audio is read again")

    monkeypatch.setattr(loader, "read_all", no_reading)
    assert fit(corpus, tmp_path / "killed") == 0
    one, two = (np.load(tmp_path / d / "centroids.npy") for d in ("whole", "killed"))
    assert np.array_equal(one, two)
    assert not list((tmp_path / "killed").glob("sample*"))


def test_labels_that_exist_are_kept_and_only_new_cuts_are_added(
    corpus: Path, tmp_path: Path
) -> None:
    assert fit(corpus, tmp_path / "km") == 0
    first = labels_of(corpus, tmp_path / "km", tmp_path / "labels")
    before = {name: first.frames(name).copy() for name in first.ids()}
    more = make_corpus(tmp_path / "more", 4, seed=2, tag="w")
    cuts = f"{corpus},{more}"
    both = labels_of(Path(cuts), tmp_path / "km", tmp_path / "labels")
    report = json.loads((tmp_path / "labels" / "apply.json").read_text())
    assert (report["utterances"], report["already"]) == (4, 20) and len(both) == 24
    assert all(np.array_equal(both.frames(name), before[name]) for name in before)


@pytest.mark.slow
def test_two_ranks_make_the_labels_of_one(corpus: Path, tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
               "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
               "-m", "speechssl.bin.cluster"]  # fmt: skip
    common = ["--cuts", f"[{corpus}]"]
    options = ["--classes", "12", "--sample_frames", "2000"]
    for action in (
        ["fit", *common, *options, "--output", f"{tmp_path}/two"],
        ["apply", *common, "--clusters", f"{tmp_path}/two", "--output", f"{tmp_path}/two-labels"],
    ):
        done = subprocess.run([*program, *action], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert run("fit", *common, *options, "--output", tmp_path / "one") == 0
    one, two = (load_codebook(tmp_path / name) for name in ("one", "two"))
    assert one.info["data"]["frames_clustered"] == two.info["data"]["frames_clustered"] == 2000
    assert torch.allclose(one.centroids, two.centroids, atol=1e-3)
    first = labels_of(corpus, tmp_path / "one", tmp_path / "one-labels")
    second = LabelStore.open(tmp_path / "two-labels")
    assert sorted(first.ids()) == sorted(second.ids())
    pairs = [(first.frames(name), second.frames(name)) for name in first.ids()]
    assert np.mean(np.concatenate([a == b for a, b in pairs])) > 0.999


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--cuts", "[x]", "--output", "o", "--layer", "3"], "model: found none"),
        (["fit", "--cuts", "[x]", "--output", "o", "--model", "m"], "layer: found none"),
        (["fit", "--cuts", "[x]", "--output", "o", "--sample_frames", "5"], "sample_frames"),
        (["fit", "--cuts", "[]", "--output", "o"], "cuts: found none"),
        (["fit", "--cuts", "[x]", "--output", "o", "--classes_", "3"], "classes_"),
        (["apply", "--cuts", "[x]", "--output", "o"], "clusters"),
    ],
)
def test_wrong_options_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cluster.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_action_is_an_error_and_help_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cluster.main(["fitt"]) == 2 and cluster.main([]) == 0
    assert "layers" in capsys.readouterr().out
