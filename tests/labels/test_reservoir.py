"""The reservoir is uniform, and independent of how the stream arrives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.labels.reservoir import FrameReservoir, frame_keys


def stream(utterances: int = 60, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    """Every frame holds (utterance, frame number): it can be recognised in the sample."""
    lengths = np.random.default_rng(seed).integers(0, 400, utterances)
    return [
        (f"u{u}", torch.stack([torch.full((n,), float(u)), torch.arange(float(n))], 1))
        for u, n in enumerate(lengths.tolist())
    ]


def sampled(items: list, capacity: int, group: int = 1, seed: int = 0) -> torch.Tensor:
    reservoir = FrameReservoir(capacity, 2, seed=seed)
    for start in range(0, len(items), group):
        part = items[start : start + group]
        reservoir.add([name for name, _ in part], [frames for _, frames in part])
    return reservoir.sample()[0]


def test_the_sample_depends_neither_on_chunking_nor_on_order() -> None:
    items = stream()
    one = sampled(items, 500)
    assert len(one) == 500
    assert torch.equal(one, sampled(items, 500, group=7))
    assert torch.equal(one, sampled(items[::-1], 500, group=3))
    assert not torch.equal(one, sampled(items, 500, seed=1))


def test_the_sample_is_without_replacement_and_true_to_the_stream() -> None:
    items = stream()
    sample = sampled(items, 3000)
    assert len(torch.unique(sample, dim=0)) == len(sample)
    lengths = {u: len(frames) for u, (_, frames) in enumerate(items)}
    assert all(frame < lengths[int(u)] for u, frame in sample.tolist())


def test_a_short_stream_is_kept_whole() -> None:
    items = stream(5)
    total = sum(len(frames) for _, frames in items)
    assert len(sampled(items, total + 10)) == total
    assert len(sampled([], 10)) == 0


def test_every_part_of_the_stream_is_equally_likely() -> None:
    # 40 utterances x 500 frames, many prunings; expected 50 frames of each utterance.
    items = [(f"u{u}", torch.stack([torch.full((500,), float(u)), torch.arange(500.0)], 1))
             for u in range(40)]  # fmt: skip
    counts, halves = np.zeros(40), 0
    for seed in range(5):
        sample = sampled(items, 2000, seed=seed)
        counts += np.bincount(sample[:, 0].long().numpy(), minlength=40)
        halves += int((sample[:, 1] < 250).sum())
    expected = 250.0
    variance = expected * 0.9
    chi_squared = float(((counts - expected) ** 2 / variance).sum())
    assert chi_squared < 39 + 4 * np.sqrt(2 * 39)
    assert abs(halves - 5000) < 4 * np.sqrt(10000 * 0.25)


def test_parts_of_two_streams_merge_to_the_sample_of_both() -> None:
    items = stream()
    both, _ = FrameReservoir(500, 2), None
    both.add([n for n, _ in items], [f for _, f in items])
    keys = both.sample()[1]
    parts = []
    for half in (items[::2], items[1::2]):
        reservoir = FrameReservoir(500, 2)
        reservoir.add([n for n, _ in half], [f for _, f in half])
        parts.append(reservoir.sample()[1])
    assert np.array_equal(np.sort(np.concatenate(parts))[:500], keys)


def test_memory_does_not_grow_with_the_stream() -> None:
    reservoir = FrameReservoir(100, 2)
    room = reservoir._frames.shape
    for u in range(300):
        reservoir.add([f"u{u}"], [torch.zeros(200, 2)])
    assert reservoir._frames.shape == room and reservoir.seen == 60000
    assert len(reservoir.sample()[0]) == 100


def test_keys_are_uniform_and_differ_between_names() -> None:
    keys = frame_keys("a", 100_000)
    share = (keys >> np.uint64(60)).astype(int)
    assert np.abs(np.bincount(share, minlength=16) - 6250).max() < 5 * np.sqrt(6250)
    assert len(np.intersect1d(keys, frame_keys("b", 100_000))) == 0
    assert np.array_equal(keys[:50], frame_keys("a", 50))


def test_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        FrameReservoir(0, 2)
