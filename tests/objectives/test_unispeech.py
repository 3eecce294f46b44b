"""UniSpeech's CTC on frames of both kinds, beside wav2vec 2.0's contrast."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kinds import ENCODER, batch_for, build

from speechssl.contract import Batch
from speechssl.objectives.unispeech import UniSpeech, UniSpeechConfig
from speechssl.objectives.wav2vec2 import Wav2vec2Config


def objective(**changes: Any) -> UniSpeech:
    built = build(UniSpeechConfig, **changes)
    assert isinstance(built, UniSpeech)
    return built


def ctc_of(model: UniSpeech, batch: Batch) -> float:
    return model(batch).logs["ctc_nats"][0].item()


def test_without_replacement_it_is_ctc_on_the_masked_context() -> None:
    model = objective(replace_probability=0.0).eval()
    batch = batch_for(model)
    seen = []
    model.encoder.register_forward_hook(lambda _m, _i, y: seen.append(y))
    found = ctc_of(model, batch)
    logits = model.output(seen[0].last).double()
    expected = 0.0
    texts = batch.targets["text"].split(batch.targets["text_lengths"].tolist())
    for row, length, tokens in zip(logits, seen[0].lengths, texts, strict=True):
        # The forward recursion over blanks and tokens, written out.
        symbols = [0]
        for token in tokens.tolist():
            symbols += [token, 0]
        p = row[:length].softmax(-1)[:, symbols]
        alpha = torch.zeros(len(symbols), dtype=torch.float64)
        alpha[:2] = p[0, :2]
        for frame in p[1:]:
            before = alpha.clone()
            for s in range(len(symbols)):
                alpha[s] = before[s] + (before[s - 1] if s > 0 else 0)
                if s > 1 and symbols[s] not in (0, symbols[s - 2]):
                    alpha[s] += before[s - 2]
                alpha[s] *= frame[s]
        expected -= (alpha[-1] + alpha[-2]).log().item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_with_every_frame_replaced_ctc_depends_on_the_quantiser_alone() -> None:
    values = []
    for change in (False, True):
        model = objective(replace_probability=1.0).eval()
        if change:
            with torch.no_grad():
                for p in model.encoder.layers.parameters():
                    p.normal_()
        values.append(ctc_of(model, batch_for(model)))
    assert values[0] == values[1]
    model = objective(replace_probability=1.0).eval()
    with torch.no_grad():
        model.quantiser.codewords.normal_()
    assert ctc_of(model, batch_for(model)) != values[0]


def test_half_of_the_frames_are_replaced_by_the_vectors_of_their_own_codes() -> None:
    model = objective(replace_probability=0.5).eval()
    batch = batch_for(model, (8.0, 9.0))
    read = []
    model.output.register_forward_pre_hook(lambda _m, x: read.append(x[0]))
    out = []
    model.encoder.register_forward_hook(lambda _m, _i, y: out.append(y))
    model(batch)
    valid = ~out[0].padding_mask
    replaced = model.replaced_frames(batch, valid)
    assert (replaced & valid).sum() / valid.sum() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(read[0][~replaced], out[0].last[~replaced])
    front = model.encoder.front_norm(out[0].front)
    vectors = model.quantiser(front[replaced], 1.0).vectors
    wanted = model.project_replaced(model.project_target(vectors))
    torch.testing.assert_close(read[0][replaced], wanted)


def test_the_contrast_is_that_of_wav2vec2_and_both_join_by_alpha() -> None:
    model = objective(ctc_weight=0.3, diversity_weight=0.2).eval()
    options = {"codes": 8, "negatives": 10, "diversity_weight": 0.2, "feature_penalty": 0.0,
               "mask_probability": 0.5, "gumbel_end": 0.1}  # fmt: skip
    plain = build(Wav2vec2Config, **options).eval()
    plain.load_state_dict({k: model.state_dict()[k] for k in plain.state_dict()})
    batch = batch_for(model)
    loss, contrast = model(batch), plain(batch)
    ctc = loss.logs["ctc_nats"][0].item()
    expected = 0.7 * contrast.total.item() + 0.3 * ctc
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == int(contrast.count)


def test_utterances_without_tokens_or_with_too_many_have_no_ctc_term() -> None:
    model = objective().eval()
    batch = batch_for(model)

    def with_texts(*texts: list[int]) -> Batch:
        tokens = torch.tensor([t for x in texts for t in x], dtype=torch.int64)
        lengths = torch.tensor([len(x) for x in texts])
        targets = dict(batch.targets) | {"text": tokens, "text_lengths": lengths}
        return dataclasses.replace(batch, targets=targets)

    alone = [[1, 2], [], []], [[], [], [3]]
    both = model(with_texts([1, 2], [4] * 99, [3]))
    assert both.logs["ctc_nats"][0].item() == pytest.approx(
        sum(ctc_of(model, with_texts(*texts)) for texts in alone), rel=1e-5
    )
    assert [int(x) for x in both.logs["unalignable"]] == [1, 2 + 1]
    unlabelled = model(with_texts([], [], []))
    assert unlabelled.logs["ctc_nats"][0] == 0 and torch.isfinite(unlabelled.total)


def test_quantised_vectors_equal_those_of_transformers_on_random_weights() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.UniSpeechConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16,) * 7, num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=16,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, num_ctc_classes=5,
    )  # fmt: skip
    reference = transformers.UniSpeechForPreTraining(config).eval()
    encoder = dataclasses.replace(ENCODER, front_dim=16)
    model = objective(final_dim=16, encoder=encoder).eval()
    with torch.no_grad():
        wave = torch.randn(2, 16000)
        theirs = reference(wave).projected_quantized_states
        features = reference.unispeech(wave).extract_features
        model.quantiser.logits.load_state_dict(reference.quantizer.weight_proj.state_dict())
        model.quantiser.codewords.copy_(reference.quantizer.codevectors.view(2, 8, 8))
        model.project_target.load_state_dict(reference.project_q.state_dict())
        model.project_replaced.load_state_dict(reference.project_hid.state_dict())
        vectors = model.quantiser(features.flatten(0, 1)).vectors
        ours = model.project_replaced(model.project_target(vectors))
    assert (ours.view_as(theirs) - theirs).abs().max() < 1e-4


def test_settings_out_of_range_and_missing_transcripts_are_named() -> None:
    for changes, name in (({"vocab_size": 1}, "vocab_size"), ({"ctc_weight": 1.5}, "ctc_weight")):
        with pytest.raises(ValueError, match=f"{name}: found"):
            objective(**changes)
    model = objective()
    batch = dataclasses.replace(batch_for(model), targets={})
    with pytest.raises(ValueError, match=r"set data\.tokenizer"):
        model(batch)
