"""Objectives do not know their encoder: those made for Conformers keep the contract with one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import make_batch, one
from kinds import CLASSES, batch_for, build

from speechssl.contract import Objective
from speechssl.encoders.conformer import ConformerConfig
from speechssl.objectives.bestrq import BestRQConfig
from speechssl.objectives.hubert import HubertConfig
from speechssl.objectives.w2v_bert import W2vBertConfig

CONFORMER = ConformerConfig(
    mel_hop_samples=320,
    front_dim=32,
    layers=2,
    dim=32,
    ffn_dim=64,
    heads=4,
    depthwise_kernel=5,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    input_dropout=0.0,
)
kinds = pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (HubertConfig, {}),
        (W2vBertConfig, {}),
        (BestRQConfig, {}),
        (BestRQConfig, {"mask_with": "noise"}),
    ],
    ids=["hubert", "w2v_bert", "bestrq", "bestrq_noise"],
)


def conformer(kind: Any, changes: dict[str, Any], **encoder: Any) -> Objective:
    return build(kind, encoder=dataclasses.replace(CONFORMER, **encoder), **changes)


@kinds
def test_gradient_reaches_every_trainable_parameter(kind: Any, changes: Any) -> None:
    objective = conformer(kind, changes)
    objective(batch_for(objective)).total.backward()
    dead = [n for n, p in objective.named_parameters() if p.requires_grad and not p.grad.any()]
    assert dead == []


@kinds
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_accumulation_changes_no_gradient(kind: Any, changes: Any, norm: Any) -> None:
    found = []
    for parts in (False, True):
        objective = conformer(kind, changes, conv_norm=norm).train()
        batch = batch_for(objective)
        for part in [one(batch, i) for i in range(len(batch))] if parts else [batch]:
            objective(part).total.backward()
        found.append({n: p.grad for n, p in objective.named_parameters() if p.requires_grad})
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-4, msg=name)


@kinds
def test_training_lowers_the_loss(kind: Any, changes: Any) -> None:
    objective = conformer(kind, changes)
    batch = make_batch(objective.encoder, [0.5] * 10, CLASSES)
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
