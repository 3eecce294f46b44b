"""Heads of slots and of numbers: their losses against formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from task_heads import NUMBERS, SLOTS, build, task_batch

from speechssl.heads.regress import STEPS, RegressConfig
from speechssl.heads.slots import SlotsConfig
from speechssl.score.regression import ccc
from speechssl.train import log

SLOT_KIND = (SlotsConfig, {**SLOTS, "projection_dim": 12})
NUMBER_KIND = (RegressConfig, {**NUMBERS, "projection_dim": 12, "memory": 0.0})


def test_slots_are_right_together_or_not_at_all() -> None:
    head = build(SLOT_KIND).eval()
    data = task_batch(head)
    log_probs, _ = head.slot_log_probs(data.wave, data.wave_lengths)
    parts = log_probs.split([3, 2], 1)
    assert all(torch.allclose(p.exp().sum(1), torch.ones(3)) for p in parts)
    truth = torch.stack([p.argmax(1) for p in parts], 1)
    right = head(dataclasses.replace(data, targets={"slots": truth}))
    assert int(right.logs["accuracy"][0]) == 3 and int(right.logs["slot_accuracy"][0]) == 6
    truth[0, 1] = 1 - truth[0, 1]
    truth[1, 0] = 3  # a value that training never showed
    wrong = head(dataclasses.replace(data, targets={"slots": truth}))
    assert int(wrong.logs["accuracy"][0]) == 1 and int(wrong.logs["slot_accuracy"][0]) == 4
    expected = -sum(
        parts[n][b, truth[b, n]].item() for b in range(3) for n in range(2) if (b, n) != (1, 0)
    )
    assert wrong.total.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_that_of_the_concordance_correlation() -> None:
    """Once the moments are those of the batch, and its truths are standardised."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=random, requires_grad=True)
    y = 0.5 * x.detach() + torch.randn(40, 2, generator=random)
    y = (y - y.mean(0)) / y.std(0, unbiased=False)
    head = build(NUMBER_KIND)
    head._truth = lambda batch: y  # pyright: ignore
    head._standardised = lambda *wave: x  # pyright: ignore
    data = task_batch(head)
    head.train()
    head(data)
    head.after_update(1)
    loss = head(data)
    centred = x - x.mean(0), y - y.mean(0)
    covariance = (centred[0] * centred[1]).mean(0)
    spread = x.var(0, unbiased=False) + 1 + x.mean(0).square()
    exact = 1 - 2 * covariance / spread
    assert loss.total.item() / 40 == pytest.approx(exact.mean().item(), abs=1e-5)
    (ours,) = torch.autograd.grad(loss.total / 40, x)
    (theirs,) = torch.autograd.grad(exact.mean(), x)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_running_moments_lead_where_the_concordance_is_high() -> None:
    """A linear map of ten numbers, of which the truth is one with noise: at best sqrt(0.8)."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(400, 10, generator=random)
    y = 0.8**0.5 * x[:, :1] + 0.2**0.5 * torch.randn(400, 1, generator=random)
    y = (y - y.mean(0)) / y.std(0, unbiased=False)
    one = {k: v[:1] for k, v in NUMBERS.items()}
    head = build((RegressConfig, {**one, "projection_dim": 12})).train()
    data, linear = task_batch(head), torch.nn.Linear(10, 1)
    optimiser = torch.optim.Adam(linear.parameters(), lr=0.03)
    for step in range(1, 151):
        chosen = torch.randint(300, (16,), generator=random)
        head._truth = lambda batch, i=chosen: y[i]  # pyright: ignore
        head._standardised = lambda *wave, i=chosen: linear(x[i])  # pyright: ignore
        optimiser.zero_grad()
        (head(data).total / 16).backward()
        optimiser.step()
        head.after_update(step)
    found = linear(x[300:]).detach()[:, 0].numpy()
    assert ccc(found, y[300:, 0].numpy()) > 0.84


def test_validation_reports_the_concordance_over_all_batches() -> None:
    head = build(NUMBER_KIND).eval()
    sums, found, truths = log.Sums(torch.device("cpu")), [], []
    with torch.no_grad():
        for i in range(3):
            data = task_batch(head)
            data = dataclasses.replace(data, wave=data.wave.roll(500 * i, 1))
            sums.add(head(data))
            found.append(head.values(data.wave, data.wave_lengths)[0])
            truths.append(head._truth(data) * head.deviation + head.mean)
    means = log.means([sums.values()])
    figures = head.summary(means)
    x, y = torch.cat(found).numpy(), torch.cat(truths).numpy()
    expected = np.mean([ccc(y[:, i], x[:, i]) for i in range(x.shape[1])])
    assert figures["ccc"] == pytest.approx(float(expected), abs=1e-4)
    assert set(figures) == {"loss", "mse", "ccc"} and figures["mse"] == means["mse"]


def test_the_moments_are_of_what_is_scored() -> None:
    """A rank whose utterances could not be read must not change them, nor validation."""
    head = build(NUMBER_KIND).train()
    data = task_batch(head)
    head(data)
    head.after_update(1)
    before = head.moments.clone()
    head.train()
    head(data)
    head(dataclasses.replace(data, wave=-data.wave, filler=True))
    head.after_update(2)
    assert before.any() and torch.equal(head.moments, before)
    head.eval()(data)
    head.after_update(3)
    assert torch.equal(head.moments, before)


def test_numbers_are_on_the_scale_of_the_manifest() -> None:
    head = build(NUMBER_KIND).eval()
    data = task_batch(head)
    truth = head._truth(data) * head.deviation + head.mean  # pyright: ignore
    places = data.targets["values"] / STEPS
    expected = torch.stack([places[:, 0], -5 + 10 * places[:, 1]], 1)
    assert torch.allclose(truth, expected, atol=1e-5)
    head.output.weight.data.zero_()
    head.output.bias.data.zero_()
    found, _ = head.values(data.wave, data.wave_lengths)
    assert torch.allclose(found, torch.tensor([0.4, 1.0]).expand(3, 2))


def test_mistakes_are_named() -> None:
    data = task_batch(build(SLOT_KIND))
    for kind, name in ((SLOT_KIND, "slots"), (NUMBER_KIND, "values")):
        with pytest.raises(ValueError, match=f"{name}: found targets"):
            build(kind)(dataclasses.replace(data, targets={}))
    with pytest.raises(ValueError, match="with 0 lists of values"):
        build((SlotsConfig, {"slots": ["a"]}))
    with pytest.raises(ValueError, match=r"fewer than two of \['b'\]"):
        build((SlotsConfig, {"slots": ["a", "b"], "values": [["x", "y"], ["z"]]}))
    with pytest.raises(ValueError, match="with 0 means"):
        build((RegressConfig, {"dimensions": ["a"]}))
    with pytest.raises(ValueError, match="memory: found 1"):
        RegressConfig(memory=1.0)
