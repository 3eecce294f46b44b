"""What every objective must satisfy of the contract, one by one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import make_batch, one
from kinds import CLASSES, FOUND, apart, batch_for, build, every

from speechssl.config import ObjectiveConfig, from_class_path, to_dict


def test_the_first_two_objectives_are_found() -> None:
    assert {"HubertConfig", "WavLMConfig"} <= {k.__name__ for k in FOUND}


@every
def test_the_loss_is_a_finite_sum_with_a_count_and_pairs_to_log(kind: Any) -> None:
    objective = build(kind)
    loss = objective(batch_for(objective))
    assert loss.total.dtype == torch.float32 and loss.total.ndim == 0
    assert torch.isfinite(loss.total) and loss.count > 0
    assert loss.logs
    for total, count in loss.logs.values():
        assert not total.requires_grad and torch.isfinite(total) and count.ndim == 0


@every
def test_gradient_reaches_every_trainable_parameter(kind: Any) -> None:
    objective = build(kind)
    objective(batch_for(objective)).total.backward()
    dead = [
        name
        for name, p in objective.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert dead == []


@every
def test_the_loss_of_a_batch_is_the_sum_over_its_utterances(kind: Any) -> None:
    objective = build(kind, **apart(kind)).eval()
    batch = batch_for(objective)
    whole = objective(batch)
    alone = [objective(one(batch, i)) for i in range(len(batch))]
    assert whole.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-5)
    assert float(whole.count) == sum(float(x.count) for x in alone)


@every
def test_padding_is_inert(kind: Any) -> None:
    objective = build(kind).eval()
    batch = batch_for(objective)
    more = 3 * 320
    longer = dataclasses.replace(
        batch,
        wave=torch.nn.functional.pad(batch.wave, (0, more)),
        views={k: torch.nn.functional.pad(v, (0, more)) for k, v in batch.views.items()},
        targets={
            k: torch.nn.functional.pad(v, (0, 3), value=-100) if v.ndim == 2 else v
            for k, v in batch.targets.items()
        },
    )
    assert objective(longer).total.item() == pytest.approx(objective(batch).total.item(), rel=1e-5)


@every
def test_the_same_batch_and_weights_give_the_same_loss(kind: Any) -> None:
    objective = build(kind).eval()
    batch = batch_for(objective)
    assert torch.equal(objective(batch).total, objective(batch).total)


@every
def test_bf16_autocast_gives_nearly_the_same_loss(kind: Any) -> None:
    objective = build(kind).eval()
    batch = batch_for(objective)
    exact = objective(batch).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(batch)
    assert rough.total.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact, rel=0.02)


@every
def test_after_update_sets_the_step(kind: Any) -> None:
    objective = build(kind)
    objective.after_update(12)
    assert int(objective.step) == 12


@every
def test_training_on_ten_utterances_lowers_the_loss(kind: Any) -> None:
    objective = build(kind)
    batch = make_batch(objective.encoder, [0.5] * 10, CLASSES, views=["mixed"])
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        loss = objective(batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        objective.after_update(step + 1)
        losses.append((loss.total / loss.count).item())
    assert losses[-1] < losses[0] - 0.02


@every
def test_its_configuration_survives_a_round_trip(kind: Any) -> None:
    config = build(kind).config
    values = to_dict(config)
    assert values["class_path"].startswith("speechssl.objectives.")
    assert from_class_path(ObjectiveConfig, values) == config
