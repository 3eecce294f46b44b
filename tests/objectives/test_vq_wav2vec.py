"""vq-wav2vec: its contrast, its causal context, and the counts that make a vocabulary."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from fakes import one
from kinds import ENCODER, VQ, batch_for, build

from speechssl.encoders.vq_conv import joint_code
from speechssl.nn.collapse import Collapsed
from speechssl.nn.contrastive import draw_negatives
from speechssl.objectives.vq_wav2vec import _NEGATIVES, VqWav2vec, VqWav2vecConfig


def objective(**changes: Any) -> VqWav2vec:
    built = build(VqWav2vecConfig, **changes)
    assert isinstance(built, VqWav2vec)
    return built


def test_the_loss_equals_brute_force() -> None:
    model = objective(steps=3, negatives=4, diversity_weight=0.5).eval()
    batch = batch_for(model, (0.4, 0.25))
    loss = model(batch)
    out = model.encoder(batch.wave, batch.wave_lengths)
    words, context = out.hidden[0].double(), out.last.double()
    size = words.shape[1]
    negatives = draw_negatives(out.lengths, batch.seeds, 4, size, _NEGATIVES)
    weight = model.predict.weight.double().view(3, 32, 32)
    bias = model.predict.bias.double().view(3, 32)
    expected, count, hits = 0.0, 0, 0
    for b, length in enumerate(out.lengths.tolist()):
        for step, t in itertools.product((1, 2, 3), range(length)):
            if t + step >= length:
                continue
            guess = weight[step - 1] @ context[b, t] + bias[step - 1]
            positive = guess @ words[b, t + step]
            others = torch.stack([guess @ words[b, n] for n in negatives[b, t + step]])
            assert t + step not in negatives[b, t + step] and int(others.numel()) == 4
            expected -= torch.nn.functional.logsigmoid(positive).item()
            expected -= torch.nn.functional.logsigmoid(-others).sum().item()
            count += 1
            hits += int((positive > others).all())
    assert loss.logs["contrast_nats"][0].item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == count and int(loss.logs["contrast_accuracy"][0]) == hits
    diversity = 0.5 * 3 * loss.logs["diversity"][0].item()
    assert loss.total.item() == pytest.approx(expected + diversity, rel=1e-5)


KMEANS = dataclasses.replace(VQ, quantiser="kmeans")


def test_kmeans_takes_the_nearest_codewords_and_the_loss_draws_both_together() -> None:
    """Nearest by brute force in float64; the distances join the contrast by their weights."""
    model = objective(encoder=KMEANS, steps=3, kmeans_weight=0.7, commitment=0.3).train()
    batch = batch_for(model, (0.4, 0.25))
    loss = model(batch)
    encoder = model.encoder
    quantiser = encoder.projection.quantiser
    out = encoder(batch.wave, batch.wave_lengths, layers=[0])
    valid = ~out.padding_mask
    x = encoder.front_norm(out.front)[valid].double()
    found = encoder.projection.sample(encoder.front_norm(out.front)[valid])
    expected = 0.0
    for n, frame in enumerate(x):
        for g, part in enumerate(frame.chunk(2)):
            z = quantiser.projection[g].double() @ part
            z = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
            distance = (quantiser.codewords[g].double() - z).square().sum(1)
            assert int(found.codes[n, g]) == int(distance.argmin())
            expected += distance.min().item() / 32
    assert loss.logs["kmeans_distance"][0].item() == pytest.approx(expected, rel=1e-4)
    contrast = loss.logs["contrast_nats"][0].item()
    assert loss.total.item() == pytest.approx(contrast + 0.7 * 3 * 1.3 * expected, rel=1e-5)
    vectors = quantiser.codewords[torch.arange(2), found.codes].flatten(1)
    torch.testing.assert_close(found.vectors, vectors)


def test_kmeans_codewords_learn_from_their_distance_alone_and_frames_from_both() -> None:
    gradients = {}
    for weight in (0.0, 1.0):
        model = objective(encoder=KMEANS, kmeans_weight=weight).train()
        model(batch_for(model)).total.backward()
        gradients[weight] = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
            if p.requires_grad
        }
    words = "encoder.projection.quantiser.codewords"
    assert not gradients[0.0].pop(words).any()
    assert [name for name, g in gradients[0.0].items() if not g.any()] == []
    assert [name for name, g in gradients[1.0].items() if not g.any()] == []
    # To the frame the result is as if nothing were quantised.
    quantiser = objective(encoder=KMEANS).encoder.projection.quantiser
    x = torch.randn(5, 32, requires_grad=True)
    direction = torch.randn(5, 32)
    (quantiser(x).vectors * direction).sum().backward()
    x_NGC = x.detach().clone().requires_grad_()
    z = torch.einsum("ngc,gec->nge", x_NGC.unflatten(-1, (2, -1)), quantiser.projection)
    (torch.nn.functional.layer_norm(z, (16,)).flatten(1) * direction).sum().backward()
    torch.testing.assert_close(x.grad, x_NGC.grad)


def test_kmeans_keeps_the_rules_of_a_loss() -> None:
    """A sum over utterances, padding or not; accumulation; a collapse is named."""
    model = objective(encoder=KMEANS).eval()
    batch = batch_for(model)
    alone = [model(one(batch, i)) for i in range(len(batch))]
    whole = model(batch)
    assert whole.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-5)
    assert int(whole.count) == sum(int(x.count) for x in alone)
    for collapsed in (False, True):
        model = objective(encoder=KMEANS, collapse_after=1).train()
        if collapsed:
            with torch.no_grad():
                model.encoder.projection.quantiser.codewords[:, 1:] = 1e3
        for i in range(len(batch)):
            model(one(batch, i))
        if collapsed:
            with pytest.raises(Collapsed, match="same codes"):
                model.after_update(1)
        else:
            model.after_update(1)
    with pytest.raises(ValueError, match=r"diversity_weight: found 0\.1, want 0"):
        objective(encoder=KMEANS, diversity_weight=0.1)


def test_contexts_hear_nothing_of_what_they_tell() -> None:
    model = objective().eval()
    words = torch.randn(1, 20, 32)
    later = words.clone()
    later[:, 12:] = 0
    with torch.no_grad():
        a, b = model.encoder.context(words), model.encoder.context(later)
    assert torch.equal(a[:, :12], b[:, :12]) and not torch.equal(a[:, 12], b[:, 12])


def test_an_utterance_shorter_than_the_steps_is_told_as_far_as_it_goes() -> None:
    model = objective(steps=12).eval()
    batch = batch_for(model, (0.105,))
    loss = model(batch)
    frames = int(model.encoder.frame_lengths(batch.wave_lengths))
    assert frames < 12 and int(loss.count) == frames * (frames - 1) // 2


def test_joint_codes_are_a_bijection() -> None:
    codes = torch.tensor(list(itertools.product(range(5), repeat=3)))
    assert joint_code(codes, 5).tolist() == list(range(125))


def test_counts_of_combinations_decay_and_hold_what_was_taken() -> None:
    model = objective(count_decay=0.5).train()
    expected = torch.zeros(64)
    for step in (1, 2):
        batches = [batch_for(model, (0.4 * step,)), batch_for(model, (0.7, 0.3))]
        expected = 0.5 * expected
        for batch in batches:
            out = model.encoder(batch.wave, batch.wave_lengths, layers=[0])
            valid = ~out.padding_mask
            found = model.quantise(model.encoder.front_norm(out.front), valid, batch)
            expected += torch.bincount(joint_code(found.codes, 8), minlength=64)
            model(batch)
        model.after_update(step)
    torch.testing.assert_close(model.encoder.pair_counts, expected)
    for step in range(3, 20):
        model.after_update(step)
    assert not model.encoder.pair_counts.any()


def test_the_detector_fires_when_all_frames_take_one_code_and_stays_quiet_otherwise() -> None:
    for collapsed in (False, True):
        model = objective(collapse_after=1).train()
        if collapsed:
            with torch.no_grad():
                model.encoder.projection.quantiser.logits.bias[::8] = 1e4
        model(batch_for(model))
        if collapsed:
            with pytest.raises(Collapsed, match="same codes"):
                model.after_update(1)
        else:
            model.after_update(1)


def test_an_encoder_without_a_quantiser_is_refused() -> None:
    with pytest.raises(ValueError, match="found TransformerEncoder, want that of"):
        objective(encoder=ENCODER)
