"""What the heads of further tasks must satisfy of the contract, one by one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from task_heads import KINDS, build, kind_name, one, task_batch
from torch import Tensor

from speechssl.config import HeadConfig, from_class_path, to_dict
from speechssl.contract import Batch
from speechssl.encoders.log_mel import LogMelConfig
from speechssl.heads.frames import FramesHead

every = pytest.mark.parametrize("kind", KINDS, ids=kind_name)
CLOSE = 3e-5


def answers(head: FramesHead, data: Batch) -> list[Tensor]:
    """What decoding asks for, of each utterance without its padding."""
    names = ("activities", "slot_log_probs", "values", "separate", "phone_log_odds")
    ask: Any = next(getattr(head, n) for n in names if hasattr(head, n))
    found, lengths = ask(data.wave, data.wave_lengths)
    ends = [None] * len(found) if lengths is None else lengths.tolist()
    return [row[:end] for row, end in zip(found, ends, strict=True)]


@every
def test_the_loss_of_a_batch_is_the_sum_over_its_utterances(kind: Any) -> None:
    head = build(kind)  # in training mode
    data = task_batch(head)
    whole, alone = head(data), [head(one(data, i)) for i in range(3)]
    assert whole.total.dtype == torch.float32 and whole.total.ndim == 0
    assert whole.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-4)
    assert float(whole.count) == pytest.approx(sum(float(x.count) for x in alone))
    for name, (total, count) in whole.logs.items():
        assert not total.requires_grad
        assert float(total) == pytest.approx(sum(float(x.logs[name][0]) for x in alone), rel=1e-4)
        assert float(count) == pytest.approx(sum(float(x.logs[name][1]) for x in alone))


@every
def test_padding_and_what_it_holds_change_no_answer(kind: Any) -> None:
    head = build(kind).eval()
    data = task_batch(head)
    alone = [answers(head, one(data, i))[0] for i in range(3)]
    for noise in (0.0, 7.0, float("nan")):
        longer = torch.nn.functional.pad(data.wave, (0, 1600))
        behind = torch.arange(longer.shape[1])[None] >= data.wave_lengths[:, None]
        changed = dataclasses.replace(data, wave=longer.masked_fill(behind, noise))
        for ours, theirs in zip(answers(head, changed), alone, strict=True):
            assert ours.shape == theirs.shape and (ours - theirs).abs().max() < CLOSE


@every
def test_gradient_reaches_every_trainable_parameter(kind: Any) -> None:
    head = build(kind)
    head(task_batch(head)).total.backward()
    dead = [
        n
        for n, p in head.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert [n for n in dead if n != "encoder.mask_emb"] == []


@every
def test_a_frozen_encoder_keeps_still(kind: Any) -> None:
    head = build(kind, freeze_encoder_steps=-1).train()
    head(task_batch(head)).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in head.encoder.parameters())
    assert any(p.grad is not None for p in head.parameters())


@every
def test_it_learns_its_batch(kind: Any) -> None:
    head = build(kind)
    data = task_batch(head)
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-3)
    first = None
    for _ in range(30):
        loss = head(data)
        first = loss.total.item() if first is None else first
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
    assert head(data).total.item() < 0.9 * first


@every
def test_log_mel_serves_as_encoder_and_its_configuration_survives(kind: Any) -> None:
    options = {k: v for k, v in kind[1].items() if k != "layer"}
    head = build((kind[0], options), LogMelConfig(mel_bins=20).build())
    head(task_batch(head)).total.backward()
    assert from_class_path(HeadConfig, to_dict(head.config)) == head.config
