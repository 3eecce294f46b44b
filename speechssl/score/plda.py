"""Two-covariance PLDA: log-likelihood ratios of two embeddings being of one speaker.

x = y + e with y ~ N(mean, between) of the speaker and e ~ N(0, within) of the recording.
Source: Brümmer and de Villiers 2010, "The speaker partitioning problem"; Garcia-Romero and
Espy-Wilson 2011 for the length normalisation before it.

Shape legend: N utterances, S speakers, E embedding width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from speechssl.score.verification import unit

SMALLEST_SHARE = 1e-6
"""Variances of `within` below this share of their mean are raised to it: it is inverted."""


@dataclasses.dataclass(frozen=True)
class Plda:
    """mean: (E,); between, within: (E, E) covariances of speakers, and of one speaker's."""

    mean: np.ndarray
    between: np.ndarray
    within: np.ndarray

    def log_ratios(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(N, E) and (N, E) -> (N,) log p(a, b | one speaker) / p(a, b | two), row by row."""
        one, cross, constant = self._forms()
        a, b = a - self.mean, b - self.mean
        own = np.einsum("ne,ef,nf->n", a, one, a) + np.einsum("ne,ef,nf->n", b, one, b)
        return constant + 0.5 * own + np.einsum("ne,ef,nf->n", a, cross, b)

    def all_log_ratios(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(N, E) and (K, E) -> (N, K) log-likelihood ratios of every pair."""
        one, cross, constant = self._forms()
        a, b = a - self.mean, b - self.mean
        own = [np.einsum("ne,ef,nf->n", x, one, x) for x in (a, b)]
        return constant + 0.5 * (own[0][:, None] + own[1]) + a @ cross @ b.T

    def _forms(self) -> tuple[np.ndarray, np.ndarray, float]:
        """The quadratic forms of each side and across, and the constant.

        With T = between + within the pair's covariance is [[T, between], [between, T]], or
        [[T, 0], [0, T]]; its inverse is written with the Schur complement of T.
        """
        total = self.between + self.within
        inverse = np.linalg.inv(total)
        rest = total - self.between @ inverse @ self.between
        outer = np.linalg.inv(rest)
        constant = 0.5 * (np.linalg.slogdet(total)[1] - np.linalg.slogdet(rest)[1])
        return inverse - outer, inverse @ self.between @ outer, float(constant)

    def log_likelihood(self, x: np.ndarray, speakers: Sequence[str]) -> float:
        """log p of (N, E) embeddings and who spoke them; what `fit_plda` raises."""
        sums = _speaker_sums(x, speakers)
        deviations = x - sums.means[sums.of]
        inverse = np.linalg.inv(self.within)
        width, log_two_pi = x.shape[1], np.log(2 * np.pi)
        inside = len(x) - len(sums.counts)
        found = -0.5 * np.einsum("ne,ef,nf->", deviations, inverse, deviations)
        found -= 0.5 * inside * (np.linalg.slogdet(self.within)[1] + width * log_two_pi)
        found -= 0.5 * width * np.log(sums.counts).sum()
        for count in np.unique(sums.counts):
            means = sums.means[sums.counts == count] - self.mean
            covariance = self.between + self.within / count
            found -= 0.5 * np.einsum("se,ef,sf->", means, np.linalg.inv(covariance), means)
            found -= 0.5 * len(means) * (np.linalg.slogdet(covariance)[1] + width * log_two_pi)
        return float(found)


@dataclasses.dataclass(frozen=True)
class _Sums:
    of: np.ndarray  # (N,) speaker of each utterance
    counts: np.ndarray  # (S,)
    means: np.ndarray  # (S, E)


def _speaker_sums(x: np.ndarray, speakers: Sequence[str]) -> _Sums:
    _, of = np.unique(np.asarray(speakers), return_inverse=True)
    counts = np.bincount(of)
    means = np.zeros((len(counts), x.shape[1]))
    np.add.at(means, of, x)
    return _Sums(of, counts, means / counts[:, None])


def fit_plda(x: np.ndarray, speakers: Sequence[str], iterations: int = 20) -> Plda:
    """Covariances of most likelihood by EM, from (N, E) embeddings and their N speakers.

    It starts at the moments: of speakers' means, and of what is left within speakers.
    Raises `ValueError` for fewer than two speakers, or where no speaker has two utterances.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(speakers):
        raise ValueError(
            f"embeddings, speakers: found shape {x.shape} and {len(speakers)}, want (N, E) and N"
        )
    sums = _speaker_sums(x, speakers)
    if len(sums.counts) < 2 or sums.counts.max() < 2:
        raise ValueError(
            f"speakers: found {len(sums.counts)} with at most {sums.counts.max(initial=0)} "
            "utterances each, want two or more, some with several: PLDA learns what differs "
            "within a speaker"
        )
    deviations = x - sums.means[sums.of]
    scatter = deviations.T @ deviations  # stays the same; only its share of `within` changes
    centred = sums.means - sums.means.mean(0)
    plda = Plda(
        sums.means.mean(0),
        centred.T @ centred / len(centred),
        _floored(scatter / max(1, len(x) - len(centred))),
    )
    for _ in range(iterations):
        plda = _step(plda, scatter, sums, len(x))
    return plda


def _step(plda: Plda, scatter: np.ndarray, sums: _Sums, number: int) -> Plda:
    """One EM update; posteriors of speakers with equally many utterances share a covariance."""
    voices = np.empty_like(sums.means)
    between, within = np.zeros_like(scatter), scatter.copy()
    for count in np.unique(sums.counts):
        which = sums.counts == count
        gain = plda.between @ np.linalg.inv(plda.between + plda.within / count)
        voices[which] = plda.mean + (sums.means[which] - plda.mean) @ gain.T
        spread = which.sum() * (plda.between - gain @ plda.between)
        between += spread
        left = sums.means[which] - voices[which]
        within += count * (left.T @ left + spread)
    mean = voices.mean(0)
    centred = voices - mean
    between += centred.T @ centred
    return Plda(mean, _symmetric(between / len(voices)), _floored(within / number))


def _symmetric(x: np.ndarray) -> np.ndarray:
    return (x + x.T) / 2


def _floored(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(_symmetric(covariance))
    least = SMALLEST_SHARE * values.mean()
    if not least > 0:
        raise ValueError("embeddings: found no difference within speakers, want some to learn of")
    if values[0] >= least:
        return _symmetric(covariance)
    return (vectors * np.maximum(values, least)) @ vectors.T


@dataclasses.dataclass(frozen=True)
class Backend:
    """Embeddings centred, projected by LDA if asked for, brought to length 1, and their PLDA."""

    mean: np.ndarray
    projection: np.ndarray  # (E, E')
    plda: Plda

    def prepared(self, x: np.ndarray) -> np.ndarray:
        """(N, E) embeddings -> (N, E') of length sqrt(E')."""
        found = unit((np.asarray(x, dtype=np.float64) - self.mean) @ self.projection)
        return found * np.sqrt(self.projection.shape[1])


def fit_backend(
    x: np.ndarray, speakers: Sequence[str], lda_dim: int | None = None, iterations: int = 20
) -> Backend:
    """Learn mean, LDA and PLDA of (N, E) training embeddings.

    lda_dim: dimensions that tell speakers apart best to keep; None: all, whitened within.
    Raises `ValueError` as `fit_plda` does, and for a `lda_dim` outside 1 to E.
    """
    x = np.asarray(x, dtype=np.float64)
    mean = x.mean(0)
    width = x.shape[1]
    if lda_dim is not None and not 1 <= lda_dim <= width:
        raise ValueError(f"lda_dim: found {lda_dim}, want 1 to {width}, the embeddings' width")
    moments = fit_plda(x - mean, speakers, iterations=0)
    values, vectors = np.linalg.eigh(moments.within)
    whiten = vectors / np.sqrt(values)
    ranked = np.linalg.eigh(whiten.T @ moments.between @ whiten)[1][:, ::-1]
    backend = Backend(mean, whiten @ ranked[:, :lda_dim], moments)
    return dataclasses.replace(
        backend, plda=fit_plda(backend.prepared(x), speakers, iterations=iterations)
    )
