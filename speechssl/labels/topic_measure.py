"""What topics are worth: coherence of their words, and what of the speech they tell.

Association is normalised mutual information of topics and a field of the manifest, beside what
random re-assignments of the same topics reach: with many values, chance alone tells much.

Source: Bouma 2009, "Normalized (Pointwise) Mutual Information in Collocation Extraction"; Lau et
al. 2014, "Machine Reading Tea Leaves", for coherence. Strehl and Ghosh 2002 for the measure.

Shape legend: D documents, U utterances, N topics, V words, W words measured, A values of a field.
"""

from __future__ import annotations

import dataclasses
import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from speechssl.labels.quality import entropy
from speechssl.labels.topic_documents import Documents
from speechssl.labels.topic_model import TopicModel

FIELDS = ("speaker", "gender", "language", "emotion", "theme", "intent", "corpus", "words")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def top_words(model: TopicModel, number: int) -> np.ndarray:
    """(N, number) columns of the most probable words of each topic, the first first."""
    return np.argsort(-model.components, axis=1, kind="stable")[:, :number]


def together(documents: Documents, codes: np.ndarray, batch: int) -> np.ndarray:
    """(W, W) documents that hold both words of each pair; on the diagonal, those of each word."""
    order = np.argsort(codes)
    found = np.zeros((len(codes), len(codes)))
    for numbers in documents.batches(batch):
        held = documents.counts(numbers, codes[order]).astype(bool).astype(np.float64)
        found += (held.T @ held).toarray()
    back = np.argsort(order)
    return found[np.ix_(back, back)]


def npmi(both: np.ndarray, total: int) -> np.ndarray:
    """Normalised pointwise mutual information of (W, W) counts of documents, of `total`.

    1: always together; 0: as chance has it; -1: never together. Words of all documents: 0.
    """
    p = both / total
    single = np.diag(p)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(p / np.outer(single, single)) / -np.log(p)
    return np.where(p == 0, -1.0, np.where(p == 1, 0.0, value))


def coherence(
    model: TopicModel, documents: Documents, words: int, batch: int = 4096
) -> tuple[np.ndarray, float]:
    """(N,) mean NPMI of all pairs of each topic's most probable words; and that of all pairs of
    words that are such a word of any topic: what topics are to exceed."""
    tops = top_words(model, min(words, len(model.vocabulary)))
    columns, place = np.unique(tops, return_inverse=True)
    pairs = npmi(together(documents, model.vocabulary.codes[columns], batch), len(documents))
    upper = np.triu_indices(tops.shape[1], 1)
    each = [pairs[np.ix_(own, own)][upper].mean() for own in place.reshape(tops.shape)]
    among = pairs[np.triu_indices(len(columns), 1)]
    return np.array(each), float(among.mean())


def mutual_information(joint: np.ndarray) -> float:
    """I(topic; value) of counts (N, A), in nats."""
    return entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint)


def nmi(joint: np.ndarray) -> float:
    """2 I / (H(topic) + H(value)), 0 to 1. NaN if neither varies."""
    both = entropy(joint.sum(1)) + entropy(joint.sum(0))
    return 2 * mutual_information(joint) / both if both else float("nan")


@dataclasses.dataclass
class Field:
    """The values of a field, one pair per utterance and value: words are several per utterance.

    documents: document of each pair. values: number of each one's value in `names`.
    """

    documents: array[int] = dataclasses.field(default_factory=lambda: array("q"))
    values: array[int] = dataclasses.field(default_factory=lambda: array("q"))
    names: dict[str, int] = dataclasses.field(default_factory=dict)
    utterances: int = 0

    def add(self, document: int, found: Iterable[str]) -> None:
        before = len(self.values)
        for name in found:
            self.documents.append(document)
            self.values.append(self.names.setdefault(name, len(self.names)))
        self.utterances += len(self.values) > before

    def without_rare(self, least: int) -> Field:
        """Only the values of `least` utterances or more."""
        values = np.asarray(self.values)
        kept = np.bincount(values, minlength=len(self.names)) >= least
        number = np.cumsum(kept) - 1
        names = {name: int(number[old]) for name, old in self.names.items() if kept[old]}
        pairs = kept[values]
        documents = array("q", np.asarray(self.documents)[pairs].tobytes())
        return Field(documents, array("q", number[values[pairs]].tobytes()), names, self.utterances)

    def joint(self, topic_of: np.ndarray, topics: int) -> np.ndarray:
        """(N, A) counts, given the topic of each document."""
        size = len(self.names)
        pairs = topic_of[np.asarray(self.documents)] * size + np.asarray(self.values)
        return np.bincount(pairs, minlength=topics * size).reshape(topics, size)


def field_values(cut: Any, name: str) -> list[str]:
    """The values of a field of a cut's supervisions: none if there is none."""
    found: list[str] = []
    for supervision in cut.supervisions:
        if name == "words":
            found += sorted({w.lower() for w in _WORD.findall(supervision.text or "")})
            continue
        own = name in ("speaker", "gender", "language")
        custom = supervision.custom or {}
        value = getattr(supervision, name) if own else custom.get(name)
        if isinstance(value, str | int | bool):
            found.append(str(value))
        elif value is not None:
            raise ValueError(
                f"fields: found {name} of {cut.id!r} to be a {type(value).__name__}, want a text "
                "or a whole number; leave it out"
            )
    return list(dict.fromkeys(found))


def shuffles(strata: np.ndarray, number: int, seed: int) -> Iterable[np.ndarray]:
    """Random orders of (D,) documents, each moved only within its stratum."""
    random = np.random.default_rng(seed)
    places = np.argsort(strata, kind="stable")
    for _ in range(number):
        order = np.empty(len(strata), np.int64)
        order[places] = np.lexsort((random.random(len(strata)), strata))
        yield order


def association(
    field: Field,
    topic_of: np.ndarray,
    topics: int,
    *,
    strata: np.ndarray,
    permutations: int,
    seed: int = 0,
) -> dict[str, Any]:
    """NMI of topics and a field, its permutation baseline, and how far it lies above that.

    topic_of: (D,) topic of each document: what is shuffled, since the utterances of one document
    have one topic. strata: (D,) documents are only exchanged with others of equal number.
    explained: I / H(value), the share of the field that the topic tells.
    z: distance to the baseline's mean in its deviations, None if chance never varies.
    p: share of assignments, the real one included, that reach the NMI.
    """
    # Only among documents that have the field: those without may have quite other topics.
    present, place = np.unique(np.asarray(field.documents), return_inverse=True)
    own = dataclasses.replace(field, documents=array("q", place.astype(np.int64).tobytes()))
    topic_of = topic_of[present]
    joint = own.joint(topic_of, topics)
    found = nmi(joint)
    orders = shuffles(strata[present], permutations, seed)
    chance = np.array([nmi(own.joint(topic_of[order], topics)) for order in orders])
    mean, deviation = float(chance.mean()), float(chance.std(ddof=1))
    varied = entropy(joint.sum(0))
    return {
        "utterances": field.utterances,
        "values": len(field.names),
        "nmi": found,
        "baseline": mean,
        "baseline_deviation": deviation,
        "excess": found - mean,
        # A deviation of rounding errors is none: all assignments are alike.
        "z": (found - mean) / deviation if deviation > 1e-12 else None,
        "p": float((1 + (chance >= found - 1e-12).sum()) / (1 + len(chance))),
        "explained": mutual_information(joint) / varied if varied else float("nan"),
    }


def listing(joint: np.ndarray, names: Sequence[str], number: int) -> list[list[dict[str, Any]]]:
    """For each topic, the values that are most over-represented in it, with counts.

    Ordered by the value's part of the mutual information, p(a, t) log(p(a | t) / p(a)): common
    values and telling ones; only those above chance.
    """
    total = max(joint.sum(), 1)
    share = joint / total
    expected = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(joint > 0, share / expected, 0.0)
        gain = np.where(lift > 1, share * np.log(lift), 0.0)
    result = []
    for topic, order in enumerate(np.argsort(-gain, axis=1, kind="stable")):
        kept = [a for a in order[:number] if gain[topic, a] > 0]
        result.append(
            [
                {"value": names[a], "count": int(joint[topic, a]), "lift": float(lift[topic, a])}
                for a in kept
            ]
        )
    return result


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Associations as text, the strongest first."""
    head = f"{'field':<12} {'NMI':>7} {'chance':>16} {'excess':>7} {'z':>8} {'p':>7}"
    lines = [f"{head} {'explained':>9} {'values':>7} {'utterances':>10}"]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["excess"]):
        z = "-" if row["z"] is None else f"{row['z']:.1f}"
        chance = f"{row['baseline']:.4f} ± {row['baseline_deviation']:.4f}"
        explained = "-" if math.isnan(row["explained"]) else f"{row['explained']:.3f}"
        lines.append(
            f"{name:<12} {row['nmi']:7.4f} {chance:>16} {row['excess']:7.4f} {z:>8} "
            f"{row['p']:7.4f} {explained:>9} {row['values']:>7} {row['utterances']:>10}"
        )
    return "\n".join(lines)
