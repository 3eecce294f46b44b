"""SpecAugment of a head's frames: what it hides, how much, and on what that depends."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from speechssl.nn.spec_augment import SpecAugmentConfig, spec_augment

BOTH = SpecAugmentConfig(frame_masks=2, frame_width=30, channel_masks=2, channel_width=5)


def test_a_row_depends_on_its_seed_and_length_alone() -> None:
    lengths, seeds = torch.tensor([80, 50, 3]), torch.tensor([7, -5, 11])
    x = torch.randn(3, 80, 16, generator=torch.Generator().manual_seed(0))
    together = spec_augment(x, lengths, seeds, BOTH)
    for i, n in enumerate(lengths.tolist()):
        alone = spec_augment(x[i : i + 1, :n], lengths[i : i + 1], seeds[i : i + 1], BOTH)
        assert torch.equal(alone[0], together[i, :n])
    assert not torch.equal(together, spec_augment(x, lengths, seeds + 1, BOTH))


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
