"""PNMI, purities, phones of frames, runs: closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from speechssl.labels import quality as q


def joint_of(phones: np.ndarray, labels: np.ndarray, y: int, z: int) -> np.ndarray:
    joint = np.zeros((y, z), dtype=np.int64)
    q.add_counts(joint, phones, labels)
    return joint


def test_labels_that_are_the_phones_have_pnmi_and_purities_of_one() -> None:
    phones = np.random.default_rng(0).integers(0, 40, 5000)
    joint = joint_of(phones, phones, 40, 40)
    assert q.pnmi(joint) == pytest.approx(1.0)
    assert q.phone_purity(joint) == q.cluster_purity(joint) == 1.0


def test_independent_labels_have_pnmi_near_zero() -> None:
    rng = np.random.default_rng(0)
    joint = joint_of(rng.integers(0, 40, 400_000), rng.integers(0, 100, 400_000), 40, 100)
    assert 0.0 <= q.pnmi(joint) < 0.003
    assert q.phone_purity(joint) < 0.05


def test_a_small_table_agrees_with_the_closed_form() -> None:
    joint = np.array([[3, 1, 0], [1, 1, 2]])
    p = joint / 8
    information = sum(
        p[y, z] * math.log(p[y, z] / (p[y].sum() * p[:, z].sum()))
        for y in range(2) for z in range(3) if p[y, z]
    )  # fmt: skip
    assert q.pnmi(joint) == pytest.approx(information / math.log(2))
    assert q.phone_purity(joint) == pytest.approx((3 + 1 + 2) / 8)
    assert q.cluster_purity(joint) == pytest.approx((3 + 2) / 8)


def test_splitting_a_phone_over_clusters_lowers_cluster_purity_only() -> None:
    joint = np.array([[5, 5, 0], [0, 0, 10]])
    assert q.pnmi(joint) == pytest.approx(1.0) and q.phone_purity(joint) == 1.0
    assert q.cluster_purity(joint) == pytest.approx(0.75)


def test_one_phone_alone_has_no_pnmi() -> None:
    assert math.isnan(q.pnmi(np.array([[3, 4]])))


def test_counts_stop_at_the_shorter_and_leave_out_the_unaligned() -> None:
    joint = joint_of(np.array([0, -1, 1, 1]), np.array([2, 2, 0]), 2, 3)
    assert joint.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_bit_rates_are_those_of_ideal_codes() -> None:
    """Eight labels, each twice in a row: 3 bits a frame at 50 Hz, and a run every other frame."""
    labels = np.repeat(np.tile(np.arange(8), 5), 2)
    assert q.run_values(labels).tolist() == 5 * list(range(8))
    assert len(q.run_values(labels)) == q.count_runs(labels) == 40
    counts, runs = np.bincount(labels), np.bincount(q.run_values(labels))
    expected = {"bits": 150.0, "coded_bits": 150.0, "collapsed_bits": 75.0}
    assert q.bit_rates(counts, runs, 50.0) == pytest.approx(expected)
    # A half and two quarters: 1.5 bits.
    found = q.bit_rates(np.array([4, 2, 2, 0]), np.array([2, 2, 1, 0]), 25.0)
    assert found["bits"] == 50.0 and found["coded_bits"] == pytest.approx(37.5)
    share = np.array([0.4, 0.4, 0.2])
    bits = -(share * np.log2(share)).sum()
    assert found["collapsed_bits"] == pytest.approx(5 / (8 / 25) * bits)
    still = q.bit_rates(np.array([9, 0]), np.array([1, 0]), 25.0)
    assert still == pytest.approx({"bits": 25.0, "coded_bits": 0.0, "collapsed_bits": 0.0})
    assert all(np.isnan(x) for x in q.bit_rates(np.zeros(3), np.zeros(3), 25.0).values())
    assert len(q.run_values(np.zeros(0, dtype=np.int64))) == 0


def test_usage_of_equal_and_of_single_clusters() -> None:
    assert q.usage(np.full(50, 7))["perplexity"] == pytest.approx(50)
    assert q.usage(np.array([9, 0, 0])) == {"perplexity": pytest.approx(1.0), "empty": 2}


def test_runs_are_counted() -> None:
    assert [q.count_runs(np.array(x)) for x in ([], [4], [4, 4, 1, 4])] == [0, 1, 3]


def test_the_phone_of_a_frame_is_the_one_at_its_centre() -> None:
    # Centres of 25 ms frames at 50 Hz: 12.5, 32.5, 52.5, 72.5, 92.5 ms.
    intervals = [(0.0, 0.0325, 0), (0.0325, 0.06, 1), (0.08, 0.1, 2)]
    assert q.phone_frames(intervals, 5, 50).tolist() == [0, 1, 1, -1, 2]
    assert q.phone_frames([], 3, 50).tolist() == [-1, -1, -1]


def test_an_interval_edge_on_a_centre_belongs_to_the_later_phone_at_any_time() -> None:
    centres = np.arange(5000) / 100 + 0.0125
    intervals = [(t, t + 0.01, i) for i, t in enumerate(centres.tolist())]
    assert q.phone_frames(intervals, 5000, 100).tolist() == list(range(5000))


@pytest.mark.parametrize(
    ("phone", "bare"), [("AH0", "AH"), ("ˈaː", "aː"), ("aI", "aI"), ("@2", "@2"), ("s", "s")]
)
def test_stress_is_stripped_and_nothing_else(phone: str, bare: str) -> None:
    assert q.strip_stress(phone) == bare


def test_phone_numbers_grow_in_order_and_ignore_stress() -> None:
    table = q.PhoneTable()
    assert table.intervals([(0.1, 0.2, "AH1"), (0.0, 0.1, "S"), (0.2, 0.3, "AH0")]) == [
        (0.0, 0.1, 0), (0.1, 0.2, 1), (0.2, 0.3, 1)
    ]  # fmt: skip
    assert table.names == ["S", "AH"]
