"""The realmini recipes: their tools, and every stage on a miniature corpus."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recipe_copy import RecipeCopy

from speechssl.bin.finetune import FinetuneConfig
from speechssl.config import parse
from speechssl.corpora import jsonl
from speechssl.data.fields import cut_rows, field_of
from speechssl.nn.adapters import AdapterConfig

ROOT = Path(__file__).parents[2]
REALMINI = ROOT / "egs/realmini"
TASKS = ("speaker", "emotion", "keyword")
SPLITS = {"train": range(6), "valid": range(6, 9), "test": range(9, 12)}


def write_corpus(folder: Path, name: str) -> None:
    """Twelve speakers of both genders, three classes, four recordings of each."""
    random = np.random.default_rng(0)
    (folder / name / "audio").mkdir(parents=True)
    rows = []
    for split, speakers in SPLITS.items():
        for who in speakers:
            for take in range(12):
                row = {"id": f"{who}-{take}", "audio": f"audio/{who}-{take}.flac", "split": split,
                       "speaker": f"p{who}", "gender": ["female", "male"][who % 2],
                       "emotion": ["sad", "calm", "angry"][take % 3],
                       "label": ["up", "down", "go"][take % 3], "text": f"T{take}"}  # fmt: skip
                wave = 0.1 * random.standard_normal(random.integers(9000, 14000))
                soundfile.write(folder / name / row["audio"], wave, 16000)
                rows.append(json.dumps(row))
    (folder / name / "manifest.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder, "tiny")
    jsonl.prepare(jsonl.Config(source=str(folder), output=str(folder / "cuts")))
    return folder


def tool(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")


def speakers(cuts: Path) -> dict[str, str]:
    rows = cut_rows([str(cuts)])
    return {str(field_of(r, "speaker")): str(field_of(r, "gender")) for r in rows}


def test_folds_share_no_speaker_and_test_each_one_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = [corpus / f"cuts/cuts_{s}.jsonl.gz" for s in SPLITS]
    tool(monkeypatch, "speaker_folds.py", "--cuts", *cuts, "--folds", 4, "--balance", "gender",
         "--output", tmp_path)  # fmt: skip
    tested: list[str] = []
    for fold in range(1, 5):
        own = {s: speakers(tmp_path / f"fold{fold}/cuts_{s}.jsonl.gz") for s in SPLITS}
        assert not own["train"].keys() & (own["valid"].keys() | own["test"].keys())
        assert not own["valid"].keys() & own["test"].keys()
        assert len(own["train"]) + len(own["valid"]) + len(own["test"]) == 12
        assert {len(own["valid"]), len(own["test"])} == {3}
        assert set(own["test"].values()) == {"female", "male"}
        tested += own["test"]
    assert len(tested) == len(set(tested)) == 12


def test_held_out_cuts_are_of_trained_speakers_and_trained_on_no_more(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held = tmp_path / "train.jsonl.gz", tmp_path / "held.jsonl.gz"
    tool(monkeypatch, "hold_out.py", "--cuts", corpus / "cuts/cuts_train.jsonl.gz", "--share", 0.2,
         "--train", train, "--valid", held)  # fmt: skip
    ids = [{r["id"] for r in cut_rows([str(p)])} for p in (train, held)]
    assert not ids[0] & ids[1] and len(ids[0]) + len(ids[1]) == 72 and len(ids[1]) == 6 * 2
    assert speakers(train) == speakers(held)
    again = tmp_path / "again.jsonl.gz"
    tool(monkeypatch, "hold_out.py", "--cuts", corpus / "cuts/cuts_train.jsonl.gz", "--share", 0.2,
         "--train", tmp_path / "x.jsonl.gz", "--valid", again)  # fmt: skip
    assert again.read_bytes() == held.read_bytes()
    tool(monkeypatch, "hold_out.py", "--cuts", corpus / "cuts/cuts_train.jsonl.gz", "--least", 13,
         "--train", train, "--valid", held)  # fmt: skip
    assert not list(cut_rows([str(held)]))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("upstream", ["logmel", "random"])
def test_every_upstream_serves_every_task(task: str, upstream: str) -> None:
    words = ["--config", str(REALMINI / task / "conf/finetune.yaml"), "--output", "exp/x",
             "--config", str(REALMINI / f"upstream/{upstream}.yaml")]  # fmt: skip
    words += ["--head.classes", "[a,b]", "--head.class_counts", "[1,1]"]
    config = parse(FinetuneConfig, words)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    assert not any(p.requires_grad for p in head.encoder.parameters())
    assert any(p.requires_grad for p in head.parameters())


FURTHER = {
    "diarization": [],
    "audio": ["--head.field", "x", "--head.classes", "[a,b]", "--head.class_counts", "[1,1]"],
    "slu": ["--head.values", "[[a,b],[a,b],[none,b],[a,b]]"],
    "mispronunciation": ["--head.vocab_size", "41"],
    "enhance": ["--head.sources", "2", "--data.mixing.noise_probability", "0.0"],
}
"""Tasks that other heads serve, with what fine-tuning or run.sh fills in."""


@pytest.mark.parametrize("task", FURTHER)
@pytest.mark.parametrize("upstream", ["logmel", "random"])
def test_every_upstream_serves_the_further_tasks(task: str, upstream: str) -> None:
    words = ["--config", str(REALMINI / task / "conf/finetune.yaml"), "--output", "exp/x",
             "--config", str(REALMINI / f"upstream/{upstream}.yaml"), *FURTHER[task]]  # fmt: skip
    config = parse(FinetuneConfig, words)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    assert not any(p.requires_grad for p in head.encoder.parameters())
    assert any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("upstream", ["logmel", "random"])
def test_emotions_are_learnt_with_transcripts_and_gender(upstream: str) -> None:
    words = ["--config", str(REALMINI / "emotion/conf/multitask.yaml"), "--output", "exp/x",
             "--config", str(REALMINI / f"upstream/{upstream}.yaml"), "--head.classes", "[a,b]",
             "--head.class_counts", "[1,1]", "--head.further_values", "[[f,m]]",
             "--head.vocab_size", "28"]  # fmt: skip
    plain = parse(FinetuneConfig, ["--config", str(REALMINI / "emotion/conf/finetune.yaml"),
                                   "--output", "exp/x", *words[4:6]])  # fmt: skip
    config = parse(FinetuneConfig, words)
    # The class is learnt as alone.
    assert config.train == plain.train
    shared = dataclasses.asdict(plain.head).keys() - {"classes", "class_counts"}
    assert all(getattr(config.head, k) == getattr(plain.head, k) for k in shared)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    assert head.text_output.out_features == 28 and not any(
        p.requires_grad for p in head.encoder.parameters()
    )


def test_the_emotions_task_is_an_option(tmp_path: Path) -> None:
    copy = RecipeCopy(tmp_path, "realmini/emotion", "realmini/upstream", "realmini/local")
    words = ["--corpus-dir", str(tmp_path), "--folds", "2", "--divide", "4"]
    for task, name in (("finetune", "logmel"), ("multitask", "logmel_multitask")):
        calls = copy.calls("realmini/emotion", *words, "--task", task)
        (trained,) = (c for c in calls if "speechssl.bin.finetune" in c)
        assert f"--config conf/{task}.yaml" in trained
        assert f"exp/ravdess/{name}/seed1/fold2" in trained
    code, shown = copy.run("realmini/emotion", *words, "--task", "gender")
    assert code == 2 and "found 'gender', want finetune or multitask" in shown


def test_adapters_are_an_override() -> None:
    words = ["--config", str(REALMINI / "keyword/conf/finetune.yaml"), "--output", "exp/x",
             "--config", str(REALMINI / "upstream/random.yaml"),
             "--head.adapters.kind", "lora", "--head.adapters.dim", "4",
             "--head.adapters.projections", "[q,k]", "--head.classes", "[a,b]"]  # fmt: skip
    config = parse(FinetuneConfig, words)
    assert config.head.adapters == AdapterConfig(kind="lora", dim=4, projections=["q", "k"])
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    assert sum(p.numel() for p in head.adapters.parameters()) == 4 * 2 * 2 * 192 * 4


def test_recognisers_take_adapters_and_interfaces_too() -> None:
    words = ["--config", str(REALMINI / "mispronunciation/conf/finetune.yaml"), "--output", "exp/x",
             "--config", str(REALMINI / "upstream/random.yaml"), "--head.vocab_size", "41",
             "--head.adapters.kind", "conv", "--head.interface", "convolution"]  # fmt: skip
    config = parse(FinetuneConfig, words)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    # Five layers become two, each of half the width.
    assert head.layer_sum.output_size == 192 and head.hidden.lstm.input_size == 192
    assert len(head.adapters.layers) == 4 and any(
        p.requires_grad for p in head.adapters.parameters()
    )


@pytest.mark.parametrize("upstream", ["logmel", "random"])
def test_a_head_of_pronunciation_is_trained_on_the_recognisers_labels(
    upstream: str, tmp_path: Path
) -> None:
    words = ["--config", str(REALMINI / "mispronunciation/conf/head.yaml"), "--output", "exp/x",
             "--config", str(REALMINI / f"upstream/{upstream}.yaml"),
             "--head.phones", '["a", "n", "y"]']  # fmt: skip
    config = parse(FinetuneConfig, words)
    with torch.device("meta"):
        head = config.head.build(config.encoder.build())
    assert head.output.out_features == 3 and not config.data.speeds
    assert not any(p.requires_grad for p in head.encoder.parameters())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_every_stage_runs_on_a_miniature_corpus(task: str, tmp_path: Path) -> None:
    if not (ROOT / ".venv").is_dir() and "SPEECHSSL_VENV" not in os.environ:
        pytest.skip("the recipes use .venv; tools/setup.sh makes it")
    name = {"speaker": "tiny", "emotion": "tiny", "keyword": "speech_commands"}[task]
    write_corpus(tmp_path, name)
    options = {
        "speaker": ["--train-corpora", "tiny", "--trial-corpora", "tiny"],
        "emotion": ["--corpus", "tiny", "--folds", "1 3", "--divide", "3"],
        "keyword": [],
    }[task]
    tiny = "--data.num_workers 0 --train.valid_every 2 --data.batch_seconds 8"
    command = ["bash", str(REALMINI / task / "run.sh"), "--corpus-dir", str(tmp_path), *options,
               "--steps", "4", "--exp", str(tmp_path / "exp"), "--data", str(tmp_path / "data"),
               "--overrides", tiny]  # fmt: skip
    for upstream in ("logmel", str(tmp_path / "encoder")):
        if upstream != "logmel":
            from speechssl.encoders.transformer import TransformerConfig
            from speechssl.model_file import save_model

            encoder = TransformerConfig(
                front_end="log_mel", front_norm="layer", front_dim=16, layers=1, dim=16, ffn_dim=16,
                heads=2, pos_conv_kernel=8, pos_conv_groups=2,
            )  # fmt: skip
            save_model(upstream, encoder, encoder.build().state_dict())
        done = subprocess.run(
            [*command, "--upstream", upstream], capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        name = f"| {Path(upstream).name} |"
        row = next(x for x in done.stdout.splitlines() if x.startswith(name))
        assert ("EER %" in done.stdout) == (task == "speaker") and "nan" not in row
