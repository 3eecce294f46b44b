"""What must hold of every objective in training: micro-batches, ranks, resuming, refused updates,
and what no gradient may reach."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import one
from kinds import COLLAPSE, FIXED_DEPTH, FOUND, apart, batch_for, build, every, trainer
from ranks import STEPS
from safetensors.torch import load_file

from speechssl.contract import Objective
from speechssl.nn.collapse import Collapsed
from speechssl.train import checkpoint
from speechssl.train.log import TIMING

RANKS = Path(__file__).with_name("ranks.py")


def assert_near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        # Sums over all frames round in proportion to their largest (NFA).
        size = max(1.0, float(a[name].abs().max())) if name.startswith("statistics.") else 1.0
        torch.testing.assert_close(a[name], b[name], rtol=atol, atol=atol * size, msg=name)


def two_updates(objective: Objective, parts: bool) -> dict[str, torch.Tensor]:
    """State behind two updates of plain gradient descent, with the gradients of the second."""
    batch = batch_for(objective)
    gradients = {}
    for step in (1, 2):
        objective.train()
        objective.zero_grad()
        losses = [objective(b) for b in ([one(batch, i) for i in range(3)] if parts else [batch])]
        for loss in losses:
            loss.total.backward()
        count = sum(float(x.count) for x in losses)
        for name, p in objective.named_parameters():
            if p.grad is not None:
                gradients[f"gradient of {name}"] = p.grad / count
                p.data.add_(p.grad, alpha=-0.1 / count)
        objective.after_update(step)
    return {k: v.clone() for k, v in objective.state_dict().items()} | gradients


@every
def test_accumulation_changes_neither_gradients_nor_state(kind: Any) -> None:
    whole, parts = (two_updates(build(kind, **apart(kind)), parts=p) for p in (False, True))
    assert_near(whole, parts, 2e-5)


@every
def test_what_is_not_trained_gets_no_gradient_and_has_no_place_in_the_optimiser(kind: Any) -> None:
    objective = build(kind)
    objective(batch_for(objective)).total.backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    for name, p in objective.named_parameters():
        assert (name in trained) == (p.grad is not None), name
        assert not (name in trained and name.startswith("teacher.")), name


@every
def test_an_update_that_is_refused_leaves_no_trace(kind: Any) -> None:
    states = []
    for refused in (False, True):
        objective = build(kind)
        if refused:
            batch = batch_for(objective, (0.7, 1.1))
            batch.wave[0, 3000] = torch.nan
            objective.train()
            objective(batch)
        states.append(two_updates(objective, parts=False))
    assert_near(states[0], states[1], 0.0)


@every
def test_a_filler_batch_leaves_no_trace(kind: Any) -> None:
    states = []
    for filler in (False, True):
        objective = build(kind).train()
        objective(batch_for(objective))
        if filler:
            objective(dataclasses.replace(batch_for(objective, (0.6,)), filler=True))
        objective.after_update(1)
        states.append(dict(objective.state_dict()))
    assert_near(states[0], states[1], 0.0)


@every
def test_validation_changes_no_state(kind: Any) -> None:
    objective = build(kind)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    objective.eval()
    with torch.no_grad():
        objective(batch_for(objective))
    assert_near(before, dict(objective.state_dict()), 0.0)


@every
def test_a_resumed_run_is_bit_equal_to_one_never_stopped(kind: Any, tmp_path: Path) -> None:
    dropping = {"dropout": 0.1, "layerdrop": 0.0 if kind.__name__ in FIXED_DEPTH else 0.2}
    trainer(kind, tmp_path / "whole", encoder=dropping, steps=4).fit()
    for steps in (2, 4):
        trainer(kind, tmp_path / "stopped", encoder=dropping, steps=steps).fit()
    lines = []
    tensors = []
    for name in ("whole", "stopped"):
        text = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        lines.append([{k: v for k, v in json.loads(x).items() if k not in TIMING} for x in text])
        tensors.append(checkpoint.Reader(tmp_path / name / "checkpoints" / "step_4").whole(""))
    assert lines[0] == lines[1]
    assert_near(tensors[0], tensors[1], 0.0)


@pytest.mark.parametrize(
    "kind",
    [k for k in FOUND if "ema_steps" in {f.name for f in fields(k)}],
    ids=lambda k: k.__name__,
)
def test_an_averaged_teacher_is_exact_to_its_decay(kind: Any) -> None:
    """Its closed form in float64 while the decay grows; what is not averaged is copied."""
    objective: Any = build(kind, ema_start=0.6, ema_end=0.9, ema_steps=2)
    teacher = objective.teacher
    expected = {n: p.double().clone() for n, p in teacher.encoder.named_parameters()}
    averaged = {n for n in expected if n.startswith(teacher.averaged)}
    assert averaged and averaged < expected.keys()
    for step, decay in ((1, 0.6), (2, 0.75), (3, 0.9), (4, 0.9)):
        with torch.no_grad():
            for p in objective.encoder.parameters():
                p.add_(0.1 * torch.randn_like(p))
        objective.after_update(step)
        for name, p in objective.encoder.named_parameters():
            if name in expected:
                share = decay if name in averaged else 0.0
                expected[name] = share * expected[name] + (1 - share) * p.detach().double()
    for name, p in teacher.encoder.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", sorted(COLLAPSE))
def test_the_detector_fires_on_a_forced_collapse_and_stays_quiet_otherwise(name: str) -> None:
    kind = next(k for k in FOUND if k.__name__ == name)
    for collapsed in (False, True):
        objective = build(kind, collapse_after=1).train()
        if collapsed:
            with torch.no_grad():
                COLLAPSE[name](objective)
        batch = batch_for(objective)
        for i in range(3):
            objective(one(batch, i))
        if collapsed:
            with pytest.raises(Collapsed, match="collapsed at update 1"):
                objective.after_update(1)
        else:
            objective.after_update(1)


def test_every_objective_with_a_detector_is_forced_to_collapse() -> None:
    having = {k.__name__ for k in FOUND if "collapse_after" in {f.name for f in fields(k)}}
    assert having == set(COLLAPSE)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights that two ranks made."""
    output = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(output)],
            env=os.environ
            | common
            | {"RANK": str(r), "LOCAL_RANK": str(r), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=180)[1] for rank in ranks]
    finally:
        for rank in ranks:  # none outlives the test, neither where one fails nor waits for ever
            rank.kill()
    for rank, text in zip(ranks, errors, strict=True):
        assert rank.returncode == 0, text[-3000:]
    return output


@pytest.mark.parametrize("parallel", ["replicated", "fsdp2"])
@every
def test_one_rank_equals_two(kind: Any, parallel: str, two_ranks: Path, tmp_path: Path) -> None:
    single = trainer(kind, tmp_path, parts=2, steps=STEPS, valid=False, changes=apart(kind))
    single.fit()
    two = load_file(two_ranks / f"{kind.__name__}_{parallel}.safetensors")
    # Adam's first steps turn rounding of tiny gradients into steps of the whole rate.
    assert_near(single.export_state(), two, 2e-4)
