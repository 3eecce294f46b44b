"""Span masks: their statistics, and that a row depends on its seed and length alone."""

from __future__ import annotations

import time

import pytest
import torch

from speechssl.nn.masking import block_mask, channel_mask, span_mask


def test_the_masked_fraction_is_that_of_the_reference() -> None:
    rows = 400
    mask = span_mask(torch.full((rows,), 781), torch.arange(rows), probability=0.8, span=10)
    assert abs(mask.float().mean().item() - 0.567) < 0.01


@pytest.mark.parametrize(("probability", "expected"), [(0.65, 0.490), (0.5, 0.402)])
def test_other_probabilities_mask_as_published(probability: float, expected: float) -> None:
    mask = span_mask(torch.full((400,), 781), torch.arange(400), probability=probability, span=10)
    assert abs(mask.float().mean().item() - expected) < 0.015


def test_masks_never_touch_padding_and_every_row_has_two_spans() -> None:
    lengths = torch.tensor([21, 25, 40, 400, 60])
    mask = span_mask(lengths, torch.arange(5), probability=0.01, span=10, size=500)
    assert mask.shape == (5, 500)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        assert not row[length:].any()
        assert 11 <= int(row.sum()) <= 20  # two distinct starts


def test_a_row_does_not_depend_on_its_batch() -> None:
    seeds, lengths = torch.tensor([7, -3, 2**40]), torch.tensor([90, 130, 50])
    together = span_mask(lengths, seeds, probability=0.8, span=10)
    for i in range(3):
        alone = span_mask(lengths[i : i + 1], seeds[i : i + 1], probability=0.8, span=10)
        assert torch.equal(together[i, : alone.shape[1]], alone[0])


def test_other_seeds_give_other_masks() -> None:
    mask = span_mask(torch.full((64,), 200), torch.arange(64), probability=0.5, span=10)
    assert len({tuple(row.tolist()) for row in mask}) == 64


def test_spans_are_whole() -> None:
    mask = span_mask(torch.full((50,), 300), torch.arange(50), probability=0.3, span=10)
    for row in mask:
        edges = torch.diff(torch.nn.functional.pad(row.int(), (1, 1)))
        runs = (edges == -1).nonzero() - (edges == 1).nonzero()
        assert int(runs.min()) >= 10


@pytest.mark.parametrize("length", range(0, 13))
def test_rows_shorter_than_a_span_stay_partly_visible(length: int) -> None:
    mask = span_mask(torch.full((20,), length), torch.arange(20), probability=0.8, span=10)
    assert mask.shape == (20, length)
    if length:
        assert mask.any(1).all()
    if length > 1:
        assert not mask.all(1).any()


def test_probability_zero_masks_nothing() -> None:
    assert not span_mask(torch.tensor([99]), torch.tensor([1]), probability=0.0, span=10).any()


def test_channel_masks_come_from_another_stream() -> None:
    seeds = torch.arange(300)
    channels = channel_mask(seeds, 768, probability=0.5, span=64)
    assert channels.shape == (300, 768) and 0.3 < channels.float().mean() < 0.5
    frames = span_mask(torch.full((300,), 768), seeds, probability=0.5, span=64)
    assert not torch.equal(frames, channels)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="probability"):
        span_mask(torch.tensor([9]), torch.tensor([1]), probability=1.5, span=10)
    with pytest.raises(ValueError, match="seeds"):
        span_mask(torch.tensor([9, 9]), torch.tensor([1]), probability=0.5, span=10)
    with pytest.raises(ValueError, match="size"):
        span_mask(torch.tensor([9]), torch.tensor([1]), probability=0.5, span=10, size=4)


def test_a_row_costs_less_than_a_millisecond() -> None:
    lengths, seeds = torch.full((200,), 1500), torch.arange(200)
    best = min(_seconds(lengths, seeds) for _ in range(5))
    assert best / 200 < 1e-3


def _seconds(lengths: torch.Tensor, seeds: torch.Tensor) -> float:
    start = time.perf_counter()
    span_mask(lengths, seeds, probability=0.8, span=10)
    return time.perf_counter() - start


@pytest.mark.parametrize("inverse", [False, True])
def test_block_masks_hold_exactly_their_share_in_blocks(inverse: bool) -> None:
    lengths = torch.tensor([781, 500, 90])
    mask = block_mask(lengths, torch.arange(3), masks=8, probability=0.55, block=5, adjust=0.1,
                      inverse=inverse)  # fmt: skip
    assert mask.shape == (3, 8, 781)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        share = length - int(length * (1 - 0.55)) if inverse else int(length * 0.55)
        assert row.sum(1).tolist() == [share] * 8
        assert not row[:, length:].any()
    assert len({tuple(m.tolist()) for m in mask.flatten(0, 1)}) == 24
    chosen = mask[0] ^ inverse
    runs = (chosen[:, 1:] & ~chosen[:, :-1]).sum(1) + chosen[:, 0]
    # Frames drawn one by one would make some 190 runs; blocks of 5 make at most 110.
    assert runs.max() < 140


def test_a_block_mask_depends_on_its_seed_and_length_alone() -> None:
    seeds, lengths = torch.tensor([7, -3]), torch.tensor([90, 130])
    options = {"probability": 0.5, "block": 5, "adjust": 0.05}
    together = block_mask(lengths, seeds, masks=3, **options)
    for i in range(2):
        alone = block_mask(lengths[i : i + 1], seeds[i : i + 1], masks=2, **options)
        assert torch.equal(together[i, :2, : alone.shape[2]], alone[0])


@pytest.mark.parametrize("length", range(0, 12))
def test_block_masks_of_short_rows_leave_something_of_both_kinds(length: int) -> None:
    for inverse in (False, True):
        mask = block_mask(torch.full((9,), length), torch.arange(9), masks=2, probability=0.9,
                          block=5, inverse=inverse)  # fmt: skip
        assert mask.shape == (9, 2, length)
        if length > 1:
            assert mask.any(2).all() and not mask.all(2).any()
        else:
            assert not mask.any()


def test_block_masks_of_impossible_shares_are_refused() -> None:
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="block mask: found probability"):
            block_mask(torch.tensor([9]), torch.tensor([1]), masks=1, probability=share, block=2)
