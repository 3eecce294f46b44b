"""ContentVec is HuBERT with two voices, a contrast of them, and layers that know the speaker."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SPEAKERS
from kinds import ENCODER, MULTIRES, batch_for, build, trained

from speechssl.contract import Batch, padding_mask
from speechssl.nn.contrastive import draw_negatives
from speechssl.nn.voice_change import VoiceConfig
from speechssl.objectives.contentvec import (
    _NEGATIVES,
    ContentVec,
    ContentVecConfig,
    SpeakerLayer,
    SpeakerNorm,
)
from speechssl.objectives.hubert import HubertConfig

SAME_VOICE = VoiceConfig(formant_ratio=1.0, pitch_ratio=1.0, equaliser_db=0.0)
OFF = {"voice": SAME_VOICE, "contrast_growth": 0.0, "speaker_layers": 0, "speakers": 0}


def objective(**changes: Any) -> ContentVec:
    built = build(ContentVecConfig, **changes)
    assert isinstance(built, ContentVec)
    return built


def test_with_all_of_it_off_training_equals_huberts_bit_by_bit() -> None:
    encoder = dataclasses.replace(ENCODER, dropout=0.1)
    states = []
    for kind, changes in ((ContentVecConfig, OFF), (HubertConfig, {})):
        model = build(kind, encoder=encoder, **changes).train()
        torch.manual_seed(3)  # of the dropout
        states.append(trained(model))
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_two_views_of_one_voice_count_as_two_utterances_and_their_contrast_is_sure() -> None:
    model = objective(**(OFF | {"contrast_growth": 0.1, "contrast_most": 0.0})).eval()
    hubert = build(HubertConfig).eval()
    hubert.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("project_contrast")}
    )
    batch = batch_for(model)
    ours, theirs = model(batch), hubert(batch)
    assert ours.total.item() == pytest.approx(2 * theirs.total.item(), rel=1e-5)
    assert int(ours.count) == 2 * int(theirs.count)
    total, count = ours.logs["view_cosine"]
    assert float(total / count) == pytest.approx(1.0, abs=1e-5)
    assert ours.logs["contrast_accuracy"][0] == ours.logs["contrast_accuracy"][1] > 0


def test_views_differ_from_the_wave_and_from_each_other_and_share_mask_and_labels() -> None:
    model = objective()
    batch = batch_for(model)
    both = model.both_views(batch)
    one, other = both.wave[:3], both.wave[3:]
    assert one.shape == batch.wave.shape and len(both) == 6
    for a, b in ((one, other), (one, batch.wave), (other, batch.wave)):
        assert not torch.allclose(a, b, atol=0.1)
    mask, _ = model.frame_mask(both)
    assert torch.equal(mask[:3], mask[3:])
    assert torch.equal(mask[:3], model.frame_mask(batch)[0])
    for name in ("km", "speakers"):
        assert torch.equal(both.targets[name], batch.targets[name].repeat(*(
            [2] + [1] * (batch.targets[name].ndim - 1))))  # fmt: skip


def test_the_contrast_is_written_out_in_float64() -> None:
    model = objective(contrast_temperature=0.3).eval()
    plain = objective(contrast_temperature=0.3, contrast_most=0.0).eval()
    plain.load_state_dict(model.state_dict())
    batch = batch_for(model)
    loss = model(batch)
    both = model.both_views(batch)
    mask, valid = model.frame_mask(both)
    out = model.encoder(both.wave, both.wave_lengths, mask=mask, layers=[1])
    x = model.project_contrast(out.last).double()
    x = x / x.norm(dim=-1, keepdim=True)
    expected, number = 0.0, 0
    for row in range(3):
        seen = torch.nonzero(valid[row] & ~mask[row])[:, 0]
        views = x[row][seen], x[row + 3][seen]
        counts = torch.tensor([len(seen)])
        for (a, b), stream in zip((views, views[::-1]), _NEGATIVES, strict=True):
            drawn = draw_negatives(counts, batch.seeds[row : row + 1], 10, len(seen), stream)[0]
            for i, others in enumerate(drawn.tolist()):
                logits = torch.stack([a[i] @ b[j] for j in (i, *others)]) / 0.3
                expected += (logits.logsumexp(0) - logits[0]).item()
        number += 2 * len(seen)
    total, count = loss.logs["contrast_nats"]
    assert int(count) == number and total.item() == pytest.approx(expected, rel=1e-5)
    added = 0.1 * expected
    assert loss.total.item() == pytest.approx(plain(batch).total.item() + added, rel=1e-5)


def test_a_slow_layer_of_several_rates_is_contrasted_frame_by_frame() -> None:
    model = objective(encoder=MULTIRES, contrast_layer=2).eval()
    batch = batch_for(model)
    loss = model(batch)
    mask, valid = model.frame_mask(batch)
    assert int(loss.logs["contrast_nats"][1]) == 2 * int((valid & ~mask).sum())
    assert torch.isfinite(loss.total)


def test_the_contrasts_weight_grows_with_the_updates_up_to_its_most() -> None:
    model = objective(contrast_growth=0.02, contrast_most=0.5)
    weights = []
    for step in (0, 1, 20, 24, 25, 1000):
        model.after_update(step)
        weights.append(model.contrast_weight().item())
    assert weights == pytest.approx([0.02, 0.04, 0.42, 0.5, 0.5, 0.5])


def test_an_unknown_speaker_leaves_plain_layers_and_a_known_one_changes_predictions() -> None:
    model = objective(voice=SAME_VOICE, contrast_growth=0.0).eval()
    batch = batch_for(model)

    def spoken_by(label: int) -> float:
        target = torch.full((3,), label)
        targets = {**batch.targets, "speakers": target}
        return model(dataclasses.replace(batch, targets=targets)).total.item()

    unknown = spoken_by(SPEAKERS)
    assert spoken_by(-100) == unknown
    known = [spoken_by(i) for i in range(SPEAKERS)]
    assert len({unknown, *known}) == SPEAKERS + 1
    # Its own layers as torch has them: post-norm, with plain norms.
    stack = model.speaker_stack
    with torch.no_grad():
        x, lengths = torch.randn(2, 7, 32), torch.tensor([7, 5])
        reference = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
        layer = stack.layers[0]
        reference.self_attn.in_proj_weight.copy_(layer.attention.qkv.weight)
        reference.self_attn.in_proj_bias.copy_(layer.attention.qkv.bias)
        reference.self_attn.out_proj.load_state_dict(layer.attention.out.state_dict())
        reference.linear1.load_state_dict(layer.fc1.state_dict())
        reference.linear2.load_state_dict(layer.fc2.state_dict())
        padding = padding_mask(lengths, 7)
        wanted = reference.train()(x, src_key_padding_mask=padding)
        found = stack(x, torch.zeros(2, 8), ~padding)
        assert torch.allclose(found[~padding], wanted[~padding], atol=1e-5)


def test_a_speakers_norm_scales_and_shifts_each_frame_alone() -> None:
    norm, x, speaker = SpeakerNorm(6, 4), torch.randn(2, 5, 6), torch.randn(2, 4)
    found = norm(x, speaker)
    for b in range(2):
        for t in range(5):
            frame = x[b, t].double()
            plain = (frame - frame.mean()) / (frame.var(correction=0) + 1e-5).sqrt()
            gain = 1 + norm.gain.weight.double() @ speaker[b].double()
            wanted = gain * plain + norm.shift.weight.double() @ speaker[b].double()
            assert torch.allclose(found[b, t].double(), wanted, atol=1e-5)


def test_a_pre_norm_encoder_gets_pre_norm_layers() -> None:
    model = objective(encoder=dataclasses.replace(ENCODER, pre_norm=True)).eval()
    assert model.speaker_stack.norm is not None
    assert all(layer.pre_norm for layer in model.speaker_stack.layers)
    assert torch.isfinite(model(batch_for(model)).total)
    layer = SpeakerLayer(32, 64, 4, 8, pre_norm=True)
    for part in (layer.attention.out, layer.fc2):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    x = torch.randn(2, 5, 32)
    assert torch.equal(layer(x, torch.randn(2, 8)), x)


def vectors(folder: Path, rows: list[dict[str, Any]], matrix: np.ndarray) -> str:
    np.save(folder / "embeddings.npy", matrix)
    (folder / "embeddings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder)


def test_vectors_made_before_are_read_by_id_and_shared_by_a_speakers_utterances(
    tmp_path: Path,
) -> None:
    matrix = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    rows = [{"id": "u0", "speaker": "a"}, {"id": "u1", "speaker": None},
            {"id": "u2", "speaker": "a"}, {"id": "x"}]  # fmt: skip
    folder = vectors(tmp_path, rows, matrix)
    model = objective(speakers=0, speaker_vectors=folder).eval()
    batch = batch_for(model)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    mean = (unit[0] + unit[2]) / np.linalg.norm(unit[0] + unit[2])
    wanted = torch.from_numpy(np.stack([mean, unit[1], mean]))
    assert torch.allclose(model.speaker(batch), wanted, atol=1e-6)
    assert torch.isfinite(model(batch).total)
    assert not [k for k in model.state_dict() if k.startswith("speaker.")]
    strange = dataclasses.replace(batch, ids=("u0", "new", "u2"))
    with pytest.raises(ValueError, match="speaker_vectors: found none for new"):
        model(strange)
    filler = dataclasses.replace(strange, filler=True)
    assert not model.speaker(filler).any()
    (tmp_path / "embeddings.jsonl").write_text('{"id": "u0"}\n')
    with pytest.raises(ValueError, match=r"found shape \(4, 5\), want \(1, width\)"):
        objective(speakers=0, speaker_vectors=folder)
    with pytest.raises(ValueError, match="speechssl decode"):
        objective(speakers=0, speaker_vectors=str(tmp_path / "none"))


def test_the_exported_encoder_is_huberts() -> None:
    with torch.device("meta"):
        models = build(ContentVecConfig), build(HubertConfig)
    shapes = [{k: v.shape for k, v in m.encoder.state_dict().items()} for m in models]
    assert shapes[0] == shapes[1]


def test_published_sizes_of_the_layers_behind_the_encoder() -> None:
    """Three of Base width, whose norms are two maps of 256 each in place of two vectors."""
    from speechssl.encoders.transformer import TransformerConfig

    with torch.device("meta"):
        config = ContentVecConfig(
            encoder=TransformerConfig(), classes={"km": 100}, speakers=10, speaker_dim=256
        )
        stack = config.build().speaker_stack
    assert sum(p.numel() for p in stack.parameters()) == 3 * (7_087_872 - 4 * 768 + 4 * 768 * 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast_layer": 3}, "contrast_layer: found 3, want 1 to 2"),
        ({"speakers": 0}, "speakers, speaker_vectors: found 0 and None with 1 speaker_layers"),
        ({"speaker_vectors": "x"}, "found 3 and x"),
        ({"contrast_growth": -1.0}, "contrast_growth -1.0"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**changes)


def test_wrong_speakers_are_named() -> None:
    model = objective()
    batch = batch_for(model)

    def with_target(target: torch.Tensor) -> Batch:
        return dataclasses.replace(batch, targets={**batch.targets, "speakers": target})

    rest = {k: v for k, v in batch.targets.items() if k != "speakers"}
    with pytest.raises(ValueError, match=r"want 'speakers'.*data\.labels\.speakers"):
        model(dataclasses.replace(batch, targets=rest))
    with pytest.raises(ValueError, match="labels of utterances"):
        model(with_target(batch.targets["km"]))
    with pytest.raises(ValueError, match="found label 4, want at most 3"):
        model(with_target(torch.full((3,), 4)))
