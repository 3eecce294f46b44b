"""wav2vec 2.0's loss against transformers' and by hand, its schedule and detector."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build

from speechssl.contract import EncoderOutput
from speechssl.nn.collapse import Collapsed
from speechssl.nn.contrastive import draw_negatives
from speechssl.nn.frame_masks import masked_frames
from speechssl.objectives.wav2vec2 import _NEGATIVES, Wav2vec2, Wav2vec2Config


def objective(**changes: Any) -> Wav2vec2:
    built = build(Wav2vec2Config, **changes)
    assert isinstance(built, Wav2vec2)
    return built


def test_the_gumbel_temperature_decays_to_its_floor() -> None:
    model = objective()
    for step in (0, 1, 100_000, 400_000):
        model.step.fill_(step)
        expected = max(2.0 * 0.999995**step, 0.5)
        assert model.gumbel_temperature().item() == pytest.approx(expected, rel=1e-5)


def test_the_total_is_contrast_diversity_and_penalty_by_their_weights() -> None:
    model = objective(diversity_weight=0.3, feature_penalty=7.0).eval()
    batch = batch_for(model)
    loss = model(batch)
    logs = {k: v[0].item() for k, v in loss.logs.items()}
    by_hand = logs["contrast_nats"] + 0.3 * logs["diversity"] + 7.0 * logs["feature_penalty"]
    assert loss.total.item() == pytest.approx(by_hand, rel=1e-5)


def test_usage_is_the_mean_over_all_masked_frames_of_the_update() -> None:
    model = objective().train()
    batches = [batch_for(model, (1.0,)), batch_for(model, (0.8, 1.5))]
    sums, count = 0, 0
    for batch in batches:
        model(batch)
        c = model.config
        mask, _ = masked_frames(model.encoder, batch, probability=c.mask_probability,
                                span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip
        front = model.encoder(batch.wave, batch.wave_lengths).front
        logits = model.quantiser.logits(model.encoder.front_norm(front)[mask])
        sums = sums + logits.view(-1, c.groups, c.codes).softmax(-1).sum(0)
        count += int(mask.sum())
    model.after_update(1)
    torch.testing.assert_close(model.usage.usage, sums / count, atol=1e-6, rtol=1e-5)


def test_gradient_from_the_contrast_reaches_codewords_and_logits() -> None:
    model = objective(diversity_weight=0.0, feature_penalty=0.0)
    model(batch_for(model)).total.backward()
    assert model.quantiser.codewords.grad.any() and model.quantiser.logits.weight.grad.any()


def test_the_detector_fires_when_all_frames_take_one_code_and_stays_quiet_otherwise() -> None:
    for collapse in (False, True):
        model = objective(collapse_after=1).train()
        if collapse:
            with torch.no_grad():
                model.quantiser.logits.bias[::8] = 1e4
        loss = model(batch_for(model))
        if collapse:
            assert loss.logs["contrast_nats"][0].item() == 0
            assert loss.logs["code_perplexity"][0] == 2 * loss.count
            with pytest.raises(Collapsed, match="same codes"):
                model.after_update(1)
        else:
            model.after_update(1)


def test_a_contrast_at_chance_is_named_and_a_better_one_is_not() -> None:
    for share in (1.0, 0.5):
        # Many codes: hardly any negative is left out because it equals the positive.
        model = objective(collapse_after=0, chance_after=1, codes=320).train()
        with torch.no_grad():
            model.project_context.weight.zero_()
            model.project_context.bias.zero_()
        model(batch_for(model))
        model.sums.contrast.mul_(share)
        if share == 1:
            with pytest.raises(Collapsed, match="no better than by chance"):
                model.after_update(1)
        else:
            model.after_update(1)


class _Fixed(torch.nn.Module):
    """An encoder whose output is given."""

    num_layers = ENCODER.layers

    def __init__(self, encoder: Any, front_norm: Any, front: Any, hidden: Any) -> None:
        super().__init__()
        self.frame_lengths = encoder.frame_lengths
        self.front_norm, self.front, self.hidden = front_norm, front, hidden

    def forward(self, wave, wave_lengths, *, mask=None, layers=None) -> EncoderOutput:
        lengths = self.frame_lengths(wave_lengths)
        return EncoderOutput((self.hidden,), (ENCODER.layers,), lengths, 50.0, self.front)


def test_the_loss_equals_that_of_transformers_on_random_weights() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForPreTraining

    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16,) * 7, num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=16,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, hidden_dropout=0.0,
        attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, num_negatives=10,
    )  # fmt: skip
    reference = Wav2Vec2ForPreTraining(config).eval()
    model = objective(final_dim=16, feature_penalty=0.0, encoder=_encoder(16)).eval()
    batch = batch_for(model, (1.0, 1.0))
    mask, _ = masked_frames(model.encoder, batch, probability=0.65, span=10, min_spans=2)
    counts = mask.sum(1)
    packed = draw_negatives(counts, batch.seeds, 10, int(counts.max()), _NEGATIVES)
    sampled = torch.zeros(*mask.shape, 10, dtype=torch.int64)
    for b, row in enumerate(mask):
        places = row.nonzero().flatten()
        # The reference indexes the flattened batch.
        sampled[b, row] = places[packed[b, : len(places)]] + b * mask.shape[1]
    with torch.no_grad():
        theirs = reference(batch.wave, mask_time_indices=mask, sampled_negative_indices=sampled)
        inner = reference.wav2vec2
        front = inner.feature_extractor(batch.wave).transpose(1, 2)
        hidden = inner(batch.wave, mask_time_indices=mask).last_hidden_state
        norm = inner.feature_projection.layer_norm
        model.encoder = _Fixed(model.encoder, norm, front, hidden)
        model.quantiser.logits.load_state_dict(reference.quantizer.weight_proj.state_dict())
        model.quantiser.codewords.copy_(reference.quantizer.codevectors.view(2, 8, 8))
        model.project_target.load_state_dict(reference.project_q.state_dict())
        model.project_context.load_state_dict(reference.project_hid.state_dict())
        probabilities = model.quantiser(norm(front)[mask]).probabilities
        # The reference's codes in evaluation are counted, not weighed.
        used = torch.nn.functional.one_hot(probabilities.argmax(-1), 8).float()
        model.usage.update(used.sum(0), mask.sum())
        ours = model(batch)
    contrast = ours.logs["contrast_nats"][0].item()
    assert contrast == pytest.approx(theirs.contrastive_loss.item(), rel=1e-4)
    diversity = model.usage(used).item()
    assert diversity == pytest.approx(theirs.diversity_loss.item(), rel=1e-4)


def _encoder(front_dim: int) -> Any:
    return dataclasses.replace(ENCODER, front_dim=front_dim)
