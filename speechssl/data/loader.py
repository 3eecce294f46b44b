"""Sources of batches: endless updates for training, and single passes over cuts.

Audio is read in worker processes, an update (or a batch of a pass) at a time; what they yield
depends on neither their number nor their speed.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from speechssl import dist
from speechssl.contract import Batch, Update
from speechssl.data.collate import Collator, Result, Task
from speechssl.data.config import DataConfig
from speechssl.data.index import SAMPLE_RATE, CutIndices, CutRecord
from speechssl.data.label_store import LabelStore
from speechssl.data.mixing import Mixer
from speechssl.data.mixtures import Mixtures
from speechssl.data.sampler import Plan, UpdateSampler, padded_samples, split_batches
from speechssl.data.text import Tokenizer
from speechssl.data.workers import read_in_workers

log = logging.getLogger(__name__)

_PASS_WINDOW = 20000
_JUDGED_FROM = 200  # utterances, before a share of unusable ones ends a run


def _results(
    collator: Collator, items: Iterable[tuple[Task, Any]], num_workers: int, prefetch: int
) -> Iterator[tuple[Result, Any]]:
    if num_workers == 0:
        for task, rest in items:
            yield collator(task), rest
        return
    yield from read_in_workers(collator, items, num_workers, max(1, prefetch))


class SkipCounter:
    """Counts of what was read, skipped and converted; ends a run that skips too much."""

    def __init__(self, max_unreadable: float = 1.0, keep: int | None = None) -> None:
        self.max_unreadable = max_unreadable
        self.num_read = 0
        self.skipped: deque[str] = deque(maxlen=keep)
        self.num_skipped = 0
        self.conversions: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        self.num_read += result.num_read
        self.num_skipped += len(result.skipped)
        self.skipped += result.skipped
        for what, count in result.conversions.items():
            if what not in self.conversions:
                log.info("some audio needs %s; this costs time at every read", what)
            self.conversions[what] += count
        seen = self.num_read + self.num_skipped
        if seen >= _JUDGED_FROM and self.num_skipped > self.max_unreadable * seen:
            raise ValueError(
                f"max_unreadable: found {self.num_skipped} of {seen} utterances unusable, want at "
                f"most {self.max_unreadable:.1%}; `speechssl check` lists the bad audio. The last "
                "ones: " + "; ".join(list(self.skipped)[-3:])
            )


def pass_batches(
    cuts: CutIndices, max_samples: int, longest: int | None, few_shapes: bool = False
) -> Iterator[np.ndarray]:
    """(B,) cut indices of each batch of one pass: long first inside windows; every rank's.

    max_samples: of a batch, padding included; an utterance above it is a batch of its own.
    longest: samples after cropping. few_shapes: as the Collator pads.
    """
    for begin in range(0, len(cuts), _PASS_WINDOW):
        members = np.arange(begin, min(begin + _PASS_WINDOW, len(cuts)))
        lengths = cuts.num_samples(members)
        if longest is not None:
            lengths = np.minimum(lengths, longest)
        if few_shapes:
            lengths = padded_samples(lengths)
        # Greedy from the longest; split_batches evens the batches out.
        for places in split_batches(lengths.tolist(), max_samples, 1)[0]:
            yield members[list(places)]


def _pass_tasks(batches: Iterable[np.ndarray], pad: bool) -> Iterator[tuple[Task, None]]:
    """This rank's tasks: batches dealt in turn.

    pad: ranks left without a batch in the last round get a filler, so that all of them run the
        model equally often (sharded models would wait for each other).
    """
    rank, world_size = dist.rank(), dist.world_size()
    at = -1
    for at, members in enumerate(batches):
        if at % world_size == rank:
            yield Task(-1, members, (tuple(range(len(members))),)), None
    if pad and (at + 1) % world_size and rank >= (at + 1) % world_size:
        yield Task(-1, np.empty(0, np.int64), ((),)), None


class CutSource:
    """The `contract.BatchSource` over cuts; `open_source` makes one."""

    def __init__(self, config: DataConfig, *, hop_samples: int, split: str) -> None:
        if split not in ("train", "valid"):
            raise ValueError(f"split: found {split!r}, want train or valid")
        self.config, self.split = config, split
        self.cuts = CutIndices(getattr(config, split))
        self.counter = SkipCounter(config.max_unreadable, keep=1000)
        self._sampler: UpdateSampler | None = None
        self._collator = self._make_collator(hop_samples)
        if split == "train":
            self._sampler = UpdateSampler(
                self.cuts, config, rank=dist.rank(), world_size=dist.world_size()
            )
            self._announce(self._sampler.counts)

    def _make_collator(self, hop_samples: int) -> Collator:
        config = self.config
        tokenizer = Tokenizer.load(config.tokenizer) if config.tokenizer else None
        # Transcripts cannot be cropped along with the audio.
        cropped = tokenizer is None and (config.long == "crop" or self.split == "valid")
        return Collator(
            self.cuts,
            seed=config.seed,
            hop_samples=hop_samples,
            max_samples=round(config.max_seconds * SAMPLE_RATE) if cropped else None,
            stores=_stores(config),
            tokenizer=tokenizer,
            mixer=Mixer(config.mixing) if config.mixing else None,
            mixtures=Mixtures(config.mixtures, self.cuts) if config.mixtures else None,
            speeds=config.speeds if self.split == "train" else (),
            untranscribed=config.untranscribed,
            few_shapes=True,
        )

    def _announce(self, counts: Mapping[str, int]) -> None:
        left_out = counts["too_short"] + counts["too_long"]
        if dist.is_main():
            log.info(
                "%s: %d cuts, %.2f h; left out: %d shorter than %g s, %d longer than %g s; "
                "cropped: %d",
                self.split,
                counts["cuts"],
                counts["samples"] / SAMPLE_RATE / 3600,
                counts["too_short"],
                self.config.min_seconds,
                counts["too_long"],
                self.config.max_seconds,
                counts["cropped"],
            )
            if left_out > 0.5 * len(self.cuts):
                log.warning("more than half of the cuts (%d) are left out by length", left_out)

    @property
    def stores(self) -> Mapping[str, LabelStore]:
        return self._collator.stores

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._collator.tokenizer

    def updates(self, position: Mapping[str, int] | None = None) -> Iterator[Update]:
        """Updates from `position` (None: from the start), without end.

        Raises `ValueError` for a position of other data, for an update of fewer utterances than
        ranks, and when more than max_unreadable of the utterances cannot be used.
        """
        if self._sampler is None:
            raise ValueError(f"split: found {self.split!r}, want train for updates")
        items = ((_task(plan), plan.position) for plan in self._sampler.plans(position))
        config = self.config
        for result, behind in _results(self._collator, items, config.num_workers, config.prefetch):
            self.counter.add(result)
            yield Update(result.batches, behind, result.skipped)

    def one_pass(self) -> Iterator[Batch]:
        """This rank's share of one pass: whole utterances or middle crops, in fixed order.

        Mixing, if configured, is the same in every pass. Every rank yields equally many batches;
        the last may be a filler.
        """
        cap = round(self.config.max_batch_seconds * SAMPLE_RATE)
        batches = pass_batches(self.cuts, cap, self._collator.max_samples, few_shapes=True)
        items = _pass_tasks(batches, pad=True)
        config = self.config
        for result, _ in _results(self._collator, items, config.num_workers, config.prefetch):
            self.counter.add(result)
            yield from result.batches


def _stores(config: DataConfig) -> dict[str, LabelStore]:
    stores = {name: LabelStore.open(folder) for name, folder in config.labels.items()}
    if config.classes:
        stores["classes"] = LabelStore.open(config.classes)
        if stores["classes"].frame_rate_hz:
            raise ValueError(
                f"classes: found labels per frame in {config.classes}, want one per utterance; "
                "give labels per frame as data.labels"
            )
    return stores


def _task(plan: Plan) -> Task:
    return Task(plan.epoch, plan.members, plan.batches)


def open_source(config: DataConfig, *, hop_samples: int, split: str) -> CutSource:
    """Open the batches of a split: "train" (updates and passes) or "valid" (passes).

    hop_samples: the encoder's frame step; frame targets have ceil(L / hop_samples) frames, of
        which the encoder's own are the first. Labels and crops follow this grid.
    """
    return CutSource(config, hop_samples=hop_samples, split=split)


class CutPass:
    """Iterator of `read_all`. skipped: "id: reason" so far; num_cuts: of all ranks together."""

    def __init__(
        self, cuts: CutIndices, make_results: Callable[[], Iterator[tuple[Result, Any]]]
    ) -> None:
        self.num_cuts = len(cuts)
        self.counter = SkipCounter()
        self._results = make_results()

    @property
    def skipped(self) -> list[str]:
        return list(self.counter.skipped)

    def __iter__(self) -> CutPass:
        return self

    def __next__(self) -> Batch:
        while True:
            result, _ = next(self._results)
            self.counter.add(result)
            for batch in result.batches:
                if not batch.filler:
                    return batch


def read_all(
    cuts: Sequence[str],
    *,
    max_batch_seconds: float,
    num_workers: int = 0,
    max_seconds: float | None = None,
    wanted: Callable[[CutRecord], bool] | None = None,
) -> CutPass:
    """Read whole utterances of this rank's share once, long first inside windows; no targets.

    max_seconds: longer cuts are skipped and counted, never cut short: labels or features of a
        part would pass for those of the whole. A cut above max_batch_seconds is a batch alone.
    wanted: says which cuts to read; without it all are. It is asked once per cut.
    `ids` of the batches are cut ids. Utterances that cannot be read are in `.skipped`.
    """
    indices = CutIndices(list(cuts))
    collator = Collator(indices, seed=0, hop_samples=1, max_samples=None)
    cap = round(max_batch_seconds * SAMPLE_RATE)
    limit = None if max_seconds is None else round(max_seconds * SAMPLE_RATE)
    too_long: list[str] = []

    def batches() -> Iterator[np.ndarray]:
        for at, members in enumerate(pass_batches(indices, cap, None)):
            if wanted is not None:
                members = np.array([i for i in members if wanted(indices[int(i)])], np.int64)
                if not len(members):
                    continue
            lengths = indices.num_samples(members)
            kept = members if limit is None else members[lengths <= limit]
            if len(kept) < len(members) and at % dist.world_size() == dist.rank():
                for i in members[lengths > limit]:
                    record = indices[int(i)]
                    too_long.append(
                        f"{record.id}: {record.duration:.2f} s long, above max_seconds "
                        f"{max_seconds:g}"
                    )
            yield kept

    def results() -> Iterator[tuple[Result, Any]]:
        for item in _results(collator, _pass_tasks(batches(), pad=False), num_workers, 2):
            if too_long:
                item[0].skipped += tuple(too_long)
                too_long.clear()
            yield item

    return CutPass(indices, results)
