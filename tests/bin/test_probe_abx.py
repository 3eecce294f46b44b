"""`speechssl probe --abx` on generated tones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_probe import SMALL, make_corpus, run

from speechssl.bin import cluster, probe
from speechssl.data.label_store import LabelStore, LabelWriter


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_tones_are_told_apart_by_their_spectrum(corpus: Path, tmp_path: Path, capsys) -> None:
    words = ("--cuts", f"[{corpus}]", "--features", "logmel", *SMALL, "--abx", "cosine")
    found = run(tmp_path / "a", *words)
    (row,) = found["layers"]
    assert 0 <= row["abx_within"] < 0.02 and 0 <= row["abx_across"] < 0.05
    assert found["best"]["abx_within"] == found["best"]["abx_across"] == 0
    about = found["abx"]
    assert about["distance"] == "cosine" and about["phones"] == 4 and about["contexts"] <= 16
    assert about["cells"]["abx_within"] >= 10 and about["cells"]["abx_across"] >= 50
    assert 50 < about["tokens"] <= 36 * 4
    shown = capsys.readouterr()
    assert "ABX within ABX across" in shown.out and "cells across speakers" in shown.err
    # Few of them.
    few = run(tmp_path / "b", *words, "--abx_cells", 10, "--abx_speakers", 1)
    assert max(few["abx"]["cells"].values()) == 10 and few["layers"][0]["abx_across"] < 0.2


def test_every_layer_has_an_error_and_the_least_is_the_best(corpus: Path, tmp_path: Path) -> None:
    from speechssl.config import to_dict
    from speechssl.encoders.transformer import TransformerConfig

    encoder = TransformerConfig(
        front_end="log_mel", front_dim=16, layers=2, dim=32, ffn_dim=48, heads=4
    )
    (tmp_path / "tiny.yaml").write_text(json.dumps({"encoder": to_dict(encoder)}))
    words = ("--cuts", f"[{corpus}]", "--random", tmp_path / "tiny.yaml", *SMALL)
    found = run(tmp_path / "o", *words, "--abx", "angular", "--max_batch_seconds", 3)
    for name in ("abx_within", "abx_across"):
        errors = [row[name] for row in found["layers"]]
        assert len(errors) == 3 and all(0 <= e < 0.4 for e in errors)
        assert errors[found["best"][name]] == min(errors)
    other = run(tmp_path / "p", *words, "--abx", "angular", "--layers", "2")["layers"][0]
    assert other["abx_across"] == pytest.approx(found["layers"][2]["abx_across"], abs=1e-3)


def test_units_are_measured_by_equality_or_by_their_codewords(
    corpus: Path, tmp_path: Path, capsys
) -> None:
    for words in (
        ("fit", "--cuts", f"[{corpus}]", "--output", tmp_path / "km", "--classes", 8,
         "--sample_frames", 1500),
        ("apply", "--cuts", f"[{corpus}]", "--clusters", tmp_path / "km",
         "--output", tmp_path / "labels"),
    ):  # fmt: skip
        assert cluster.main([str(w) for w in words]) == 0
    words = ("--cuts", f"[{corpus}]", "--features", "mfcc", *SMALL, "--abx", "cosine")
    words += ("--abx_labels", tmp_path / "labels")
    units = run(tmp_path / "a", *words)["abx"]["units"]
    assert units["distance"] == "one-hot" and units["classes"] == 8
    assert units["abx_within"] < 0.1 and units["abx_across"] < 0.2
    assert "(one-hot): within 0.0" in capsys.readouterr().out
    closer = run(tmp_path / "b", *words, "--abx_clusters", tmp_path / "km")["abx"]["units"]
    assert closer["distance"] == "cosine" and closer["abx_across"] < 0.2
    # One unit for everything tells nothing.
    writer = LabelWriter(tmp_path / "flat", {"classes": 8, "frame_rate_hz": 50})
    for name in LabelStore.open(tmp_path / "labels").ids():
        writer.add(name, np.zeros(59, dtype=np.int64))
    writer.finish()
    flat = run(tmp_path / "c", *words[:-1], tmp_path / "flat")["abx"]["units"]
    assert flat["abx_within"] == flat["abx_across"] == 0.5
    wrong = (*words[:-1], tmp_path / "flat", "--abx_clusters", tmp_path / "km")
    assert probe.main([str(w) for w in (*wrong, "--output", tmp_path / "d")]) == 1
    assert "abx_clusters: found a codebook of hash" in capsys.readouterr().err


def test_what_is_missing_is_named_before_anything_is_read(tmp_path: Path, capsys) -> None:
    bare = make_corpus(tmp_path / "bare", phones=False, utterances=1)
    words = ("--features", "mfcc", *SMALL, "--abx", "cosine", "--output", tmp_path / "o")
    assert probe.main([str(w) for w in ("--cuts", f"[{bare}]", *words)]) == 1
    error = capsys.readouterr().err
    assert "abx: found no 'phone' alignment in 6 cuts" in error and "reading" not in error
    few = ("--cuts", f"[{make_corpus(tmp_path / 'few', utterances=1)}]", "--speakers", "1")
    assert probe.main([str(w) for w in (*few, *words)]) == 1
    assert "but no two different ones in the same context" in capsys.readouterr().err


def test_without_speakers_each_utterance_counts_as_one(tmp_path: Path) -> None:
    cuts = make_corpus(tmp_path / "c", speakers=False, utterances=3)
    words = ("--cuts", f"[{cuts}]", "--features", "mfcc", *SMALL, "--abx", "cosine")
    found = run(tmp_path / "o", *words)
    notes = " ".join(found["notes"])
    assert "ABX: some speakers are not known" in notes
    if "abx_within" not in found["layers"][0]:
        assert "ABX within a speaker: found no phones to compare" in notes
    assert found["layers"][0]["abx_across"] < 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--abx", "euclidean"], "abx"),
        (["--abx_labels", "x"], "abx_labels, abx_clusters: found some, want --abx"),
        (["--abx", "cosine", "--abx_clusters", "x"], "found none with abx_clusters"),
        (["--abx", "cosine", "--abx_tokens", "0"], "abx_tokens: found 0"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        probe.main(["--cuts", "[x]", "--output", "o", "--features", "mfcc", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
