"""Coherence and association of topics: closed forms, and scikit-learn's measure."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from topic_corpus import two_worlds

from speechssl.labels import topic_measure as m
from speechssl.labels.topic_documents import DocumentIndex, Documents, Vocabulary
from speechssl.labels.topic_model import TopicModel


def field_of(values: np.ndarray, documents: np.ndarray | None = None) -> m.Field:
    field = m.Field()
    for i, value in enumerate(values):
        field.add(i if documents is None else int(documents[i]), [str(value)])
    return field


def associate(values: np.ndarray, topics: np.ndarray, **more: Any) -> dict[str, Any]:
    strata = more.pop("strata", np.zeros(len(topics), np.int64))
    field = field_of(values, more.pop("documents", None))
    return m.association(
        field,
        topics,
        int(topics.max()) + 1,
        strata=strata,
        permutations=more.pop("permutations", 200),
    )


def test_npmi_is_one_together_minus_one_apart_and_zero_by_chance() -> None:
    # Documents: a and b always together (20 of 100), c never with them (30), d by chance.
    both = np.array([[20, 20, 0, 10], [20, 20, 0, 10], [0, 0, 30, 15], [10, 10, 15, 50.0]])
    found = m.npmi(both, 100)
    assert found[0, 1] == pytest.approx(1.0) and found[0, 2] == -1.0
    assert found[0, 3] == pytest.approx(0.0) and found[2, 3] == pytest.approx(0.0)
    assert m.npmi(np.full((2, 2), 7.0), 7)[0, 1] == 0.0
    some = m.npmi(np.array([[40.0, 30], [30, 50]]), 100)[0, 1]
    assert some == pytest.approx(math.log(0.3 / 0.2) / -math.log(0.3))


def test_words_of_one_world_are_coherent_and_mixed_ones_are_not(tmp_path: Path) -> None:
    store, cuts, _ = two_worlds(tmp_path, 80)
    index = DocumentIndex.build(store, [cuts], "utterance", keep_ids=True)
    documents = Documents(store, index, [1], True)
    codes = np.arange(40)
    components = np.full((3, 40), 0.1)
    components[0, :20] += np.linspace(2, 1, 20)
    components[1, 20:] += np.linspace(2, 1, 20)
    components[2, ::2] += np.linspace(2, 1, 20)
    model = TopicModel(components, Vocabulary(codes, np.ones(40, int), 80), {})
    assert m.top_words(model, 3).tolist() == [[0, 1, 2], [20, 21, 22], [0, 2, 4]]
    each, baseline = m.coherence(model, documents, 20, batch=7)
    both = m.together(documents, codes[::-1].copy(), 9)[::-1, ::-1]
    held = np.array([[u in store.frames(i) for u in range(40)] for i in index.ids or ()], float)
    assert np.array_equal(both, held.T @ held)
    assert each[0] > each[2] + 0.3 and each[1] > each[2] + 0.3
    pairs = m.npmi(both, 80)
    inner = [pairs[i, j] for i in range(20) for j in range(i)]
    assert each[0] == pytest.approx(np.mean(inner))
    assert baseline == pytest.approx(np.mean([pairs[i, j] for i in range(40) for j in range(i)]))


def test_nmi_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for _ in range(5):
        topics, values = draw.integers(0, 6, 200), draw.integers(0, 9, 200)
        values[:80] = topics[:80]
        joint = field_of(values).joint(topics, 6)
        expected = metrics.normalized_mutual_info_score(topics, values)
        assert m.nmi(joint) == pytest.approx(expected, abs=1e-12)


def test_what_topics_tell_stands_far_above_chance_and_the_rest_within_it() -> None:
    draw = np.random.default_rng(0)
    topics = draw.integers(0, 5, 600)
    told = np.where(draw.random(600) < 0.5, topics, draw.integers(0, 5, 600))
    row = associate(told, topics)
    assert row["z"] > 20 and row["p"] == pytest.approx(1 / 201)
    assert row["excess"] == pytest.approx(row["nmi"] - row["baseline"]) and row["values"] == 5
    # Many values: a high measure that chance reaches as well.
    many = associate(draw.integers(0, 300, 600), topics)
    assert many["nmi"] > 0.15 and abs(many["z"]) < 4 and many["p"] > 0.005
    equal = associate(topics, topics)
    assert equal["nmi"] == pytest.approx(1.0) and equal["explained"] == pytest.approx(1.0)


def test_the_baseline_is_honest() -> None:
    """Of independent topics and values, p is small about as often as it says."""
    draw = np.random.default_rng(1)
    found = [
        associate(draw.integers(0, 4, 80), draw.integers(0, 5, 80), permutations=19)["p"]
        for _ in range(120)
    ]
    assert 0.005 <= np.mean(np.array(found) <= 0.05) <= 0.12
    assert 0.4 <= np.mean(found) <= 0.62


def test_documents_are_shuffled_not_their_utterances() -> None:
    """Ten utterances of each document share its topic: that is no evidence of ten."""
    draw = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), 10)
    topics, values = draw.integers(0, 4, 40), draw.integers(0, 2, 40)
    row = associate(values[documents], topics, documents=documents)
    single = associate(values, topics)
    assert row["nmi"] == pytest.approx(single["nmi"]) and row["utterances"] == 400
    assert row["z"] == pytest.approx(single["z"]) and row["p"] == single["p"]


def test_shuffling_within_a_field_leaves_what_that_field_explains() -> None:
    draw = np.random.default_rng(0)
    corpus = draw.integers(0, 2, 500)
    topics = 3 * corpus + draw.integers(0, 3, 500)
    emotion = 2 * corpus + draw.integers(0, 2, 500)  # known by its corpus alone
    assert associate(emotion, topics)["z"] > 20
    within = associate(emotion, topics, strata=corpus)
    assert abs(within["z"]) < 4 and within["baseline"] > 0.3
    for order in m.shuffles(corpus, 3, 0):
        assert np.array_equal(corpus[order], corpus)
        assert np.array_equal(np.sort(order), np.arange(500))


def test_documents_without_the_field_are_no_part_of_the_baseline() -> None:
    """Else a field of one corpus, whose topics are few, would lie below chance."""
    draw = np.random.default_rng(0)
    topics = np.concatenate([draw.integers(0, 2, 100), draw.integers(2, 40, 900)])
    values = draw.integers(0, 3, 100)
    some = associate(values, topics, documents=np.arange(100))
    alone = associate(values, topics[:100])
    assert some["baseline"] == alone["baseline"] and some["z"] == alone["z"]
    assert abs(some["z"]) < 4


def test_topics_that_are_all_alike_have_no_z() -> None:
    row = associate(np.arange(20) % 2, np.zeros(20, np.int64))
    assert row["nmi"] == 0.0 and row["z"] is None and row["p"] == 1.0


def test_words_count_once_per_utterance_and_rare_ones_are_left_out() -> None:
    words = m.Field()
    for i, text in enumerate(["The moon, the MOON", "the sun", "", "don't 4 the_end"]):
        words.add(i, m.field_values(_cut(text=text), "words"))
    assert list(words.names) == ["moon", "the", "sun", "don't", "end"] and words.utterances == 3
    kept = words.without_rare(3)
    assert kept.names == {"the": 0} and list(kept.documents) == [0, 1, 3]
    joint = words.joint(np.array([0, 1, 1, 1]), 2)
    assert joint[:, words.names["the"]].tolist() == [1, 2] and joint.sum() == 7


def _cut(text: str | None = None, **custom: Any) -> Any:
    supervision = SimpleNamespace(text=text, speaker="s", gender=None, language="en", custom=custom)
    return SimpleNamespace(id="c", supervisions=[supervision])


def test_fields_come_from_the_supervision_or_its_custom_values() -> None:
    cut = _cut(emotion="sad", take=3, slots={"size": "big"})
    assert m.field_values(cut, "speaker") == ["s"] and m.field_values(cut, "gender") == []
    assert m.field_values(cut, "emotion") == ["sad"] and m.field_values(cut, "take") == ["3"]
    assert m.field_values(cut, "theme") == [] and m.field_values(cut, "words") == []
    with pytest.raises(ValueError, match="slots of 'c' to be a dict"):
        m.field_values(cut, "slots")


def test_listed_values_are_those_that_a_topic_has_more_of() -> None:
    joint = np.array([[30, 1, 20], [1, 30, 20], [0, 0, 0]])
    found = m.listing(joint, ["a", "b", "c"], 2)
    assert [[v["value"] for v in row] for row in found] == [["a"], ["b"], []]
    assert found[0][0] == {"value": "a", "count": 30, "lift": pytest.approx(30 / 51 / (31 / 102))}


def test_the_table_orders_by_excess(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    topics = draw.integers(0, 4, 200)
    speakers = draw.integers(0, 90, 200)
    rows = {"speaker": associate(speakers, topics), "theme": associate(topics, topics)}
    lines = m.table(rows).splitlines()
    assert [line.split()[0] for line in lines] == ["field", "theme", "speaker"]
    assert " 1.0000 " in lines[1]
