"""Topics of documents of units: latent Dirichlet allocation, learnt by online variational Bayes.

    topics.json     topics, unit_classes, ngrams, collapse, weighting, group, priors, what was read,
                    topics_hash
    components.npy  (topics, words) float64, the variational Dirichlet of each topic's words
    vocabulary.npy  (2, words) int64: word numbers, sorted, and the documents that hold each

Everything is plain arrays and JSON.

Source: Blei et al. 2003, "Latent Dirichlet Allocation"; Hoffman et al. 2010, "Online Learning for
Latent Dirichlet Allocation", through scikit-learn's LatentDirichletAllocation. Over units as in
Maekaku et al. 2024, "HuBERTopic: Enhancing Semantic Representation of HuBERT through
Self-supervision utilizing Topic Model". The numbers of topics and n-grams of that paper are not
known to us: they are options.

Shape legend: B documents of a batch, D all of them, N topics, V words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechssl.labels.topic_documents import Documents, Vocabulary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import LatentDirichletAllocation

FORMAT = 1
DECIDING = ("unit_classes", "ngrams", "collapse", "weighting", "topic_prior", "word_prior")
"""What of topics.json, beside the arrays, decides the topic of a document."""


def require_sklearn() -> None:
    """Raises ValueError that says what to install."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ValueError(
            "topics: found no scikit-learn, want it for latent Dirichlet allocation; "
            "pip install 'speechssl[topics]'"
        ) from None


@dataclasses.dataclass(frozen=True)
class TopicModel:
    """components: (N, V) float64. info: the content of topics.json."""

    components: np.ndarray
    vocabulary: Vocabulary
    info: Mapping[str, Any]

    @property
    def topics(self) -> int:
        return len(self.components)

    @property
    def hash(self) -> str:
        """Identity of the topics that it gives."""
        digest = hashlib.sha256()
        digest.update(json.dumps({k: self.info[k] for k in DECIDING}, sort_keys=True).encode())
        for table in (self.components.astype("<f8"), *_tables(self.vocabulary)):
            digest.update(np.ascontiguousarray(table).tobytes())
        return digest.hexdigest()[:32]

    @property
    def word_shares(self) -> np.ndarray:
        """(N, V) p(word | topic)."""
        return self.components / self.components.sum(1, keepdims=True)

    def weighted(self, counts: csr_matrix) -> csr_matrix:
        """(B, V) counts as the model reads them."""
        return weigh(counts, self.vocabulary, self.info["weighting"])

    def posteriors(self, counts: csr_matrix, jobs: int = 1) -> np.ndarray:
        """(B, V) counts of words -> (B, N) mean shares of the topics, each row of sum 1.

        A document without a word gets the prior: all topics alike.
        """
        model = estimator(self.components, self.info, jobs=jobs)
        return np.asarray(model.transform(self.weighted(counts)))


def weigh(counts: csr_matrix, vocabulary: Vocabulary, weighting: str) -> csr_matrix:
    """Counts, or counts times idf, scaled so that each document keeps its number of words."""
    if weighting == "counts":
        return counts
    from scipy.sparse import csr_matrix, diags

    weighted = counts @ diags(vocabulary.idf)
    before, after = (np.asarray(x.sum(1)).ravel() for x in (counts, weighted))
    return csr_matrix(diags(before / np.where(after > 0, after, 1.0)) @ weighted)


def estimator(
    components: np.ndarray,
    info: Mapping[str, Any],
    *,
    jobs: int = 1,
    batch: int = 1,
    batches_done: int = 0,
    seed: Any = None,
    **options: Any,
) -> LatentDirichletAllocation:
    """scikit-learn's estimator in the state that these components tell, to transform or to go on.

    A fit makes one anew for each pass, so that a resumed fit is equal bit by bit.
    """
    from scipy.special import psi
    from sklearn.decomposition import LatentDirichletAllocation

    model: Any = LatentDirichletAllocation(
        n_components=len(components),
        doc_topic_prior=info["topic_prior"],
        topic_word_prior=info["word_prior"],
        batch_size=batch,
        n_jobs=None if jobs == 1 else jobs,
        **options,
    )
    # These are the documented attributes of a fitted estimator.
    model.components_ = np.array(components, dtype=np.float64)
    model.exp_dirichlet_component_ = np.exp(
        psi(model.components_) - psi(model.components_.sum(1))[:, None]
    )
    model.doc_topic_prior_, model.topic_word_prior_ = info["topic_prior"], info["word_prior"]
    model.n_features_in_ = components.shape[1]
    model.n_batch_iter_ = 1 + batches_done
    model.n_iter_ = 0
    model.random_state_ = np.random.RandomState(seed)
    return model


def topic_labels(
    model: TopicModel, documents: Documents, batch: int, jobs: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(D,) likeliest topic of each document, -1 without words; (D,) entropy of its posterior."""
    labels = np.full(len(documents), -1, np.int32)
    entropy = np.zeros(len(documents), np.float32)
    for numbers in documents.batches(batch):
        counts = documents.counts(numbers, model.vocabulary.codes)
        found = model.posteriors(counts, jobs)
        known = np.diff(counts.indptr) > 0
        labels[numbers] = np.where(known, found.argmax(1), -1)
        entropy[numbers] = -(found * np.log(np.maximum(found, 1e-300))).sum(1)
    return labels, entropy


def save_topics(folder: str | Path, model: TopicModel) -> None:
    """Write the files, topics.json last: a folder that has it is complete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save(folder / "components.npy", model.components.astype("<f8"))
    _save(folder / "vocabulary.npy", np.stack(_tables(model.vocabulary)))
    info = {
        **model.info,
        "format": FORMAT,
        "topics": model.topics,
        "words": len(model.vocabulary),
        "documents": model.vocabulary.total,
        "topics_hash": model.hash,
    }
    temporary = folder / "topics.json.tmp"
    temporary.write_text(json.dumps(info, indent=1))
    os.replace(temporary, folder / "topics.json")


def load_topics(folder: str | Path) -> TopicModel:
    """Open a folder of `save_topics`.

    Raises `ValueError` if it is absent or unfinished, or not what its hash says.
    """
    folder = Path(folder)
    path = folder / "topics.json"
    if not path.is_file():
        raise ValueError(
            f"topics: found no topics.json in {folder}, want the output of `speechssl topics fit`; "
            "if that was interrupted, run it again"
        )
    info = json.loads(path.read_text())
    if info.get("format") != FORMAT:
        raise ValueError(f"{path}: found format {info.get('format')}, want {FORMAT}")
    codes, documents = np.load(folder / "vocabulary.npy", allow_pickle=False)
    components = np.load(folder / "components.npy", allow_pickle=False)
    model = TopicModel(components, Vocabulary(codes, documents, info["documents"]), info)
    if model.hash != info["topics_hash"]:
        raise ValueError(
            f"{folder}: found arrays of hash {model.hash}, want {info['topics_hash']} as "
            "topics.json says; the files are of different fits, or damaged"
        )
    return model


def _tables(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    return vocabulary.codes.astype("<i8"), vocabulary.documents.astype("<i8")


def _save(path: Path, array: np.ndarray) -> None:
    temporary = path.with_suffix(".npy.tmp")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)
