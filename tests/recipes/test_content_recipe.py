"""The recipe of content, speakers and syllables: what its stages start, its table; configurations;
and once in earnest on a miniature corpus."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_copy import ROOT, lay_out, run_recipe

from speechssl.bin.pretrain import PretrainConfig
from speechssl.config import parse

NOTE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>{log}
[[ $* != *local/best.py* ]] || echo 0.7
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A recipe whose programs write down how they were called."""
    lay_out(tmp_path, "mini/ssl", "mini/content", note=NOTE)
    folder = tmp_path / "egs/mini/content"
    (folder / "exp/speakers").mkdir(parents=True)
    (folder / "exp/speakers/number").write_text("17\n")
    return folder


def noted(folder: Path, *words: str) -> list[str]:
    log = folder.parents[2] / "calls"
    log.write_text("")
    done = run_recipe(folder / "run.sh", folder.parents[2] / "venv", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return log.read_text().splitlines()


def test_the_corpus_is_made_by_the_recipe_that_it_belongs_to(notes: Path) -> None:
    calls = noted(notes, "--stop-stage", "1")
    assert "synth --output data/synth" in calls[0]
    assert "synth --output ../ssl/data/probe" in calls[-1] and "--seed 2" in calls[-1]
    done = run_recipe(notes / "run.sh", notes.parents[2] / "venv", "--data", "elsewhere")
    assert done.returncode == 2 and "found no elsewhere/cuts_train.jsonl.gz" in done.stderr


def test_each_model_gets_what_it_stands_on(notes: Path) -> None:
    calls = noted(notes, "--stage", "5", "--seeds", "4", "--steps", "9", "--sylber-steps", "7",
                  "--labels", "converted")  # fmt: skip
    training = {c.split("--output exp/seed4/")[1].split()[0]: c for c in calls if "pretrain" in c}
    assert list(training) == ["hubert", "contentvec", "nfa", "sylber1", "sylber2"]
    for name, call in training.items():
        assert f"--train.steps {7 if 'sylber' in name else 9}" in call
        assert "--data.seed 4 --train.seed 4" in call
    assert "--data.labels.kmeans converted" in training["contentvec"]
    assert "--objective.speakers 17" in training["contentvec"]
    assert "--data.labels.kmeans ../ssl/exp/km_mfcc/labels" in training["nfa"]
    assert "--init_from exp/seed4/hubert --objective.segments energy" in training["sylber1"]
    assert "--init_from exp/seed4/sylber1 --train" in training["sylber2"]
    probed = [c for c in calls if c.startswith("speechssl probe")]
    assert len(probed) == 3
    scored = [c.split("--output exp/")[1] for c in calls if "--reference syllable" in c]
    tried = [name for name in scored if "/valid_" in name]
    assert tried[:4] == [f"seed4/segments_hubert/valid_0.{i}" for i in (6, 7, 8, 9)]
    scored = [name for name in scored if name not in tried]
    assert len(tried) == 12 and sum("--merge_threshold 0.7 --cuts [../ssl/data/probe" in c
                                    for c in calls) == 3  # fmt: skip
    assert scored == ["seed4/segments_hubert", "seed4/segments_sylber1", "seed4/segments_sylber2",
                      "segments_energy", "segments_rate"]  # fmt: skip
    assert sum("local/pairs.py" in c for c in calls) == 5
    fitted = [c for c in calls if c.startswith("speechssl finetune")]
    assert [c.split("--init ")[1].split()[0] for c in fitted] == [
        "exp/seed4/hubert",
        "exp/seed4/nfa",
    ]
    assert all("--data.labels.units ../ssl/exp/km_mfcc/labels" in c for c in fitted)
    assert calls[-1] == "python local/table.py --exp exp"


def write(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_the_table_has_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    for seed in (1, 2):
        there = tmp_path / f"seed{seed}"
        rows = [
            {"layer": 0, "phone_accuracy": 0.9, "speaker_accuracy": 0.8},
            {"layer": 1, "phone_accuracy": 0.4 + 0.1 * seed, "speaker_accuracy": 0.1},
        ]
        best = {"phone_dev_accuracy": 1, "speaker_dev_accuracy": 0}
        write(there / "probe_contentvec/probe.json", {"layers": rows, "best": best})
        write(there / "factors/pairs.json", {"eer": 0.1 * seed})
        scores = {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "r_value": 0.3}
        write(there / "segments_sylber2/results.json", {**scores, "segments_per_second": 4.0})
    done = subprocess.run(
        [sys.executable, ROOT / "egs/mini/content/local/table.py", "--exp", tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "| contentvec | 55.0 ± 7.1 | 10.0 ± 0.0 | 80.0 ± 0.0 |" in lines
    assert "| hubert | - | - | - |" in lines
    assert "| factors | 15.0 ± 7.1 |" in lines
    assert "| sylber2 | 50.0 ± 0.0 | 100.0 ± 0.0 | 66.7 ± 0.0 | 30.0 ± 0.0 | 4.0 ± 0.0 |" in lines
    assert (tmp_path / "table.md").read_text() in done.stdout


@pytest.mark.parametrize("name", ["contentvec_base", "nfa_base", "sylber_base"])
def test_published_encoders_are_hubert_base(name: str) -> None:
    path = ROOT / f"egs/librispeech/ssl/conf/{name}.yaml"
    config = parse(PretrainConfig, ["--config", str(path), "--output", "exp/x"])
    with torch.device("meta"):
        encoder = config.objective.build().encoder
    assert sum(p.numel() for p in encoder.parameters()) == 94_371_712


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_stage_runs_on_a_miniature_corpus(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    lay_out(tmp_path, "mini/ssl", "mini/content")
    folder = tmp_path / "egs/mini/content"
    venv = Path(sys.prefix)
    made = run_recipe(folder.parent / "ssl/run.sh", venv, "--stop-stage", "5", "--hours", "0.05",
                 "--speakers", "14")  # fmt: skip
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    done = run_recipe(
        folder / "run.sh", venv, "--steps", "2", "--sylber-steps", "2", "--probe-hours", "0.03",
        "--probe-speakers", "12", "--overrides", "--data.num_workers 0 --data.batch_seconds 12",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    tables = json.loads((folder / "exp/table.json").read_text())
    for rows in tables.values():
        for name, columns in rows.items():
            assert all(len(found) == 1 for found in columns.values()), (name, columns)
