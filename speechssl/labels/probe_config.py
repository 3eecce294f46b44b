"""Options of `speechssl probe`. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import dataclasses
from typing import Literal

from speechssl.labels.config import ReadingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig(ReadingConfig):
    """Options of `speechssl probe`."""

    output: str
    """Folder for probe.json, and for the cuts that were probed."""
    model: str | None = None
    """Upstream: a run's folder with model.safetensors, or a public model."""
    features: Literal["mfcc", "logmel"] | None = None
    """Upstream: a baseline without a model; it counts as layer 0."""
    random: str | None = None
    """Upstream: YAML of a training run, whose encoder is built with random weights."""
    cmvn: bool = False
    """Bring the baseline to mean 0 and variance 1 over each utterance."""
    layers: list[int] | None = None
    """Layers to probe; default all, 0 (the transformer's input) included."""
    speakers: int = 200
    """Speakers at most; an utterance without one counts as a speaker."""
    utterances: int = 20
    """Utterances at most of each speaker."""
    sample_frames: int = 20_000
    """Frames at most that are kept of each layer; with its width they set the memory."""
    classes: int = 100
    """Clusters of the k-means behind PNMI."""
    l2: list[float] = dataclasses.field(default_factory=lambda: [1e-1, 1e-2, 1e-3, 1e-4])
    """Penalties tried for the classifiers; the one that does best on held-out data is taken."""
    iterations: int = 100
    """Iterations of L-BFGS for each of them."""
    seed: int = 0
    """Choice of utterances and frames, their parts and clusters follow from it."""
    random_seed: int = 0
    """Seed of the random weights."""
    alignment: str = "phone"
    """Name of the alignment in the supervisions."""
    word_alignment: str = "word"
    """Name of that of words."""
    segments: int = 5000
    """Phones, and words, at most whose means are compared with their identity."""
    words: int = 500
    """Different words of these at most, the commonest."""
    abx: Literal["cosine", "angular"] | None = None
    """Also measure ABX discrimination of phones by this distance between frames: error within and
    across speakers; default: do not."""
    abx_cells: int = 2000
    """Choices of a context, a speaker and two phones at most, within and across each."""
    abx_tokens: int = 5
    """Tokens at most of each phone, context and speaker."""
    abx_speakers: int = 3
    """Across: other speakers at most whose phones each choice is compared with."""
    abx_labels: str | None = None
    """Label store whose units are measured beside the layers: 0 between equal ones, else 1."""
    abx_clusters: str | None = None
    """Folder of `cluster fit` that made those labels: the distance is that of its centroids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("model", "features", "random") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"model, features, random: found {' and '.join(given) or 'none'}, want one upstream"
            )
        if self.features is not None and self.layers is not None:
            raise ValueError("layers: found some with features, want none: a baseline has one")
        if self.features is None and self.cmvn:
            raise ValueError("cmvn: found true without features, want it with mfcc or logmel only")
        if self.abx is None and (self.abx_labels or self.abx_clusters):
            raise ValueError("abx_labels, abx_clusters: found some, want --abx with a distance too")
        if self.abx_clusters is not None and self.abx_labels is None:
            raise ValueError("abx_labels: found none with abx_clusters, want the labels it made")
        counts = ("speakers", "utterances", "sample_frames", "classes", "iterations", "segments",
                  "words")  # fmt: skip
        for name in (*counts, "abx_cells", "abx_tokens", "abx_speakers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 1 or more")
        if not self.l2 or min(self.l2) < 0:
            raise ValueError(f"l2: found {self.l2}, want penalties of 0 or more")
