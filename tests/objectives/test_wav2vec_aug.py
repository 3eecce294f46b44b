"""Wav2Vec-Aug is wav2vec 2.0 with augmented waves and deeper projections."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import batch_for, build

from speechssl.encoders.conformer import ConformerConfig
from speechssl.nn.wave_augment import AugmentConfig
from speechssl.objectives.wav2vec2 import Wav2vec2Config
from speechssl.objectives.wav2vec_aug import Wav2vecAug, Wav2vecAugConfig

NOTHING = AugmentConfig(pitch_probability=0.0, reverb_probability=0.0, noise_probability=0.0)


def objective(**changes: Any) -> Wav2vecAug:
    built = build(Wav2vecAugConfig, **changes)
    assert isinstance(built, Wav2vecAug)
    return built


@pytest.mark.parametrize("augmented", ["context", "both", "independent"])
@pytest.mark.parametrize("training", [False, True])
def test_without_augmentation_and_depth_it_is_wav2vec2_to_the_bit(augmented, training) -> None:
    model = objective(augment=NOTHING, projection_layers=1, augmented=augmented).train(training)
    plain = build(Wav2vec2Config).train(training)
    plain.load_state_dict(model.state_dict())
    batch = batch_for(model)
    assert torch.equal(model(batch).total, plain(batch).total)


def test_what_is_augmented_is_what_is_asked_for() -> None:
    batch = batch_for(objective())
    for augmented, same, clean in (
        ("context", False, True), ("both", True, False), ("independent", False, False)
    ):  # fmt: skip
        always = AugmentConfig(noise_probability=1.0)
        model = objective(augmented=augmented, augment=always).train()
        context, target = model.waves(batch)
        assert not torch.equal(context, batch.wave)
        assert torch.equal(context, target) == same
        assert (target is batch.wave) == clean
        for x in (context, target):
            for row, length in zip(x, batch.wave_lengths.tolist(), strict=True):
                assert x.shape == batch.wave.shape and not row[length:].any()
        model.eval()
        assert all(x is batch.wave for x in model.waves(batch))


def test_the_mixed_view_is_the_start_where_asked_for() -> None:
    batch = batch_for(objective())
    for augmented, view in (("context", batch.wave), ("both", batch.views["mixed"])):
        model = objective(mixed=True, augmented=augmented, augment=NOTHING).eval()
        context, target = model.waves(batch)
        assert context is batch.views["mixed"] and target is view
        assert torch.isfinite(model(batch).total)
    with pytest.raises(ValueError, match=r"want 'mixed'; set data\.mixing"):
        model(dataclasses.replace(batch, views={}))


def test_projections_are_as_deep_as_asked_for() -> None:
    model = objective(projection_layers=3, projection_dim=24)
    for part, dim in ((model.project_context, 32), (model.project_target, 32)):
        linear = [m for m in part if isinstance(m, torch.nn.Linear)]
        assert [m.in_features for m in linear] == [dim, 24, 24] and linear[-1].out_features == 32
    with pytest.raises(ValueError, match="projection_layers: found 0"):
        objective(projection_layers=0)


def test_all_changes_to_the_model_together_learn() -> None:
    """A Conformer behind dynamic convolutions, with deeper projections."""
    encoder = ConformerConfig(
        front_end="light_wave", front_norm="group", front_dim=32, light_heads=4, layers=2, dim=32,
        ffn_dim=48, heads=4, depthwise_kernel=7, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, input_dropout=0.0,
    )  # fmt: skip
    model = objective(encoder=encoder, augment=NOTHING)
    loss = model(batch_for(model, (0.7, 0.5)))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
