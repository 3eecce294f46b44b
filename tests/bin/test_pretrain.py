"""Pretraining from a YAML file to an exported model; resuming; export."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from train_corpus import make_corpus, write_labels

from speechssl import load
from speechssl.bin import export, pretrain
from speechssl.config import EncoderConfig, from_class_path
from speechssl.encoders.transformer import TransformerConfig
from speechssl.heads.asr_ctc import CtcConfig
from speechssl.model_file import open_model
from speechssl.nn.adapters import AdapterConfig, AdapterOptions
from speechssl.objectives.data2vec import Data2vecConfig
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


def test_no_update_exports_the_model_as_it_is_built(config_file, tmp_path: Path) -> None:
    """Baselines: validated once, seeded by train.seed, and the same when it is run again."""
    states = []
    for name, *more in (("a",), ("b", "--train.seed", "2"), ("a",)):
        run = tmp_path / name
        assert pretrain.main(command(config_file, run, "--train.steps", "0", *more)) == 0
        found = lines(run)
        assert [(x["step"], x["split"]) for x in found] == [(0, "valid")]
        assert found[0]["loss_nats"] > math.log(4)  # knows nothing of four classes
        assert open_model(run).provenance["step"] == 0
        states.append(open_model(run).encoder.state_dict())
    first, other, again = states
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


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


@pytest.fixture(scope="module")
def short_run(config_file, tmp_path_factory) -> Path:
    """A run of three updates, exported, with its last checkpoint."""
    run = tmp_path_factory.mktemp("short") / "run"
    assert pretrain.main(command(config_file, run, "--train.steps", "3")) == 0
    return run


def init(config: Path, output: Path, source: Path | str, *more: str) -> int:
    words = ["--init-from", str(source), "--train.steps", "1", "--train.learning_rate", "0"]
    return pretrain.main(command(config, output, *words, *more))


def same_encoder(a: Path, b: Path) -> bool:
    one, two = (open_model(x).encoder.state_dict() for x in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_run_starts_from_a_run_a_checkpoint_and_with_other_dropout(
    config_file, short_run, tmp_path
) -> None:
    sources = {"run": short_run, "step": short_run / "checkpoints" / "step_3"}
    for name, source in sources.items():
        drop = ("--objective.encoder.dropout", "0.3")
        assert init(config_file, tmp_path / name, source, *drop) == 0
        assert same_encoder(tmp_path / name, short_run)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(short_run / "checkpoints", unfinished / "checkpoints")
    shutil.copy(short_run / "architecture.json", unfinished)
    assert init(config_file, tmp_path / "again", unfinished) == 0
    assert same_encoder(tmp_path / "again", short_run)


def test_another_objective_starts_from_the_run_and_so_does_its_teacher(short_run) -> None:
    encoder = from_class_path(EncoderConfig, ENCODER)
    config = Data2vecConfig(encoder=encoder, target_layers=2)
    objective = pretrain.started(config, str(short_run)).build()
    held = open_model(short_run).encoder.state_dict()
    for k, v in objective.encoder.state_dict().items():
        assert torch.equal(v, held[k])
    for k, v in objective.teacher.encoder.state_dict().items():
        assert torch.equal(v, held[k])
    assert type(objective.encoder.config) is type(encoder)
    moved = objective.encoder.layers[0].fc1.weight
    assert moved.data_ptr() != objective.teacher.encoder.layers[0].fc1.weight.data_ptr()


def test_a_run_starts_from_a_public_model(config_file, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    transformers.HubertModel(theirs).save_pretrained(tmp_path / "public")
    ours = TransformerConfig(
        front_dim=16, layers=1, dim=32, ffn_dim=48, heads=2, pos_conv_kernel=8, pos_conv_groups=4
    )
    encoder = pretrain.load_encoder(ours, str(tmp_path / "public"))
    held = load(tmp_path / "public").encoder.state_dict()
    assert all(torch.equal(v, held[k]) for k, v in encoder.state_dict().items())
    # Weights alone would fit four heads as well.
    with pytest.raises(ValueError, match="heads: found 4, want 2"):
        pretrain.load_encoder(dataclasses.replace(ours, heads=4), str(tmp_path / "public"))


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("dinosr.DinoSRConfig", {"target_layers": 1, "codes": 8}),
        ("wav2vec2.Wav2vec2Config", {"codes": 8, "negatives": 5, "final_dim": 16}),
    ],
)
def test_a_public_model_is_pretrained_further_with_another_objective(
    config_file, tmp_path: Path, objective: str, options: dict
) -> None:
    """A HuBERT of transformers', under an infinite schedule: what leaves is what entered if nothing
    is learnt, and otherwise opens as the public model does, and differs."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    public = tmp_path / "public"
    transformers.HubertModel(theirs).save_pretrained(public)
    held = load(public).encoder
    values = yaml.safe_load(config_file.read_text())
    values["data"] |= {"labels": {}, "batch_seconds": 4}
    encoder = {"class_path": ENCODER["class_path"], "init_args": {
        "front_dim": 16, "layers": 2, "dim": 32, "ffn_dim": 48, "heads": 2, "layerdrop": 0.1,
        "pos_conv_kernel": 8, "pos_conv_groups": 4,
    }}  # fmt: skip
    values["objective"] = {
        "class_path": f"speechssl.objectives.{objective}",
        "init_args": {"encoder": encoder, **options},
    }
    values["train"] |= {"schedule": "infinite", "warmup_steps": 1, "cooldown_steps": 1}
    path = tmp_path / "further.yaml"
    path.write_text(yaml.safe_dump(values))
    assert init(path, tmp_path / "same", public) == 0
    words = ("--init-from", str(public), "--train.steps", "4")
    assert pretrain.main(command(path, tmp_path / "moved", *words)) == 0
    same, moved = (load(tmp_path / name).encoder.state_dict() for name in ("same", "moved"))
    before = held.state_dict()
    assert before.keys() == same.keys() == moved.keys()
    assert all(torch.equal(before[k], same[k]) for k in before)
    learnt = [k for k in before if not torch.equal(before[k], moved[k])]
    assert len(learnt) > len(before) / 2 and all(moved[k].isfinite().all() for k in before)
    rates = [x["lr"] for x in lines(tmp_path / "moved") if x["split"] == "train"]
    assert rates and min(rates) > 0


def test_what_a_run_cannot_start_from_is_named(config_file, short_run, tmp_path, capsys) -> None:
    assert init(config_file, tmp_path / "a", tmp_path / "none") == 2
    assert "is neither a folder nor a file" in capsys.readouterr().err
    other = ("--objective.encoder.dim", "16")
    assert init(config_file, tmp_path / "b", short_run, *other) == 2
    assert "dim: found 16, want 32" in capsys.readouterr().err
    both = ("--branch-from", str(short_run))
    with pytest.raises(SystemExit):
        init(config_file, tmp_path / "c", short_run, *both)
    assert "want one: only the encoder's weights" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "houlsby", "prefix", "conv", "bitfit"])
def test_no_checkpoint_s_adapters_are_lost_in_silence(tmp_path, monkeypatch, kind) -> None:
    (tmp_path / "state.json").write_text("{}")
    also = [AdapterOptions(kind="layer_norm")]
    head = CtcConfig(freeze_encoder_steps=-1, adapters=AdapterConfig(kind=kind, also=also))
    read = {"encoder.x": torch.ones(1), "adapters.y": torch.ones(1)}
    monkeypatch.setattr("speechssl.train.checkpoint.read_weights", lambda path: read)
    monkeypatch.setattr("speechssl.train.folder.read_architecture", lambda path: (None, head, None))
    if kind == "bitfit":
        assert pretrain.encoder_of(str(tmp_path))[1].keys() == {"x"}
        return
    with pytest.raises(ValueError, match=rf"head with adapters \({kind}, layer_norm\)"):
        pretrain.encoder_of(str(tmp_path))


def test_a_branch_goes_on_as_the_run_itself_would(config_file, short_run, tmp_path) -> None:
    straight = tmp_path / "straight"
    shutil.copytree(short_run, straight)
    longer = ("--train.steps", "6", "--train.warmup_fraction", "0")
    force = ("--force", "true")
    assert pretrain.main(command(config_file, straight, *longer, *force)) == 0
    words = ("--branch-from", str(short_run), *longer)
    assert pretrain.main(command(config_file, tmp_path / "branch", *words)) == 0
    assert same_encoder(tmp_path / "branch", straight)
    assert checkpoint.steps(short_run / "checkpoints") == [3]
    # Once begun it resumes itself, not the other run again.
    shutil.rmtree(tmp_path / "branch/checkpoints/step_3", ignore_errors=True)
    assert pretrain.main(command(config_file, tmp_path / "branch", *words)) == 0
    assert 3 not in checkpoint.steps(tmp_path / "branch/checkpoints")
    # Other data are read from their start.
    more = (*words, "--data.seed", "5", "--train.steps", "4")
    assert pretrain.main(command(config_file, tmp_path / "other", *more)) == 0
    fresh = ("--data.seed", "5", "--train.steps", "1")
    assert pretrain.main(command(config_file, tmp_path / "fresh", *fresh)) == 0
    states = [
        json.loads((tmp_path / name / "state.json").read_text())
        for name in ("other/checkpoints/step_4", "fresh/checkpoints/step_1")
    ]
    assert states[0]["positions"] == states[1]["positions"]
    assert states[0]["guard"]["seen"] == 1


def test_an_infinite_run_keeps_the_state_before_its_anneal_and_goes_on_from_there(
    config_file, tmp_path, capsys
) -> None:
    run = tmp_path / "run"
    endless = ["--train.schedule", "infinite", "--train.warmup_steps", "2",
               "--train.cooldown_steps", "2", "--train.final_scale", "0.1",
               "--train.save_every", "1"]  # fmt: skip

    def go(output: Path, steps: int, anneal: int, *more: str) -> int:
        ends = ["--train.steps", str(steps), "--train.anneal_steps", str(anneal)]
        return pretrain.main(command(config_file, output, *endless, *ends, *more))

    assert go(run, 5, 0) == 0
    assert go(run, 9, 5) == 2
    assert "an anneal from update 4 on, want it to begin at update 5" in capsys.readouterr().err
    assert go(run, 9, 3) == 0
    assert checkpoint.steps(run / "checkpoints") == [6, 8, 9]
    assert go(run, 12, 3) == 2
    assert f"--branch-from {run}/checkpoints/step_6" in capsys.readouterr().err
    whole = tmp_path / "whole"
    assert go(whole, 8, 0) == 0
    assert go(tmp_path / "on", 8, 0, "--branch-from", f"{run}/checkpoints/step_6") == 0
    assert same_encoder(tmp_path / "on", whole)


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
