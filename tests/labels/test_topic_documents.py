"""Documents and vocabulary of topic models against plain Python, and scikit-learn."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from topic_corpus import row_of, two_worlds, write_cuts, write_store

from speechssl.labels import topic_documents
from speechssl.labels.topic_config import WordsConfig
from speechssl.labels.topic_documents import (
    DocumentIndex,
    Documents,
    Vocabulary,
    build_vocabulary,
    group_name,
    unit_sequence,
    words_of,
)
from speechssl.labels.topic_model import weigh


def plain_words(units: list[int], ngrams: list[int], collapse: bool) -> Counter:
    if collapse:
        units = [u for i, u in enumerate(units) if i == 0 or u != units[i - 1]]
    return Counter(
        tuple(units[i : i + n]) for n in ngrams for i in range(len(units) - n + 1)
    )  # fmt: skip


@pytest.mark.parametrize("collapse", [True, False])
@pytest.mark.parametrize("ngrams", [[1], [2], [1, 3], [1, 2, 3]])
def test_words_are_those_of_plain_python_and_never_span_two_utterances(
    ngrams: list[int], collapse: bool
) -> None:
    draw = np.random.default_rng(0)
    spoken = [draw.integers(0, 4, n) for n in (7, 0, 1, 2, 30, 3)]
    pieces = np.repeat(np.arange(6), [len(s) for s in spoken])
    codes, owners = words_of(np.concatenate(spoken), pieces, 4, ngrams, collapse)
    for i, units in enumerate(spoken):
        found = Counter(unit_sequence(int(c), 4, ngrams) for c in codes[owners == i])
        assert found == plain_words(units.tolist(), ngrams, collapse)


def test_word_numbers_are_distinct_and_dense() -> None:
    sequences = [unit_sequence(c, 3, [1, 2]) for c in range(3 + 9)]
    assert len(set(sequences)) == 12 and {len(s) for s in sequences} == {1, 2}
    with pytest.raises(ValueError, match="too large"):
        unit_sequence(12, 3, [1, 2])


def test_documents_do_not_depend_on_the_order_of_manifests_or_utterances(tmp_path: Path) -> None:
    store, cuts, worlds = two_worlds(tmp_path, 40)
    with gzip.open(cuts, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    halves = [write_cuts(tmp_path / f"{i}.jsonl.gz", part) for i, part in
              enumerate((rows[::-2], rows[-2::-2]))]  # fmt: skip
    for group in ("utterance", "speaker"):
        one = DocumentIndex.build(store, [cuts], group, keep_ids=True)
        two = DocumentIndex.build(store, halves, group, keep_ids=True)
        assert one.ids == two.ids and np.array_equal(one.bounds, two.bounds)
        assert np.array_equal(one.starts, two.starts)
    assert len(one) == 8 and one.unlabelled == one.repeated == 0
    again = DocumentIndex.build(store, [cuts, halves[0]], "utterance")
    assert len(again) == 40 and again.repeated == 20
    speakers = {r["id"]: r["supervisions"][0]["speaker"] for r in rows}
    assert one.ids is not None
    for d in range(8):
        own = one.ids[one.bounds[d] : one.bounds[d + 1]]
        assert len({speakers[i] for i in own}) == 1
    assert sorted(one.ids) == sorted(worlds)


def test_cuts_of_a_labelled_recording_take_their_part_of_it(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", {"rec": np.arange(100), "other": np.arange(5)}, 256)
    parts = []
    for name, start, frames in (("a", 0.0, 30), ("b", 0.6, 40), ("c", 1.9, 50)):
        row = row_of(name, frames)
        row["recording"] = row_of("rec", 100)["recording"]
        row["start"] = start
        parts.append(row)
    unknown = row_of("nobody", 10)
    cuts = write_cuts(tmp_path / "cuts.jsonl.gz", [*parts, row_of("other", 5), unknown])
    index = DocumentIndex.build(store, [cuts], "utterance", keep_ids=True)
    assert index.unlabelled == 1 and index.ids is not None
    found = {
        i: store.flat[s : s + n].tolist()
        for i, s, n in zip(index.ids, index.starts, index.lengths, strict=True)
    }
    assert found["a"] == list(range(30)) and found["b"] == list(range(30, 70))
    assert found["c"] == list(range(95, 100)) and found["other"] == list(range(5))
    joined = DocumentIndex.build(store, [cuts], "recording")
    assert len(joined) == 2 and sorted(np.diff(joined.bounds)) == [1, 3]
    with pytest.raises(ValueError, match="no cut with labels"):
        DocumentIndex.build(store, [write_cuts(tmp_path / "n.jsonl.gz", [unknown])], "utterance")


def test_a_cut_without_one_speaker_is_a_document_of_its_own() -> None:
    def cut(*speakers: str | None) -> SimpleNamespace:
        supervisions = [SimpleNamespace(speaker=s) for s in speakers]
        return SimpleNamespace(id="c", recording_id="r", supervisions=supervisions)

    own = {group_name(cut(*s), "speaker") for s in ((), (None,), ("a", "b"))}
    assert own == {group_name(cut(), "utterance")}
    assert group_name(cut("a", None), "speaker") == group_name(cut("a"), "speaker") not in own
    assert group_name(cut("a"), "recording") == "r"
    mixed = SimpleNamespace(id="m", supervisions=[])
    assert group_name(mixed, "recording") == "m"


def build(folder: Path, ngrams: list[int], group: str = "utterance") -> tuple[Documents, list]:
    store, cuts, _ = two_worlds(folder, 50)
    index = DocumentIndex.build(store, [cuts], group, keep_ids=True)
    assert index.ids is not None
    plain = [
        sum((plain_words(store.frames(i).tolist(), ngrams, True) for i in
             index.ids[index.bounds[d] : index.bounds[d + 1]]), Counter())
        for d in range(len(index))
    ]  # fmt: skip
    return Documents(store, index, ngrams, True), plain


@pytest.mark.parametrize("group", ["utterance", "speaker"])
def test_vocabulary_and_counts_obey_the_limits(
    tmp_path: Path, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, plain = build(tmp_path, [1, 2], group)
    config = WordsConfig(ngrams=[1, 2], min_count=4, min_documents=3, max_document_share=0.4)
    vocabulary, report = build_vocabulary(documents, config)
    total = sum(plain, Counter())
    holding = Counter(w for d in plain for w in d)
    kept = {w for w in total if total[w] >= 4 and 3 <= holding[w] <= 0.4 * len(plain)}
    names = [unit_sequence(int(c), 40, [1, 2]) for c in vocabulary.codes]
    assert set(names) == kept and len(kept) > 20
    assert vocabulary.documents.tolist() == [holding[n] for n in names]
    assert report["tokens"] == total.total() and report["words_seen"] == len(total)
    covered = sum(total[w] for w in kept) / total.total()
    assert report["tokens_covered"] == pytest.approx(covered)
    # In batches of any size, also where few units may be read at once.
    monkeypatch.setattr(topic_documents, "MOST_LABELS", 150)
    for batch in documents.batches(7):
        assert 1 <= len(batch) <= 7
        matrix = documents.counts(batch, vocabulary.codes).toarray()
        for row, d in zip(matrix, batch, strict=True):
            assert row.tolist() == [plain[d][n] for n in names]
    again, same = build_vocabulary(documents, config)
    assert np.array_equal(again.codes, vocabulary.codes) and same == report


def test_the_most_frequent_words_are_kept_and_none_is_an_error(tmp_path: Path) -> None:
    documents, plain = build(tmp_path, [1])
    total = sum(plain, Counter())
    vocabulary, report = build_vocabulary(documents, WordsConfig(max_words=10))
    least = min(total[unit_sequence(int(c), 40, [1])] for c in vocabulary.codes)
    assert len(vocabulary) == 10 and report["words_within_limits"] == 40
    assert sorted(total.values())[-10] == least
    with pytest.raises(ValueError, match="found 0 words"):
        build_vocabulary(documents, WordsConfig(min_count=10_000))


def test_when_too_many_words_are_met_only_rare_ones_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, plain = build(tmp_path, [1, 2])
    monkeypatch.setattr(topic_documents, "MOST_CANDIDATES", 300)
    monkeypatch.setattr(topic_documents, "MOST_LABELS", 1500)
    config = WordsConfig(ngrams=[1, 2], min_count=20, min_documents=1)
    vocabulary, report = build_vocabulary(documents, config)
    assert report["words_forgotten"] > 0
    total = sum(plain, Counter())
    assert {unit_sequence(int(c), 40, [1, 2]) for c in vocabulary.codes} == {
        w for w in total if total[w] >= 20
    }


def test_idf_is_scikit_learns_and_a_document_keeps_its_length(tmp_path: Path) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    documents, _ = build(tmp_path, [1, 2])
    vocabulary, _ = build_vocabulary(documents, WordsConfig(ngrams=[1, 2], min_count=2))
    counts = documents.counts(np.arange(len(documents)), vocabulary.codes)
    peer = text.TfidfTransformer(norm=None).fit(counts)
    assert np.allclose(vocabulary.idf, peer.idf_)
    weighed = weigh(counts, vocabulary, "tfidf")
    assert np.allclose(weighed.sum(1), counts.sum(1))
    theirs = peer.transform(counts).toarray()
    ratio = weighed.toarray()[theirs > 0] / theirs[theirs > 0]
    rows = np.nonzero(theirs)[0]
    assert all(np.ptp(ratio[rows == r]) < 1e-9 for r in range(len(documents)))
    assert weigh(counts, vocabulary, "counts") is counts


def test_words_too_long_for_64_bits_are_refused(tmp_path: Path) -> None:
    store, cuts, _ = two_worlds(tmp_path, 10)
    index = DocumentIndex.build(store, [cuts], "utterance")
    with pytest.raises(ValueError, match="64 bits"):
        Documents(store, index, [12], True)
    assert math.isclose(float(Vocabulary(np.zeros(1), np.array([9]), 9).idf[0]), 1.0)
