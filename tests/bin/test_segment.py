"""`speechssl segment`: segments by a model's frames, by energy and at a rate, and their scores."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from extract_corpus import make_model

from speechssl import load
from speechssl.bin.segment import main
from speechssl.data.label_store import LabelStore
from speechssl.nn.segmentation import frame_levels_db, segment, spans
from speechssl.score.segmentation import boundaries, count_boundaries

PEAKS = [0.3, 0.5, 0.7, 1.1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and three cuts that swell four times; all but the last with their syllables."""
    folder = tmp_path_factory.mktemp("segment")
    make_model(folder / "model")
    with gzip.open(folder / "cuts.jsonl.gz", "wt") as file:
        for number in range(3):
            file.write(json.dumps(cut(folder, number)) + "\n")
    return folder


def cut(folder: Path, number: int) -> dict[str, Any]:
    time = np.arange(22400) / 16000
    level = sum(np.exp(-0.5 * ((time - p) / 0.05) ** 2) for p in PEAKS) + 1e-4
    wave = 0.1 * np.random.default_rng(number).standard_normal(len(time)) * level
    path = folder / f"u{number}.wav"
    soundfile.write(path, wave, 16000)
    recording = {
        "id": f"r{number}", "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": 16000, "num_samples": len(time), "duration": 1.4, "channel_ids": [0],
    }  # fmt: skip
    # A consonant and a vowel around each swell; a pause between the last two.
    phones = [["sil", 0.0, 0.2]]
    for peak in PEAKS[:3]:
        phones += [["t", peak - 0.1, 0.05], ["a", peak - 0.05, 0.15]]
    phones += [["sil", 0.8, 0.2], ["t", 1.0, 0.05], ["a", 1.05, 0.15], ["sil", 1.2, 0.2]]
    spoken = {"id": f"s{number}", "recording_id": f"r{number}", "start": 0.0, "duration": 1.4}
    if number < 2:
        spoken["alignment"] = {"phone": [[*p, None] for p in phones]}
    return {
        "id": f"c{number}", "start": 0.0, "duration": 1.4, "channel": 0, "recording": recording,
        "supervisions": [spoken], "type": "MonoCut",
    }  # fmt: skip


def run(folder: Path, output: Path, *more: object) -> int:
    words = ("--cuts", f"[{folder}/cuts.jsonl.gz]", "--output", output, *more)
    return main([str(w) for w in words])


def read(output: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    rows = [json.loads(x) for x in (output / "segments.jsonl").read_text().splitlines()]
    results = json.loads((output / "results.json").read_text())
    return {r["id"]: np.array(r["segments"]).reshape(-1, 2) for r in rows}, results


def test_energy_finds_the_syllables_that_it_swells_for(
    folder: Path, tmp_path: Path, capsys
) -> None:
    more = ("--method", "energy", "--silence_db", 15, "--reference", "syllable")
    assert run(folder, tmp_path, *more) == 0
    found, results = read(tmp_path)
    assert sorted(found) == ["c0", "c1", "c2"] and all(len(s) == 4 for s in found.values())
    assert results["scored"] == 2 and results["true"] == 12
    assert results["precision"] == results["recall"] == results["f1"] == 1.0
    assert "syllable boundaries: precision 1.000" in capsys.readouterr().out
    assert results["segments_per_second"] == pytest.approx(12 / 4.2)


def test_the_rate_is_the_references_where_none_is_given(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, "--method", "rate", "--reference", "syllable") == 0
    found, results = read(tmp_path)
    # Four syllables within a second, from 0.2 to 1.2.
    assert found["c2"][:, 0] == pytest.approx(np.arange(0, 1.4, 0.25))
    assert results["f1"] < 0.9
    assert run(folder, tmp_path, "--method", "rate", "--rate_hz", 2) == 0
    assert len(read(tmp_path)[0]["c0"]) == 3


def test_a_models_segments_are_those_of_its_frames(folder: Path, tmp_path: Path) -> None:
    more = ("--model", folder / "model", "--layer", 1, "--merge_threshold", 0.97,
            "--silence_db", 20, "--labels", tmp_path / "labels",
            "--reference", "vowel")  # fmt: skip
    assert run(folder, tmp_path, *more) == 0
    found, results = read(tmp_path)
    model, store = load(folder / "model"), LabelStore.open(tmp_path / "labels")
    total = 0
    for number in range(3):
        wave, _ = soundfile.read(folder / f"u{number}.wav", dtype="float32")
        (features,) = model.extract([wave], 1, rate=16000)
        x = torch.from_numpy(features.hidden[1])[None]
        levels = frame_levels_db(
            torch.from_numpy(wave)[None], torch.tensor([len(wave)]), 320, x.shape[1]
        )
        wanted = spans(segment(x, levels >= -20, torch.tensor([0.97]))[0])
        own = found[f"c{number}"]
        assert len(wanted) > 4
        assert own == pytest.approx(wanted * 0.02 + 0.0025, abs=1e-4)
        labels = store.frames(f"c{number}")
        assert len(labels) == x.shape[1] == features.num_frames
        edges = np.zeros(len(labels), dtype=np.int64)
        for i, (a, b) in enumerate(wanted):
            edges[a:b] = 1 + i % 2
        assert np.array_equal(labels, edges)
        if number < 2:
            vowels = [(p - 0.05, p + 0.1) for p in PEAKS]
            total += count_boundaries(boundaries(vowels), boundaries(own)).hits
    assert results["hits"] == total and results["true"] == 16
    assert store.meta["frame_rate_hz"] == 50 and store.meta["classes"] == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--method", "greedy"), "model: found None with method greedy"),
        (("--method", "energy", "--model", "x"), "model: found x with method energy"),
        (("--method", "rate"), "rate_hz: found none without a reference"),
        (("--method", "energy", "--tolerance_ms", "-1"), "tolerance_ms -1.0"),
    ],
)
def test_wrong_options_are_named(folder: Path, tmp_path: Path, more, message, capsys) -> None:
    with pytest.raises(SystemExit):
        run(folder, tmp_path, *more)
    assert message in capsys.readouterr().err


def test_a_reference_that_is_not_there_is_named(folder: Path, tmp_path: Path, capsys) -> None:
    assert run(folder, tmp_path, "--method", "energy", "--reference", "word") == 2
    assert "found no alignment for word" in capsys.readouterr().err
