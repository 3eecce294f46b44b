"""The LibriSpeech recipes' stages on a miniature corpus laid out like LibriSpeech."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipe_copy import RecipeCopy

ROOT = Path(__file__).parents[2]
RECIPES = re.findall(
    r"\w+_(?:base|large|xlarge|plus)\b",
    re.findall(r"^recipe=.*#(.*)", (ROOT / "egs/librispeech/ssl/run.sh").read_text(), re.M)[0],
)
WORDS = ["THE", "SEA", "WAS", "CALM", "AND", "A", "SMALL", "BOAT", "LAY", "NEAR", "THE", "SHORE"]
# Iteration 2 onwards reads layers 6 and 9 of Base, so the shrunk model keeps its depth.
TINY = (
    "--data.batch_seconds 12 --data.max_batch_seconds 15.6 --data.num_workers 0 "
    "--data.min_seconds 0.5 --train.precision fp32 --train.log_every 1 --train.valid_every 2 "
    "--objective.encoder.dim 32 --objective.encoder.ffn_dim 32 --objective.encoder.heads 2 "
    "--objective.encoder.front_dim 16 --objective.final_dim 8"
)


def write_corpus(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, speakers in (
        ("train-clean-100", ("19", "26")),
        ("dev-clean", ("84",)),
        ("test-clean", ("61",)),
    ):
        for speaker in speakers:
            chapter = folder / "LibriSpeech" / part / speaker / "100"
            chapter.mkdir(parents=True)
            lines = []
            for number in range(5):
                name = f"{speaker}-100-{number:04d}"
                wave = 0.1 * rng.standard_normal(rng.integers(32000, 48000))
                soundfile.write(chapter / f"{name}.flac", wave, 16000)
                lines.append(f"{name} {' '.join(rng.permutation(WORDS)[:4])}")
            (chapter / f"{speaker}-100.trans.txt").write_text("\n".join(lines) + "\n")


def recipe(task: str, copy: Path, *words: str) -> None:
    """Run a copy of the recipe, so that its data and exp lie in a temporary folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            "bash",
            str(ROOT / f"egs/librispeech/{task}/run.sh"),
            *words,
            "--exp",
            str(copy / "exp"),
            "--data",
            str(copy / "data"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_has_the_classes_of_the_clusters_that_it_is_given(
    tmp_path: Path, name: str
) -> None:
    copy = RecipeCopy(tmp_path, "librispeech/ssl")
    calls = copy.calls("librispeech/ssl", "--recipe", name, "--stage", "4")
    classes = {
        re.findall(r"--output (\S+)", call)[0]: int(re.findall(r"--classes (\d+)", call)[0])
        for call in calls
        if call.startswith("speechssl cluster fit")
    }
    runs = [call for call in calls if "speechssl.bin.pretrain" in call]
    assert len(runs) > 1
    for call in runs:
        config, labels = (re.findall(rf"{word} (\S+)", call)[0] for word in ("--config", "kmeans"))
        yaml = (ROOT / "egs/librispeech/ssl" / config).read_text()
        assert f"classes: {{kmeans: {classes[str(Path(labels).parent)]}}}" in yaml, call
    own = runs[-1]
    assert ("--data.labels.topics" in own) == ("topic" in name)
    if "topic" in name:  # of the same units
        labels = re.findall(r"kmeans (\S+)/labels", own)[0]
        assert f"--data.labels.topics {labels}/topics/labels" in own


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["hubert_base", "wavlm_base", "hubertopic_base"])
def test_every_stage_runs_on_a_miniature_corpus(tmp_path: Path, name: str) -> None:
    if not (ROOT / ".venv").is_dir() and "SPEECHSSL_VENV" not in os.environ:
        pytest.skip("the recipes use .venv; tools/setup.sh makes it")
    write_corpus(tmp_path)
    corpus = str(tmp_path / "LibriSpeech")
    recipe(
        "ssl",
        tmp_path,
        "--librispeech",
        corpus,
        "--recipe",
        name,
        "--steps",
        "2",
        "--train-parts",
        "train-clean-100",
        "--overrides",
        TINY,
        "--sample-frames",
        "2000",
    )
    model = {"hubert_base": "hubert_base_it2", "wavlm_base": "wavlm_base"}.get(name, name)
    assert (tmp_path / "exp" / model / "model.safetensors").is_file()
    if name != "hubert_base":
        return
    recipe(
        "asr",
        tmp_path,
        "--librispeech",
        corpus,
        "--model",
        str(tmp_path / "exp" / model),
        "--steps",
        "2",
        "--valid",
        "dev-clean",
        "--tests",
        "test-clean",
        "--overrides",
        "--data.batch_seconds 12 --data.max_batch_seconds 35 --data.num_workers 0 "
        "--train.precision fp32 --train.log_every 1 --train.valid_every 2",
    )
    assert (tmp_path / "exp/base_100h/beam_test-clean/results.json").is_file()
