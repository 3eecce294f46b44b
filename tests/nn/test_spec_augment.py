"""SpecAugment of a head's frames: what it hides, how much, and on what that depends."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from speechssl.nn.spec_augment import SpecAugmentConfig, spec_augment, warp_points, warp_time

BOTH = SpecAugmentConfig(frame_masks=2, frame_width=30, channel_masks=2, channel_width=5)
WARP = SpecAugmentConfig(time_warp=5)


@pytest.mark.parametrize("config", [BOTH, WARP, dataclasses.replace(BOTH, frame_mask_rate=0.1)])
def test_a_row_depends_on_its_seed_and_length_alone(config: SpecAugmentConfig) -> None:
    lengths, seeds = torch.tensor([80, 50, 3]), torch.tensor([7, -5, 11])
    x = torch.randn(3, 80, 16, generator=torch.Generator().manual_seed(0))
    for i, n in enumerate(lengths.tolist()):
        x[i, n:] = float("nan")
    together = spec_augment(x, lengths, seeds, config)
    for i, n in enumerate(lengths.tolist()):
        alone = spec_augment(x[i : i + 1, :n], lengths[i : i + 1], seeds[i : i + 1], config)
        assert torch.equal(alone[0], together[i, :n])
    other = spec_augment(x, lengths, seeds + 1, config)
    assert not torch.equal(together.nan_to_num(), other.nan_to_num())


def parts(x: Tensor, n: int, cut: int, moved: int) -> Tensor:
    """Each part of (T, D) resampled by torch, side by side."""
    image = x[None, None, :n]
    sizes = [(image[:, :, :cut], moved), (image[:, :, cut:], n - moved)]
    found = [interpolate(p, (m, x.shape[1]), mode="bicubic") for p, m in sizes if m]
    return torch.cat(found, 2)[0, 0]


def test_warped_time_is_torch_s_bicubic_interpolation_of_both_parts() -> None:
    random = torch.Generator().manual_seed(2)
    lengths = torch.randint(11, 70, (60,), generator=random)
    x = torch.randn(60, 70, 3, generator=random, dtype=torch.float64)
    cut, moved = warp_points(lengths, torch.arange(60), 5)
    found = warp_time(x, lengths, cut, moved)
    for i, (n, c, m) in enumerate(zip(lengths.tolist(), cut.tolist(), moved.tolist(), strict=True)):
        assert (found[i, :n] - parts(x[i], n, c, m)).abs().max() < 1e-5
        assert torch.equal(found[i, n:], x[i, n:])
    assert torch.equal(spec_augment(x, lengths, torch.arange(60), WARP), found)


def test_the_cut_and_its_place_are_uniform_and_short_utterances_are_not_warped() -> None:
    count = 20000
    lengths, seeds = torch.full((count,), 16), torch.arange(count)
    cut, moved = warp_points(lengths, seeds, 3)
    shares = torch.bincount(cut, minlength=16) / count  # 3 to 12, as 16 - 3 is not drawn
    assert shares.tolist() == pytest.approx([0] * 3 + [0.1] * 10 + [0] * 3, abs=0.01)
    shares = torch.bincount(moved - cut + 2) / count  # -2 to 3
    assert shares.tolist() == pytest.approx([1 / 6] * 6, abs=0.012)
    short = torch.randn(50, 6, 2)
    same = spec_augment(short, torch.full((50,), 6), torch.arange(50), WARP)
    assert torch.equal(same, short)
    still = warp_time(x := torch.randn(1, 9, 2), torch.tensor([9]), *[torch.tensor([4])] * 2)
    assert torch.equal(still, x)


def test_gradient_passes_warped_time_and_bfloat16_stays() -> None:
    x = torch.randn(1, 30, 2, dtype=torch.float64, requires_grad=True)
    at = torch.tensor([30]), torch.tensor([12]), torch.tensor([15])
    assert torch.autograd.gradcheck(lambda v: warp_time(v, *at), x)
    assert warp_time(x.detach().bfloat16(), *at).dtype == torch.bfloat16


def test_the_number_of_stretches_may_follow_the_length() -> None:
    config = SpecAugmentConfig(frame_masks=3, frame_width=1, frame_mask_rate=0.05)
    lengths = torch.tensor([19, 20, 59, 100]).repeat_interleave(2000)
    x = torch.ones(8000, 100, 1)
    hidden = (spec_augment(x, lengths, torch.arange(8000), config)[..., 0] == 0).sum(1)
    for found, most in zip(hidden.split(2000), (0, 1, 2, 3), strict=True):
        assert int(found.max()) == most  # each of width 0 or 1, half of the time
        assert found.double().mean().item() == pytest.approx(most / 2, abs=0.1)


def test_whole_frames_and_channels_are_hidden_and_the_rest_is_untouched() -> None:
    x = 1 + torch.rand(200, 60, 12, generator=torch.Generator().manual_seed(1))
    lengths, seeds = torch.full((200,), 60), torch.arange(200)
    found = spec_augment(x, lengths, seeds, BOTH)
    frames, channels = (found == 0).all(2), (found == 0).all(1)
    hidden = frames[..., None] | channels[:, None]
    assert torch.equal(found, x.masked_fill(hidden, 0))
    only = dataclasses.replace(BOTH, channel_masks=0)
    assert torch.equal((spec_augment(x, lengths, seeds, only) == 0).any(2), frames)
    assert spec_augment(x, lengths, seeds, SpecAugmentConfig()) is x


@pytest.mark.parametrize(("share", "widest"), [(1.0, 30), (0.1, 6)])
def test_widths_are_uniform_up_to_the_widest_and_places_too(share: float, widest: int) -> None:
    config = SpecAugmentConfig(frame_masks=1, frame_width=30, frame_share=share)
    count = 20000
    lengths, seeds = torch.full((count,), 60), torch.arange(count)
    hidden = spec_augment(torch.ones(count, 60, 1), lengths, seeds, config)[..., 0] == 0
    widths = hidden.sum(1)
    shares = torch.bincount(widths, minlength=widest + 1) / count
    assert len(shares) == widest + 1
    assert shares.tolist() == pytest.approx([1 / (widest + 1)] * (widest + 1), abs=0.008)
    assert (hidden.diff(dim=1).sum(1) <= 2).all()  # one stretch
    one = hidden[widths == widest].int().argmax(1)
    assert int(one.min()) == 0 and int(one.max()) == 60 - widest


def test_an_utterance_may_be_shorter_than_a_stretch() -> None:
    config = SpecAugmentConfig(frame_masks=1, frame_width=100)
    x = torch.ones(4000, 3, 2)
    found = spec_augment(x, torch.full((4000,), 3), torch.arange(4000), config)
    kept = (found[..., 0] > 0).sum(1)
    assert torch.bincount(kept).div(4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"spec_augment\.frame_width: found -1"):
        SpecAugmentConfig(frame_width=-1)
    with pytest.raises(ValueError, match=r"spec_augment\.frame_share: found 0"):
        SpecAugmentConfig(frame_share=0.0)
