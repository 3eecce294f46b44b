"""UniSpeech-SAT's utterance-wise term."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build

from speechssl.contract import EncoderOutput
from speechssl.objectives.unispeech_sat import (
    UniSpeechSat,
    UniSpeechSatConfig,
    utterance_contrast,
)
from speechssl.objectives.wavlm import WavLMConfig


def objective(**changes: Any) -> UniSpeechSat:
    built = build(UniSpeechSatConfig, **changes)
    assert isinstance(built, UniSpeechSat)
    return built


def test_the_contrast_equals_brute_force() -> None:
    x, y = torch.randn(9, 5), torch.randn(9, 5)
    chosen, same = torch.randint(9, (9, 4)), torch.rand(9, 4) > 0.5
    expected, hits = 0.0, 0.0
    for n in range(9):
        for i in range(4):
            other = y[chosen[n, i]].double()
            logit = torch.cosine_similarity(x[n].double(), other, dim=0) / 0.1
            sign = 1 if same[n, i] else -1
            expected -= torch.nn.functional.logsigmoid(sign * logit).item() / 4
            hits += float((logit > 0) == same[n, i]) / 4
    found = utterance_contrast(x, y, chosen, same, 0.1)
    assert found[0].item() == pytest.approx(expected, rel=1e-5)
    assert found[1].item() == pytest.approx(hits, rel=1e-5)


def test_instances_are_other_frames_and_marked_by_their_utterance() -> None:
    model = objective(instances=30)
    scored = torch.zeros(3, 40, dtype=torch.bool)
    scored[0, :20] = scored[1, 5:25] = scored[2, 20:] = True
    own, taken, same = model.instances(batch_for(model), scored)
    assert own.flatten().tolist() == list(range(60))
    assert not (taken == own).any() and taken.max() < 60
    assert torch.equal(same, taken // 20 == own // 20)
    # By chance 19 of 59 others are of the same utterance.
    assert same.float().mean().item() == pytest.approx(19 / 59, abs=0.04)


def test_one_utterance_alone_has_only_positives() -> None:
    model = objective()
    batch = batch_for(model, (2.0,))
    mask, _ = model.frame_mask(batch)
    assert model.instances(batch, mask)[2].all()


def test_without_its_terms_it_is_wavlm() -> None:
    model = objective(utterance_weight=0.0, diversity_weight=0.0).eval()
    wavlm = build(WavLMConfig).eval()
    names = set(wavlm.state_dict())
    wavlm.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    batch = batch_for(model)
    assert torch.equal(model(batch).total, wavlm(batch).total)


def test_the_terms_join_by_their_weights() -> None:
    model = objective(utterance_weight=3.0, diversity_weight=0.2).eval()
    plain = objective(utterance_weight=0.0, diversity_weight=0.0).eval()
    plain.load_state_dict(model.state_dict())
    batch = batch_for(model)
    loss = model(batch)
    extra = 3.0 * loss.logs["utterance_nats"][0] + 0.2 * loss.logs["diversity"][0]
    assert loss.total.item() == pytest.approx((plain(batch).total + extra).item(), rel=1e-5)


def test_the_terms_equal_those_of_transformers_heads_on_random_weights() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.UniSpeechSatConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16,) * 7, num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=16,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    reference = transformers.UniSpeechSatForPreTraining(config).eval()
    encoder = dataclasses.replace(ENCODER, pre_norm=True)
    model = objective(final_dim=16, instances=7, encoder=encoder).eval()
    batch = batch_for(model, (1.0, 1.0))
    pairs = [
        (model.utterance_norm, reference.layer_norm_for_extract),
        (model.project_utterance, reference.speaker_proj),
        (model.project_instance, reference.project_q),
        (model.quantiser.logits, reference.quantizer.weight_proj),
    ]
    with torch.no_grad():
        torch.nn.init.normal_(reference.layer_norm_for_extract.weight)
        torch.nn.init.uniform_(reference.quantizer.codevectors)
        for ours, theirs in pairs:
            ours.load_state_dict(theirs.state_dict())
        model.quantiser.codewords.copy_(reference.quantizer.codevectors.view(2, 8, 8))
        hidden = reference.unispeech_sat(batch.wave, output_hidden_states=True).hidden_states[1]
        lengths = torch.full((2,), hidden.shape[1])
        scored = torch.rand(hidden.shape[:2]) < 0.6
        x = reference.layer_norm_for_extract(hidden[scored])[None]
        context, target = reference.speaker_proj(x), reference.project_q(reference.quantizer(x)[0])
        _, taken, same = model.instances(batch, scored)
        theirs = reference.compute_contrastive_logits(target, target[0, taken.T], context, 0.1)
        truth = torch.cat([torch.ones(1, len(same)), same.T.float()])
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        expected = bce(theirs, truth, reduction="none").mean(0).sum()
        # In training mode its perplexity is that of the probabilities, without noise.
        perplexity = reference.quantizer.train()(x)[1]
        probabilities = model.quantiser(x[0]).probabilities
        model.usage.update(probabilities.sum(0), scored.sum())
        out = EncoderOutput((hidden,), (1,), lengths, 50.0, hidden)
        logs: dict[str, Any] = {}
        total = model.inner_terms(batch, out, {}, scored, logs)
    count = int(scored.sum())
    assert logs["utterance_nats"][0].item() == pytest.approx(expected.item(), rel=1e-4)
    diversity = 1 - perplexity.item() / 16
    assert logs["diversity"][0].item() / count == pytest.approx(diversity, rel=1e-4)
    assert total.item() == pytest.approx(expected.item() + 0.1 * diversity * count, rel=1e-4)


def test_only_layers_of_pre_norm_encoders_are_normed_for_it() -> None:
    for pre_norm, kind in ((True, torch.nn.LayerNorm), (False, torch.nn.Identity)):
        model = objective(encoder=dataclasses.replace(ENCODER, pre_norm=pre_norm))
        assert type(model.utterance_norm) is kind


def test_a_layer_that_is_not_between_is_refused() -> None:
    with pytest.raises(ValueError, match="utterance_layer: found 2, want 1 to 1"):
        objective(utterance_layer=2)
