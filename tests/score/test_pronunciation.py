"""Alignment and goodness against every path, and the AUC against counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speechssl.score.pronunciation import auc, ctc_align, goodness, spread


def posteriors(seed: int, frames: int, tokens: int) -> np.ndarray:
    x = 2 * np.random.default_rng(seed).standard_normal((frames, tokens))
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def all_spans(path: tuple[int, ...]) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens that a path spells, and their frames."""
    tokens, spans, at = [], [], 0
    for token, run in itertools.groupby(path):
        length = len(list(run))
        if token:
            tokens.append(token)
            spans.append((at, at + length))
        at += length
    return tokens, spans


@pytest.mark.parametrize("tokens", [[1], [1, 2], [2, 2], [1, 2, 1]])
def test_the_alignment_is_the_best_of_all_paths(tokens: list[int]) -> None:
    for seed in range(6):
        log_probs = posteriors(seed, 6, 3)
        best, expected = -np.inf, None
        for path in itertools.product(range(3), repeat=6):
            spelt, spans = all_spans(path)
            score = log_probs[range(6), path].sum()
            if spelt == tokens and score > best:
                best, expected = score, spans
        assert ctc_align(log_probs, tokens) == expected


def test_goodness_is_zero_where_nothing_rivals_and_falls_with_a_rival() -> None:
    log_probs = np.log(np.full((4, 4), 0.01))
    log_probs[[0, 1, 2, 3], [1, 1, 0, 2]] = np.log(0.97)
    assert goodness(log_probs, [1, 2]).tolist() == [0.0, 0.0]
    worse = log_probs.copy()
    worse[3, 3] = np.log(0.99)
    found = goodness(worse, [1, 2])
    assert found[0] == 0 and found[1] == pytest.approx(np.log(0.97 / 0.99))
    # The blank beside a token is no rival.
    peaky = log_probs.copy()
    peaky[0, 0] = 0.0
    assert goodness(peaky, [1, 2]).tolist() == [0.0, 0.0]


def test_goodness_is_the_mean_over_its_frames() -> None:
    for seed in range(5):
        log_probs, tokens = posteriors(seed, 9, 5), [3, 1, 4]
        found = goodness(log_probs, tokens)
        for value, token, (a, b) in zip(found, tokens, ctc_align(log_probs, tokens)):
            frames = [log_probs[t, token] - log_probs[t, 1:].max() for t in range(a, b)]
            assert value == pytest.approx(np.mean(frames)) and value <= 0
        assert np.array_equal(goodness(log_probs, tokens, ctc_align(log_probs, tokens)), found)


def test_spans_share_the_blanks_between_them_up_to_a_limit() -> None:
    spans = [(3, 4), (4, 5), (8, 9), (20, 22)]
    found = spread(spans, 40, 5)
    assert found == [(0, 4), (4, 7), (7, 14), (15, 27)]
    assert spread(spans, 40, 0) == spans and spread([(0, 1)], 1, 9) == [(0, 1)]
    for (a, b), (c, d) in itertools.pairwise(found):
        assert a < b <= c < d


def test_the_auc_counts_pairs() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        scores, is_good = random.integers(0, 6, 30).astype(float), random.random(30) < 0.4
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a in scores[is_good]
            for b in scores[~is_good]
        ]
        assert auc(scores, is_good) == pytest.approx(np.mean(pairs))
        assert auc(scores, ~is_good) == pytest.approx(1 - np.mean(pairs))
    with pytest.raises(ValueError, match="some of both"):
        auc(np.ones(2), np.ones(2, dtype=bool))


def test_too_few_frames_are_named() -> None:
    with pytest.raises(ValueError, match="at least 3 frames"):
        ctc_align(posteriors(0, 2, 3), [2, 2])
    with pytest.raises(ValueError, match="0 tokens"):
        goodness(posteriors(0, 2, 3), [])
