"""The loss of the head of pronunciation: the output of the phone asked for, and no other."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from task_heads import build, task_batch
from torch.nn import functional as F

from speechssl.heads.pronounce import PronounceConfig

KIND = (PronounceConfig, {"phones": ["a", "b", "c"], "grades": 3})


def test_the_loss_is_that_of_the_phone_asked_for() -> None:
    head = build(KIND).eval()
    data = task_batch(head)
    loss = head(data)
    odds, lengths = head.phone_log_odds(data.wave, data.wave_lengths)
    total, count = 0.0, 0
    for row, end, asked, said in zip(
        odds, lengths, data.targets["asked"], data.targets["said"], strict=True
    ):
        for frame in range(min(int(end), len(asked))):
            if 0 <= asked[frame] < 3:
                grade = said[frame].float() / 2
                own = row[frame, asked[frame]]
                total += F.binary_cross_entropy_with_logits(own, grade).item()
                count += 1
    assert loss.total.item() == pytest.approx(total, rel=1e-4) and int(loss.count) == count


def test_frames_without_a_phone_teach_nothing() -> None:
    head = build(KIND)
    data = task_batch(head)
    none = torch.full_like(data.targets["asked"], 3)
    nothing = head(dataclasses.replace(data, targets=data.targets | {"asked": none}))
    assert nothing.total.item() == 0 and int(nothing.count) == 0
    some = data.targets["asked"].clone()
    some[:, ::2] = -100
    changed = {"asked": some, "said": data.targets["said"].masked_fill(some == -100, 2)}
    ours = head.eval()(dataclasses.replace(data, targets=data.targets | {"asked": some}))
    theirs = head(dataclasses.replace(data, targets=data.targets | changed))
    assert ours.total.item() == theirs.total.item()


def test_grades_are_shares_of_the_best() -> None:
    """With all log-odds 0 the loss of each frame is log 2, whatever the grade."""
    head = build(KIND)
    torch.nn.init.zeros_(head.output.weight)
    torch.nn.init.zeros_(head.output.bias)
    loss = head(task_batch(head))
    assert loss.total.item() / int(loss.count) == pytest.approx(math.log(2), rel=1e-5)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="phones: found none"):
        build((PronounceConfig, {}))
    with pytest.raises(ValueError, match="twice"):
        PronounceConfig(phones=["a", "a"])
    with pytest.raises(ValueError, match="grades: found 1"):
        PronounceConfig(phones=["a"], grades=1)
    head = build(KIND)
    data = task_batch(head)
    with pytest.raises(ValueError, match="want 'asked'"):
        head(dataclasses.replace(data, targets={}))
    other = data.targets | {"asked": torch.full_like(data.targets["asked"], 7)}
    with pytest.raises(ValueError, match="found label 7, want at most 3"):
        head(dataclasses.replace(data, targets=other))
