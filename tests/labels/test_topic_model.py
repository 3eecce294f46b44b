"""Learning topics: against scikit-learn, on known worlds, killed, repaired, saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from topic_corpus import many_worlds, two_worlds

from speechssl.labels.topic_config import LearningConfig, WordsConfig
from speechssl.labels.topic_documents import DocumentIndex, Documents, build_vocabulary
from speechssl.labels.topic_fit import FitResult, empty_topics, fit_topics, reseed
from speechssl.labels.topic_model import TopicModel, load_topics, save_topics

decomposition = pytest.importorskip("sklearn.decomposition")


def corpus(folder: Path, utterances: int = 120) -> tuple[Documents, dict[str, int]]:
    store, cuts, worlds = two_worlds(folder, utterances)
    index = DocumentIndex.build(store, [cuts], "utterance", keep_ids=True)
    return Documents(store, index, [1], True), worlds


def info_of(config: LearningConfig, weighting: str = "counts") -> dict[str, Any]:
    prior = 1 / config.topics
    return {
        "unit_classes": 40, "ngrams": [1], "collapse": True, "weighting": weighting,
        "topic_prior": prior, "word_prior": prior, "group": "utterance",
    }  # fmt: skip


def fit(documents: Documents, config: LearningConfig, weighting: str = "counts", **more: Any):
    vocabulary, _ = build_vocabulary(documents, WordsConfig(min_count=1, min_documents=1))
    return fit_topics(documents, vocabulary, config, info_of(config, weighting), **more)


def agreement(result: FitResult, documents: Documents, worlds: dict[str, int]) -> float:
    """Share of documents whose topic is the one of their world, under the better naming of two."""
    assert documents.index.ids is not None
    truth = np.array([worlds[i] for i in documents.index.ids])
    same = float((result.labels == truth).mean())
    return max(same, 1 - same)


@pytest.mark.parametrize("weighting", ["counts", "tfidf"])
def test_two_worlds_of_disjoint_words_are_told_apart(tmp_path: Path, weighting: str) -> None:
    documents, worlds = corpus(tmp_path)
    config = LearningConfig(topics=2, passes=8, batch_documents=32)
    result = fit(documents, config, weighting)
    assert agreement(result, documents, worlds) >= 0.99
    assert result.entropy.mean() < 0.25 and not result.empty
    assert result.perplexity[-1] < result.perplexity[0]
    # Shuffled over the documents, the same words tell nothing of their worlds.
    order = np.random.default_rng(0).permutation(int(documents.index.lengths.sum()))
    assert len(documents.store.flat) == len(order)
    documents.store.flat = documents.store.flat[order]
    shuffled = fit(documents, config, weighting)
    assert agreement(shuffled, documents, worlds) < 0.65
    share = np.bincount(shuffled.labels, minlength=2) / 120
    assert -(share * np.log(share)).sum() > 0.85 * np.log(2)
    assert shuffled.entropy.mean() > 0.5 * np.log(2) > 2 * result.entropy.mean()


def test_the_learning_is_scikit_learns_online_one(tmp_path: Path) -> None:
    """The same mini-batches from the same start give the same components and posteriors."""
    documents, _ = corpus(tmp_path, 64)
    config = LearningConfig(topics=3, passes=1, batch_documents=16, repairs=0, seed=4)
    result = fit(documents, config)
    codes = result.model.vocabulary.codes
    peer = decomposition.LatentDirichletAllocation(
        3, learning_method="online", batch_size=16, total_samples=64, max_iter=1
    )
    batches = [documents.counts(n, codes) for n in documents.batches(16)]
    peer.partial_fit(batches[0])  # to be a fitted one; its state is then set
    peer.components_ = np.random.default_rng([4, 0]).gamma(100.0, 0.01, (3, len(codes)))
    from scipy.special import psi

    peer.exp_dirichlet_component_ = np.exp(
        psi(peer.components_) - psi(peer.components_.sum(1))[:, None]
    )
    peer.n_batch_iter_, peer.random_state_ = 1, np.random.RandomState([4, 1])
    for counts in batches:
        peer.partial_fit(counts)
    assert np.allclose(peer.components_, result.model.components, rtol=1e-9)
    whole = documents.counts(np.arange(64), codes)
    assert np.allclose(peer.transform(whole), result.model.posteriors(whole), atol=1e-9)
    # A document's posterior does not depend on those beside it.
    alone = np.concatenate([result.model.posteriors(whole[[i]]) for i in range(64)])
    assert np.allclose(alone, result.model.posteriors(whole), atol=1e-12)
    assert np.array_equal(result.labels, alone.argmax(1))


def test_a_killed_fit_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    documents, _ = corpus(tmp_path, 60)
    config = LearningConfig(topics=4, passes=3, batch_documents=16, min_topic_documents=6)
    whole = fit(documents, config)
    assert whole.repairs > 0
    for killed_behind in range(1, len(whole.perplexity)):
        lines = []

        def dies(text: str, lines: list = lines, last: int = killed_behind) -> None:
            lines.append(text)
            if sum(x.startswith("pass") for x in lines) == last + 1:
                raise KeyboardInterrupt

        state = tmp_path / f"{killed_behind}.npz"
        with pytest.raises(KeyboardInterrupt):
            fit(documents, config, state_path=state, log=dies)
        result = fit(documents, config, state_path=state)
        assert np.array_equal(result.model.components, whole.model.components)
        assert result.perplexity == whole.perplexity and result.repairs == whole.repairs


def test_an_empty_topic_takes_over_a_world_of_the_largest_ones(tmp_path: Path) -> None:
    documents, worlds = corpus(tmp_path, 80)
    assert documents.index.ids is not None
    truth = np.array([worlds[i] for i in documents.index.ids])
    config = LearningConfig(topics=3)
    vocabulary, _ = build_vocabulary(documents, WordsConfig())
    info = info_of(config)
    whole = np.asarray(documents.counts(np.arange(80), vocabulary.codes).sum(0)).ravel()
    components = np.full((3, len(vocabulary)), 1 / 3)
    components[0] += whole  # all documents are its
    labels = np.zeros(80, int)
    assert empty_topics(labels, 3, 1).tolist() == [1, 2]
    smaller = int(truth.mean() < 0.5)  # the world of fewer documents
    its = (vocabulary.codes >= 20) == smaller
    reseed(components, np.array([1]), labels, documents, vocabulary, info, 0)
    assert np.allclose(components[1, its], whole[its] + 1 / 3)
    assert np.allclose(components[1, ~its], 1 / 3)
    assert np.allclose(components[0, ~its], whole[~its] + 1 / 3)
    assert np.allclose(components[0, its], 1 / 3)
    # With nothing to divide it gives up rather than loops.
    before = components.copy()
    reseed(components, np.array([2]), np.full(80, -1), documents, vocabulary, info, 0)
    assert np.array_equal(before, components)


def test_repairs_find_worlds_that_shared_a_topic(tmp_path: Path) -> None:
    store, cuts = many_worlds(tmp_path, 8)
    documents = Documents(store, DocumentIndex.build(store, [cuts], "utterance"), [1], True)
    options = {"topics": 8, "passes": 4, "batch_documents": 40, "min_topic_documents": 3}
    before = fit(documents, LearningConfig(repairs=0, **options))
    after = fit(documents, LearningConfig(repairs=4, **options))
    assert before.empty and not after.empty
    assert after.repairs > 0 and len(after.perplexity) == 4 + 2 * after.repairs
    assert after.perplexity[-1] < before.perplexity[-1] - 1


def test_topics_that_stay_empty_are_told(tmp_path: Path) -> None:
    documents, _ = corpus(tmp_path, 60)
    # Sixty documents cannot give eight topics ten each.
    options = {"topics": 8, "passes": 2, "batch_documents": 20, "min_topic_documents": 10}
    result = fit(documents, LearningConfig(repairs=2, **options))
    counts = np.bincount(result.labels, minlength=8)
    assert result.empty and result.empty == np.flatnonzero(counts < 10).tolist()
    assert result.repairs == 2


def test_a_saved_model_gives_the_same_posteriors_and_knows_itself(tmp_path: Path) -> None:
    documents, _ = corpus(tmp_path, 40)
    model = fit(documents, LearningConfig(topics=3, passes=2), "tfidf").model
    save_topics(tmp_path / "model", model)
    loaded = load_topics(tmp_path / "model")
    counts = documents.counts(np.arange(40), model.vocabulary.codes)
    assert np.array_equal(loaded.posteriors(counts), model.posteriors(counts))
    assert loaded.hash == model.hash and loaded.vocabulary.total == 40
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names == {"topics.json", "components.npy", "vocabulary.npy"}
    for change in ({"weighting": "counts"}, {"ngrams": [2]}, {"topic_prior": 0.1}):
        assert TopicModel(model.components, model.vocabulary, {**model.info, **change}).hash != (
            model.hash
        )
    components = np.load(tmp_path / "model" / "components.npy")
    components[0, 0] += 1e-9
    np.save(tmp_path / "model" / "components.npy", components)
    with pytest.raises(ValueError, match="different fits, or damaged"):
        load_topics(tmp_path / "model")
    info = json.loads((tmp_path / "model" / "topics.json").read_text())
    (tmp_path / "model" / "topics.json").write_text(json.dumps({**info, "format": 9}))
    with pytest.raises(ValueError, match="found format 9"):
        load_topics(tmp_path / "model")
    with pytest.raises(ValueError, match=r"no topics\.json"):
        load_topics(tmp_path / "nothing")
