"""Pretraining from a YAML file to an exported model; resuming; export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from train_corpus import make_corpus, write_labels

from speechssl.bin import export, pretrain
from speechssl.model_file import open_model
from speechssl.train import checkpoint
from speechssl.train.log import TIMING

ENCODER = {
    "class_path": "speechssl.encoders.transformer.TransformerConfig",
    "init_args": {
        "front_end": "log_mel", "front_norm": "layer", "front_dim": 16, "mel_hop_samples": 640,
        "layers": 2, "dim": 32, "ffn_dim": 64, "heads": 2, "pre_norm": True, "layerdrop": 0.1,
        "pos_conv_kernel": 8, "pos_conv_groups": 4, "conv_gradient_scale": 1.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    train, labels = make_corpus(folder, "train", 40, 1)
    valid, more = make_corpus(folder, "valid", 6, 2)
    store = write_labels(folder / "labels", labels | more)
    values = {
        "data": {"train": [train], "valid": [valid], "labels": {"tone": store},
                 "batch_seconds": 10, "max_batch_seconds": 5, "max_seconds": 2,
                 "num_workers": 0},
        "objective": {
            "class_path": "speechssl.objectives.hubert.HubertConfig",
            "init_args": {"encoder": ENCODER, "classes": {"tone": 4}, "final_dim": 16,
                          "mask_span": 3, "feature_penalty": 0.0},
        },
        "train": {"steps": 30, "learning_rate": 3e-3, "device": "cpu", "tensorboard": False,
                  "log_every": 5, "valid_every": 10, "save_every": 7},
    }  # fmt: skip
    path = folder / "pretrain.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def lines(folder: Path) -> list[dict]:
    found = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k not in TIMING} for x in found]


def command(config: Path, output: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--output", str(output), *more]


def test_pretraining_learns_and_exports_what_load_opens(config_file, tmp_path: Path) -> None:
    assert pretrain.main(command(config_file, tmp_path / "run")) == 0
    valid = [x["loss_nats"] for x in lines(tmp_path / "run") if x["split"] == "valid"]
    assert valid[-1] < valid[0]
    opened = open_model(tmp_path / "run")
    assert opened.head is None and opened.provenance["step"] == 30
    assert opened.provenance["config"]["train"]["steps"] == 30
    out = opened.encoder(torch.zeros(1, 16000), torch.tensor([16000]))
    assert len(out.hidden) == 3
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["train"]["clip_norm"] == 10.0
    # Its own resolved configuration is a valid --config, and resumes to the same end.
    (tmp_path / "run" / "model.json").unlink()
    before = lines(tmp_path / "run")
    assert pretrain.main(["--config", str(tmp_path / "run" / "config.yaml")]) == 0
    assert (tmp_path / "run" / "model.json").is_file() and lines(tmp_path / "run") == before
    # Another run may start from it.
    more = ["--init_from", str(tmp_path / "run"), "--train.steps", "2"]
    assert pretrain.main(command(config_file, tmp_path / "next", *more)) == 0


def test_export_makes_the_same_files_of_a_checkpoint(config_file, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pretrain.main(command(config_file, run, "--train.steps", "8")) == 0
    assert export.main(["--checkpoint", str(run), "--output", str(tmp_path / "x")]) == 0
    a, b = open_model(run).encoder.state_dict(), open_model(tmp_path / "x").encoder.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    earlier = str(run / "checkpoints" / "step_7")
    assert export.main(["--checkpoint", earlier, "--output", str(tmp_path / "y")]) == 0
    assert open_model(tmp_path / "y").provenance["step"] == 7
    assert export.main(["--checkpoint", str(tmp_path / "none")]) == 2
    assert export.main(["--checkpoint", str(run), "--form", "transformers"]) == 2


def test_another_configuration_does_not_continue_a_run(config_file, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert pretrain.main(command(config_file, run, "--train.steps", "3")) == 0
    assert pretrain.main(command(config_file, run, "--train.learning_rate", "1")) == 2
    assert "train.learning_rate: found 1.0, before 0.003" in capsys.readouterr().err
    assert pretrain.main(command(config_file, run, "--train.steps", "5")) == 0


def test_a_checkpoint_of_another_model_is_named(config_file, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert pretrain.main(command(config_file, run, "--train.steps", "2")) == 0
    other = ["--objective.final_dim", "8", "--train.steps", "4", "--force", "true"]
    assert pretrain.main(command(config_file, run, *other)) == 2
    error = capsys.readouterr().err
    assert "another model" in error and "heads.tone.codewords" in error


def test_probed_batches_do_not_change_what_is_learned(config_file, tmp_path: Path) -> None:
    more = ["--probe_batches", "true", "--memory_gb", "8", "--train.steps", "4"]
    assert pretrain.main(command(config_file, tmp_path / "a", *more)) == 0
    assert open_model(tmp_path / "a").provenance["step"] == 4


def start(config: Path, output: Path, *more: str, ranks: int = 1) -> subprocess.Popen:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    words = [*launcher, "speechssl.bin.pretrain", *command(config, output, *more)]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, text = process.communicate(timeout=200)
    assert process.returncode == 0, text


@pytest.mark.slow
def test_a_killed_run_of_the_whole_program_resumes_bit_equal(config_file, tmp_path) -> None:
    more = ["--train.steps", "100", "--data.num_workers", "1"]
    finish(start(config_file, tmp_path / "whole", *more))
    killed = start(config_file, tmp_path / "killed", *more)
    while killed.poll() is None and len(checkpoint.steps(tmp_path / "killed/checkpoints")) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    finish(start(config_file, tmp_path / "killed", *more))
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    a = open_model(tmp_path / "whole").encoder.state_dict()
    b = open_model(tmp_path / "killed").encoder.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicated", "fsdp2"])
def test_one_rank_equals_two_of_the_whole_program(config_file, tmp_path: Path, parallel) -> None:
    still = {"dropout": "0", "attention_dropout": "0", "input_dropout": "0", "layerdrop": "0"}
    more = [w for k, v in still.items() for w in (f"--objective.encoder.{k}", v)]
    finish(start(config_file, tmp_path / "one", *more))
    finish(start(config_file, tmp_path / "two", *more, "--train.parallel", parallel, ranks=2))
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, abs=1e-3)


@pytest.mark.slow
def test_sharded_runs_with_dropped_layers_averages_and_bf16_reach_their_end(
    config_file, tmp_path: Path
) -> None:
    more = ["--objective.encoder.layerdrop", "0.5", "--train.precision", "bf16",
            "--train.ema_decay", "0.9", "--train.parallel", "fsdp2"]  # fmt: skip
    finish(start(config_file, tmp_path / "run", *more, ranks=2))
    valid = [x["loss_nats"] for x in lines(tmp_path / "run") if x["split"] == "valid"]
    assert valid[-1] < valid[0]
    out = open_model(tmp_path / "run").encoder(torch.zeros(1, 16000), torch.tensor([16000]))
    assert torch.isfinite(out.last).all()
