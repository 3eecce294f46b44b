"""Phones as hidden Markov models with mixtures of Gaussians, trained from transcripts alone.

Three states a phone, regardless of its neighbours, and diagonal Gaussians, whose number grows in
training; the frames are aligned anew by the likeliest path. As the first stage ("mono") of Kaldi's
recipes: Povey et al., 2011, "The Kaldi speech recognition toolkit"; even start, growth and the
power of counts follow its train_mono.sh. Different: probabilities to stay are each state's own.

Shape legend: T frames, N frames of one kind, D coefficients, K kinds of state, G Gaussians, M of
one kind.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from speechssl.labels.align_graph import STATES, Graph, best_path, even_path
from speechssl.labels.sample_file import write_json

GROWTH = 0.75
"""Share of the iterations after which there are no more Gaussians to come."""
OFTEN = 10
"""First iterations, which all align anew; after them every second one does."""
COUNT_POWER = 0.25
LEAST_FRAMES = 10.0
"""A Gaussian of fewer frames goes."""
LEAST_VARIANCE = 0.01
"""Of each coefficient's variance over all frames."""
TINY_VARIANCE = 1e-8
"""Of all frames; rounding makes as much of frames that are equal."""
LOG_2PI = float(np.log(2 * np.pi))


@dataclasses.dataclass(frozen=True)
class Monophones:
    """phones: names, the pause first. kind: (G,) ascending, every kind of state at least once.

    log_weight: (G,); mean, variance: (G, D); stay: (K,) probability of one more frame.
    """

    phones: tuple[str, ...]
    kind: np.ndarray
    log_weight: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    stay: np.ndarray

    def likelihoods(self, frames: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """(T, D) -> (T, number of kinds) log densities of some kinds of state, ascending."""
        own = np.isin(self.kind, kinds)
        each = _log_densities(
            frames.astype(np.float64), self.log_weight[own], self.mean[own], self.variance[own]
        )
        begins = np.searchsorted(self.kind[own], kinds)
        highest = np.maximum.reduceat(each, begins, axis=1)
        shares = np.exp(each - np.repeat(highest, np.diff(begins, append=own.sum()), axis=1))
        return highest + np.log(np.add.reduceat(shares, begins, axis=1))

    def align(self, g: Graph, frames: np.ndarray) -> tuple[np.ndarray, float] | None:
        """(T,) states of the graph and their log probability; None: too few frames."""
        if len(frames) < g.shortest:
            return None
        kinds, column = np.unique(g.kind, return_inverse=True)
        return best_path(g, self.likelihoods(frames, kinds), column, self.stay)

    def save(self, folder: str | Path, **meta: object) -> None:
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        save_file(tensors, folder / "monophones.safetensors.tmp")
        os.replace(folder / "monophones.safetensors.tmp", folder / "monophones.safetensors")
        write_json(folder / "monophones.json", {"phones": list(self.phones), **meta})

    @classmethod
    def load(cls, folder: str | Path) -> Monophones:
        """Raises `ValueError` where there is none, or a damaged one."""
        import json

        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = Path(folder) / "monophones.json"
        if not file.is_file():
            raise ValueError(f"model: found no {file}, want a folder that `speechssl align` wrote")
        try:
            phones = tuple(json.loads(file.read_text())["phones"])
            model = cls(phones, **load_file(file.with_suffix(".safetensors")))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"model: found damage in {folder} ({error}); train it again") from None
        if len(model.stay) != STATES * len(phones):
            raise ValueError(
                f"model: found {len(phones)} phones and {len(model.stay)} states in {folder}, want "
                f"{STATES} each; train it again"
            )
        return model


_TENSORS = ("kind", "log_weight", "mean", "variance", "stay")


def train(
    phones: Sequence[str],
    graphs: Sequence[Graph],
    features: Sequence[np.ndarray],
    *,
    iterations: int,
    gaussians: int,
    seed: int,
    progress: Callable[[int, float], None] = lambda iteration, score: None,
) -> Monophones:
    """Of utterances, each with its graph and (T, D) frames, float32 or float64.

    progress: called with the iteration's number and the log probability per frame where frames were
    aligned anew. Raises `ValueError` where no utterance is long enough for its transcript, and
    where a coefficient is the same in all frames.
    """
    starts = [even_path(g, len(x)) for g, x in zip(graphs, features)]
    paths = [None if p is None else g.kind[p] for p, g in zip(starts, graphs)]
    if all(path is None for path in paths):
        raise ValueError(
            f"cuts: found {len(paths)} utterances with fewer frames than their transcripts have "
            "states, 3 a phone; want transcripts of what is said"
        )
    rng = np.random.default_rng(seed)
    kinds = STATES * len(phones)
    mean, variance = _moments([x for x, p in zip(features, paths) if p is not None])
    if variance.min() < TINY_VARIANCE:
        raise ValueError("cuts: found audio that stays the same in all frames, want speech")
    model = Monophones(
        tuple(phones), np.arange(kinds), np.zeros(kinds), np.tile(mean, (kinds, 1)),
        np.tile(variance, (kinds, 1)), np.full(kinds, 0.5),
    )  # fmt: skip
    growing = max(1, round(GROWTH * iterations))
    for iteration in range(iterations + 1):
        anew = iteration <= OFTEN or iteration % 2 == 0 or iteration == iterations
        if anew and iteration > 0:
            found = [model.align(g, x) for g, x in zip(graphs, features)]
            paths = [None if f is None else g.kind[f[0]] for f, g in zip(found, graphs)]
            total = sum(f[1] for f in found if f is not None)
            count = sum(len(x) for f, x in zip(found, features) if f is not None)
            progress(iteration, total / max(count, 1))
        share = min(1.0, iteration / growing)
        model = _update(
            model, [(p, x) for p, x in zip(paths, features) if p is not None],
            kinds + round(share * max(0, gaussians - kinds)), LEAST_VARIANCE * variance, rng,
        )  # fmt: skip
    return model


def _moments(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(D,) mean and variance of all frames, in float64 without a copy of them."""
    number = sum(map(len, features))
    mean = sum(x.sum(0, dtype=np.float64) for x in features) / number
    return mean, sum(np.square(x - mean).sum(0) for x in features) / number


def _update(
    model: Monophones,
    aligned: Sequence[tuple[np.ndarray, np.ndarray]],
    gaussians: int,
    floor: np.ndarray,
    rng: np.random.Generator,
) -> Monophones:
    """One step of EM within the aligned states, then as many Gaussians as are wanted."""
    kinds = np.concatenate([path for path, _ in aligned])
    frames = np.concatenate([x for _, x in aligned])
    number = len(model.stay)
    counts = np.bincount(kinds, minlength=number)
    visits = sum(
        np.bincount(path[np.r_[True, path[1:] != path[:-1]]], minlength=number)
        for path, _ in aligned
    )
    wanted = _shares(counts, gaussians)
    order = np.argsort(kinds, kind="stable")
    begins = np.searchsorted(kinds[order], np.arange(number + 1))
    parts = []
    for kind in range(number):
        own = model.kind == kind
        part = model.log_weight[own], model.mean[own], model.variance[own]
        x = frames[order[begins[kind] : begins[kind + 1]]].astype(np.float64)
        if len(x) >= LEAST_FRAMES:
            part = _mixed_up(_step(x, *part, floor), wanted[kind], len(x), rng)
        parts.append((np.full(len(part[0]), kind), *part))
    stay = (counts - visits + 0.5) / (counts + 1.0)
    return Monophones(
        model.phones, *(np.concatenate(column) for column in zip(*parts)), np.clip(stay, 0.05, 0.99)
    )


def _step(
    x: np.ndarray, log_weight: np.ndarray, mean: np.ndarray, variance: np.ndarray, floor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and variances of a mixture, fitted better to (N, D) frames."""
    each = _log_densities(x, log_weight, mean, variance)
    each -= each.max(1, keepdims=True)
    share = np.exp(each)
    share /= share.sum(1, keepdims=True)
    count = share.sum(0)
    kept = count >= min(LEAST_FRAMES, count.max())
    share, count = share[:, kept], count[kept]
    mean = share.T @ x / count[:, None]
    variance = np.maximum(share.T @ x**2 / count[:, None] - mean**2, floor)
    return np.log(count / count.sum()), mean, variance


def _mixed_up(
    mixture: tuple[np.ndarray, np.ndarray, np.ndarray],
    wanted: int,
    frames: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The heaviest Gaussian parts into two near it, until there are as many as wanted."""
    log_weight, mean, variance = mixture
    wanted = min(wanted, int(frames // (2 * LEAST_FRAMES)))
    while len(log_weight) < wanted:
        heaviest = int(log_weight.argmax())
        shift = 0.2 * np.sqrt(variance[heaviest]) * rng.standard_normal(mean.shape[1])
        log_weight[heaviest] -= np.log(2)
        log_weight = np.append(log_weight, log_weight[heaviest])
        mean = np.vstack([mean, mean[heaviest] + shift])
        mean[heaviest] -= shift
        variance = np.vstack([variance, variance[heaviest]])
    return log_weight, mean, variance


def _shares(counts: np.ndarray, gaussians: int) -> np.ndarray:
    """(K,) how many Gaussians each kind of state should have: by a power of its frames."""
    power = counts.astype(np.float64) ** COUNT_POWER
    return np.maximum(1, np.round(gaussians * power / max(power.sum(), 1e-9))).astype(np.int64)


def _log_densities(
    x: np.ndarray, log_weight: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """(T, D) -> (T, G), weights included."""
    inverse = 1 / variance
    constant = log_weight - 0.5 * (
        mean.shape[1] * LOG_2PI + np.log(variance).sum(1) + (mean**2 * inverse).sum(1)
    )
    return constant + x @ (mean * inverse).T - 0.5 * (x**2 @ inverse.T)
