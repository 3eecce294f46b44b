"""Build a Batch of cuts: audio, targets, corrupted view. Runs in the reading processes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from speechssl.contract import IGNORE, Batch
from speechssl.data.buffers import NewArray, Pool
from speechssl.data.draws import uniform, utterance_seed
from speechssl.data.index import SAMPLE_RATE, CutIndices, CutRecord
from speechssl.data.label_store import LabelStore
from speechssl.data.mixing import Mixer
from speechssl.data.mixtures import Mixtures
from speechssl.data.reader import (
    AudioError,
    Conversions,
    UnusableError,
    label_window,
    read_part,
    reads_exactly,
)
from speechssl.data.sampler import crop_start, padded_samples
from speechssl.data.text import Tokenizer, UnknownCharacterError

_SPEED_STREAM = 7  # of an utterance's seed; crops and mixing use others


@dataclasses.dataclass(frozen=True)
class Task:
    """A unit of reading: micro-batches of some cuts, which may be partners of each other.

    members: (N,) cut indices. batches: positions in `members`; an empty one becomes a filler.
    epoch: -1 for passes without randomness.
    """

    epoch: int
    members: np.ndarray
    batches: tuple[tuple[int, ...], ...]


@dataclasses.dataclass
class Result:
    """The batches of a task, "id: reason" of what was skipped, and counts of conversions."""

    batches: tuple[Batch, ...]
    skipped: tuple[str, ...]
    conversions: Counter[str]
    num_read: int


@dataclasses.dataclass
class _Row:
    """An utterance that is to be read: its record, where in it, and its targets."""

    place: int
    record: CutRecord
    seed: int
    start: int
    samples: int  # of the part read
    length: int  # in the batch: `samples` over the speed
    speed: float = 1.0
    labels: dict[str, np.ndarray | int] = dataclasses.field(default_factory=dict)
    text: list[int] = dataclasses.field(default_factory=list)
    mixture: np.ndarray | None = None


@dataclasses.dataclass
class Draft:
    """A batch before it becomes tensors; `finish` makes them.

    wave: (B, L) float32, zero behind each length. touched: rows that mixing changes. mixed:
    (R, L), what becomes of those rows. On the way between processes wave, mixed and targets are
    replaced by where they lie in shared memory.
    """

    wave: Any
    lengths: list[int]
    targets: dict[str, Any]
    seeds: list[int]
    ids: tuple[str, ...]
    has_mixed: bool
    touched: list[int]
    mixed: Any = None


@dataclasses.dataclass
class Reading:
    """What `Collator.read` makes of a task: a `Result` whose batches are drafts (None: filler)."""

    drafts: list[Draft | None]
    skipped: tuple[str, ...]
    conversions: Counter[str]
    num_read: int
    filler: Batch | None = None


def _read_at_speed(row: _Row, conversions: Conversions | None = None) -> np.ndarray:
    """The row's part of its cut, played `row.speed` times as fast (and as high)."""
    import soxr

    samples = read_part(row.record, row.start, row.samples, conversions=conversions)
    return soxr.resample(samples, SAMPLE_RATE * row.speed, SAMPLE_RATE)[: row.length]


def _crop_grid(hop_samples: int, stores: Iterable[LabelStore]) -> int:
    """Samples of which the start of a crop is a multiple: of the encoder's step, and of each
    coarser store's, so that no frame of a crop stands for halves of two labels."""
    grid = hop_samples
    for store in stores:
        step = SAMPLE_RATE / store.frame_rate_hz if store.frame_rate_hz else 0
        if step > hop_samples and step.is_integer() and math.lcm(grid, int(step)) <= SAMPLE_RATE:
            grid = math.lcm(grid, int(step))
    return grid


class Collator:
    """Reads tasks. Holds only memory-mapped or small things, and can be pickled.

    max_samples: longer cuts are cropped: at random, or in the middle where epoch is -1.
    untranscribed: with a tokenizer, "skip" or "keep" cuts without transcript.
    few_shapes: pad batches to the lengths of `padded_samples`.
    """

    def __init__(
        self,
        cuts: CutIndices,
        *,
        seed: int,
        hop_samples: int,
        max_samples: int | None = None,
        stores: dict[str, LabelStore] | None = None,
        tokenizer: Tokenizer | None = None,
        mixer: Mixer | None = None,
        mixtures: Mixtures | None = None,
        speeds: Sequence[float] = (),
        untranscribed: str = "skip",
        few_shapes: bool = False,
    ) -> None:
        self.cuts, self.seed, self.hop_samples = cuts, seed, hop_samples
        self.max_samples = max_samples
        self.stores, self.tokenizer = stores or {}, tokenizer
        self.mixer, self.mixtures = mixer, mixtures
        self.speeds, self.untranscribed = tuple(speeds), untranscribed
        self.few_shapes = few_shapes
        self.grid = _crop_grid(hop_samples, self.stores.values())
        self.pool = Pool()

    def __call__(self, task: Task) -> Result:
        """Read a task; an utterance that cannot be used is skipped with its reason."""
        return finish(self.read(task, self.pool.new), self.pool.new, copy=False)

    def read(self, task: Task, new: NewArray) -> Reading:
        """Read a task into arrays of `new`."""
        skipped: list[str] = []
        conversions = Conversions()
        clean: dict[int, np.ndarray] = {}
        read: list[tuple[list[_Row], np.ndarray]] = []
        for places in task.batches:
            rows = [self._row(task, place) for place in places]
            read.append(self._read(rows, clean, skipped, conversions, new))
        drafts = [self._draft(rows, wave, task, clean, new) for rows, wave in read]
        return Reading(
            drafts,
            tuple(skipped),
            conversions.counts,
            sum(map(len, task.batches)) - len(skipped),
            self._filler() if None in drafts else None,
        )

    def _row(self, task: Task, place: int) -> _Row:
        record = self.cuts[int(task.members[place])]
        seed = utterance_seed(self.seed, task.epoch, record.id)
        total = record.num_samples
        longest = self.max_samples
        speed = 1.0
        if self.speeds and task.epoch >= 0:
            speed = self.speeds[int(uniform(seed, _SPEED_STREAM) * len(self.speeds))]
        length = round(total / speed)
        if longest is None or length <= longest:
            return _Row(place, record, seed, 0, total, length, speed)
        samples = min(total, round(longest * speed))
        if task.epoch < 0:
            start = (total - samples) // 2 // self.grid * self.grid
        else:
            start = crop_start(seed, total, samples, self.grid)
        return _Row(place, record, seed, start, samples, longest, speed)

    def _read(
        self,
        rows: list[_Row],
        clean: dict[int, np.ndarray],
        skipped: list[str],
        conversions: Conversions,
        new: NewArray,
    ) -> tuple[list[_Row], np.ndarray]:
        """The usable rows and their (B, L) waves; adds each one's samples to `clean`."""
        wave = new(len(rows), self._width(rows))
        kept: list[int] = []
        for i, row in enumerate(rows):
            try:
                self._targets(row)
                out = wave[i, : row.length]
                if row.speed == 1.0:
                    samples = read_part(
                        row.record, row.start, row.length, out=out, conversions=conversions
                    )
                else:
                    changed = _read_at_speed(row, conversions)
                    samples = out[: len(changed)]
                    samples[:] = changed
                if not len(samples):
                    raise AudioError(f"{row.record.path or row.record.id}: holds no samples")
                if self.mixtures is not None:
                    row.mixture = self.mixtures.read(row.record, row.start, len(samples))
                    samples = samples[: len(row.mixture)]
            except UnusableError as error:
                skipped.append(f"{row.record.id}: {error}")
                continue
            row.length = len(samples)
            wave[i, row.length :] = 0
            kept.append(i)
        if len(kept) < len(rows):
            rows = [rows[i] for i in kept]
            smaller = new(len(kept), self._width(rows))
            for i, place in enumerate(kept):
                smaller[i] = wave[place, : smaller.shape[1]]
            wave = smaller
        for i, row in enumerate(rows):
            clean[row.place] = wave[i, : row.length]
        return rows, wave

    def _width(self, rows: Sequence[_Row]) -> int:
        longest = max((r.length for r in rows), default=0)
        return int(padded_samples(np.array(longest))) if self.few_shapes else longest

    def _targets(self, row: _Row) -> None:
        for name, store in self.stores.items():
            row.labels[name] = label_window(
                store, row.record, row.start, row.length, self.hop_samples
            )
        if self.tokenizer is not None:
            if row.record.text is None and self.untranscribed == "skip":
                raise UnusableError(
                    "has no transcript, but a tokenizer is given (data.untranscribed: keep uses "
                    "it for what else the head learns)"
                )
            try:
                row.text = self.tokenizer.encode(row.record.text or "")
            except UnknownCharacterError as error:
                raise UnusableError(str(error)) from None

    def _draft(
        self,
        rows: list[_Row],
        wave: np.ndarray,
        task: Task,
        clean: dict[int, np.ndarray],
        new: NewArray,
    ) -> Draft | None:
        if not rows:
            return None
        draft = Draft(
            wave=wave,
            lengths=[r.length for r in rows],
            targets=self._collate_targets(rows, wave.shape[1]),
            seeds=[r.seed for r in rows],
            ids=tuple(r.record.id for r in rows),
            has_mixed=self.mixer is not None or self.mixtures is not None,
            touched=[],
        )
        if self.mixer is not None:
            draft.touched = [i for i, row in enumerate(rows) if self.mixer.touches(row.seed)]
        if draft.touched:
            draft.mixed = self._mixed(draft, rows, task, clean, new)
        if self.mixtures is not None:
            draft.touched = list(range(len(rows)))
            draft.mixed = new(len(rows), wave.shape[1])
            for out, row in zip(draft.mixed, rows, strict=True):
                out[: row.length] = row.mixture
                out[row.length :] = 0
        return draft

    def _collate_targets(self, rows: Sequence[_Row], num_samples: int) -> dict[str, np.ndarray]:
        targets: dict[str, np.ndarray] = {}
        for name, store in self.stores.items():
            if not store.frame_rate_hz:
                targets[name] = np.array([r.labels[name] for r in rows], dtype=np.int64)
                continue
            frames = -(-num_samples // self.hop_samples)
            array = np.full((len(rows), frames), IGNORE, dtype=np.int64)
            for i, row in enumerate(rows):
                # A file a little shorter than its manifest has labels behind its last sample.
                own = -(-row.length // self.hop_samples)
                array[i, :own] = np.asarray(row.labels[name])[:own]
            targets[name] = array
        if self.tokenizer is not None:
            flat = [token for r in rows for token in r.text]
            targets["text"] = np.array(flat, dtype=np.int64)
            targets["text_lengths"] = np.array([len(r.text) for r in rows], dtype=np.int64)
        if self.speeds:
            targets["speeds"] = np.array([round(1000 * r.speed) for r in rows], dtype=np.int64)
        return targets

    def _mixed(
        self,
        draft: Draft,
        rows: list[_Row],
        task: Task,
        clean: dict[int, np.ndarray],
        new: NewArray,
    ) -> np.ndarray:
        """(R, L): the touched rows, corrupted."""
        mixer = self.mixer
        assert mixer is not None
        mixed = new(len(draft.touched), draft.wave.shape[1])

        def read_partner(place: int, share: float, longest: int) -> np.ndarray:
            row = self._row(task, place)
            size = min(longest, row.length)
            start = int(share * (row.length - size + 1))
            if place in clean:
                return clean[place][start : start + size]
            # The partner is another rank's (or was skipped): its samples as that rank has them.
            if row.speed != 1.0:
                return _read_at_speed(row)[start : start + size]
            if reads_exactly(row.record):
                return read_part(row.record, row.start + start, size)
            return read_part(row.record, row.start, row.length)[start : start + size]

        for out, i in zip(mixed, draft.touched, strict=True):
            row = rows[i]
            out[:] = draft.wave[i]
            mixer.corrupt(out[: row.length], row.seed, row.place, len(task.members), read_partner)
        return mixed

    def _filler(self) -> Batch:
        """One second of faint noise without labels: finite through any model, weighed 0."""
        noise = torch.randn(1, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 1e-3
        frames = -(-SAMPLE_RATE // self.hop_samples)
        targets: dict[str, torch.Tensor] = {}
        for name, store in self.stores.items():
            framed = torch.full((1, frames), IGNORE, dtype=torch.int64)
            single = (1,) if store.values == 1 else (1, store.values)
            own = torch.zeros(single, dtype=torch.int64)
            targets[name] = framed if store.frame_rate_hz else own
        if self.tokenizer is not None:
            targets["text"] = torch.zeros(0, dtype=torch.int64)
            targets["text_lengths"] = torch.zeros(1, dtype=torch.int64)
        if self.speeds:
            targets["speeds"] = torch.tensor([1000])
        return Batch(
            wave=noise,
            wave_lengths=torch.tensor([SAMPLE_RATE]),
            targets=targets,
            views={"mixed": noise.clone()} if self.mixer or self.mixtures else {},
            seeds=torch.zeros(1, dtype=torch.int64),
            ids=("<filler>",),
            filler=True,
        )


def finish(reading: Reading, new: NewArray, *, copy: bool) -> Result:
    """Make the batches of what was read.

    copy: the drafts' arrays lie in memory that will be written over, so the batches get their own.
    """
    batches = []
    for draft in reading.drafts:
        if draft is None:
            assert reading.filler is not None
            batches.append(reading.filler)
        else:
            batches.append(_finish(draft, new, copy))
    return Result(tuple(batches), reading.skipped, reading.conversions, reading.num_read)


def _finish(draft: Draft, new: NewArray, copy: bool) -> Batch:
    wave = new(*draft.wave.shape) if copy else draft.wave
    # Without a touched row both are the same: nobody writes to a batch.
    mixed = new(*wave.shape) if draft.touched else wave
    changed = dict(zip(draft.touched, () if draft.mixed is None else draft.mixed, strict=True))
    # Row by row: the second copy then finds the row in the processor's cache.
    for i in range(len(wave)):
        if copy:
            wave[i] = draft.wave[i]
        if mixed is not wave:
            mixed[i] = changed.get(i, wave[i])
    own = torch.from_numpy(wave)
    views = {}
    if draft.has_mixed:
        views["mixed"] = own if mixed is wave else torch.from_numpy(mixed)
    return Batch(
        wave=own,
        wave_lengths=torch.tensor(draft.lengths),
        targets={name: torch.from_numpy(array) for name, array in draft.targets.items()},
        views=views,
        seeds=torch.tensor(draft.seeds),
        ids=draft.ids,
    )
