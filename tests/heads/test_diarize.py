"""The permutation-free loss of the diarization head."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from task_heads import build, task_batch
from torch.nn import functional as F

from speechssl.heads.diarize import DiarizeConfig, permutation_free_bce

KIND = (DiarizeConfig, {"hidden_dim": 16, "speakers": 3})


def test_the_loss_is_the_least_over_all_orders() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(4, 7, 3), (torch.rand(4, 7, 3) < 0.4).float()
    valid = torch.arange(7)[None] < torch.tensor([7, 5, 1, 3])[:, None]
    total, order = permutation_free_bce(logits, truth, valid)
    expected = 0.0
    for b in range(4):
        costs = {
            p: F.binary_cross_entropy_with_logits(
                logits[b, valid[b]], truth[b, valid[b]][:, list(p)], reduction="sum"
            ).item()
            for p in itertools.permutations(range(3))
        }
        expected += min(costs.values())
        assert costs[tuple(order[b].tolist())] == min(costs.values())
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_the_order_of_true_speakers_does_not_matter() -> None:
    head = build(KIND).eval()
    data = task_batch(head)
    plain = head(data)
    bits = data.targets["activity"]
    for order in itertools.permutations(range(3)):
        turned = sum(((bits >> s) & 1) << p for s, p in enumerate(order))
        turned = torch.where(bits < 0, bits, turned)
        other = head(dataclasses.replace(data, targets={"activity": turned}))
        assert other.total.item() == pytest.approx(plain.total.item(), rel=1e-6)
        assert float(other.logs["der"][0]) == float(plain.logs["der"][0])


def test_mistakes_are_named() -> None:
    head = build(KIND)
    data = task_batch(head)
    with pytest.raises(ValueError, match=r"data\.labels\.activity"):
        head(dataclasses.replace(data, targets={}))
    with pytest.raises(ValueError, match="activity: found label 8"):
        head(dataclasses.replace(data, targets={"activity": torch.full((3, 99), 8)}))
    with pytest.raises(ValueError, match="speakers: found 6"):
        DiarizeConfig(speakers=6)
