"""The head of factor analysis: embeddings that no batch changes, a likelihood that grows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from utterance_heads import ENCODER, batch, one

from speechssl.config import HeadConfig, from_class_path, to_dict
from speechssl.heads.factors import FactorHead, FactorHeadConfig


def head(**changes: Any) -> FactorHead:
    torch.manual_seed(3)
    config = FactorHeadConfig(**({"units": 5, "factors": 4, "layer": 1} | changes))
    made = config.build(ENCODER.build())
    with torch.no_grad():
        made.factors.means.normal_()
    return made


def test_an_embedding_does_not_depend_on_the_batch() -> None:
    made, whole = head().eval(), batch()
    with torch.no_grad():
        together = made.embed(whole.wave, whole.wave_lengths)
        loss = made(whole)
        parts = [made(one(whole, i)) for i in range(3)]
        for i in range(3):
            alone = one(whole, i)
            found = made.embed(alone.wave, alone.wave_lengths)
            assert torch.allclose(together[i : i + 1], found, atol=1e-5)
    assert together.shape == (3, 4) and together.dtype == torch.float32
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert loss.total.item() == pytest.approx(sum(x.total.item() for x in parts), rel=1e-5)
    assert int(loss.count) == sum(int(x.count) for x in parts)


def test_training_makes_frames_likelier_and_leaves_a_frozen_encoder_alone() -> None:
    made, whole = head(update="gradient").train(), batch()
    before = {k: v.clone() for k, v in made.encoder.state_dict().items()}
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(15):
        loss = made(whole)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        losses.append((loss.total / loss.count).item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(v, before[k]) for k, v in made.encoder.state_dict().items())


@pytest.mark.parametrize("labelled", [True, False])
def test_em_makes_frames_likelier_with_units_and_without(labelled: bool) -> None:
    made, whole = head(decay=0.5).train(), batch()
    assert not [p for p in made.parameters() if p.requires_grad]
    if labelled:
        frames = -(-whole.wave.shape[1] // made.encoder.hop_samples)
        whole.targets["units"] = torch.arange(frames).expand(3, -1) // 4 % 5
        whole.targets["units"][0, :3] = -100
    made(dataclasses.replace(whole, filler=True))
    assert not made.statistics.pending.gram.any()
    losses = []
    for step in range(1, 11):
        loss = made(whole)
        assert not loss.total.requires_grad
        made.after_update(step)
        losses.append((loss.total / loss.count).item())
    assert losses[-1] < losses[0] - 0.1
    if labelled:
        whole.targets["units"][1, 2] = 7
        with pytest.raises(ValueError, match=r"units: found label 7 .* want less than 5"):
            made(whole)


def test_its_configuration_survives_a_round_trip() -> None:
    config = head().config
    assert from_class_path(HeadConfig, to_dict(config)) == config
