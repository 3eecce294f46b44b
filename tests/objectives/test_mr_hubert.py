"""MR-HuBERT is HuBERT with terms at lower rates."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from fakes import make_batch
from kinds import ENCODER, MULTIRES, batch_for, build

from speechssl.contract import IGNORE
from speechssl.objectives.hubert import HubertConfig
from speechssl.objectives.mr_hubert import MrHubert, MrHubertConfig

THREE = dataclasses.replace(MULTIRES, stacks=(1, 1, 1, 1, 1), factors=(2, 2))


def objective(**changes: Any) -> MrHubert:
    built = build(MrHubertConfig, **changes)
    assert isinstance(built, MrHubert)
    return built


def test_the_total_is_huberts_plus_the_cross_entropies_at_lower_rates() -> None:
    """Labels and masks of a lower rate are every second and fourth, written out in float64."""
    model = objective(encoder=THREE, lower_weight=0.3, feature_penalty=2.0).eval()
    hubert = build(HubertConfig, encoder=THREE, feature_penalty=2.0).eval()
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith("lower_heads")}
    hubert.load_state_dict(shared)
    batch = batch_for(model)
    ours, theirs = model(batch), hubert(batch)
    mask, _ = model.frame_mask(batch)
    out = model.encoder(batch.wave, batch.wave_lengths, mask=mask)
    lower = 0.0
    for stride, layer in ((2, 4), (4, 3)):
        for row, frames in enumerate(out.lengths.tolist()):
            for place in range(0, frames, stride):
                if mask[row, place]:
                    x = out.layer(layer)[row, place // stride]
                    log_p = model.lower_heads[str(stride)]["km"](x[None]).double().log_softmax(-1)
                    lower -= log_p[0, batch.targets["km"][row, place]].item()
    assert ours.total.item() == pytest.approx(theirs.total.item() + 0.3 * lower, rel=1e-5)
    assert int(ours.count) == int(theirs.count) == int(mask.sum())
    logged = sum(ours.logs[f"loss_nats_{ms}ms"][0].item() for ms in (40, 80))
    assert logged == pytest.approx(lower, rel=1e-5)


def test_without_weight_it_is_hubert_on_the_same_encoder() -> None:
    model, hubert = objective(lower_weight=0.0), build(HubertConfig, encoder=MULTIRES)
    hubert.load_state_dict(model.state_dict())
    batch = batch_for(model)
    assert torch.equal(model(batch).total, hubert(batch).total)


def test_each_rate_may_have_label_sets_of_its_own() -> None:
    classes = {"km50": 8, "km25": 5, "both": 3}
    model = objective(classes=classes, strides={"km50": (1,), "km25": (2,)}).eval()
    assert list(model.heads) == ["km50", "both"]
    assert list(model.lower_heads["2"]) == ["km25", "both"]
    batch = make_batch(model.encoder, (1.3, 0.8, 2.0), classes)
    before = model(batch)
    # Of labels at the lower rate, those between its frames are never read.
    batch.targets["km25"][:, 1::2] = IGNORE
    assert torch.equal(model(batch).total, before.total)
    batch.targets["km25"][:, ::2] = IGNORE
    without = model(batch)
    assert not torch.equal(without.total, before.total)
    assert without.count == before.count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": {"km": (1, 4)}}, r"strides: found km: \[1, 4\], want .*\[1, 2\]"),
        ({"strides": {"other": (1,)}}, "strides: found other"),
        ({"strides": {"km": (2,)}}, "stride 1"),
        ({"encoder": ENCODER}, "encoder: found a TransformerEncoder"),
    ],
)
def test_rates_that_the_encoder_lacks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**changes)
