"""Segments of phones and words: which are drawn, their means, and parts of utterances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speechssl.labels.probe_sample import ProbeCut
from speechssl.labels.probe_segments import SegmentMeans, parts_of, phone_segments, word_segments

RATE, WINDOW = 10.0, 0.1  # frame t has its centre at t / 10 + 0.05 s


def cut(name: str, phones: list[tuple[float, float, str]], words: Any = ()) -> ProbeCut:
    from lhotse import MonoCut, SupervisionSegment
    from lhotse.supervision import AlignmentItem

    marks = [AlignmentItem(w, a, b - a) for a, b, w in words]
    spoken = SupervisionSegment(name, name, 0.0, 2.0, alignment={"word": marks})
    row = MonoCut(name, 0.0, 2.0, 0, [spoken]).to_dict()
    return ProbeCut(name, None, tuple(phones), row)


def test_pauses_rare_and_too_short_ones_are_left_out_and_stress_plays_no_part() -> None:
    phones = [(0.0, 0.3, "AH0"), (0.3, 0.6, "sil"), (0.6, 0.9, "AH1"), (0.9, 0.92, "T"),
              (0.92, 1.4, "S"), (1.4, 1.6, "AE"), (1.6, 1.8, "AE2")]  # fmt: skip
    found = phone_segments([cut("u", phones)], RATE, WINDOW, limit=10, seed=0)
    assert [(s.first, s.end, s.symbol) for s in found] == [
        (0, 3, "AH"), (6, 9, "AH"), (14, 16, "AE"), (16, 18, "AE"),
    ]  # fmt: skip
    assert len(phone_segments([cut("u", phones)], RATE, WINDOW, limit=3, seed=0)) == 3


def test_the_commonest_words_whatever_their_case_and_the_order_of_cuts() -> None:
    words = [(0.0, 0.5, "The"), (0.5, 1.0, "cat"), (1.0, 1.5, "the"), (1.5, 2.0, "cat")]
    cuts = [cut(f"u{i}", [], words[: 2 + i]) for i in range(3)]

    def drawn(of: list[ProbeCut], **more: int) -> set[tuple[str, int, str]]:
        options = {"limit": 100, "most": 500, "seed": 0} | more
        found = word_segments(of, "word", RATE, WINDOW, **options)
        return {(of[s.cut].id, s.first, s.symbol) for s in found}

    assert len(drawn(cuts)) == 9 and {w for *_, w in drawn(cuts, most=1)} == {"the"}
    assert drawn(cuts, limit=4) == drawn(cuts[::-1], limit=4) and len(drawn(cuts, limit=4)) == 4
    assert drawn(cuts, limit=4) != drawn(cuts, limit=4, seed=1)
    assert word_segments(cuts, "none", RATE, WINDOW, limit=9, most=9, seed=0) == []


def test_means_are_of_the_segments_own_frames() -> None:
    cuts = [cut("u", [(0.0, 0.2, "a"), (0.2, 0.5, "b"), (0.5, 0.7, "a"), (0.7, 2.0, "b")])]
    means = SegmentMeans(phone_segments(cuts, RATE, WINDOW, limit=9, seed=0), 2)
    frames = torch.arange(8.0)[:, None] * torch.tensor([1.0, 10.0])
    means.add(0, [frames, -frames])  # 8 frames: the last segment ends before its alignment does
    assert torch.equal(means.layer(0)[:, 0], torch.tensor([0.5, 3.0, 5.5, 7.0]))
    assert torch.equal(means.layer(1), -means.layer(0))
    assert means.one_hot().tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert means.cuts().tolist() == [0] * 4 and means.info() == {"segments": 4, "classes": 2}


def test_an_utterance_is_in_one_part_and_parts_are_even() -> None:
    cuts = np.repeat(np.arange(3, 28), 4)
    names = [f"u{i}" for i in range(30)]
    parts = parts_of(cuts, names, 10, seed=0)
    assert parts is not None and len(parts) == 100
    of_each = parts.reshape(25, 4)
    assert bool((of_each == of_each[:, :1]).all())
    assert sorted(torch.bincount(of_each[:, 0]).tolist()) == [2] * 5 + [3] * 5
    assert parts_of(cuts[:36], names, 10, seed=0) is None
    with pytest.raises(IndexError):
        parts_of(np.array([40] * 10 + list(range(9))), names, 10, seed=0)
