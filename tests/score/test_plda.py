"""PLDA against brute-force Gaussians, the closed form of balanced data, and known covariances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from speechssl.score.plda import Plda, fit_backend, fit_plda
from speechssl.score.verification import cosine, eer

WIDTH = 4


def covariance(random: np.random.Generator, size: float) -> np.ndarray:
    root = random.standard_normal((WIDTH, WIDTH))
    return size * (root @ root.T / WIDTH + 0.2 * np.eye(WIDTH))


def model(seed: int = 0) -> Plda:
    random = np.random.default_rng(seed)
    return Plda(random.standard_normal(WIDTH), covariance(random, 2.0), covariance(random, 1.0))


def draw(plda: Plda, counts: list[int], seed: int = 1) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    rows, names = [], []
    for i, count in enumerate(counts):
        voice = random.multivariate_normal(plda.mean, plda.between)
        rows.append(voice + random.multivariate_normal(np.zeros(WIDTH), plda.within, count))
        names += [f"s{i}"] * count
    return np.concatenate(rows), names


def log_normal(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> float:
    left = x - mean
    log_det = np.linalg.slogdet(2 * np.pi * cov)[1]
    return float(-0.5 * left @ np.linalg.solve(cov, left) - 0.5 * log_det)


def test_ratios_are_those_of_joint_gaussians() -> None:
    plda = model()
    a, b = np.random.default_rng(2).standard_normal((2, 7, WIDTH))
    total, none = plda.between + plda.within, np.zeros((WIDTH, WIDTH))
    twice = np.concatenate([plda.mean, plda.mean])
    one = np.block([[total, plda.between], [plda.between, total]])
    two = np.block([[total, none], [none, total]])
    expected = [
        log_normal(np.concatenate(pair), twice, one) - log_normal(np.concatenate(pair), twice, two)
        for pair in zip(a, b)
    ]
    assert plda.log_ratios(a, b) == pytest.approx(expected, abs=1e-9)
    assert plda.log_ratios(b, a) == pytest.approx(expected, abs=1e-9)
    assert np.diag(plda.all_log_ratios(a, b)) == pytest.approx(expected, abs=1e-9)


def test_the_likelihood_is_that_of_joint_gaussians() -> None:
    plda, counts = model(), [1, 3, 2, 3]
    x, names = draw(plda, counts)
    expected, at = 0.0, 0
    for count in counts:
        cov = np.kron(np.ones((count, count)), plda.between)
        cov += np.kron(np.eye(count), plda.within)
        rows = x[at : at + count].ravel()
        expected += log_normal(rows, np.tile(plda.mean, count), cov)
        at += count
    assert plda.log_likelihood(x, names) == pytest.approx(expected, abs=1e-8)


def test_every_step_raises_the_likelihood() -> None:
    x, names = draw(model(), [1, 2, 5, 3, 4, 2, 1, 6, 3, 3])
    found = [fit_plda(x, names, n).log_likelihood(x, names) for n in range(12)]
    assert all(b > a for a, b in itertools.pairwise(found))


def test_balanced_data_have_a_closed_form() -> None:
    count, speakers = 6, 60
    x, names = draw(model(), [count] * speakers)
    found = fit_plda(x, names, 300)
    groups = x.reshape(speakers, count, WIDTH)
    means = groups.mean(1)
    left = (groups - means[:, None]).reshape(-1, WIDTH)
    within = left.T @ left / (speakers * (count - 1))
    centred = means - means.mean(0)
    between = centred.T @ centred / speakers - within / count
    assert np.linalg.eigvalsh(between)[0] > 0  # else the formula is not the optimum
    assert found.within == pytest.approx(within, abs=1e-6)
    assert found.between == pytest.approx(between, abs=1e-6)
    assert found.mean == pytest.approx(means.mean(0), abs=1e-6)


def test_known_covariances_are_found_again() -> None:
    truth = model()
    x, names = draw(truth, [2, 5, 9, 3] * 500)
    found = fit_plda(x, names, 30)
    for ours, theirs in ((found.between, truth.between), (found.within, truth.within)):
        assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)


def test_the_order_of_speakers_and_their_names_do_not_matter() -> None:
    x, names = draw(model(), [2, 3, 4, 5])
    order = np.random.default_rng(3).permutation(len(x))
    one = fit_plda(x, names)
    two = fit_plda(x[order], ["z" + names[i] for i in order])
    assert one.between == pytest.approx(two.between, abs=1e-10)
    assert one.within == pytest.approx(two.within, abs=1e-10)


def test_it_knows_which_directions_tell_speakers_apart() -> None:
    """Loud recording noise in one direction misleads the cosine, not PLDA."""
    truth = Plda(np.zeros(WIDTH), np.eye(WIDTH), np.diag([100.0, 0.3, 0.3, 0.3]))
    x, names = draw(truth, [8] * 60)
    fresh, _ = draw(truth, [2] * 300, seed=5)
    other = np.concatenate([fresh[1::2], np.roll(fresh[1::2], 1, axis=0)])
    own, same = np.concatenate([fresh[::2], fresh[::2]]), np.repeat([True, False], len(fresh) // 2)
    backend = fit_backend(x, names)
    ours = backend.plda.log_ratios(backend.prepared(own), backend.prepared(other))
    assert eer(ours, same)[0] < 0.6 * eer(cosine(own, other), same)[0]
    narrow = fit_backend(x, names, lda_dim=3)
    assert narrow.projection.shape == (WIDTH, 3)
    # The dimension left out is the loud one.
    assert np.abs(narrow.projection[0]).max() < 0.05 * np.abs(narrow.projection).max()
    assert np.linalg.norm(narrow.prepared(own), axis=1) == pytest.approx(np.full(600, 3**0.5))


def test_ratios_do_not_depend_on_the_coordinates() -> None:
    x, names = draw(model(), [3, 4] * 20)
    a, b = np.random.default_rng(4).standard_normal((2, 5, WIDTH))
    turn = np.random.default_rng(5).standard_normal((WIDTH, WIDTH))
    plain, turned = fit_plda(x, names), fit_plda(x @ turn + 3, names)
    assert turned.log_ratios(a @ turn + 3, b @ turn + 3) == pytest.approx(plain.log_ratios(a, b))


def test_mistakes_are_named() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3))
    with pytest.raises(ValueError, match="found 1 with at most 4"):
        fit_plda(x, ["a"] * 4)
    with pytest.raises(ValueError, match="at most 1 utterances"):
        fit_plda(x, list("abcd"))
    with pytest.raises(ValueError, match="no difference within"):
        fit_plda(x[[0, 0, 1, 1]], list("aabb"))
    with pytest.raises(ValueError, match=r"\(4, 3\) and 2"):
        fit_plda(x, ["a", "b"])
    with pytest.raises(ValueError, match="lda_dim: found 4"):
        fit_backend(x, list("aabb"), lda_dim=4)
