"""The margin softmax against closed forms; pooling; embeddings of speakers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from utterance_heads import KINDS, batch, build

from speechssl.heads.margin import AngularMargin
from speechssl.heads.pooling import AttentiveStatistics, mean_and_deviation, mean_of_frames
from speechssl.heads.speaker import SpeakerConfig
from speechssl.heads.speaker_nets import EcapaTdnn, XVector

SPEAKERS = [kind for kind in KINDS if kind[0] is SpeakerConfig]
"""Pooled, x-vector, ECAPA-TDNN, and the latter on one layer."""


def margin_softmax(classes: int = 5, dim: int = 6, centres: int = 1) -> AngularMargin:
    torch.manual_seed(0)
    return AngularMargin(dim, classes, scale=20.0, centres=centres).double()


def some_embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(9, 6, generator=random, dtype=torch.float64)
    return x, torch.randint(0, 5, (9,), generator=random)


def test_margin_0_is_the_scaled_softmax_on_cosines() -> None:
    loss, (x, y) = margin_softmax(), some_embeddings()
    cosines = F.normalize(x.float()) @ F.normalize(loss.weight.float()).T
    found, ours = loss(x, y, 0.0)
    assert torch.allclose(ours, cosines, atol=1e-6)
    expected = F.cross_entropy(20.0 * cosines, y, reduction="none")
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_own_angle_grows_by_the_margin() -> None:
    loss, (x, y) = margin_softmax(), some_embeddings()
    _, cosines = loss(x, y)
    logits = 20.0 * cosines
    for i, own in enumerate(y.tolist()):
        angle = math.acos(float(cosines[i, own].detach())) + 0.3
        assert angle < math.pi
        logits[i, own] = 20.0 * math.cos(angle)
    expected = F.cross_entropy(logits, y, reduction="none")
    assert torch.allclose(loss(x, y, 0.3)[0], expected, atol=1e-4)


def test_the_own_cosine_falls_by_the_margin_of_am_softmax() -> None:
    torch.manual_seed(0)
    loss = AngularMargin(6, 5, scale=20.0, centres=2, kind="cosine")
    x, y = (t.float() if t.is_floating_point() else t for t in some_embeddings())
    found, cosines = loss(x, y, 0.4)
    expected = F.cross_entropy(20.0 * (cosines - 0.4 * F.one_hot(y, 5)), y, reduction="none")
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(loss(x, y, 0.0)[0], F.cross_entropy(20.0 * cosines, y, reduction="none"))


def test_training_hears_the_mixed_view_and_validation_the_clean_one() -> None:
    clean = batch()
    other = torch.randn(clean.wave.shape, generator=torch.Generator().manual_seed(9))
    mixed = dataclasses.replace(clean, views={"mixed": other})
    swapped = dataclasses.replace(clean, wave=other)
    head = build((SpeakerConfig, {"network": "pooled"}), margin_kind="cosine")
    assert torch.equal(head.train()(mixed).total, head(swapped).total)
    assert not torch.equal(head(mixed).total, head(clean).total)
    assert torch.equal(head.eval()(mixed).total, head(clean).total)


def test_the_loss_grows_with_the_margin_even_for_opposite_embeddings() -> None:
    loss, (x, y) = margin_softmax(), some_embeddings()
    opposite = -F.normalize(loss.weight.detach())[y]
    for points in (x, opposite):
        totals = [float(loss(points, y, m)[0].sum().detach()) for m in (0.0, 0.1, 0.2, 0.5, 1.0)]
        assert totals == sorted(totals) and totals[0] < totals[-1]


def test_the_own_logit_falls_with_the_angle_up_to_half_a_turn() -> None:
    loss = AngularMargin(2, 2, scale=1.0)
    loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.linspace(0.0, math.pi, 200)
    points = torch.stack([angles.cos(), -angles.sin()], -1)  # away from the other class
    own = torch.zeros(200, dtype=torch.int64)
    losses, cosines = loss(points, own, 0.5)
    logits = cosines[:, 1] - losses.exp().sub(1).clamp(min=1e-12).log()  # of two classes
    assert (logits.diff() < 1e-4).all() and logits[0] > logits[-1]


def test_its_gradient_is_that_of_finite_differences_at_any_angle() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = margin_softmax(3, 4, 2).float()
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    loss(x, y, 0.2)[0].sum().backward()
    step = 1e-3
    for i, j in ((0, 0), (2, 3), (5, 1)):
        with torch.no_grad():
            change = torch.zeros_like(x)
            change[i, j] = step
            more, less = (float(loss(x + s * change, y, 0.2)[0].sum()) for s in (1, -1))
        assert float(x.grad[i, j]) == pytest.approx((more - less) / (2 * step), rel=2e-2, abs=2e-2)


def test_the_gradient_is_finite_on_a_centre_and_opposite_to_it() -> None:
    loss = margin_softmax().float()
    centre = F.normalize(loss.weight.detach())[[2, 2]]
    x = (centre * torch.tensor([[3.0], [-3.0]])).requires_grad_()
    loss(x, torch.tensor([2, 2]), 0.2)[0].sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(loss.weight.grad).all()


def test_the_nearest_of_the_centres_counts() -> None:
    loss = AngularMargin(2, 2, scale=1.0, centres=2)
    loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [-5.0, 0.0]])
    found = loss.cosines(torch.tensor([[0.0, 7.0], [-2.0, 0.0]]))
    assert torch.allclose(found, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_lengths_of_embeddings_and_centres_do_not_matter() -> None:
    loss, (x, y) = margin_softmax(), some_embeddings()
    before = loss(x, y, 0.2)[0]
    loss.weight.data *= torch.rand(5, 1).double() + 0.5
    assert torch.allclose(loss(3.0 * x, y, 0.2)[0], before, atol=1e-5)


def test_pools_are_means_and_deviations_of_the_valid_frames() -> None:
    x, lengths = torch.randn(2, 7, 3), torch.tensor([7, 4])
    found = mean_and_deviation(x, lengths)
    assert torch.allclose(found[:, :3], mean_of_frames(x, lengths))
    for i, n in enumerate(lengths.tolist()):
        assert torch.allclose(found[i, :3], x[i, :n].mean(0), atol=1e-6)
        assert torch.allclose(found[i, 3:], x[i, :n].std(0, correction=0), atol=1e-5)
    attention = AttentiveStatistics(3, 5)
    attention.outer.weight.data.zero_()  # every frame weighs the same
    assert torch.allclose(attention(x, lengths), found, atol=1e-5)
    assert torch.isfinite(mean_and_deviation(x[:, :1], torch.tensor([1, 1]))).all()


def test_attention_can_choose_one_frame() -> None:
    attention = AttentiveStatistics(1, 2)
    attention.inner.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    attention.inner.bias.data.zero_()
    attention.outer.weight.data = torch.tensor([[1000.0, 0.0]])
    x = torch.tensor([[[0.1], [0.9], [0.3], [2.0]]])
    mean, deviation = attention(x, torch.tensor([3]))[0]
    assert mean.item() == pytest.approx(0.9) and deviation.item() < 1e-3


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_networks_have_the_published_sizes() -> None:
    """Of the papers' networks on 768 channels, batch norms exchanged for layer norms of equal size.

    ECAPA-TDNN of 512 channels on 80 filterbanks has 6.2 M parameters in the paper (embedding 192).
    """
    assert count(EcapaTdnn(80, 512, 192, 128)) == pytest.approx(6.2e6, rel=0.03)
    # Convolutions by hand: contexts 5, 3, 3, 1 at 512, 1 to 1500; weights, biases and norms.
    convs = 512 * 512 * (5 + 3 + 3 + 1) + 4 * 3 * 512 + 512 * 1500 + 3 * 1500
    ends = 768 * 512 + 512 + 3000 * 512 + 512
    assert count(XVector(768, 512, 512)) == convs + ends


def test_the_margin_grows_over_its_steps() -> None:
    head = build(SPEAKERS[0], margin=0.4, margin_steps=10)
    assert head.margin_now() == 0.0
    head.after_update(5)
    assert head.margin_now() == pytest.approx(0.2)
    head.after_update(50)
    assert head.margin_now() == 0.4
    assert build(SPEAKERS[0], margin=0.4).margin_now() == 0.4


def test_a_speaker_at_another_speed_is_another_class() -> None:
    """Class c + C k of the k-th other speed; at speed 1, as in validation, the speaker's own."""
    clean = batch((0.3, 0.3, 0.3, 0.3))
    speeds = torch.tensor([1000, 1100, 900, 1100])
    perturbed = dataclasses.replace(clean, targets={**clean.targets, "speeds": speeds})
    kind = (SpeakerConfig, {"network": "pooled"})
    head = build(kind, other_speeds=[0.9, 1.1], sub_centres=2).eval()
    plain = build(kind, sub_centres=2).eval()
    assert head.margin.weight.shape == (2 * 3 * 4, 12) and plain.margin.centres == 2
    assert head.targets(perturbed).tolist() == [0, 1 + 8, 2 + 4, 3 + 8]
    assert head.targets(clean).tolist() == plain.targets(perturbed).tolist() == [0, 1, 2, 3]
    cosines = head.margin.cosines(head.embed(clean.wave, clean.wave_lengths))
    wanted = torch.tensor([0, 9, 6, 11])
    own = F.one_hot(wanted, 12)
    angles = cosines.detach().double().acos() + own * head.config.margin
    total = F.cross_entropy(30 * angles.cos(), wanted, reduction="sum")
    assert float(head(perturbed).total.detach()) == pytest.approx(float(total), rel=1e-4)
    # Embeddings are of the recording alone.
    plain.load_state_dict(head.state_dict() | {"margin.weight": plain.margin.weight})
    waves = clean.wave, clean.wave_lengths
    assert torch.equal(head.embed(*waves), plain.embed(*waves))


def test_other_speeds_than_those_named_are_refused() -> None:
    head = build((SpeakerConfig, {"network": "pooled"}), other_speeds=[0.9, 1.1])
    clean = batch((0.3, 0.3))
    wrong = {**clean.targets, "speeds": torch.tensor([900, 950])}
    with pytest.raises(ValueError, match=r"found speeds \[0.9, 0.95\], want some of 1"):
        head(dataclasses.replace(clean, targets=wrong))
    for speeds in ([0.9, 0.9], [0.9, 1.0]):
        with pytest.raises(ValueError, match="other_speeds: found"):
            SpeakerConfig(other_speeds=speeds)


def test_a_crop_shorter_than_any_context_has_an_embedding() -> None:
    data = batch((0.026, 0.5))
    for kind in SPEAKERS:
        assert torch.isfinite(build(kind).eval().embed(data.wave, data.wave_lengths)).all()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="margin: found 2"):
        SpeakerConfig(margin=2.0)
    with pytest.raises(ValueError, match="sub_centres"):
        SpeakerConfig(sub_centres=0)
    with pytest.raises(ValueError, match="multiple of 8"):
        build(SPEAKERS[2], channels=12)
