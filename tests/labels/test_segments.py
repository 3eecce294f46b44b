"""Segments at a fixed rate and at dips of the energy, and segments as labels of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechssl.labels.segments import contour_db, dips, energy_segments, fixed_rate, frame_labels
from speechssl.nn.segmentation import labelled_segments, spans


def test_a_fixed_rate_covers_the_utterance_in_equal_parts() -> None:
    assert fixed_rate(1.0, 4.0).tolist() == [[0.0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]
    found = fixed_rate(1.1, 4.0)
    assert found[-1].tolist() == [1.0, 1.1] and len(found) == 5
    with pytest.raises(ValueError, match="rate_hz: found 0"):
        fixed_rate(1.0, 0)


def babble(peaks: list[float], seconds: float, width: float = 0.05) -> np.ndarray:
    """A hiss that swells around each of `peaks`."""
    time = np.arange(int(seconds * 16000)) / 16000
    level = sum(np.exp(-0.5 * ((time - p) / width) ** 2) for p in peaks)
    return np.random.default_rng(1).standard_normal(len(time)) * (level + 1e-4)


def test_the_energy_dips_between_swells_and_what_is_silent_is_left_out() -> None:
    found = energy_segments(babble([0.5, 0.7, 0.9, 1.6], 2.2), silence_db=30.0)
    assert len(found) == 4
    inner = found[:3]
    assert inner[:-1, 1] == pytest.approx(inner[1:, 0])
    assert inner[:-1, 1] == pytest.approx([0.6, 0.8], abs=0.021)
    for (start, end), peak in zip(found, [0.5, 0.7, 0.9, 1.6], strict=True):
        assert start < peak < end
    assert found[0, 0] > 0.3 and found[-1, 0] - found[2, 1] > 0.2 and found[-1, 1] < 1.85
    assert energy_segments(np.zeros(100)).shape == (0, 2)


def test_the_contour_is_the_level_below_the_loudest() -> None:
    wave = np.concatenate([np.full(8000, 0.1), np.full(8000, 0.01)])
    level = contour_db(wave)
    assert len(level) == 100
    assert level[:45] == pytest.approx(np.zeros(45), abs=1e-6)
    assert level[55:] == pytest.approx(np.full(45, -20.0), abs=1e-4)


@pytest.mark.parametrize(
    ("level", "wanted"),
    [
        ([0, 5, 0, 5, 0], [2]),
        ([0, 5, 3, 5, 0], []),
        ([5, 0, 1, 0.5, 5, 4, 5, 1, 9], [1, 7]),
        ([5, 4, 3, 2, 1], []),
        ([1, 2, 3], []),
        ([5, 2, 2, 2, 5], [1]),
        ([3.0], []),
    ],
)
def test_dips_are_the_lowest_points_between_falls_and_rises(level, wanted) -> None:
    assert dips(np.array(level, dtype=float), 3.0).tolist() == wanted


def test_labels_give_the_segments_back() -> None:
    segments = np.array([[0.1, 0.3], [0.3, 0.36], [0.5, 0.9], [0.9, 1.0]])
    labels = frame_labels(segments, 50, 50.0, 0.02)
    assert labels.tolist() == [0] * 5 + [1] * 10 + [2] * 3 + [0] * 7 + [1] * 20 + [2] * 5
    back = spans(labelled_segments(torch.from_numpy(labels)[None])[0])
    assert back / 50 == pytest.approx(segments)
    assert not frame_labels(np.zeros((0, 2)), 5, 50.0, 0.02).any()
