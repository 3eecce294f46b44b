"""Options of `speechssl topics`. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import dataclasses
from typing import Literal

Group = Literal["utterance", "recording", "speaker"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentsConfig:
    """What every action reads."""

    labels: str
    """Folder of the label store whose units are the text (`speechssl cluster apply`)."""
    cuts: list[str]
    """Cuts to take from it: cuts_*.jsonl.gz files, as '[a,b]'."""

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ValueError("cuts: found none, want at least one cuts_*.jsonl.gz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """How units become words, and which words count."""

    ngrams: list[int] = dataclasses.field(default_factory=lambda: [1])
    """Lengths of the unit sequences that are words: [1], or [1,2,3]."""
    collapse: bool = True
    """Take a run of equal units for one."""
    weighting: Literal["counts", "tfidf"] = "counts"
    """tfidf: words of few documents weigh more; a document keeps its number of words."""
    min_count: int = 5
    """Leave out words that occur less often."""
    min_documents: int = 2
    """Leave out words of fewer documents."""
    max_document_share: float = 1.0
    """Leave out words of a larger share of the documents, such as 0.5: they tell none apart."""
    max_words: int = 20_000
    """Keep only the most frequent ones of the rest."""

    def __post_init__(self) -> None:
        if not self.ngrams or min(self.ngrams) < 1 or len(set(self.ngrams)) < len(self.ngrams):
            raise ValueError(f"ngrams: found {self.ngrams}, want different lengths from 1")
        if not 0 < self.max_document_share <= 1:
            raise ValueError(
                f"max_document_share: found {self.max_document_share}, want above 0, at most 1"
            )
        for name in ("min_count", "min_documents", "max_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How topics are learnt: online variational Bayes (Hoffman et al., 2010)."""

    topics: int = 50
    """Number of topics."""
    passes: int = 10
    """Passes over the documents; a million want one or two."""
    batch_documents: int = 256
    """Documents per mini-batch."""
    topic_prior: float | None = None
    """Dirichlet prior of a document's topics; small: few of them. Default: 1 / topics."""
    word_prior: float | None = None
    """Dirichlet prior of a topic's words. Default: 1 / topics."""
    learning_decay: float = 0.7
    """Mini-batch t weighs (learning_offset + t) ** -learning_decay; above 0.5, at most 1."""
    learning_offset: float = 10.0
    """Larger: the first mini-batches weigh less."""
    repairs: int = 3
    """How often empty topics are begun anew from documents of the largest ones."""
    min_topic_documents: int = 1
    """A topic with fewer documents counts as empty."""
    jobs: int = 1
    """Processes for the documents of a mini-batch. Another number gives slightly other topics."""
    seed: int = 0
    """Topics follow from it."""

    def __post_init__(self) -> None:
        if self.topics < 2:
            raise ValueError(f"topics: found {self.topics}, want 2 or more")
        for name in ("passes", "batch_documents", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 1 or more")
        if not 0.5 < self.learning_decay <= 1:
            raise ValueError(
                f"learning_decay: found {self.learning_decay}, want above 0.5, at most 1"
            )
        for name in ("learning_offset", "repairs", "min_topic_documents"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 0 or more")
        for name in ("topic_prior", "word_prior"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: found {value}, want above 0, or none for 1 / topics")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig(DocumentsConfig, WordsConfig, LearningConfig):
    """Options of `topics fit`."""

    output: str
    """Folder for the model (topics.json and its arrays) and fit.json."""
    group: Group = "utterance"
    """What is one document: an utterance, or all of a recording or of a speaker. Topics of short
    utterances are mostly those of voice and channel; more text makes more of the content."""
    coherence_words: int = 10
    """Most probable words of a topic whose coherence is measured."""

    def __post_init__(self) -> None:
        for base in (DocumentsConfig, WordsConfig, LearningConfig):
            base.__post_init__(self)
        if self.coherence_words < 2:
            raise ValueError(f"coherence_words: found {self.coherence_words}, want 2 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApplyConfig(DocumentsConfig):
    """Options of `topics apply`."""

    topics: str
    """Folder of `topics fit`."""
    output: str
    """Folder of the label store with each utterance's topic; labels that it holds are kept."""
    posteriors: str | None = None
    """Also write each utterance's posterior of all topics, to a label store in this folder."""
    group: Group | None = None
    """What is one document; all utterances of one get its topic. Default: as in the fit."""
    batch_documents: int = 256
    """Documents at once."""
    jobs: int = 1
    """Processes for the documents of a batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_documents", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Options of `topics show`."""

    topics: str
    """Folder of the label store of `topics apply`."""
    cuts: list[str]
    """Cuts whose supervisions tell speaker, gender, language and so on."""
    output: str
    """JSON file to write; a picture (SVG) goes beside it."""
    fields: list[str] = dataclasses.field(default_factory=list)
    """What to compare topics with: fields of the supervisions, and words (of the texts). Default:
    speaker, gender, language, emotion, theme, intent, corpus and words, those that there are."""
    within: str | None = None
    """Shuffle topics only among utterances that agree in this field, such as corpus: the baseline
    then holds what that field explains."""
    permutations: int = 200
    """Random re-assignments of the topics that make the baseline."""
    min_word_utterances: int = 5
    """Leave out words of fewer utterances."""
    listed: int = 5
    """Values of each field, and words, that are listed for a topic."""
    seed: int = 0
    """The baseline follows from it."""

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ValueError("cuts: found none, want at least one cuts_*.jsonl.gz")
        if self.permutations < 2:
            raise ValueError(f"permutations: found {self.permutations}, want 2 or more")
