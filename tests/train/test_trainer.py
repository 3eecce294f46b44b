"""The training loop: exact gradients, exact resume, refused updates, full disks, wrong models."""

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
from safetensors.torch import load_file
from toy import ToyObjective, ToySource, collate

from speechssl.contract import Update
from speechssl.train import checkpoint
from speechssl.train.config import TrainConfig
from speechssl.train.log import TIMING
from speechssl.train.trainer import Trainer

TOY = str(Path(__file__).with_name("toy.py"))
COMMON = {"device": "cpu", "tensorboard": False, "learning_rate": 0.01, "log_every": 2}


def make(tmp_path: Path, source=None, objective=None, valid=True, **options) -> Trainer:
    torch.manual_seed(0)
    source = source or ToySource()
    config = TrainConfig(**(COMMON | options))
    model = objective or ToyObjective()
    return Trainer(config, model, source, ToySource() if valid else None, tmp_path)


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol, msg=name)


def start(output: Path, *options: str, ranks: int = 1) -> subprocess.Popen:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    command = [*launcher, TOY, str(output), *options]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, text = process.communicate(timeout=120)
    assert process.returncode == 0, text
    return text


def test_loss_falls_and_a_finished_run_resumes_to_nothing(tmp_path: Path) -> None:
    result = make(tmp_path, steps=30, valid_every=10).fit()
    assert result.finished and result.step == 30
    losses = [x["loss"] for x in metrics(tmp_path) if x["split"] == "train"]
    assert losses[-1] < losses[0] - 0.2
    before = metrics(tmp_path)
    assert make(tmp_path, steps=30, valid_every=10).fit().step == 30
    assert metrics(tmp_path) == before


def test_accumulation_does_not_change_the_run(tmp_path: Path) -> None:
    states = []
    for parts in (1, 2, 4):
        trainer = make(tmp_path / str(parts), ToySource(parts=parts), steps=10)
        trainer.fit()
        states.append(trainer.export_state())
    for other in states[1:]:
        assert_close(states[0], other, 2e-6)


def test_batch_shape_does_not_change_loss_and_gradient() -> None:
    model = ToyObjective()
    results = []
    for batches in ([collate([1, 2, 3])], [collate([3, 1], pad_frames=4), collate([2])]):
        model.zero_grad()
        losses = [model(b) for b in batches]
        for loss in losses:
            loss.total.backward()
        count = sum(int(x.count) for x in losses)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]) / count
        results.append((sum(x.total.item() for x in losses) / count, gradient))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-6)


def test_a_run_killed_at_any_step_and_resumed_equals_one_never_killed(tmp_path: Path) -> None:
    options = ["steps=300", "log_every=7", "valid_every=40", "save_every=11", "ema_decay=0.95",
               "dropout=0.2", "layerdrop=0.2", "spike_after=20"]  # fmt: skip
    finish(start(tmp_path / "whole", *options))
    kills = 0
    for wait in (0.05, 0.2):
        process = start(tmp_path / "killed", *options)
        limit = time.monotonic() + 60
        newest = checkpoint.steps(tmp_path / "killed" / "checkpoints")[-1:]
        while process.poll() is None and time.monotonic() < limit:
            now = checkpoint.steps(tmp_path / "killed" / "checkpoints")[-1:]
            if now != newest:
                time.sleep(wait)
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2, "the run ended before it could be killed"
    assert "resuming" in finish(start(tmp_path / "killed", *options))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    a = load_file(tmp_path / "whole" / "weights.safetensors")
    b = load_file(tmp_path / "killed" / "weights.safetensors")
    assert_close(a, b, 0.0)
    whole = checkpoint.Reader(tmp_path / "whole" / "checkpoints" / "step_300")
    killed = checkpoint.Reader(tmp_path / "killed" / "checkpoints" / "step_300")
    assert_close(whole.whole(""), killed.whole(""), 0.0)


@pytest.mark.parametrize("parallel", ["replicated", "fsdp2"])
def test_one_rank_equals_two(tmp_path: Path, parallel: str) -> None:
    options = ["steps=20", "log_every=1", "valid_every=10", "ema_decay=0.9", "clip_norm=0.8"]
    finish(start(tmp_path / "one", *options, "parts=2"))
    finish(start(tmp_path / "two", *options, f'parallel="{parallel}"', ranks=2))
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, abs=2e-5)
    a = load_file(tmp_path / "one" / "weights.safetensors")
    b = load_file(tmp_path / "two" / "weights.safetensors")
    assert_close(a, b, 2e-5)


def test_a_sharded_checkpoint_resumes_on_one_rank(tmp_path: Path) -> None:
    options = ['schedule="constant"', "warmup_fraction=0"]
    finish(start(tmp_path / "x", "steps=10", 'parallel="fsdp2"', *options, ranks=2))
    finish(start(tmp_path / "x", "steps=20", "parts=2", *options))
    finish(start(tmp_path / "y", "steps=20", "parts=2", *options))
    a = load_file(tmp_path / "x" / "weights.safetensors")
    b = load_file(tmp_path / "y" / "weights.safetensors")
    assert_close(a, b, 2e-5)


def test_ranks_that_drop_different_layers_do_not_hang(tmp_path: Path) -> None:
    text = finish(start(tmp_path, "steps=15", "layerdrop=0.5", "layers=3", ranks=2))
    assert "train" in text


def test_sigterm_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, "steps=100000", "log_every=5", "save_every=100000", ranks=2)
    limit = time.monotonic() + 60
    while not (tmp_path / "metrics.jsonl").is_file() and time.monotonic() < limit:
        time.sleep(0.02)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    (step,) = checkpoint.steps(tmp_path / "checkpoints")
    assert metrics(tmp_path)[-1]["step"] <= step < 100000


class Poisoned(ToySource):
    """Updates number 4 and 5 hold a NaN in one utterance."""

    bad = (4, 5)

    def updates(self, position=None):
        for update in super().updates(position):
            if update.position["update"] in self.bad:
                update.batches[0].wave[1, 3] = torch.nan
            yield update


def test_updates_that_are_not_finite_are_skipped_and_their_utterances_named(tmp_path) -> None:
    trainer = make(tmp_path, Poisoned(), steps=10, valid=False)
    assert trainer.fit().finished
    lines = [json.loads(x) for x in (tmp_path / "bad_updates.jsonl").read_text().splitlines()]
    assert [x["attempt"] for x in lines] == [4, 5]
    assert lines[0]["ids"] == [[list(next(ToySource().updates({"update": 3})).batches[0].ids)]]
    assert "nan" in lines[0]["why"]
    assert all(torch.isfinite(v).all() for v in trainer.export_state().values())
    assert trainer.state.attempt == 12


def test_a_run_of_bad_updates_ends_with_an_error(tmp_path: Path) -> None:
    source = Poisoned()
    source.bad = range(3, 1000)
    with pytest.raises(ValueError, match=r"4 updates in a row .*bad_updates.jsonl"):
        make(tmp_path, source, steps=50, max_bad_updates=4).fit()


def test_a_loss_spike_is_refused(tmp_path: Path) -> None:
    class Spiky(ToySource):
        def updates(self, position=None):
            for update in super().updates(position):
                if update.position["update"] == 25:
                    update.batches[0].wave.mul_(1e4)
                yield update

    trainer = make(tmp_path, Spiky(), steps=30, spike_after=20, valid=False)
    trainer.fit()
    (line,) = (tmp_path / "bad_updates.jsonl").read_text().splitlines()
    assert json.loads(line)["attempt"] == 25 and "spike" in json.loads(line)["why"]


class Skipping(ToySource):
    def updates(self, position=None):
        for update in super().updates(position):
            skipped = (f"broken{update.position['update']}: no audio",)
            yield Update(update.batches, update.position, skipped)


def test_unreadable_utterances_are_listed_and_too_many_end_the_run(tmp_path: Path) -> None:
    make(tmp_path / "a", Skipping(), steps=20, max_skip_fraction=0.2).fit()
    lines = (tmp_path / "a" / "skipped.txt").read_text().splitlines()
    assert len(lines) == 20 and lines[4] == "5\tbroken5: no audio"
    with pytest.raises(ValueError, match=r"could not be read.*skipped.txt"):
        make(tmp_path / "b", Skipping(), steps=20, max_skip_fraction=0.05).fit()


def test_a_full_disk_leaves_older_checkpoints_and_the_run_goes_on(tmp_path, monkeypatch) -> None:
    import safetensors.torch

    real, calls = safetensors.torch.save_file, []

    def full_then_free(tensors, path):
        calls.append(path)
        if len(calls) in (2, 3):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full_then_free)
    trainer = make(tmp_path, steps=16, save_every=4, log_every=2, valid=False)
    assert trainer.fit().finished
    folder = tmp_path / "checkpoints"
    assert [p.name for p in sorted(folder.iterdir())] == ["step_12", "step_16"]
    saved = [int(Path(p).parent.name.removeprefix("tmp_step_")) for p in calls]
    assert saved == [4, 8, 10, 12, 16]


def test_a_disk_still_full_at_the_end_is_an_error_that_loses_nothing_older(tmp_path) -> None:
    """The limit on file sizes stops the write half-way, as a full disk does."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(TOY).parent)!r})
import resource
from pathlib import Path
from test_trainer import make
make(Path({str(tmp_path)!r}), steps=5, valid=False).fit()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
make(Path({str(tmp_path)!r}), steps=8, valid=False).fit()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "CheckpointNotWritten" in done.stderr and "step_8" in done.stderr
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_5"]
    assert make(tmp_path, steps=8, valid=False).fit().step == 8


def test_a_checkpoint_of_another_model_is_refused_by_tensor_names(tmp_path: Path) -> None:
    make(tmp_path, steps=2, valid=False).fit()
    with pytest.raises(ValueError, match=r"another model.*missing encoder\.layers\.2\.0\.bias"):
        make(tmp_path, objective=ToyObjective(layers=3), steps=4, valid=False).fit()


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    trainer = make(tmp_path, steps=12, save_every=2, valid_every=2, keep_checkpoints=2,
                   best_is="highest")  # fmt: skip
    result = trainer.fit()
    assert result.best is not None and result.best["step"] == 2
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 10, 12]
    best = trainer.export_state("best")
    kept = checkpoint.Reader(tmp_path / "checkpoints" / "step_2").whole("model/")
    assert_close(best, kept, 0.0)


def test_the_mean_of_the_best_validations_weights_is_exported(tmp_path: Path) -> None:
    trainer = make(tmp_path, steps=9, save_every=100, valid_every=1, keep_checkpoints=1,
                   keep_best=3)  # fmt: skip
    trainer.fit()
    folder = tmp_path / "checkpoints"
    scores = {x["step"]: x["loss"] for x in metrics(tmp_path) if x["split"] == "valid"}
    best = sorted(scores, key=lambda step: scores[step])[:3]
    assert checkpoint.steps(folder) == sorted({*best, 9})
    states = [checkpoint.read_weights(folder / f"step_{step}") for step in best]
    got = trainer.export_state("average")
    for name, tensor in got.items():
        if tensor.is_floating_point():
            want = torch.stack([s[name].double() for s in states]).mean(0)
            torch.testing.assert_close(tensor.double(), want, rtol=1e-6, atol=1e-7)
            assert tensor.dtype == states[0][name].dtype
        else:
            assert torch.equal(tensor, states[0][name])
    assert any(not torch.equal(got[k], states[0][k]) for k in got)


def test_averaging_without_checkpoints_to_average_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, steps=3, valid_every=1)
    trainer.fit()
    with pytest.raises(ValueError, match=r"has 1 checkpoints of the best.*train\.keep_best"):
        trainer.export_state("average")


def test_stop_after_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    result = make(tmp_path, steps=50, valid_every=2, best_is="highest", stop_after=3).fit()
    assert result.finished and result.step == 8


def test_averaged_weights_are_validated_and_exported_and_training_goes_on(tmp_path) -> None:
    plain = make(tmp_path / "a", steps=10)
    plain.fit()
    averaged = make(tmp_path / "b", steps=10, ema_decay=0.5, valid_every=3)
    averaged.fit()
    raw = dict(averaged.objective.state_dict())
    assert_close(raw, dict(plain.objective.state_dict()), 0.0)
    exported = averaged.export_state()
    assert not torch.equal(exported["project.weight"], raw["project.weight"])
    assert_close(averaged.export_state("last"), exported, 0.0)


def test_bf16_keeps_float32_weights(tmp_path: Path) -> None:
    trainer = make(tmp_path, steps=20, precision="bf16")
    trainer.fit()
    floating = [v for v in trainer.export_state().values() if v.is_floating_point()]
    assert {v.dtype for v in floating} == {torch.float32}
    losses = [x["loss"] for x in metrics(tmp_path) if x["split"] == "train"]
    assert losses[-1] < losses[0]


def test_filler_batches_weigh_nothing(tmp_path: Path) -> None:
    import dataclasses

    class Filling(ToySource):
        def updates(self, position=None):
            for update in super().updates(position):
                extra = dataclasses.replace(collate([7, 8]), filler=True)
                yield Update((*update.batches, extra), update.position)

    a = make(tmp_path / "a", steps=5)
    a.fit()
    b = make(tmp_path / "b", Filling(), steps=5)
    b.fit()
    assert_close(a.export_state(), b.export_state(), 0.0)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
