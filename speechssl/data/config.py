"""Options of the data path. Imports no torch, so that `--help` stays fast."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """A kind of noise: noises, music, or the babble of several speakers at once."""

    cuts: str
    """Cuts of its recordings."""
    share: float = 1.0
    """How often it is drawn, against the shares of the other kinds."""
    ratio_db: tuple[float, float] = (0.0, 15.0)
    """Range of the energy of the utterance over that of the added noise, in dB."""
    count: tuple[int, int] = (1, 1)
    """Fewest and most recordings that are added together; their sum has the ratio. Babble of
    MUSAN's speech: (3, 7)."""

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise ValueError(f"noises.share: found {self.share}, want more than 0")
        low, high = self.ratio_db
        if low > high:
            raise ValueError(f"noises.ratio_db: found ({low}, {high}), want (low, high)")
        fewest, most = self.count
        if not 1 <= fewest <= most:
            raise ValueError(f"noises.count: found ({fewest}, {most}), want (fewest, most), from 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """WavLM's corruption: some utterances get another one, or noise, on top of a part of them."""

    probability: float = 0.2
    """Share of utterances that are mixed."""
    noise_probability: float = 0.0
    """Share of the mixed ones that get noise instead of speech (WavLM Base 0, Base+ 0.1)."""
    speech_ratio_db: tuple[float, float] = (-5.0, 5.0)
    """Range of the energy of the utterance over that of the added speech, in dB."""
    noise_ratio_db: tuple[float, float] = (-5.0, 20.0)
    """Range of the energy of the utterance over that of the added noise, in dB."""
    min_overlap: float = 0.0
    """Shortest mixed part, as a share of the utterance; 1 with max_overlap 1: all of it, as far as
    what is added is as long."""
    max_overlap: float = 0.5
    """Longest mixed part, as a share of the utterance."""
    noise_cuts: str | None = None
    """Cuts of noise recordings; these, or noises, are needed when noise_probability is above 0."""
    noises: list[NoiseConfig] = dataclasses.field(default_factory=list)
    """Kinds of noise in place of noise_cuts and noise_ratio_db, each with its own ratio and number
    of recordings at once; an utterance gets one kind."""
    rir_cuts: str | None = None
    """Cuts of room impulse responses; needed when rir_probability is above 0."""
    rir_probability: float = 0.0
    """Share of all utterances whose corrupted view is reverberated before any mixing."""

    def __post_init__(self) -> None:
        shares = ("probability", "noise_probability", "rir_probability")
        for name in (*shares, "min_overlap", "max_overlap"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"mixing.{name}: found {value}, want a number in [0, 1]")
        for name in ("speech_ratio_db", "noise_ratio_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"mixing.{name}: found ({low}, {high}), want (low, high)")
        if self.min_overlap > self.max_overlap:
            raise ValueError(
                f"mixing.min_overlap: found {self.min_overlap}, want at most max_overlap, "
                f"{self.max_overlap}"
            )
        if self.noises and (self.noise_cuts is not None or not self.noise_probability):
            raise ValueError(
                f"mixing.noises: found {len(self.noises)} with noise_cuts {self.noise_cuts!r} and "
                f"noise_probability {self.noise_probability}, want no noise_cuts beside them, and "
                "a probability above 0"
            )
        for share, cuts in (("noise_probability", "noise_cuts"), ("rir_probability", "rir_cuts")):
            given = self.noises if cuts == "noise_cuts" else None
            if getattr(self, share) > 0 and getattr(self, cuts) is None and not given:
                raise ValueError(
                    f"mixing.{cuts}: found none, but mixing.{share} is {getattr(self, share)}; "
                    f"give a cuts_*.jsonl.gz, or set mixing.{share} to 0"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to read, and how to make batches of it."""

    train: list[str] = dataclasses.field(default_factory=list)
    """Cuts to train on: cuts_*.jsonl.gz files, or folders of Lhotse Shar."""
    valid: list[str] = dataclasses.field(default_factory=list)
    """Cuts to validate on, in the same forms."""
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """Target name -> folder of a label store."""
    tokenizer: str | None = None
    """A tokenizer.json; adds the targets "text" and "text_lengths" made from the transcripts.
    Utterances longer than max_seconds are then dropped, never cropped."""
    untranscribed: Literal["skip", "keep"] = "skip"
    """With a tokenizer, cuts without transcript: skipped as unusable, or kept with an empty one,
    for heads that learn something else of them too."""
    classes: str | None = None
    """Folder of a label store of utterance labels; adds the target "classes". Fine-tuning makes it
    of head.field."""
    batch_seconds: float = 160.0
    """Effective batch: audio seconds per optimiser update, over all ranks."""
    max_batch_seconds: float = 40.0
    """Audio seconds, padding included, that one rank takes at once; sets the memory needed."""
    min_seconds: float = 0.4
    """Shorter cuts are left out of training."""
    max_seconds: float = 15.6
    """Longer cuts are cropped or dropped in training."""
    long: Literal["crop", "drop"] = "crop"
    """What becomes of cuts above max_seconds: a random crop, or nothing."""
    num_workers: int = 2
    """Reading processes per rank; 0 reads in the training process."""
    prefetch: int = 2
    """Updates that each reading process keeps ready."""
    seed: int = 0
    """Order of the corpus, crops and mixing follow from it."""
    window: int = 20000
    """Cuts shuffled and sorted by length together; larger is better shuffled, less padded, and
    costs a longer start."""
    buckets: int = 4
    """An update takes one group of utterances of like length from each of so many quantiles of
    length. 1: all utterances of an update are about equally long; more: each update holds the
    whole range, and micro-batches of batch_seconds / buckets are padded least."""
    max_unreadable: float = 0.05
    """The run stops when more than this share of the utterances cannot be used."""
    speeds: list[float] = dataclasses.field(default_factory=list)
    """In training each utterance is resampled to a speed drawn from these, anew in each epoch;
    [0.9, 1.0, 1.1] as in Ko et al., 2015. A crop has max_seconds at its speed. Adds the target
    "speeds": thousandths, (B,). Not with labels, whose times it would shift."""
    mixing: MixingConfig | None = None
    """Adds the view "mixed": corrupted waves; the labels stay those of the clean ones."""
    mixtures: list[str] = dataclasses.field(default_factory=list)
    """Cuts of ready mixtures in place of mixing: the view "mixed" of a cut, to train or to validate
    on, is the one here that has its length and its id, or its id in the field mixture_of; as
    benchmarks of separation have them."""

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "max_batch_seconds", "max_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, want more than 0")
        if not 0 <= self.min_seconds < self.max_seconds:
            raise ValueError(
                f"min_seconds: found {self.min_seconds}, want 0 or more and less than "
                f"max_seconds, {self.max_seconds}"
            )
        if self.max_batch_seconds < self.max_seconds:
            raise ValueError(
                f"max_batch_seconds: found {self.max_batch_seconds}, want at least max_seconds, "
                f"{self.max_seconds}: one batch has to hold the longest utterance"
            )
        if self.long not in ("crop", "drop"):
            raise ValueError(f"long: found {self.long!r}, want crop or drop")
        if self.untranscribed not in ("skip", "keep"):
            raise ValueError(f"untranscribed: found {self.untranscribed!r}, want skip or keep")
        for name in ("window", "buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 1 or more")
        for name in ("num_workers", "prefetch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, want 0 or more")
        if any(not 0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"speeds: found {self.speeds}, want numbers from 0.5 to 2")
        if self.speeds and self.labels:
            raise ValueError(
                f"speeds: found {self.speeds} with labels, whose times they would shift, want them "
                "only for training on transcripts or classes; leave out one of them"
            )
        if self.mixtures and (self.mixing or self.speeds):
            raise ValueError(
                f"mixtures: found {self.mixtures} with mixing or speeds, want ready mixtures as "
                "they are, or others made anew of mixing; leave out one of them"
            )
        if self.classes and "classes" in self.labels:
            raise ValueError("classes: found a store there and in labels, want one of them")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable: found {self.max_unreadable}, want 0 to 1")
