"""HuBERT's loss against closed forms and brute force, and its errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from fakes import FakeConfig, make_batch
from torch import Tensor

from speechssl.contract import Batch
from speechssl.encoders.transformer import TransformerConfig
from speechssl.objectives.hubert import CosineHead, Hubert, HubertConfig, feature_penalty
from speechssl.objectives.wavlm import WavLM, WavLMConfig


def objective(**changes: object) -> Hubert:
    given = {"encoder": FakeConfig(), "classes": {"km": 100}, "feature_penalty": 0.0} | changes
    built = HubertConfig(**given).build()  # type: ignore[arg-type]
    assert isinstance(built, Hubert)
    return built


def ratio(pair: tuple[Tensor, Tensor]) -> float:
    return float(pair[0] / pair[1])


@pytest.mark.parametrize("classes", [100, 500])
def test_cross_entropy_starts_at_the_logarithm_of_the_number_of_classes(classes: int) -> None:
    model = objective(classes={"km": classes})
    loss = model(make_batch(model.encoder, [3.0] * 4, {"km": classes}))
    assert ratio(loss.logs["loss_nats"]) == pytest.approx(math.log(classes), abs=0.15)
    assert ratio(loss.logs["loss_bits"]) == pytest.approx(math.log2(classes), abs=0.22)


def test_uniform_logits_cost_exactly_the_logarithm_of_the_number_of_classes() -> None:
    model = objective()
    with torch.no_grad():
        model.heads["km"].codewords.fill_(0.3)  # type: ignore[union-attr]
    loss = model(make_batch(model.encoder, [3.0, 1.0], {"km": 100}))
    assert ratio(loss.logs["loss_nats"]) == pytest.approx(math.log(100), rel=1e-6)


def test_codewords_start_close_together_as_published_or_apart() -> None:
    def cosines(init: str) -> torch.Tensor:
        words = CosineHead(24, 200, 64, 0.1, init).codewords.detach()
        words = torch.nn.functional.normalize(words, dim=-1)
        return (words @ words.T)[~torch.eye(200, dtype=torch.bool)]

    assert cosines("uniform").mean() == pytest.approx(0.75, abs=0.02)
    assert cosines("normal").mean() == pytest.approx(0.0, abs=0.02)


def test_the_product_head_equals_brute_force_cosines() -> None:
    head = CosineHead(24, 50, 16, 0.1)
    x_MD = torch.randn(30, 24)
    projected = x_MD.double() @ head.project.weight.double().T + head.project.bias.double()
    brute = torch.stack(
        [
            torch.cosine_similarity(projected, word.double()[None], dim=-1) / 0.1
            for word in head.codewords
        ],
        dim=1,
    )
    assert (head(x_MD).double() - brute).abs().max() < 1e-5


def test_the_loss_is_the_cross_entropy_of_masked_frames_alone() -> None:
    model = objective(classes={"km": 9}).eval()
    batch = make_batch(model.encoder, [1.0, 2.0], {"km": 9})
    mask, valid = model.frame_mask(batch)
    assert not (mask & ~valid).any()
    x = model.encoder(batch.wave, batch.wave_lengths, mask=mask).last
    head = model.heads["km"]
    expected = 0.0
    for b, t in mask.nonzero().tolist():
        log_p = head(x[b, t][None]).double().log_softmax(-1)[0]
        expected -= log_p[batch.targets["km"][b, t]].item()
    loss = model(batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert int(loss.count) == int(mask.sum())


def test_label_sets_are_summed_and_masked_frames_counted_once() -> None:
    sets = {"a": 5, "b": 7}
    both = objective(classes=sets).eval()
    batch = make_batch(both.encoder, [1.0, 2.0], sets)
    parts = []
    for name in sets:
        single = objective(classes={name: sets[name]}).eval()
        single.encoder.load_state_dict(both.encoder.state_dict())
        single.heads[name].load_state_dict(both.heads[name].state_dict())
        parts.append(single(batch))
    loss = both(batch)
    assert loss.total.item() == pytest.approx(sum(p.total.item() for p in parts), rel=1e-6)
    assert int(loss.count) == int(parts[0].count) == int(parts[1].count)
    for name, part in zip(sets, parts, strict=True):
        assert ratio(loss.logs[f"masked_accuracy_{name}"]) == ratio(part.logs["masked_accuracy"])


def test_frames_without_label_are_not_scored() -> None:
    model = objective().eval()
    batch = make_batch(model.encoder, [2.0], {"km": 100})
    labels = batch.targets["km"].clone()
    labels[:, 40:] = -100
    cut = model(dataclasses.replace(batch, targets={"km": labels}))
    mask, _ = model.frame_mask(batch)
    assert int(cut.count) == int(mask[:, :40].sum())
    none = model(dataclasses.replace(batch, targets={"km": torch.full_like(labels, -100)}))
    assert none.total.item() == 0.0 and int(none.count) == 0


def test_unmasked_frames_join_loss_and_count_with_their_weight() -> None:
    batch = make_batch(objective().encoder, [2.0, 1.0], {"km": 100})
    torch.manual_seed(0)
    plain = objective(log_unmasked=True)
    torch.manual_seed(0)
    weighted = objective(unmasked_weight=0.5)
    mask, valid = plain.frame_mask(batch)
    a, b = plain(batch), weighted(batch)
    assert int(a.count) == int(mask.sum())
    assert float(b.count) == float(mask.sum() + 0.5 * (valid & ~mask).sum())
    assert b.total.item() > a.total.item()
    assert a.logs["unmasked_accuracy"] == b.logs["unmasked_accuracy"]


def test_the_feature_penalty_of_one_utterance_is_the_published_one() -> None:
    front = torch.randn(1, 20, 8)
    valid = torch.arange(20)[None] < 20
    found = feature_penalty(front, valid, torch.tensor([11]))
    assert float(found) == pytest.approx(float(11 * front.square().mean()), rel=1e-6)


def test_the_feature_penalty_ignores_padding() -> None:
    front = torch.randn(2, 20, 8)
    valid = torch.arange(20)[None] < torch.tensor([[20], [12]])
    changed = front.clone()
    changed[1, 12:] = 1e3
    weights = torch.tensor([5, 3])
    assert feature_penalty(front, valid, weights) == feature_penalty(changed, valid, weights)


def test_four_utterances_are_learnt_by_heart() -> None:
    model = objective(encoder=FakeConfig(dim=64), classes={"km": 8}, final_dim=64)
    batch = make_batch(model.encoder, [1.0] * 4, {"km": 8})
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    accuracy = 0.0
    for _ in range(300):
        loss = model(batch)
        optimiser.zero_grad()
        (loss.total / loss.count).backward()
        optimiser.step()
        accuracy = ratio(loss.logs["masked_accuracy"])
        if accuracy > 0.95:
            break
    assert accuracy > 0.9


def _broken(batch: Batch, **changes: object) -> Batch:
    return dataclasses.replace(batch, **changes)  # type: ignore[arg-type]


def test_labels_of_incomplete_last_frames_are_left_aside() -> None:
    model = objective().eval()
    batch = make_batch(model.encoder, [1.0, 2.0], {"km": 100})
    longer = torch.nn.functional.pad(batch.targets["km"], (0, 2), value=5)
    more = model(_broken(batch, targets={"km": longer}))
    assert more.total.item() == model(batch).total.item()
    with pytest.raises(ValueError, match="hop_samples"):
        model(_broken(batch, targets={"km": torch.cat([longer, longer], 1)}))


def test_wrong_labels_are_named() -> None:
    model = objective()
    batch = make_batch(model.encoder, [1.0], {"km": 100})
    with pytest.raises(ValueError, match=r"'km'.*data\.labels"):
        model(_broken(batch, targets={}))
    with pytest.raises(ValueError, match="the encoder's frames"):
        model(_broken(batch, targets={"km": batch.targets["km"][:, :-1]}))
    with pytest.raises(ValueError, match="found label 100"):
        model(_broken(batch, targets={"km": batch.targets["km"] * 0 + 100}))
    with pytest.raises(ValueError, match="classes"):
        HubertConfig(encoder=FakeConfig(), classes={})


def test_wavlm_reads_the_mixed_view_and_misses_it_by_name() -> None:
    torch.manual_seed(0)
    model = WavLMConfig(encoder=FakeConfig(), classes={"km": 100}, feature_penalty=0.0).build()
    assert isinstance(model, WavLM)
    torch.manual_seed(0)
    hubert = objective()
    batch = make_batch(model.encoder, [1.0, 2.0], {"km": 100}, views=["mixed"])
    swapped = _broken(batch, wave=batch.views["mixed"])
    assert model(batch).total.item() == hubert(swapped).total.item()
    assert model(batch).total.item() != hubert(batch).total.item()
    clean = _broken(batch, views={})
    with pytest.raises(ValueError, match=r"data\.mixing"):
        model(clean)


def test_the_front_end_gradient_scales_with_the_penalty_included() -> None:
    gradients = []
    for scale in (1.0, 0.1):
        torch.manual_seed(0)
        encoder = TransformerConfig(
            front_dim=16,
            layers=1,
            dim=16,
            ffn_dim=32,
            heads=2,
            pos_conv_kernel=8,
            pos_conv_groups=4,
            conv_gradient_scale=scale,
        )
        model = objective(encoder=encoder, classes={"km": 8}, feature_penalty=10.0).eval()
        loss = model(make_batch(model.encoder, [0.5, 0.3], {"km": 8}))
        assert loss.logs["feature_penalty"][0] > 0
        loss.total.backward()
        gradients.append([p.grad for p in model.encoder.front.parameters()])
        outside = model.encoder.projection.weight.grad
        assert outside is not None and outside.any()
    for whole, tenth in zip(*gradients, strict=True):
        assert (0.1 * whole - tenth).abs().max() < 1e-5 * tenth.abs().max()
