"""Documents of a topic model, streamed from a label store: words are sequences of units.

A document is all that is said in an utterance, a recording or by a speaker. What stays in memory
is some numbers per utterance; units are read from the memory-mapped store as they are needed.

Shape legend: U utterances, D documents, W words (tokens), V words of the vocabulary.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from speechssl.data.label_store import LabelStore, hash_id
from speechssl.labels.cuts import read_cuts
from speechssl.labels.topic_config import WordsConfig

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MOST_LABELS = 1 << 22
"""Units read at once, at most (but for a longer document)."""
MOST_CANDIDATES = 5_000_000
"""Different words that are counted at once; beyond, the rarest are forgotten."""


def group_name(cut: Any, group: str) -> str:
    """The document that a cut belongs to. A cut without a speaker is one of its own."""
    if group == "recording":
        return _recording(cut)
    if group == "speaker":
        names = {s.speaker for s in cut.supervisions if s.speaker is not None}
        if len(names) == 1:
            return f"speaker {names.pop()}"
    return f"utterance {cut.id}"


def _recording(cut: Any) -> str:
    """A mixed or padded cut has no recording, and stands for one itself."""
    return str(getattr(cut, "recording_id", cut.id))


@dataclasses.dataclass(frozen=True)
class DocumentIndex:
    """Where the units of each utterance lie, utterances of one document together.

    Documents are ordered by a hash of their names: in a random order, which is the same whatever
    the order of the manifests.

    starts, lengths: (U,) places in the store's flat labels. bounds: (D + 1,) document d holds the
    utterances bounds[d] to bounds[d + 1]. ids: (U,) utterances, if asked for.
    unlabelled: cuts without labels. repeated: cuts that were given again.
    """

    starts: np.ndarray
    lengths: np.ndarray
    bounds: np.ndarray
    ids: list[str] | None
    unlabelled: int
    repeated: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @classmethod
    def build(
        cls, store: LabelStore, cuts: Sequence[str], group: str, *, keep_ids: bool = False
    ) -> DocumentIndex:
        """Raises ValueError if no cut has labels, or the store holds labels of utterances."""
        if not store.frame_rate_hz:
            raise ValueError(
                f"labels: found utterance labels in {store.folder}, want units per frame, as "
                "`speechssl cluster apply` makes them"
            )
        own, recording, documents = array("Q"), array("Q"), array("Q")
        firsts, counts = array("q"), array("q")
        ids: list[str] = []
        rate = store.frame_rate_hz
        window = float(store.meta.get("window_seconds", 0.025))
        for cut in read_cuts(cuts):
            own.append(hash_id(cut.id))
            recording.append(hash_id(_recording(cut)))
            documents.append(hash_id(group_name(cut, group)))
            firsts.append(round(cut.start * rate))
            counts.append(max(0, int((cut.duration - window) * rate + 1e-6) + 1))
            if keep_ids:
                ids.append(cut.id)
        keys, docs = np.array(own, np.uint64), np.array(documents, np.uint64)
        starts, lengths, labelled = _find(store, keys)
        begin, size, known = _find(store, np.array(recording, np.uint64))
        # Labels under the cut's own id begin with the cut, the recording's with the recording.
        by_recording = known & ~labelled
        first = np.array(firsts, np.int64)
        starts = np.where(by_recording, begin + np.minimum(first, size), starts)
        rest = np.minimum(np.maximum(size - first, 0), np.array(counts, np.int64))
        lengths = np.where(by_recording, rest, lengths)
        labelled |= by_recording
        order = np.lexsort((keys, docs))
        order = order[labelled[order]]
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = keys[order][1:] != keys[order][:-1]
        order = order[fresh]
        if not len(order):
            raise ValueError(
                f"cuts: found no cut with labels in {store.folder} (of {len(keys)} cuts), want "
                "those that were labelled; label these with `speechssl cluster apply`"
            )
        changes = np.flatnonzero(np.diff(docs[order])) + 1
        return cls(
            starts[order],
            lengths[order],
            np.concatenate([[0], changes, [len(order)]]).astype(np.int64),
            [ids[i] for i in order] if keep_ids else None,
            int((~labelled).sum()),
            int((~fresh).sum()),
        )


def _find(store: LabelStore, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U,) start and length in the store of each hashed id, and whether it is there."""
    if not len(store.keys):
        nothing = np.zeros(len(keys), np.int64)
        return nothing, nothing, np.zeros(len(keys), bool)
    at = np.minimum(store.keys.searchsorted(keys), len(store.keys) - 1)
    spans = np.asarray(store.spans[at])
    return spans[:, 0], spans[:, 1], store.keys[at] == keys


def words_of(
    units: np.ndarray, pieces: np.ndarray, classes: int, ngrams: Sequence[int], collapse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The words of some utterances, as numbers, and the utterance of each: (W,) and (W,).

    units: (T,) labels of all of them, one behind the other. pieces: (T,) which one's.
    The number of an n-gram is its units as digits of base `classes`, behind those of shorter ones.
    """
    units = units.astype(np.int64)
    if collapse and len(units):
        kept = np.ones(len(units), dtype=bool)
        kept[1:] = (units[1:] != units[:-1]) | (pieces[1:] != pieces[:-1])
        units, pieces = units[kept], pieces[kept]
    codes, owners, offset = [], [], 0
    for n in sorted(ngrams):
        size = max(0, len(units) - n + 1)
        code = np.zeros(size, dtype=np.int64)
        for i in range(n):
            code = code * classes + units[i : i + size]
        # A word does not reach over the end of its utterance.
        whole = pieces[:size] == pieces[n - 1 : n - 1 + size]
        codes.append(code[whole] + offset)
        owners.append(pieces[:size][whole])
        offset += classes**n
    return np.concatenate(codes), np.concatenate(owners)


def unit_sequence(code: int, classes: int, ngrams: Sequence[int]) -> tuple[int, ...]:
    """The units of a word's number: the inverse of `words_of`."""
    for n in sorted(ngrams):
        if code < classes**n:
            return tuple(code // classes**i % classes for i in reversed(range(n)))
        code -= classes**n
    raise ValueError(f"word: found number {code} too large for {classes} units and {ngrams}-grams")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """codes: (V,) sorted word numbers. documents: (V,) documents that hold each. total: D."""

    codes: np.ndarray
    documents: np.ndarray
    total: int

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def idf(self) -> np.ndarray:
        """(V,) ln((1 + D) / (1 + documents)) + 1, as scikit-learn's smoothed one."""
        return np.log((1 + self.total) / (1 + self.documents)) + 1


class Documents:
    """The documents of an index as words."""

    def __init__(
        self, store: LabelStore, index: DocumentIndex, ngrams: Sequence[int], collapse: bool
    ) -> None:
        self.store, self.index = store, index
        self.ngrams, self.collapse = sorted(ngrams), collapse
        if store.classes ** max(ngrams) >= 1 << 62:
            raise ValueError(
                f"ngrams: found {max(ngrams)} with {store.classes} units, want shorter words: "
                "the numbers of these would not fit in 64 bits"
            )

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Numbers of the documents, `size` or fewer at once, never many units."""
        bounds = self.index.bounds
        ends = np.concatenate([[0], np.cumsum(self.index.lengths)])[bounds]
        at = 0
        while at < len(self):
            most = int(np.searchsorted(ends, ends[at] + MOST_LABELS, side="right")) - 1
            behind = min(at + size, len(self), max(most, at + 1))
            yield np.arange(at, behind)
            at = behind

    def words(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(W,) words of the documents `numbers`, and for each (W,) its place in `numbers`."""
        index, flat = self.index, self.store.flat
        utterances = [np.arange(int(index.bounds[d]), int(index.bounds[d + 1])) for d in numbers]
        rows = np.concatenate(utterances)
        lengths = index.lengths[rows]
        units = [flat[s : s + n] for s, n in zip(index.starts[rows], lengths, strict=True)]
        pieces = np.repeat(np.arange(len(rows)), lengths)
        codes, owners = words_of(
            np.concatenate(units), pieces, self.store.classes, self.ngrams, self.collapse
        )
        document = np.repeat(np.arange(len(numbers)), [len(u) for u in utterances])
        return codes, document[owners]

    def counts(self, numbers: np.ndarray, codes: np.ndarray) -> csr_matrix:
        """(len(numbers), V) counts of the words whose sorted numbers are `codes`."""
        from scipy.sparse import csr_matrix

        found, document = self.words(numbers)
        column = np.minimum(codes.searchsorted(found), len(codes) - 1)
        known = codes[column] == found
        cell, times = np.unique(
            document[known] * np.int64(len(codes)) + column[known], return_counts=True
        )
        rows = np.searchsorted(cell // len(codes), np.arange(len(numbers) + 1))
        shape = (len(numbers), len(codes))
        return csr_matrix((times.astype(np.float64), cell % len(codes), rows), shape=shape)


def build_vocabulary(documents: Documents, config: WordsConfig) -> tuple[Vocabulary, dict]:
    """Count all words in one pass and keep those within the limits; also say what was left out.

    Raises ValueError if fewer than two words are left.
    """
    codes = np.empty(0, np.int64)
    table = np.empty((2, 0), np.int64)  # occurrences, documents
    forgotten = tokens = 0
    for numbers in documents.batches(8192):
        found, owner = documents.words(numbers)
        tokens += len(found)
        new, times = np.unique(found, return_counts=True)
        each = np.unique(np.searchsorted(new, found) * np.int64(len(numbers)) + owner)
        holding = np.bincount(each // len(numbers), minlength=len(new))
        both = np.concatenate([codes, new])
        codes, place = np.unique(both, return_inverse=True)
        merged = np.concatenate([table, np.stack([times, holding])], axis=1)
        table = np.stack(
            [np.bincount(place, row, minlength=len(codes)).astype(np.int64) for row in merged]
        )
        if len(codes) > MOST_CANDIDATES:
            kept = np.sort(np.argsort(-table[0], kind="stable")[: MOST_CANDIDATES // 2])
            forgotten += len(codes) - len(kept)
            codes, table = codes[kept], table[:, kept]
    total = len(documents)
    kept = np.flatnonzero(
        (table[0] >= config.min_count)
        & (table[1] >= config.min_documents)
        & (table[1] <= config.max_document_share * total)
    )
    allowed = len(kept)
    if allowed > config.max_words:
        kept = np.sort(kept[np.argsort(-table[0, kept], kind="stable")[: config.max_words]])
    if len(kept) < 2:
        raise ValueError(
            f"vocabulary: found {len(kept)} words (of {len(codes)}, in {total} documents) within "
            f"min_count {config.min_count}, min_documents {config.min_documents} and "
            f"max_document_share {config.max_document_share}, want at least 2; widen these limits"
        )
    report = {
        "documents": total,
        "tokens": tokens,
        "words_seen": len(codes) + forgotten,
        "words_forgotten": forgotten,
        "words_within_limits": allowed,
        "words": len(kept),
        "tokens_covered": int(table[0, kept].sum()) / max(tokens, 1),
    }
    return Vocabulary(codes[kept], table[1, kept], total), report
