"""Diarization error rates against closed forms, a grid of small pieces, and pyannote.metrics."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from speechssl.score.assignment import assign
from speechssl.score.diarization import (
    Recording,
    Turn,
    diarization_results,
    diarization_times,
    jaccard_errors,
    median_filtered,
    read_rttm,
    rttm,
    turns_of,
)

LENGTH = 12.0


def draw(random: np.random.Generator, speakers: int, turns: int) -> tuple[Turn, ...]:
    """Turns on a grid of 0.05 s; those of one speaker are apart."""
    found = []
    for s in range(speakers):
        marks = random.choice(np.arange(1, int(20 * LENGTH)), 2 * turns, replace=False)
        marks = np.sort(marks) / 20
        found += [Turn(f"s{s}", a, b) for a, b in marks.reshape(-1, 2).tolist()]
    return tuple(found)


def recording(seed: int) -> Recording:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 5, 4)
    return Recording(
        f"r{seed}", LENGTH, draw(random, sizes[0], sizes[1]), draw(random, sizes[2], sizes[3])
    )


def by_frames(found: Recording, collar: float, overlap: bool) -> tuple[float, ...]:
    """Total, miss, false alarm, confusion: pieces of 0.01 s, and every mapping of names."""
    times = (np.arange(int(100 * LENGTH)) + 0.5) / 100
    sides = []
    for turns in (found.reference, found.hypothesis):
        names = sorted({t.speaker for t in turns})
        active = [
            np.any([(times > t.start) & (times < t.end) for t in turns if t.speaker == n], axis=0)
            for n in names
        ]
        sides.append(np.array(active).T)
    ref, hyp = sides
    keep = np.ones(len(times), dtype=bool)
    for t in found.reference if collar else ():
        keep &= (np.abs(times - t.start) > collar) & (np.abs(times - t.end) > collar)
    if not overlap:
        keep &= ref.sum(1) < 2
    ref, hyp = ref[keep], hyp[keep]
    size = max(ref.shape[1], hyp.shape[1])
    ref, hyp = (np.pad(x, ((0, 0), (0, size - x.shape[1]))) for x in (ref, hyp))
    right = max((ref & hyp[:, list(p)]).sum() for p in itertools.permutations(range(size)))
    n_ref, n_hyp = ref.sum(1), hyp.sum(1)
    parts = (n_ref.sum(), np.maximum(n_ref - n_hyp, 0).sum(), np.maximum(n_hyp - n_ref, 0).sum(),
             np.minimum(n_ref, n_hyp).sum() - right)  # fmt: skip
    return tuple(float(x) / 100 for x in parts)


SCORINGS = [(0.0, True), (0.25, True), (0.0, False), (0.1, False)]


@pytest.mark.parametrize(("collar", "overlap"), SCORINGS)
def test_times_are_those_of_a_fine_grid(collar: float, overlap: bool) -> None:
    for seed in range(8):
        found = recording(seed)
        times = diarization_times(found, collar, overlap)
        ours = (times.total, times.miss, times.false_alarm, times.confusion)
        assert ours == pytest.approx(by_frames(found, collar, overlap), abs=1e-6)


@pytest.mark.parametrize(("collar", "overlap"), SCORINGS)
def test_rates_are_those_of_pyannote(collar: float, overlap: bool) -> None:
    metrics = pytest.importorskip("pyannote.metrics.diarization")
    core = pytest.importorskip("pyannote.core")

    def annotation(turns: tuple[Turn, ...]) -> object:
        found = core.Annotation()
        for i, t in enumerate(turns):
            found[core.Segment(t.start, t.end), i] = t.speaker
        return found

    # Its collar is the sum of both sides.
    der = metrics.DiarizationErrorRate(collar=2 * collar, skip_overlap=not overlap)
    jer = metrics.JaccardErrorRate()
    whole = core.Timeline([core.Segment(0, LENGTH)])
    found = [recording(seed) for seed in range(20)]
    for one in found:
        sides = annotation(one.reference), annotation(one.hypothesis)
        ours = diarization_times(one, collar, overlap)
        theirs = der(*sides, uem=whole)
        if ours.total > 0:
            assert ours.rate == pytest.approx(theirs, abs=1e-9)
        jer(*sides, uem=whole)
    results = diarization_results(found, collar, overlap)
    assert results["der"] == pytest.approx(abs(der), abs=1e-9)
    # It maps names for the JER as for the DER; the least sum can only be smaller.
    assert abs(jer) - 0.02 < results["jer"] <= abs(jer) + 1e-9


def test_jaccard_errors_are_the_least_of_all_mappings() -> None:
    times = (np.arange(int(100 * LENGTH)) + 0.5) / 100
    for seed in range(8):
        found = recording(seed)
        ref, hyp = (
            [
                np.any([(times > t.start) & (times < t.end) for t in turns if t.speaker == n], 0)
                for n in sorted({t.speaker for t in turns})
            ]
            for turns in (found.reference, found.hypothesis)
        )
        hyp += [np.zeros(len(times), bool)] * len(ref)
        best = min(
            sum(1 - (r & hyp[j]).sum() / (r | hyp[j]).sum() for r, j in zip(ref, p))
            for p in itertools.permutations(range(len(hyp)), len(ref))
        )
        assert sum(jaccard_errors(found)) == pytest.approx(best, abs=1e-9)


def test_perfect_under_any_names_and_empty_is_all_missed() -> None:
    for seed in range(5):
        found = recording(seed)
        named = tuple(Turn("x" + t.speaker[::-1], t.start, t.end) for t in found.reference)
        same = Recording("a", LENGTH, found.reference, named)
        times = diarization_times(same)
        assert times.rate == 0 and jaccard_errors(same) == pytest.approx(
            [0.0] * len({t.speaker for t in named})
        )
        nothing = diarization_times(Recording("a", LENGTH, found.reference, ()))
        assert nothing.rate == 1 and nothing.miss == nothing.total == times.total
        assert set(jaccard_errors(Recording("a", LENGTH, found.reference, ()))) == {1.0}


def test_parts_of_a_small_case() -> None:
    reference = (Turn("a", 0, 4), Turn("b", 3, 6))
    hypothesis = (Turn("1", 0, 3), Turn("2", 4, 5), Turn("1", 5, 8))
    times = diarization_times(Recording("r", 10, reference, hypothesis))
    assert (times.total, times.miss, times.false_alarm, times.confusion) == (7, 2, 2, 1)
    assert times.rate == pytest.approx(5 / 7)
    # Without overlap 3 to 4 s is not scored; a collar of 1 s leaves 1 to 2 s, and 5 s.
    assert diarization_times(Recording("r", 10, reference, hypothesis), overlap=False).total == 5
    narrow = diarization_times(Recording("r", 10, reference, hypothesis), collar=0.999)
    assert narrow.total == pytest.approx(1.004, abs=1e-9) and narrow.miss == 0


def test_a_recording_where_nobody_speaks_counts_what_was_heard_in_it() -> None:
    silent = Recording("s", 5, (), (Turn("1", 1, 2),))
    quiet = Recording("q", 5, (), ())
    spoken = Recording("r", 5, (Turn("a", 0, 4),), (Turn("1", 0, 4),))
    results = diarization_results([silent, quiet, spoken])
    assert results["der"] == results["false_alarm"] == 0.25
    assert results["by_recording"] == {"s": None, "q": 0.0, "r": 0.0}
    json.dumps(results, allow_nan=False)


def test_touching_turns_of_one_speaker_have_no_boundary() -> None:
    parts = (Turn("a", 1, 2), Turn("a", 2, 3), Turn("a", 2.5, 4))
    one = Recording("r", 5, (Turn("a", 1, 4),), ())
    assert diarization_times(Recording("r", 5, parts, ()), collar=0.25) == diarization_times(
        one, collar=0.25
    )


def test_assignments_are_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    for rows, columns in itertools.product(range(1, 6), repeat=2):
        costs = random.integers(-9, 9, (rows, columns)) + 0.1 * random.random((rows, columns))
        pairs = assign(costs)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == min(rows, columns)
        wide = costs if rows <= columns else costs.T
        best = min(
            sum(wide[i, j] for i, j in enumerate(p))
            for p in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert sum(costs[i, j] for i, j in pairs) == pytest.approx(best)
    with pytest.raises(ValueError, match="finite"):
        assign(np.array([[np.nan]]))


def test_frames_become_turns_and_the_median_drops_what_is_short() -> None:
    active = np.array([[0, 1], [1, 1], [1, 0], [0, 0], [1, 0]], dtype=bool)
    turns = turns_of(active, ["a", "b"], 50.0)
    assert turns == [Turn("b", 0, 0.04), Turn("a", 0.02, 0.06), Turn("a", 0.08, 0.1)]
    assert median_filtered(active, 1).tolist() == active.tolist()
    smooth = median_filtered(active, 3)
    assert smooth[:, 0].tolist() == [False, True, True, True, False]
    random = np.random.default_rng(1)
    noise = random.random((30, 2)) < 0.5
    padded = np.pad(noise, ((2, 2), (0, 0)))
    expected = [[np.median(padded[t : t + 5, s]) > 0.5 for s in range(2)] for t in range(30)]
    assert median_filtered(noise, 5).tolist() == expected


def test_rttm_goes_there_and_back(tmp_path: Path) -> None:
    turns = {"x": [Turn("a", 0.5, 1.25)], "y": [Turn("b", 0.0, 2.0), Turn("a", 1.0, 3.5)]}
    path = tmp_path / "a.rttm"
    path.write_text(";; comment\n" + rttm(turns))
    assert read_rttm(path) == turns
    path.write_text("SPEAKER x 1 0.5\n")
    with pytest.raises(ValueError, match=r"a\.rttm:1: found 'SPEAKER x 1 0\.5'"):
        read_rttm(path)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="found no speaker"):
        diarization_results([Recording("a", 3, (), (Turn("x", 0, 1),))])
    with pytest.raises(ValueError, match="a turn from 2 to 1"):
        diarization_times(Recording("a", 3, (Turn("x", 2, 1),), ()))
    with pytest.raises(ValueError, match=r"collar, duration: found -1"):
        diarization_times(Recording("a", 3, (), ()), collar=-1)
    with pytest.raises(ValueError, match="median: found 4"):
        median_filtered(np.ones((3, 1)), 4)
