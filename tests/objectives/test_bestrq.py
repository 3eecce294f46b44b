"""BEST-RQ's quantiser, features, loss and detector."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from fakes import one
from kinds import ENCODER, batch_for, build

from speechssl.nn.collapse import Collapsed
from speechssl.nn.frame_masks import masked_frames
from speechssl.nn.masking import span_mask
from speechssl.objectives.bestrq import BestRQ, BestRQConfig, RandomQuantiser


def objective(**changes: Any) -> BestRQ:
    built = build(BestRQConfig, **changes)
    assert isinstance(built, BestRQ)
    return built


def test_codes_are_the_nearest_of_normalised_vectors_whatever_the_scale() -> None:
    quantiser = RandomQuantiser(12, 2, 30, 4)
    x = torch.randn(50, 12)
    codes = quantiser(x)
    for c in range(2):
        projected = torch.nn.functional.normalize(x.double() @ quantiser.projection[c].double())
        distance = torch.cdist(projected, quantiser.codewords[c].double())
        assert torch.equal(codes[:, c], distance.argmin(1))
    assert torch.equal(quantiser(x * 37), codes)


def test_codewords_have_unit_length_and_the_projection_is_frozen_and_kept() -> None:
    quantiser = RandomQuantiser(12, 2, 30, 4)
    torch.testing.assert_close(quantiser.codewords.norm(dim=-1), torch.ones(2, 30))
    assert not list(quantiser.parameters())
    other = RandomQuantiser(12, 2, 30, 4)
    other.load_state_dict(quantiser.state_dict())
    x = torch.randn(50, 12)
    assert torch.equal(quantiser(x), other(x))


def test_white_noise_uses_more_than_nine_tenths_of_the_codes() -> None:
    model = objective(codes=256)
    batch = batch_for(model, (10.0,) * 12)
    features = model.features(batch, 499)
    codes = model.quantiser(features.flatten(0, 1))[:, 0]
    assert len(codes.unique()) > 0.9 * 256


def test_the_gain_of_a_recording_does_not_change_its_codes() -> None:
    model = objective(codes=256)
    batch = batch_for(model)
    louder = dataclasses.replace(batch, wave=batch.wave * 8)
    a, b = (model.quantiser(model.features(x, 40).flatten(0, 1)) for x in (batch, louder))
    assert (a == b).float().mean() > 0.999


def test_features_are_stacks_of_the_utterances_own_normalised_frames() -> None:
    model = objective()
    batch = batch_for(model)
    frames = int(model.encoder.frame_lengths(torch.tensor([batch.wave.shape[1]])))
    found = model.features(batch, frames)
    for row, length in zip(found, batch.wave_lengths.tolist(), strict=True):
        wave = batch.wave[batch.wave_lengths == length][:, :length]
        mel = model.log_mel(wave)[0].double()
        mel = (mel - mel.mean(0)) / (mel.var(0, correction=0) + 1e-5).sqrt()
        own = int(model.encoder.frame_lengths(torch.tensor([length])))
        for t in range(own):
            for s in range(2):
                expected = mel[2 * t + s] if 2 * t + s < len(mel) else torch.zeros(80)
                part = row[t, s * 80 : (s + 1) * 80]
                assert (part - expected).abs().max() < 1e-3


def test_the_loss_is_the_mean_cross_entropy_of_the_codebooks() -> None:
    model = objective(codes=16, codebooks=3).eval()
    batch = batch_for(model)
    c = model.config
    mask, _ = masked_frames(model.encoder, batch, probability=c.mask_probability,
                            span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip
    with torch.no_grad():
        codes = model.quantiser(model.features(batch, mask.shape[1])[mask])
        x = model.encoder(batch.wave, batch.wave_lengths, mask=mask).last[mask]
        logits = model.head(x).double().view(-1, 3, 16)
        expected = 0.0
        for n, row in enumerate(codes.tolist()):
            for book, code in enumerate(row):
                expected -= logits[n, book].log_softmax(-1)[code].item() / 3
    assert model(batch).total.item() == pytest.approx(expected, rel=1e-5)


def test_noise_takes_the_place_of_masked_filterbank_frames_and_nothing_else() -> None:
    model = objective(mask_with="noise").eval()
    batch = batch_for(model)
    c = model.config
    mask, _ = masked_frames(model.encoder, batch, probability=c.mask_probability,
                            span=c.mask_span, min_spans=c.mask_min_spans)  # fmt: skip
    seen = []
    first = model.encoder.front.layers[0]
    first.register_forward_hook(lambda _m, x, _y: seen.append(x[0]))
    model.encode(batch, mask)
    model.encode(batch, torch.zeros_like(mask))
    hidden = mask.repeat_interleave(2, 1)[:, : seen[0].shape[1]]
    assert torch.equal(seen[0][~hidden], seen[1][~hidden])
    noise = seen[0][hidden]
    assert noise.mean().abs() < 0.01 and noise.std().item() == pytest.approx(0.1, rel=0.05)
    whole = model(batch).total.item()
    parts = sum(model(one(batch, i)).total.item() for i in range(len(batch)))
    assert whole == pytest.approx(parts, rel=1e-5)


def test_noise_ends_with_the_utterance_whose_last_step_is_not_full() -> None:
    model = objective(mask_with="noise").eval()
    batch = batch_for(model, (0.81, 1.3))
    frames = model.encoder.frame_lengths(batch.wave_lengths)
    assert (batch.wave_lengths[0] - 400) // 160 + 1 < 2 * frames[0]
    mask = torch.arange(int(frames.max())) < frames[:, None]
    together = model.encode(batch, mask).last[0, : frames[0]]
    alone = model.encode(one(batch, 0), mask[:1, : frames[0]]).last[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_third_of_the_frames_is_masked_in_spans_of_400_ms() -> None:
    """As with starts at 1 % of the filterbank's frames: 1 - exp(-0.4), a little less at the end."""
    c = BestRQConfig(encoder=ENCODER)
    mask = span_mask(
        torch.full((200,), 500), torch.arange(200), probability=c.mask_probability,
        span=c.mask_span, min_spans=c.mask_min_spans,
    )  # fmt: skip
    assert mask.float().mean().item() == pytest.approx(1 - math.exp(-0.4), abs=0.01)


def test_the_detector_fires_on_constant_audio_and_stays_quiet_otherwise() -> None:
    model = objective(collapse_after=1).train()
    batch = batch_for(model)
    model(batch)
    model.after_update(1)
    model.train()
    model(dataclasses.replace(batch, wave=torch.full_like(batch.wave, 0.1)))
    with pytest.raises(Collapsed, match="silent or constant"):
        model.after_update(51)
