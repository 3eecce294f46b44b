"""Label store: one integer per frame (or per utterance) of every recording, memory-mapped.

A folder holds `meta.json`, `labels-<n>.bin` (flat integers), `keys-<n>.npy` (sorted 64-bit hashes
of the ids), `spans-<n>.npy` (start and length of each key's labels) and `ids-<n>.txt`. Opening
maps the files and reads nothing but meta.json, whatever the corpus's size; a lookup is one binary
search. <n> is a generation: `finish` writes new files and then replaces meta.json, which alone
says which files count, so that a kill at any point leaves the old store or the new one.

Ids are recording ids (labels of the whole recording) or cut ids (labels of that cut, from its
start). See `speechssl.data.reader` for which of them a cut looks up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from speechssl import dist
from speechssl.contract import IGNORE

FORMAT = 1
SAMPLE_RATE = 16000
_COPY_BYTES = 1 << 24


class MissingLabelError(ValueError):
    """The store has no labels for this id."""


def label_dtype(classes: int) -> np.dtype:
    """Smallest of uint8, uint16, int32 that holds 0 .. classes - 1."""
    if classes < 1:
        raise ValueError(f"classes: found {classes}, want 1 or more")
    return np.dtype(np.uint8 if classes <= 1 << 8 else np.uint16 if classes <= 1 << 16 else "<i4")


def hash_id(text: str) -> int:
    """Stable 64-bit hash of an id."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def map_array(path: Path) -> np.ndarray:
    """Memory-map a .npy file. A plain view: np.memmap's own bookkeeping makes lookups slow."""
    return np.load(path, mmap_mode="r").view(np.ndarray)


def label_frames(
    labels: np.ndarray, rate_hz: float, start_sample: int, num_frames: int, hop_samples: int
) -> np.ndarray:
    """Take the label at the first sample of each encoder frame: see `LabelStore.window`."""
    out = np.full(num_frames, IGNORE, dtype=np.int64)
    rate = int(rate_hz)
    if rate == rate_hz and start_sample >= 0 and hop_samples * rate % SAMPLE_RATE == 0:
        step = hop_samples * rate // SAMPLE_RATE
        first = start_sample * rate // SAMPLE_RATE
        if step:
            taken = labels[first : first + step * num_frames : step]
            out[: len(taken)] = taken
            return out
    samples = start_sample + hop_samples * np.arange(num_frames, dtype=np.int64)
    if rate == rate_hz:
        index = samples * rate // SAMPLE_RATE
    else:
        index = np.floor(samples * rate_hz / SAMPLE_RATE).astype(np.int64)
    inside = (index >= 0) & (index < len(labels))
    out[inside] = labels[index[inside]]
    return out


class LabelStore:
    """An opened, read-only store; `open` makes one. Cheap to send to another process."""

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self.folder = folder
        self.meta = dict(meta)
        generation = meta["generation"]
        self.keys = map_array(folder / f"keys-{generation}.npy")
        self.spans = map_array(folder / f"spans-{generation}.npy")
        path = folder / f"labels-{generation}.bin"
        dtype = label_dtype(meta["classes"])
        wanted = meta["num_labels"] * dtype.itemsize
        if path.stat().st_size != wanted or len(self.keys) != meta["num_ids"]:
            raise ValueError(
                f"{path}: found {path.stat().st_size} bytes for {len(self.keys)} ids, want "
                f"{wanted} for {meta['num_ids']} as meta.json says; make the labels again"
            )
        self.flat = (
            np.memmap(path, dtype, mode="r").view(np.ndarray) if wanted else np.empty(0, dtype)
        )  # an empty file cannot be mapped

    @classmethod
    def open(cls, folder: str | Path) -> LabelStore:
        """Map the store of `folder`; raise `ValueError` if it is absent, unfinished or damaged."""
        folder = Path(folder)
        path = folder / "meta.json"
        if not path.is_file():
            state = "an unfinished store" if any(folder.glob("parts-*")) else "no label store"
            raise ValueError(
                f"labels: found {state} in {folder} (no meta.json); want a folder that "
                "`speechssl cluster apply` has completed: run it again, it continues"
            )
        meta = json.loads(path.read_text())
        if meta.get("format") != FORMAT:
            raise ValueError(f"{path}: found format {meta.get('format')}, want {FORMAT}")
        return cls(folder, meta)

    def __reduce__(self) -> tuple[Any, ...]:
        return (LabelStore.open, (self.folder,))

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, recording_id: object) -> bool:
        return self._find(str(recording_id)) is not None

    @property
    def name(self) -> str:
        return str(self.meta.get("name", self.folder.name))

    @property
    def classes(self) -> int:
        return int(self.meta["classes"])

    @property
    def frame_rate_hz(self) -> float:
        return self.meta["frame_rate_hz"]

    @property
    def values(self) -> int:
        """Integers per id, in a store of utterance labels: 1, or as many as its meta says."""
        return int(self.meta.get("values", 1))

    def _find(self, recording_id: str) -> tuple[int, int] | None:
        # The key must have the array's own type: numpy would otherwise copy the whole array.
        key = np.uint64(hash_id(recording_id))
        at = int(self.keys.searchsorted(key))
        if at == len(self.keys) or self.keys[at] != key:
            return None
        start, length = self.spans[at]
        return int(start), int(length)

    def get(self, recording_id: str) -> np.ndarray | None:
        """(T,) labels of an id, a read-only view into the file; None if there are none."""
        found = self._find(recording_id)
        return None if found is None else self.flat[found[0] : found[0] + found[1]]

    def frames(self, recording_id: str) -> np.ndarray:
        """(T,) labels of a recording, a read-only view into the file.

        Raises `MissingLabelError` (a `ValueError`) that names the id and the store.
        """
        labels = self.get(recording_id)
        if labels is None:
            raise MissingLabelError(
                f"labels: found none for {recording_id!r} in {self.folder} "
                f"({len(self)} ids); make labels for these cuts with `speechssl cluster apply`"
            )
        return labels

    def value(self, recording_id: str) -> int:
        """The label of an utterance, in a store of utterance labels (frame_rate_hz 0)."""
        return int(self.frames(recording_id)[0])

    def window(
        self, recording_id: str, start_sample: int, num_frames: int, hop_samples: int
    ) -> np.ndarray:
        """(num_frames,) int64: label at the first sample of each encoder frame, at 16 kHz.

        Frame t takes label floor((start_sample + t * hop_samples) * frame_rate_hz / 16000);
        frames outside the recording take -100.
        """
        if not self.frame_rate_hz:
            raise ValueError(f"{self.folder}: found utterance labels, want labels per frame")
        labels = self.frames(recording_id)
        return label_frames(labels, self.frame_rate_hz, start_sample, num_frames, hop_samples)

    def ids(self) -> Iterator[str]:
        """Every id, in the order written."""
        with open(self.folder / f"ids-{self.meta['generation']}.txt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)[0]


class LabelWriter:
    """Write a label store, one part file per rank; a killed run continues where it stopped.

    meta: at least classes and frame_rate_hz (0: one label per utterance, or `values` of them); by
        custom also name, codebook_hash, source, layer. Continuing needs the same meta. A finished
        store can be opened again to add further ids.
    """

    def __init__(
        self, folder: str | Path, meta: Mapping[str, Any], *, flush_every: int = 256
    ) -> None:
        for name in ("classes", "frame_rate_hz"):
            if name not in meta:
                raise ValueError(f"label store meta: found no {name!r}, want one")
        self.folder = Path(folder)
        self.meta = {"name": self.folder.name, **meta}
        self.dtype = label_dtype(int(self.meta["classes"]))
        # Named by the generation that they extend: parts of an earlier one are merged already.
        self.parts = self.folder / f"parts-{_generation(self.folder)}"
        self.parts.mkdir(parents=True, exist_ok=True)
        self._check_meta()
        dist.barrier()
        own = self.parts / f"{dist.rank():05d}"
        self._data: BinaryIO = own.with_suffix(".bin").open("ab")
        self._lines: BinaryIO = own.with_suffix(".jsonl").open("ab")
        _lock(self._data, self.folder)
        _repair(own, self.dtype)
        # Every rank has mended its own part before any of them reads all parts.
        dist.barrier()
        self._done = set(self._finished_ids())
        for part in self._part_names():
            self._done.update(i for i, _ in _read_lines(part))
        self._pending: list[bytes] = []
        self._flush_every = flush_every

    def _check_meta(self) -> None:
        wanted = json.loads(json.dumps(self.meta))
        for path in (self.folder / "meta.json", self.parts / "meta.json"):
            if not path.is_file():
                continue
            found = json.loads(path.read_text())
            for name in wanted.keys() | (found.keys() - _OWN_META):
                if found.get(name) != wanted.get(name):
                    raise ValueError(
                        f"{path}: found {name} {found.get(name)!r} of earlier work, want "
                        f"{wanted.get(name)!r}; remove {self.folder} to make the labels anew, or "
                        "choose another folder"
                    )
        if dist.is_main():
            temporary = self.parts / "meta.json.tmp"
            temporary.write_text(json.dumps(wanted))
            os.replace(temporary, self.parts / "meta.json")

    def _finished_ids(self) -> Iterator[str]:
        if (self.folder / "meta.json").is_file():
            yield from LabelStore.open(self.folder).ids()

    def _part_names(self) -> list[Path]:
        return sorted(p.with_suffix("") for p in self.parts.glob("*.jsonl"))

    def done_ids(self) -> frozenset[str]:
        """Ids whose labels are already written, by any rank of earlier runs or by this writer."""
        return frozenset(self._done)

    def __contains__(self, recording_id: object) -> bool:
        return recording_id in self._done

    def add(self, recording_id: str, labels: Any) -> None:
        """Append the (T,) integer labels of an id (utterance labels: 1 integer, or `values`).

        Raises `ValueError` for an id that was written before, or a label outside [0, classes).
        """
        if recording_id in self._done:
            raise ValueError(
                f"labels: found {recording_id!r} twice for {self.folder}, want each id once; "
                "skip those of done_ids()"
            )
        array = np.atleast_1d(np.asarray(labels))
        classes = int(self.meta["classes"])
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(
                f"labels of {recording_id!r}: found shape {array.shape} of {array.dtype}, want "
                "(T,) integers"
            )
        if array.size and not (array.min() >= 0 and array.max() < classes):
            raise ValueError(
                f"labels of {recording_id!r}: found {array.min()} to {array.max()}, want 0 to "
                f"{classes - 1}"
            )
        values = int(self.meta.get("values", 1))
        if not self.meta["frame_rate_hz"] and array.size != values:
            raise ValueError(
                f"labels of {recording_id!r}: found {array.size}, want {values} per utterance"
            )
        self._data.write(array.astype(self.dtype).tobytes())
        self._pending.append(json.dumps([recording_id, int(array.size)]).encode() + b"\n")
        self._done.add(recording_id)
        if len(self._pending) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Hand what was added to the operating system: a kill no longer loses it."""
        # Labels first: a line without its labels would be a lie, labels without a line are cut off.
        self._data.flush()
        self._lines.write(b"".join(self._pending))
        self._lines.flush()
        self._pending.clear()

    def close(self) -> None:
        """Stop without finishing; a later writer continues."""
        if not self._data.closed:
            self.flush()
            self._data.close()
            self._lines.close()

    def finish(self) -> None:
        """Merge the parts of all ranks into the store. Every rank calls it."""
        self.close()
        dist.barrier()
        if dist.is_main():
            _merge(self.folder, self.meta, self.dtype, self._part_names())
        dist.barrier()


def _lock(file: BinaryIO, folder: Path) -> None:
    """Refuse a second writer of the same part; the system frees the lock of a killed one."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(
            f"labels: found another writer at work in {folder}; wait for it, or stop it"
        ) from None


_OWN_META = {"format", "generation", "num_ids", "num_labels"}


def _read_lines(part: Path) -> Iterator[tuple[str, int]]:
    path = part.with_suffix(".jsonl")
    if path.is_file():
        with open(path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    recording_id, length = json.loads(line)
                    yield recording_id, length


def _repair(part: Path, dtype: np.dtype) -> None:
    """Cut a part back to what its complete lines and its data both hold."""
    data, lines = part.with_suffix(".bin"), part.with_suffix(".jsonl")
    available = data.stat().st_size
    good_bytes = good_lines = 0
    with open(lines, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            behind = good_bytes + json.loads(line)[1] * dtype.itemsize
            if behind > available:
                break
            good_bytes, good_lines = behind, good_lines + len(line)
    os.truncate(lines, good_lines)
    os.truncate(data, good_bytes)


def _merge(folder: Path, meta: Mapping[str, Any], dtype: np.dtype, parts: list[Path]) -> None:
    """Concatenate the finished store, if any, and the parts into the next generation."""
    old = LabelStore.open(folder) if (folder / "meta.json").is_file() else None
    generation = 1 + (old.meta["generation"] if old else 0)
    sources: list[tuple[Path, Iterator[tuple[str, int]]]] = []
    if old is not None:
        before = folder / f"ids-{old.meta['generation']}.txt"
        sources.append((folder / f"labels-{old.meta['generation']}.bin", _lines_of(before)))
    sources += [(p.with_suffix(".bin"), _read_lines(p)) for p in parts]

    names = [f"{kind}-{generation}" for kind in ("labels", "ids", "keys", "spans")]
    keys, starts, lengths = [], [], []
    at = 0
    with (
        open(folder / f"{names[0]}.bin", "wb") as data,
        open(folder / f"{names[1]}.txt", "wb") as id_file,
    ):
        for path, lines in sources:
            start = at
            for recording_id, length in lines:
                keys.append(hash_id(recording_id))
                starts.append(at)
                lengths.append(length)
                id_file.write(json.dumps([recording_id, length]).encode() + b"\n")
                at += length
            _copy(path, data, (at - start) * dtype.itemsize)
        for file in (data, id_file):
            file.flush()
            os.fsync(file.fileno())
    order = np.argsort(np.array(keys, dtype=np.uint64), kind="stable")
    sorted_keys = np.array(keys, dtype=np.uint64)[order]
    _refuse_collisions(folder, sorted_keys, order, folder / f"{names[1]}.txt")
    spans = np.stack([np.array(starts, np.int64), np.array(lengths, np.int64)], axis=1)
    np.save(folder / f"{names[2]}.npy", sorted_keys)
    np.save(folder / f"{names[3]}.npy", spans[order] if len(keys) else spans.reshape(0, 2))
    full = {**meta, "format": FORMAT, "generation": generation}
    full |= {"num_ids": len(keys), "num_labels": at}
    (folder / "meta.json.tmp").write_text(json.dumps(full, indent=2))
    os.replace(folder / "meta.json.tmp", folder / "meta.json")
    _clean(folder, generation)


def _lines_of(path: Path) -> Iterator[tuple[str, int]]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            recording_id, length = json.loads(line)
            yield recording_id, length


def _copy(path: Path, target: BinaryIO, size: int) -> None:
    with open(path, "rb") as source:
        while size > 0:
            block = source.read(min(size, _COPY_BYTES))
            if not block:
                raise ValueError(f"{path}: found {size} bytes too few; make these labels again")
            target.write(block)
            size -= len(block)


def _refuse_collisions(folder: Path, keys: np.ndarray, order: np.ndarray, ids: Path) -> None:
    same = np.flatnonzero(keys[1:] == keys[:-1])
    if not len(same):
        return
    wanted = {int(order[i]) for i in same} | {int(order[i + 1]) for i in same}
    names = [n for at, (n, _) in enumerate(_lines_of(ids)) if at in wanted]
    raise ValueError(
        f"labels: found ids that occur twice or share a 64-bit hash in {folder}: "
        f"{sorted(names)[:6]}; want each id once and distinct; rename or drop one of each pair"
    )


def _generation(folder: Path) -> int:
    path = folder / "meta.json"
    return json.loads(path.read_text())["generation"] if path.is_file() else 0


def _clean(folder: Path, generation: int) -> None:
    """Remove what meta.json no longer names; a kill before or within is harmless."""
    for path in folder.glob("parts-*"):
        if path.name != f"parts-{generation}":
            shutil.rmtree(path)
    for kind in ("labels", "ids", "keys", "spans"):
        for path in folder.glob(f"{kind}-*"):
            if path.stem != f"{kind}-{generation}":
                path.unlink(missing_ok=True)
