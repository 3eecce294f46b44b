"""Learn topics by passes over documents; begin empty ones anew; go on after a kill.

Shape legend: B documents of some, D all of them, N topics, V words.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechssl.labels.topic_config import LearningConfig
from speechssl.labels.topic_documents import Documents, Vocabulary
from speechssl.labels.topic_model import TopicModel, estimator, topic_labels, weigh

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SEEDS = 1000
"""Documents at most that are looked at to begin an empty topic."""

Log = Callable[[str], None]


@dataclasses.dataclass
class State:
    """What a fit goes on from: behind the last whole pass, or the last repair."""

    components: np.ndarray
    batches: int = 0
    passes: int = 0
    target: int = 0
    repairs: int = 0
    perplexity: list[float] = dataclasses.field(default_factory=list)

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **dataclasses.asdict(self))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> State:
        with np.load(path, allow_pickle=False) as saved:
            whole = {k: int(saved[k]) for k in ("batches", "passes", "target", "repairs")}
            return cls(saved["components"], perplexity=saved["perplexity"].tolist(), **whole)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """labels: (D,) likeliest topic of each document, -1 without words. entropy: (D,) of its
    posterior, in nats. perplexity: of the first documents, per word, behind each pass."""

    model: TopicModel
    labels: np.ndarray
    entropy: np.ndarray
    perplexity: list[float]
    repairs: int
    empty: list[int]


def fit_topics(
    documents: Documents,
    vocabulary: Vocabulary,
    config: LearningConfig,
    info: Mapping[str, Any],
    *,
    state_path: Path | None = None,
    log: Log = lambda _: None,
) -> FitResult:
    """Learn `config.topics` topics of the documents.

    info: what topics.json will say, with topic_prior, word_prior and weighting.
    state_path: .npz that is written behind each pass, and read if it is there.
    """
    if state_path is not None and state_path.is_file():
        state = State.load(state_path)
        log(f"going on behind pass {state.passes}")
    else:
        # The start of Hoffman et al.: near 1, so that topics differ and none is sure of itself.
        draw = np.random.default_rng([config.seed, 0])
        start = draw.gamma(100.0, 0.01, (config.topics, len(vocabulary)))
        state = State(start, target=config.passes)

    def model_now() -> TopicModel:
        return TopicModel(state.components, vocabulary, info)

    while True:
        while state.passes < state.target:
            _one_pass(documents, vocabulary, config, info, state)
            log(f"pass {state.passes}: perplexity {state.perplexity[-1]:.2f}")
            if state_path is not None:
                state.save(state_path)
        labels, entropy = topic_labels(model_now(), documents, config.batch_documents, config.jobs)
        empty = empty_topics(labels, config.topics, config.min_topic_documents)
        if not len(empty) or state.repairs >= config.repairs:
            break
        log(f"{len(empty)} empty topics begin anew: {', '.join(map(str, empty))}")
        seed = config.seed + state.repairs
        reseed(state.components, empty, labels, documents, vocabulary, info, seed)
        state.repairs += 1
        state.target += max(1, config.passes // 2)
        if state_path is not None:
            state.save(state_path)
    return FitResult(
        model_now(), labels, entropy, state.perplexity, state.repairs, [int(t) for t in empty]
    )


def _one_pass(
    documents: Documents,
    vocabulary: Vocabulary,
    config: LearningConfig,
    info: Mapping[str, Any],
    state: State,
) -> None:
    model = estimator(
        state.components,
        info,
        jobs=config.jobs,
        batch=config.batch_documents,
        batches_done=state.batches,
        seed=[config.seed, state.passes + 1],
        total_samples=len(documents),
        learning_decay=config.learning_decay,
        learning_offset=config.learning_offset,
    )
    first = None
    for numbers in documents.batches(config.batch_documents):
        counts = weigh(documents.counts(numbers, vocabulary.codes), vocabulary, info["weighting"])
        first = counts if first is None else first
        model.partial_fit(counts)
        state.batches += 1
    state.components = model.components_
    state.passes += 1
    # The topics' own part of the bound belongs to all documents, not to the first ones alone.
    state.perplexity.append(float(model.perplexity(first, sub_sampling=True)))


def empty_topics(labels: np.ndarray, topics: int, least: int) -> np.ndarray:
    """Topics that fewer than `least` documents have as their likeliest."""
    return np.flatnonzero(np.bincount(labels[labels >= 0], minlength=topics) < least)


def reseed(
    components: np.ndarray,
    empty: np.ndarray,
    labels: np.ndarray,
    documents: Documents,
    vocabulary: Vocabulary,
    info: Mapping[str, Any],
    seed: int,
) -> None:
    """Begin each empty topic from a part of the largest one's documents, in place.

    They are divided along the direction in which their words vary most, and the smaller side's
    words go over to the empty topic: what two worlds under one topic differ in. Where no topic has
    two documents, there is nothing to divide.
    """
    labels = labels.copy()
    topics, prior = len(components), info["word_prior"]
    draw = np.random.default_rng([seed, 1])
    for topic in empty:
        sizes = np.bincount(labels[labels >= 0], minlength=topics)
        largest = int(sizes.argmax())
        own = np.flatnonzero(labels == largest)
        if len(own) < 2:
            return
        some = np.sort(draw.permutation(own)[:SEEDS])
        counts = weigh(documents.counts(some, vocabulary.codes), vocabulary, info["weighting"])
        taken = smaller_side(counts, draw)
        moved = np.asarray(counts[taken].sum(0)).ravel() * (len(own) / len(some))
        components[topic] = prior + moved
        components[largest] = np.maximum(components[largest] - moved, prior)
        # Of the documents beyond those looked at, none is known to have moved.
        labels[some[taken]] = topic


def smaller_side(counts: csr_matrix, draw: np.random.Generator) -> np.ndarray:
    """Places of the documents on the smaller side of the mean, along the first principal direction
    of their (B, V) word shares; at least one."""
    from scipy.sparse import csr_matrix, diags

    sums = np.asarray(counts.sum(1)).ravel()
    share = csr_matrix(diags(1 / np.maximum(sums, 1e-9)) @ counts)
    mean = np.asarray(share.mean(0)).ravel()
    along = draw.standard_normal(len(sums))
    for _ in range(20):  # power iteration; near the end is good enough to divide by
        direction = share.T @ along - mean * along.sum()
        along = share @ direction - mean @ direction
        size = np.linalg.norm(along)
        if size == 0:
            break
        along /= size
    upper = np.flatnonzero(along > 0)
    lower = np.flatnonzero(along <= 0)
    side = min((upper, lower), key=len)
    return side if len(side) else lower[:1]
