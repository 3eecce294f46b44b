"""Two players in one loop: each has its own step, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import assert_close, make, metrics
from toy import ToySource
from two_players import TwoPlayers

from speechssl.train.adversarial import AdversarialTrainer
from speechssl.train.config import TrainConfig

COMMON = {"device": "cpu", "tensorboard": False, "learning_rate": 0.01, "log_every": 2}


def players(folder: Path, parts: int = 1, broken: bool = False, **options) -> AdversarialTrainer:
    torch.manual_seed(0)
    config = TrainConfig(**(COMMON | options))
    source = ToySource(parts=parts)
    return AdversarialTrainer(config, TwoPlayers(broken), source, ToySource(), folder)


def test_both_players_learn_and_the_critic_is_fixed_in_the_others_turn(tmp_path: Path) -> None:
    trainer = players(tmp_path, steps=30)
    before = {k: v.clone() for k, v in trainer.objective.state_dict().items()}
    assert trainer.fit().finished
    after = trainer.objective.state_dict()
    assert all(not torch.equal(after[k], before[k]) for k in before)
    assert trainer.objective.fixed == [True] * 30
    assert all(p.requires_grad for p in trainer.objective.parameters())
    lines = [x for x in metrics(tmp_path) if x["split"] == "train"]
    assert lines[-1]["critic_loss"] < lines[0]["critic_loss"] < 1


def test_a_step_of_one_player_is_the_closed_form(tmp_path: Path) -> None:
    """Adam's first step is the rate times the gradient's sign, once for each parameter."""
    trainer = players(tmp_path, steps=1, schedule="constant", warmup_fraction=0.0,
                      learning_rate=0.25, weight_decay=0.0, eps=1e-12)  # fmt: skip
    before = {k: p.detach().clone() for k, p in trainer.objective.named_parameters()}
    trainer.fit()
    for name, parameter in trainer.objective.named_parameters():
        moved = (parameter - before[name]).abs()
        still = moved == 0
        assert torch.allclose(moved[~still], torch.tensor(0.25), atol=1e-4), name
        if name != "critic.2.bias":  # which cancels between the two kinds
            assert still.float().mean() < 0.2, name


def test_a_run_stopped_and_resumed_equals_one_never_stopped(tmp_path: Path) -> None:
    players(tmp_path / "whole", steps=12, save_every=5, valid_every=4, ema_decay=0.9).fit()
    torch.manual_seed(0)
    for steps in (5, 7, 12):  # the schedule must not know
        trainer = players(tmp_path / "parts", steps=12, save_every=5, valid_every=4, ema_decay=0.9)
        trainer.resume()
        done = trainer.state.step
        updates = trainer.train.updates(trainer.state.position)
        if steps < 12:
            for _ in range(steps - done):
                assert trainer._update(next(updates))
            trainer.save()
        else:
            trainer.fit()
    a, b = (players(tmp_path / x, steps=12, ema_decay=0.9) for x in ("whole", "parts"))
    a.resume()
    b.resume()
    assert_close(a.objective.state_dict(), b.objective.state_dict(), 0.0)
    for x, y in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True):
        assert all(torch.equal(x[k], y[k]) for k in x) and float(x["step"]) == 12


def test_micro_batches_do_not_change_the_run(tmp_path: Path) -> None:
    states = []
    for parts in (1, 4):
        trainer = players(tmp_path / str(parts), parts, steps=5)
        trainer.fit()
        states.append(trainer.export_state())
    assert_close(states[0], states[1], 5e-6)


def test_a_critic_out_of_bounds_makes_no_step(tmp_path: Path) -> None:
    trainer = players(tmp_path, broken=True, steps=3)
    before = {k: v.clone() for k, v in trainer.objective.critic.state_dict().items()}
    assert trainer.fit().finished
    assert_close(trainer.objective.critic.state_dict(), before, 0.0)
    assert all(p.isfinite().all() for p in trainer.objective.parameters())


def test_an_objective_without_critics_is_refused(tmp_path: Path) -> None:
    plain = make(tmp_path, steps=1)
    with pytest.raises(ValueError, match="ToyObjective without critics"):
        AdversarialTrainer(plain.config, plain.objective, plain.train, None, tmp_path)


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("two_players.py"))
    for ranks in (1, 2):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc_per_node={ranks}", program, str(tmp_path / str(ranks))],
            env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / x / "weights.safetensors") for x in "12")
    assert_close(one, two, 5e-6)
    losses = [
        [x["critic_loss"] for x in metrics(tmp_path / name) if x["split"] == "train"]
        for name in "12"
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
