"""Build a Batch of cuts: audio, targets, corrupted view. Runs in the reading processes."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.utils.data

from speechssl.contract import IGNORE, Batch
from speechssl.data.draws import uniform, utterance_seed
from speechssl.data.index import SAMPLE_RATE, CutIndices, CutRecord
from speechssl.data.label_store import LabelStore
from speechssl.data.mixing import Mixer
from speechssl.data.reader import (
    AudioError,
    Conversions,
    UnusableError,
    label_window,
    read_part,
    reads_exactly,
)
from speechssl.data.sampler import crop_start
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
    length: int  # in the batch: of the part read, over its speed
    speed: float = 1.0
    labels: dict[str, np.ndarray | int] = dataclasses.field(default_factory=dict)
    text: list[int] = dataclasses.field(default_factory=list)


class _Buffers:
    """Memory for waves, used again once nothing refers to it.

    Fresh memory costs the system a page fault per 4 KiB, together about a tenth of decoding FLAC
    into it. In a worker process, memory is shared with the training process (which saves a copy)
    and therefore always new.
    """

    def __init__(self, most: int = 64) -> None:
        self.most = most
        self._pool: list[np.ndarray] = []

    def __reduce__(self) -> tuple[type[_Buffers], tuple[int]]:
        return (_Buffers, (self.most,))

    def new(self, rows: int, samples: int) -> torch.Tensor:
        """Uninitialised (B, L) float32."""
        size = rows * samples
        if size and torch.utils.data.get_worker_info() is not None:
            storage = torch.UntypedStorage._new_shared(size * 4, device="cpu")
            return torch.empty(0).set_(storage, 0, (rows, samples), (samples, 1))
        best = -1
        for i in range(len(self._pool)):
            # At most the pool's own reference and the argument here; a view would be one more.
            if sys.getrefcount(self._pool[i]) <= 2 and size <= len(self._pool[i]) <= 2 * size:
                best = i
                break
        if best < 0:
            self._pool.append(np.empty(size + size // 4, dtype=np.float32))
            del self._pool[: -self.most]
        return torch.from_numpy(self._pool[best][:size].reshape(rows, samples))


def _read_at_speed(row: _Row, out: np.ndarray, conversions: Conversions) -> np.ndarray:
    """The whole cut, played `row.speed` times as fast (and as high), in a part of `out`."""
    import soxr

    samples = read_part(row.record, 0, row.record.num_samples, conversions=conversions)
    changed = soxr.resample(samples, SAMPLE_RATE * row.speed, SAMPLE_RATE)[: row.length]
    out[: len(changed)] = changed
    return out[: len(changed)]


class Collator:
    """Reads tasks. Holds only memory-mapped or small things, and can be pickled.

    max_samples: longer cuts are cropped: at random, or in the middle where epoch is -1.
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
        speeds: Sequence[float] = (),
    ) -> None:
        self.cuts, self.seed, self.hop_samples = cuts, seed, hop_samples
        self.max_samples = max_samples
        self.stores, self.tokenizer, self.mixer = stores or {}, tokenizer, mixer
        self.speeds = tuple(speeds)
        self._buffers = _Buffers()

    def __call__(self, task: Task) -> Result:
        """Read a task; an utterance that cannot be used is skipped with its reason."""
        skipped: list[str] = []
        conversions = Conversions()
        clean: dict[int, np.ndarray] = {}
        read: list[tuple[list[_Row], torch.Tensor]] = []
        for places in task.batches:
            rows = [self._row(task, place) for place in places]
            read.append(self._read(rows, clean, skipped, conversions))
        batches = tuple(self._batch(rows, wave, task, clean) for rows, wave in read)
        return Result(
            batches, tuple(skipped), conversions.counts, sum(map(len, task.batches)) - len(skipped)
        )

    def _row(self, task: Task, place: int) -> _Row:
        record = self.cuts[int(task.members[place])]
        seed = utterance_seed(self.seed, task.epoch, record.id)
        total = record.num_samples
        longest = self.max_samples
        if longest is None or total <= longest:
            speed = 1.0
            if self.speeds and task.epoch >= 0:
                speed = self.speeds[int(uniform(seed, _SPEED_STREAM) * len(self.speeds))]
            return _Row(place, record, seed, 0, round(total / speed), speed)
        if task.epoch < 0:
            start = (total - longest) // 2 // self.hop_samples * self.hop_samples
        else:
            start = crop_start(seed, total, longest, self.hop_samples)
        return _Row(place, record, seed, start, longest)

    def _read(
        self,
        rows: list[_Row],
        clean: dict[int, np.ndarray],
        skipped: list[str],
        conversions: Conversions,
    ) -> tuple[list[_Row], torch.Tensor]:
        """The usable rows and their (B, L) waves; adds each one's samples to `clean`."""
        wave = self._buffers.new(len(rows), max((r.length for r in rows), default=0))
        array = wave.numpy()
        kept: list[int] = []
        for i, row in enumerate(rows):
            try:
                self._targets(row)
                out = array[i, : row.length]
                if row.speed == 1.0:
                    samples = read_part(
                        row.record, row.start, row.length, out=out, conversions=conversions
                    )
                else:
                    samples = _read_at_speed(row, out, conversions)
                if not len(samples):
                    raise AudioError(f"{row.record.path or row.record.id}: holds no samples")
            except UnusableError as error:
                skipped.append(f"{row.record.id}: {error}")
                continue
            row.length = len(samples)
            array[i, row.length :] = 0
            kept.append(i)
        if len(kept) < len(rows):
            rows = [rows[i] for i in kept]
            longest = max((r.length for r in rows), default=0)
            wave = self._buffers.new(len(kept), longest).copy_(wave[kept, :longest])
            array = wave.numpy()
        for i, row in enumerate(rows):
            clean[row.place] = array[i, : row.length]
        return rows, wave

    def _targets(self, row: _Row) -> None:
        for name, store in self.stores.items():
            row.labels[name] = label_window(
                store, row.record, row.start, row.length, self.hop_samples
            )
        if self.tokenizer is not None:
            if row.record.text is None:
                raise UnusableError("has no transcript, but a tokenizer is given")
            try:
                row.text = self.tokenizer.encode(row.record.text)
            except UnknownCharacterError as error:
                raise UnusableError(str(error)) from None

    def _batch(
        self, rows: list[_Row], wave: torch.Tensor, task: Task, clean: dict[int, np.ndarray]
    ) -> Batch:
        if not rows:
            return self._filler()
        views = {}
        if self.mixer is not None:
            views["mixed"] = self._mixed(rows, wave, task, clean)
        return Batch(
            wave=wave,
            wave_lengths=torch.tensor([r.length for r in rows]),
            targets=self._collate_targets(rows, wave.shape[1]),
            views=views,
            seeds=torch.tensor([r.seed for r in rows]),
            ids=tuple(r.record.id for r in rows),
        )

    def _collate_targets(self, rows: Sequence[_Row], num_samples: int) -> dict[str, torch.Tensor]:
        targets: dict[str, torch.Tensor] = {}
        for name, store in self.stores.items():
            if not store.frame_rate_hz:
                targets[name] = torch.tensor([int(r.labels[name]) for r in rows])
                continue
            frames = -(-num_samples // self.hop_samples)
            array = np.full((len(rows), frames), IGNORE, dtype=np.int64)
            for i, row in enumerate(rows):
                # A file a little shorter than its manifest has labels behind its last sample.
                own = -(-row.length // self.hop_samples)
                array[i, :own] = np.asarray(row.labels[name])[:own]
            targets[name] = torch.from_numpy(array)
        if self.tokenizer is not None:
            flat = [token for r in rows for token in r.text]
            targets["text"] = torch.tensor(flat, dtype=torch.int64)
            targets["text_lengths"] = torch.tensor([len(r.text) for r in rows])
        return targets

    def _mixed(
        self, rows: list[_Row], wave: torch.Tensor, task: Task, clean: dict[int, np.ndarray]
    ) -> torch.Tensor:
        assert self.mixer is not None
        touched = [(i, row) for i, row in enumerate(rows) if self.mixer.touches(row.seed)]
        if not touched:
            return wave
        mixed = self._buffers.new(*wave.shape).copy_(wave)
        array = mixed.numpy()

        def read_partner(place: int, share: float, longest: int) -> np.ndarray:
            record = self.cuts[int(task.members[place])]
            length = min(record.num_samples, self.max_samples or record.num_samples)
            size = min(longest, length)
            start = int(share * (length - size + 1))
            if place in clean:
                return clean[place][start : start + size]
            # The partner is another rank's (or was skipped): its samples as that rank has them.
            row = self._row(task, place)
            if reads_exactly(record):
                return read_part(record, row.start + start, size)
            return read_part(record, row.start, row.length)[start : start + size]

        for i, row in touched:
            self.mixer.corrupt(
                array[i, : row.length], row.seed, row.place, len(task.members), read_partner
            )
        return mixed

    def _filler(self) -> Batch:
        """One second of faint noise without labels: finite through any model, weighed 0."""
        noise = torch.randn(1, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 1e-3
        frames = -(-SAMPLE_RATE // self.hop_samples)
        targets: dict[str, torch.Tensor] = {}
        for name, store in self.stores.items():
            framed = torch.full((1, frames), IGNORE, dtype=torch.int64)
            targets[name] = framed if store.frame_rate_hz else torch.zeros(1, dtype=torch.int64)
        if self.tokenizer is not None:
            targets["text"] = torch.zeros(0, dtype=torch.int64)
            targets["text_lengths"] = torch.zeros(1, dtype=torch.int64)
        return Batch(
            wave=noise,
            wave_lengths=torch.tensor([SAMPLE_RATE]),
            targets=targets,
            views={"mixed": noise.clone()} if self.mixer is not None else {},
            seeds=torch.zeros(1, dtype=torch.int64),
            ids=("<filler>",),
            filler=True,
        )
