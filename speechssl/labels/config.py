"""Options of `speechssl cluster`. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """Options of every action that reads audio."""

    cuts: list[str]
    """Cuts to read: cuts_*.jsonl.gz files, as '[a,b]'."""
    max_batch_seconds: float = 100.0
    """Audio seconds, padding included, that go through the features at once."""
    max_seconds: float | None = None
    """Leave out longer utterances; default: take all, long ones in pieces of 100 s."""
    num_workers: int = 0
    """Reading processes per rank; 0 reads in this process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where features and distances are computed."""
    bf16: bool = False
    """Run the encoder in bfloat16: faster on hardware that has it, labels differ slightly."""

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ValueError("cuts: found none, want at least one cuts_*.jsonl.gz")
        if self.max_batch_seconds <= 0:
            raise ValueError(f"max_batch_seconds: found {self.max_batch_seconds}, want above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig(ReadingConfig):
    """Options of `cluster fit`."""

    output: str
    """Folder for centroids.npy, clusters.json and fit.json."""
    features: Literal["mfcc", "logmel", "encoder"] = "mfcc"
    """What is clustered; a model implies encoder."""
    cmvn: bool = False
    """Bring MFCC or log-mel to mean 0 and variance 1 over each utterance first: clusters then
    follow sounds rather than loudness and channel (published HuBERT does not)."""
    model: str | None = None
    """Model whose layer is clustered: a folder with model.safetensors, or a public checkpoint."""
    layer: int | None = None
    """Layer of the model, counted from 1; 0 is the transformer's input."""
    classes: int = 100
    """Number of clusters."""
    sample_frames: int = 500_000
    """Frames kept for k-means; with the features' width it sets the memory, whatever the corpus."""
    half: bool = False
    """Keep the sampled frames as float16: half the memory."""
    normalise: Literal["none", "standardise", "whiten"] = "none"
    """Transformation of the features before clustering; saved with the centroids."""
    whiten_dim: int = 0
    """Directions that whitening keeps; 0 for all."""
    seed: int = 0
    """Sample and clusters follow from it."""
    restarts: int = 1
    """Starts tried; the best is refined."""
    max_iterations: int = 50
    """Passes over the sample at most."""
    tolerance: float = 1e-4
    """Stop when a pass lowers the inertia by less than this fraction."""
    batch_points: int = 0
    """Frames per mini-batch; 0 for full passes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.layer is None:
            raise ValueError("layer: found none, want the layer of the model, such as 6")
        if self.model is None and (self.features == "encoder" or self.layer is not None):
            raise ValueError("model: found none, want the model whose layer is to be clustered")
        if self.cmvn and self.model is not None:
            raise ValueError("cmvn: found true with a model, want it with mfcc or logmel only")
        if self.sample_frames < self.classes:
            raise ValueError(
                f"sample_frames: found {self.sample_frames}, want at least one per class "
                f"({self.classes}); 50 to 1000 per class are usual"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApplyConfig(ReadingConfig):
    """Options of `cluster apply`."""

    clusters: str
    """Folder of `cluster fit`."""
    output: str
    """Folder of the label store; may hold labels already, those are kept."""
    model: str | None = None
    """The model's place, if it has moved since the fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Options of `cluster quality`."""

    labels: str
    """Folder of a label store."""
    cuts: list[str]
    """Cuts with phone alignments."""
    output: str
    """JSON file to write; a picture goes beside it if matplotlib is installed."""
    rate_hz: float = 0.0
    """Measure labels at this rate, as an encoder of 25 frames per second reads labels at 100; 0:
    at their own."""
    alignment: str = "phone"
    """Name of the alignment in the supervisions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersConfig(ReadingConfig):
    """Options of `cluster layers`."""

    model: str
    """Model whose layers are compared."""
    output: str
    """JSON file to write."""
    classes: int = 100
    """Clusters per layer."""
    layers: list[int] | None = None
    """Layers to compare; default all, 0 included."""
    sample_frames: int = 30_000
    """Frames with a phone that are clustered; the same for every layer."""
    seed: int = 0
    """Sample and clusters follow from it."""
    alignment: str = "phone"
    """Name of the alignment in the supervisions."""
