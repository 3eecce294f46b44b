"""A frozen encoder's features on disk, and training batches made of them.

A folder of one encoder and its layers, under the name of their hash, for any number of corpora:

    ROOT/3f6c.../meta.json      which encoder, layers, number type, frame step
                 features.bin   (frames, K, D), utterance after utterance
                 index.jsonl    {"id", "key", "start", "frames", "samples"} a line

A line enters the index when its features are on disk, so whatever it names is whole; what a killed
writer left behind the last line is cut off. `key` is a hash of what was read: a cut whose audio has
changed since is refused, not served.

Shape legend: B utterances, T frames, K layers, D width.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechssl.contract import Batch
from speechssl.data.collate import Collator, Result, Task
from speechssl.data.config import DataConfig
from speechssl.data.index import SAMPLE_RATE, CutRecord
from speechssl.data.loader import CutSource
from speechssl.data.reader import Conversions, UnusableError

FORMAT = 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Features of a cut: `frames` from frame `start` of the file on, of `samples` of audio.

    skipped: why there are none, or "".
    """

    key: str
    start: int
    frames: int
    samples: int
    skipped: str = ""


def record_key(record: CutRecord) -> str:
    """Hash of where a cut's audio lies and of that file's size and time."""
    fields = [record.path, record.start, record.duration, record.channel, record.offset]
    fields += [record.size, record.full]
    if record.path:
        try:
            found = os.stat(record.path)
        except OSError as error:
            fields.append(f"unreadable: {error.errno}")
        else:
            fields += [found.st_size, found.st_mtime_ns]
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class FeatureCache:
    """Features of one encoder's layers; made if there are none.

    meta: must hold encoder (a hash), layers, dtype, dim, hop_samples, receptive_field_samples.
    Raises `ValueError` for a folder of another `meta`, or a damaged one.
    """

    def __init__(self, root: str | Path, meta: Mapping[str, Any]) -> None:
        meta = {"format": FORMAT, **meta}
        text = json.dumps(meta, sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.root, self.folder, self.meta = Path(root), Path(root) / name, meta
        self.layers: list[int] = list(meta["layers"])
        self.width = len(self.layers) * int(meta["dim"])
        self.dtype = DTYPES[meta["dtype"]]
        self.entries: dict[str, Entry] = {}
        self._current: set[str] = set()  # entries whose audio was looked at
        self._mapped: np.ndarray | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "meta.json"
        if path.is_file() and json.loads(path.read_text()) != meta:
            raise ValueError(
                f"cache: found features of another encoder in {self.folder}, want those of "
                f"{text}; delete that folder"
            )
        if not path.is_file():
            temporary = path.with_name("meta.json.tmp")
            temporary.write_text(json.dumps(meta, indent=2) + "\n")
            os.replace(temporary, path)
        self._load()

    @property
    def frame_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    @property
    def frames(self) -> int:
        """Of all utterances."""
        return max((e.start + e.frames for e in self.entries.values()), default=0)

    def _load(self) -> None:
        path = self.folder / "index.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                cut_id = values.pop("id")
                self.entries[cut_id] = Entry(**values)
            except (json.JSONDecodeError, KeyError, TypeError):
                if number == len(lines):  # a writer was killed in it
                    break
                raise ValueError(
                    f"{path}:{number}: found {line[:60]!r}, want an entry; delete {self.folder}"
                ) from None
        found = self._size()
        if found < self.frames * self.frame_bytes:
            raise ValueError(
                f"cache: found {found} bytes in {self.folder}/features.bin, want "
                f"{self.frames * self.frame_bytes} as index.jsonl says; delete {self.folder}"
            )

    def _size(self) -> int:
        path = self.folder / "features.bin"
        return path.stat().st_size if path.is_file() else 0

    def find(self, record: CutRecord) -> Entry | None:
        """The features of a cut, None if there are none.

        Raises `ValueError` if they were made of other audio than the cut has now.
        """
        entry = self.entries.get(record.id)
        if entry is None or record.id in self._current:
            return entry
        if entry.key != record_key(record):
            raise ValueError(
                f"cache: found features of the cut {record.id!r} in {self.folder} that are stale: "
                f"{record.path or 'its audio'} has changed since, or is another file. Delete that "
                "folder, or name another cache"
            )
        self._current.add(record.id)
        return entry

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """The only writer of the folder; others wait."""
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._mapped = None
            self.entries.clear()
            self._load()  # what another writer has added meanwhile
            with Writer(self) as writer:
                yield writer

    def read(self, start: int, frames: int) -> Tensor:
        """(T, K * D) float32, of frames of the file."""
        if self._mapped is None:
            path = self.folder / "features.bin"
            self._mapped = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        begin, end = start * self.frame_bytes, (start + frames) * self.frame_bytes
        # A copy: tensors may not look into a file that cannot be written.
        values = torch.from_numpy(self._mapped[begin:end].copy())
        return values.view(self.dtype).view(frames, self.width).float()


class Writer:
    """Appends features; `FeatureCache.writing` makes one."""

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache

    def __enter__(self) -> Writer:
        folder = self.cache.folder
        lines = [json.dumps({"id": i, **dataclasses.asdict(e)}) + "\n"
                 for i, e in self.cache.entries.items()]  # fmt: skip
        # Without the half of a line, and the features without a line, of a killed writer.
        temporary = folder / "index.jsonl.tmp"
        temporary.write_text("".join(lines))
        os.replace(temporary, folder / "index.jsonl")
        self.features = (folder / "features.bin").open("ab")
        self.features.truncate(self.cache.frames * self.cache.frame_bytes)
        self.index = (folder / "index.jsonl").open("a")
        self.end = self.cache.frames
        return self

    def __exit__(self, *_: object) -> None:
        self.features.close()
        self.index.close()

    def add(self, batch: list[tuple[CutRecord, int, Tensor]]) -> None:
        """Add (cut, samples, (T, K * D) float32) of some cuts at once.

        Raises `ValueError` for features that are not finite in the cache's number type.
        """
        entries = []
        for record, samples, features in batch:
            kept = features.to(self.cache.dtype).contiguous()
            if not torch.isfinite(kept).all():
                raise ValueError(
                    f"cache_dtype: found features of {record.id!r} that are not finite in "
                    f"{self.cache.meta['dtype']} (largest {features.abs().max():.3g}), want "
                    "bfloat16 or float32"
                )
            self.features.write(kept.view(torch.uint8).numpy().tobytes())
            entry = Entry(record_key(record), self.end, len(features), samples)
            entries.append((record.id, entry))
            self.end += len(features)
        self.features.flush()
        os.fsync(self.features.fileno())
        self._note(entries)

    def skip(self, record: CutRecord, why: str) -> None:
        """Note why a cut has no features."""
        self._note([(record.id, Entry(record_key(record), self.end, 0, 0, why))])

    def _note(self, entries: list[tuple[str, Entry]]) -> None:
        lines = [json.dumps({"id": i, **dataclasses.asdict(e)}) + "\n" for i, e in entries]
        self.index.write("".join(lines))
        self.index.flush()
        self.cache.entries.update(entries)


class FeatureCollator(Collator):
    """Reads tasks as `Collator` does, with features in place of waves: see `CachedEncoder`.

    A cut longer than max_samples is cropped at the same frames as its wave would be, but of
    features for which the encoder heard the whole cut.
    """

    cache: FeatureCache

    def __call__(self, task: Task) -> Result:
        skipped: list[str] = []
        batches = tuple(self._batch(task, places, skipped) for places in task.batches)
        read = sum(map(len, task.batches)) - len(skipped)
        return Result(batches, tuple(skipped), Conversions().counts, read)

    def _batch(self, task: Task, places: tuple[int, ...], skipped: list[str]) -> Batch:
        rows, features = [], []
        for place in places:
            row = self._row(task, place)
            try:
                entry = self.cache.find(row.record)
                if entry is None:
                    raise UnusableError("has no features in the cache")
                if entry.skipped:
                    raise UnusableError(entry.skipped)
                row.length = min(row.length, entry.samples - row.start)
                self._targets(row)
            except UnusableError as error:
                skipped.append(f"{row.record.id}: {error}")
                continue
            begin = row.start // self.hop_samples
            rows.append(row)
            features.append(self.cache.read(entry.start + begin, self._frames(row, entry, begin)))
        if not rows:
            return self._feature_filler()
        width = self.cache.width
        # As many frames as a batch of waves is padded to: what is drawn by shape is drawn alike.
        samples = self._width(rows)
        frames = max(self._whole_frames(samples), *map(len, features))
        wave = torch.zeros(len(rows), frames * width)
        for out, values in zip(wave, features, strict=True):
            out[: values.numel()] = values.flatten()
        targets = self._collate_targets(rows, samples)
        return Batch(
            wave=wave,
            wave_lengths=torch.tensor([x.numel() for x in features]),
            targets={name: torch.from_numpy(array) for name, array in targets.items()},
            views={},
            seeds=torch.tensor([r.seed for r in rows]),
            ids=tuple(r.record.id for r in rows),
        )

    def _frames(self, row: Any, entry: Entry, begin: int) -> int:
        return max(1, min(entry.frames - begin, self._whole_frames(row.length)))

    def _whole_frames(self, samples: int) -> int:
        meta = self.cache.meta
        return (samples - meta["receptive_field_samples"]) // meta["hop_samples"] + 1

    def _feature_filler(self) -> Batch:
        filler = self._filler()
        frames = SAMPLE_RATE // self.hop_samples
        wave = torch.zeros(1, max(1, frames) * self.cache.width)
        lengths = torch.tensor([wave.shape[1]])
        return dataclasses.replace(filler, wave=wave, wave_lengths=lengths)


class FeatureSource(CutSource):
    """The `contract.BatchSource` of a split whose cuts are in `cache`.

    Updates, seeds and targets are those of `CutSource` on the same configuration.
    Raises `ValueError` for what would change the wave: data.speeds, data.mixing, data.mixtures.
    """

    def __init__(self, config: DataConfig, cache: FeatureCache, *, split: str) -> None:
        if config.speeds or config.mixing or config.mixtures:
            raise ValueError(
                f"cache: found data.speeds {config.speeds}, data.mixing {config.mixing} and "
                f"data.mixtures {config.mixtures}, want none of them: features are those of the "
                "recordings as they are"
            )
        self.cache = cache
        # Features come from the page cache: a process for reading would only copy them.
        config = dataclasses.replace(config, num_workers=0)
        super().__init__(config, hop_samples=cache.meta["hop_samples"], split=split)

    def _make_collator(self, hop_samples: int) -> Collator:
        plain = super()._make_collator(hop_samples)
        collator = FeatureCollator(
            self.cuts,
            seed=plain.seed,
            hop_samples=hop_samples,
            max_samples=plain.max_samples,
            stores=plain.stores,
            tokenizer=plain.tokenizer,
            untranscribed=plain.untranscribed,
            few_shapes=plain.few_shapes,
        )
        collator.cache = self.cache
        return collator
