"""Segments without a loop over frames are those of the plain loops below."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from speechssl.nn import segmentation
from speechssl.nn.segmentation import (
    frame_levels_db,
    labelled_segments,
    segment,
    segment_means,
    spans,
)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def greedy(items: np.ndarray, alive: list[bool], joins: list[bool], least: float) -> list[list]:
    found: list[list[int]] = []
    for i, item in enumerate(items):
        if not alive[i]:
            continue
        near = found and joins[i] and found[-1][-1] == i - 1
        if near and cosine(items[found[-1]].sum(0), item) >= least:
            found[-1].append(i)
            continue
        found.append([i])
    return found


def plain(x: np.ndarray, alive: list[bool], least: float) -> list[tuple[int, int]]:
    """One utterance, frame by frame: (T, D) -> [(first, behind the last)]."""
    joins = [False, *alive[:-1]]
    parts = [(p[0], p[-1] + 1) for p in greedy(x, alive, joins, least)]
    if not parts:
        return []
    sums = np.stack([x[a:b].sum(0) for a, b in parts])
    follows = [False] + [parts[i][0] == parts[i - 1][1] for i in range(1, len(parts))]
    groups = greedy(sums, [True] * len(parts), follows, least)
    parts = [(parts[g[0]][0], parts[g[-1]][1]) for g in groups]
    centres = [x[a:b].sum(0) for a, b in parts]
    starts = [a for a, _ in parts]
    for i in range(1, len(parts)):
        (a, b), (c, d) = parts[i - 1], parts[i]
        if b != c:
            continue
        low, high = c - (b - a) // 2, c + (d - c) // 2
        best, at = 0.0, low
        gain = 0.0
        for t in range(low, high):
            gain += cosine(x[t], centres[i - 1]) - cosine(x[t], centres[i])
            if gain > best:
                best, at = gain, t + 1
        starts[i] = at
    ends = [
        starts[i + 1] if i + 1 < len(parts) and parts[i + 1][0] == parts[i][1] else parts[i][1]
        for i in range(len(parts))
    ]
    return list(zip(starts, ends, strict=True))


def walk(random: np.random.Generator, size: int, dim: int, pace: float) -> np.ndarray:
    """Vectors that drift, and jump now and then."""
    steps = pace * random.standard_normal((size, dim))
    steps[random.random(size) < 0.1] *= 10 / max(pace, 0.1)
    return steps.cumsum(0) + random.standard_normal(dim)


@pytest.mark.parametrize("least", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("pace", [0.1, 0.3, 1.0])
def test_it_equals_plain_loops_on_random_walks(least: float, pace: float) -> None:
    random = np.random.default_rng(int(100 * least + 10 * pace))
    sizes = [90, 1, 2, 37, 60, 17]
    x = np.zeros((len(sizes), max(sizes), 6))
    alive = np.zeros(x.shape[:2], dtype=bool)
    for row, size in enumerate(sizes):
        x[row, :size] = walk(random, size, 6, pace)
        alive[row, :size] = random.random(size) < (1.0 if row % 2 else 0.85)
    thresholds = torch.full((len(sizes),), least)
    found = segment(torch.from_numpy(x), torch.from_numpy(alive), thresholds)
    several = 0
    for row in range(len(sizes)):
        rounded = x[row].astype(np.float32).astype(np.float64)
        wanted = plain(rounded, alive[row].tolist(), least)
        assert [tuple(s) for s in spans(found[row])] == wanted
        several += len(wanted)
    assert several > 20


def test_each_utterance_has_its_own_threshold_and_its_batch_does_not_matter() -> None:
    random = np.random.default_rng(3)
    x = torch.from_numpy(np.stack([walk(random, 70, 5, 0.4)] * 3)).float()
    alive, thresholds = torch.ones(3, 70, dtype=torch.bool), torch.tensor([0.5, 0.9, 0.99])
    together = segment(x, alive, thresholds)
    counts = [int(row.max()) for row in together]
    assert counts == sorted(counts) and counts[0] < counts[2]
    for row in range(3):
        alone = segment(x[row : row + 1], alive[:1], thresholds[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_constant_blocks_are_found_as_they_are() -> None:
    lengths, blocks = [5, 1, 12, 33, 2, 17], torch.eye(6)
    x = torch.cat([2.0 * blocks[i].expand(n, -1) for i, n in enumerate(lengths)])[None]
    found = segment(x, torch.ones(x.shape[:2], dtype=torch.bool), torch.tensor([0.8]))
    edges = np.cumsum([0, *lengths])
    assert spans(found[0]).tolist() == np.stack([edges[:-1], edges[1:]], 1).tolist()


def test_silence_has_no_segments_and_parts_them() -> None:
    x, alive = torch.ones(1, 10, 3), torch.ones(1, 10, dtype=torch.bool)
    assert spans(segment(x, alive, torch.tensor([0.8]))[0]).tolist() == [[0, 10]]
    alive[0, 4:6] = False
    assert spans(segment(x, alive, torch.tensor([0.8]))[0]).tolist() == [[0, 4], [6, 10]]
    assert spans(segment(x, alive & False, torch.tensor([0.8]))[0]).shape == (0, 2)


def test_segments_are_sorted_disjoint_and_cover_all_that_lives() -> None:
    x, alive = torch.randn(4, 80, 3), torch.rand(4, 80) < 0.9
    found = segment(x, alive, torch.full((4,), 0.4))
    assert torch.equal(found > 0, alive)
    for row in range(4):
        edges = spans(found[row]).flatten()
        assert (np.diff(edges) >= 0).all() and (np.diff(edges)[::2] > 0).all()


def test_means_are_those_of_the_segments_and_0_outside() -> None:
    x = torch.randn(2, 6, 4)
    numbers = torch.tensor([[0, 1, 1, 2, 0, 3], [1, 1, 1, 1, 1, 1]])
    found = segment_means(x, numbers)
    assert torch.allclose(found[0, 1], x[0, 1:3].mean(0)) and torch.equal(found[0, 1], found[0, 2])
    assert torch.allclose(found[0, [3, 5]], x[0, [3, 5]])
    assert not found[0, [0, 4]].any()
    assert torch.allclose(found[1], x[1].mean(0).expand(6, -1))


def test_labels_give_segments_where_neighbours_are_equal() -> None:
    labels = torch.tensor([[1, 1, 2, 2, 0, 2, 1, -100], [0, 0, 1, 1, 1, 2, 1, 1]])
    assert labelled_segments(labels).tolist() == [
        [1, 1, 2, 2, 0, 3, 4, 0], [0, 0, 1, 1, 1, 2, 3, 3]
    ]  # fmt: skip


def test_levels_are_those_of_each_frames_hop_below_the_loudest() -> None:
    wave = torch.cat([torch.full((320,), 0.5), torch.full((320,), 0.05), torch.zeros(320)])
    padded = torch.stack([torch.cat([wave, torch.ones(700)]), torch.ones(1660)])
    found = frame_levels_db(padded, torch.tensor([960, 1660]), 320, 5)
    assert found[0, :2].tolist() == pytest.approx([0.0, -20.0], abs=1e-3)
    assert (found[0, 2:] < -60).all() and found[1].abs().max() < 1e-3


def count_operations(each: int) -> int:
    """Of torch, on ten segments of so many frames."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.number += 1
            return function(*args, **(kwargs or {}))

    x: Tensor = torch.eye(10).repeat_interleave(each, 0)[None]
    with Counting() as counting:
        found = segment(x, torch.ones(x.shape[:2], dtype=torch.bool), torch.tensor([0.8]))
    assert int(found.max()) == 10
    return counting.number


def test_work_grows_with_segments_and_windows_not_with_frames(monkeypatch) -> None:
    few, many = count_operations(8), count_operations(80)
    assert few < many < 5 * few  # five windows for each of the ten, where one was enough
    monkeypatch.setattr(segmentation, "WINDOW", 100)
    assert count_operations(8) == count_operations(80)


def test_windows_do_not_matter(monkeypatch) -> None:
    x, alive = torch.randn(3, 60, 3).cumsum(1), torch.rand(3, 60) < 0.95
    found = []
    for size in (1, 5, 16, 200):
        monkeypatch.setattr(segmentation, "WINDOW", size)
        found.append(segment(x, alive, torch.full((3,), 0.9)))
    assert all(torch.equal(found[0], other) for other in found[1:])
