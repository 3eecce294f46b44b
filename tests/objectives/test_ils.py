"""ILS is HuBERT with more terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kinds import batch_for, build

from speechssl.objectives.hubert import HubertConfig
from speechssl.objectives.ils import Ils, IlsConfig


def objective(**changes: Any) -> Ils:
    built = build(IlsConfig, **changes)
    assert isinstance(built, Ils)
    return built


def test_the_total_is_huberts_plus_the_weighted_cross_entropies_of_inner_layers() -> None:
    model = objective(layer_weights=(0.3,), feature_penalty=2.0).eval()
    hubert = build(HubertConfig, feature_penalty=2.0).eval()
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith("inner_heads")}
    hubert.load_state_dict(shared)
    batch = batch_for(model)
    ours, theirs = model(batch), hubert(batch)
    mask, _ = model.frame_mask(batch)
    hidden = model.encoder(batch.wave, batch.wave_lengths, mask=mask).layer(1)
    logits = model.inner_heads[0]["km"](hidden[mask]).double()
    inner = -logits.log_softmax(-1)[torch.arange(len(logits)), batch.targets["km"][mask]].sum()
    assert ours.total.item() == pytest.approx(theirs.total.item() + 0.3 * inner.item(), rel=1e-5)
    assert int(ours.count) == int(theirs.count)
    assert ours.logs["loss_nats_layer_1"][0].item() == pytest.approx(inner.item(), rel=1e-5)


def test_every_classifier_begins_as_configured() -> None:
    """Codewords of U[0, 1) are never negative; of N(0, 1) half of them are."""
    for init, share in (("uniform", 0.0), ("normal", 0.5)):
        model = objective(codeword_init=init, final_dim=512)
        for heads in (model.heads, *model.inner_heads):
            negative = (heads["km"].codewords < 0).float().mean().item()
            assert negative == pytest.approx(share, abs=0.05)


def test_without_weight_it_is_hubert() -> None:
    model = objective(layer_weights=(0.0,)).eval()
    hubert = build(HubertConfig).eval()
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith("inner_heads")}
    hubert.load_state_dict(shared)
    batch = batch_for(model)
    assert torch.equal(model(batch).total, hubert(batch).total)


@pytest.mark.parametrize("layers", [(), (2,), (0,), (1, 1)])
def test_layers_that_are_none_of_those_between_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="supervised_layers"):
        objective(supervised_layers=layers)


def test_a_weight_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="layer_weights: found 2"):
        objective(layer_weights=(1.0, 2.0))
