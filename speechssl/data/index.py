"""Random access to the cuts of a manifest at no memory: an index folder beside it.

`cuts_train.jsonl.gz` gets a folder `cuts_train.jsonl.gz.index` with `records.jsonl` (one compact
line per cut: what reading needs, without alignments), `offsets.npy` (int64, byte of each line),
`num_samples.npy` (int32, length at 16 kHz), `keys.npy` (sorted 64-bit hashes of the ids) and
`stamp.json`. It is built by one streaming pass on first use, under a lock and a temporary name,
and again when the manifest changes. All arrays are memory-mapped. Where the manifest's folder
cannot be written, the index lies in $XDG_CACHE_HOME/speechssl/index.

A folder of Lhotse Shar is indexed too: the byte range of each recording in its tar files becomes
part of the record, so that Shar is read, shuffled and resumed exactly as single files are.
Differs from lhotse's own Shar reader, which streams and cannot seek: our resume would cost a pass.
"""

from __future__ import annotations

import copy
import dataclasses
import gzip
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.data.label_store import hash_id, map_array

FORMAT = 1
SAMPLE_RATE = 16000
_decoder = json.JSONDecoder()


@dataclasses.dataclass(frozen=True, slots=True)
class CutRecord:
    """What reading a cut needs.

    path, offset, size: the audio file, and the byte range inside it for Shar (size 0: all of it).
    start, duration: of the cut in its recording, seconds. channel: None takes the mean of all.
    recording_duration: seconds. text: transcript of the first supervision.
    full: the whole cut as lhotse's plain values, where it is not a part of one audio file.
    """

    id: str
    recording_id: str
    path: str
    start: float
    duration: float
    channel: int | None
    recording_duration: float
    text: str | None = None
    offset: int = 0
    size: int = 0
    full: dict[str, Any] | None = None

    @property
    def num_samples(self) -> int:
        """Length at 16 kHz."""
        return round(self.duration * SAMPLE_RATE)

    @property
    def start_sample(self) -> int:
        """Start in the recording at 16 kHz."""
        return round(self.start * SAMPLE_RATE)


def record_from_cut(cut: dict[str, Any]) -> CutRecord:
    """Keep of a cut's plain values (`lhotse.Cut.to_dict`) what reading needs.

    Raises `ValueError` for a cut without audio.
    """
    supervisions = cut.get("supervisions") or []
    text = supervisions[0].get("text") if supervisions else None
    recording = cut.get("recording")
    if cut.get("type", "MonoCut") == "MonoCut" and recording is not None:
        sources = recording["sources"]
        plain = (
            len(sources) == 1 and sources[0]["type"] == "file" and not recording.get("transforms")
        )
        many = len(recording.get("channel_ids") or [0]) > 1
        if plain:
            return CutRecord(
                id=cut["id"],
                recording_id=recording["id"],
                path=sources[0]["source"],
                start=cut["start"],
                duration=cut["duration"],
                channel=cut["channel"] if many else None,
                recording_duration=recording["duration"],
                text=text,
            )
    elif cut.get("type", "MonoCut") == "MonoCut":
        raise ValueError(f"cut {cut['id']!r}: found no recording, want audio")
    duration = cut["duration"] if "duration" in cut else _mixed_duration(cut)
    recording_id = recording["id"] if recording else cut["id"]
    span = recording["duration"] if recording else duration
    return CutRecord(
        id=cut["id"],
        recording_id=recording_id,
        path="",
        start=cut.get("start", 0.0),
        duration=duration,
        channel=None,
        recording_duration=span,
        text=text,
        full=cut,
    )


def _mixed_duration(cut: dict[str, Any]) -> float:
    from lhotse.serialization import deserialize_item

    # lhotse takes entries out of what it is given.
    return deserialize_item(copy.deepcopy(cut)).duration


def _encode(record: CutRecord) -> bytes:
    values = [getattr(record, f.name) for f in dataclasses.fields(CutRecord)]
    while values[-1] in (None, 0):
        values.pop()
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class CutIndex:
    """The cuts of one manifest or Shar folder: `len`, `[i]` -> CutRecord, `num_samples`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise ValueError(
                f"cuts: found no {path}, want a cuts_*.jsonl.gz or a Shar folder; "
                "`speechssl prepare` makes cuts"
            )
        self.folder = ensure_index(self.path)
        self.num_samples: np.ndarray = map_array(self.folder / "num_samples.npy")
        self.keys: np.ndarray = map_array(self.folder / "keys.npy")
        self._offsets = map_array(self.folder / "offsets.npy")
        self._file = os.open(self.folder / "records.jsonl", os.O_RDONLY)
        self.is_shar = self.path.is_dir()

    def __reduce__(self) -> tuple[Any, ...]:
        return (CutIndex, (self.path,))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self.num_samples)

    def __getitem__(self, at: int) -> CutRecord:
        begin, end = int(self._offsets[at]), int(self._offsets[at + 1])
        line = os.pread(self._file, end - begin, begin).decode()
        return CutRecord(*_decoder.raw_decode(line)[0])


class CutIndices:
    """Several manifests as one sequence of cuts.

    Raises `ValueError` for an id that two of the manifests hold.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise ValueError("cuts: found no manifest, want one or more cuts_*.jsonl.gz")
        self.parts = [CutIndex(p) for p in paths]
        self._ends = np.cumsum([len(p) for p in self.parts])
        for i, one in enumerate(self.parts):
            for other in self.parts[:i]:
                _refuse_common_ids(other, one)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, at: int) -> CutRecord:
        part = int(self._ends.searchsorted(at, side="right"))
        return self.parts[part][int(at) - (int(self._ends[part - 1]) if part else 0)]

    def num_samples(self, places: np.ndarray) -> np.ndarray:
        """(N,) indices -> (N,) int64 lengths at 16 kHz."""
        part = np.searchsorted(self._ends, places, side="right")
        out = np.empty(len(places), dtype=np.int64)
        for i, index in enumerate(self.parts):
            here = part == i
            begin = int(self._ends[i - 1]) if i else 0
            out[here] = index.num_samples[np.asarray(places)[here] - begin]
        return out

    @property
    def is_shar(self) -> bool:
        return any(p.is_shar for p in self.parts)


def _refuse_common_ids(one: CutIndex, other: CutIndex, chunk: int = 1 << 18) -> None:
    for begin in range(0, len(other.keys), chunk):
        keys = np.asarray(other.keys[begin : begin + chunk])
        at = np.minimum(np.searchsorted(one.keys, keys), max(len(one.keys) - 1, 0))
        common = keys[one.keys[at] == keys] if len(one.keys) else keys[:0]
        if len(common):
            key = int(common[0])
            name = next(r.id for r in (other[i] for i in range(len(other))) if hash_id(r.id) == key)
            raise ValueError(
                f"cuts: found the id {name!r} in {one.path} and in {other.path}, want each id "
                "once; drop one of the manifests, or rename the cuts of one"
            )


def ensure_index(path: Path) -> Path:
    """The folder of an up-to-date index of `path`; builds it if there is none."""
    import fcntl

    folder = _index_folder(path)
    if _is_current(path, folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        # Other ranks wait here for the first, and then find its index.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_current(path, folder):
            temporary = Path(tempfile.mkdtemp(prefix=folder.name + ".tmp", dir=folder.parent))
            try:
                _build(path, temporary)
                if folder.exists():
                    shutil.rmtree(folder)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _index_folder(path: Path) -> Path:
    path = path.absolute()
    beside = path / "speechssl.index" if path.is_dir() else path.with_name(path.name + ".index")
    if beside.is_dir() or os.access(beside.parent, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "speechssl" / "index" / f"{path.name}-{hash_id(str(path)):016x}"


def manifest_files(path: Path) -> list[Path]:
    """The manifest itself, or the cuts and recording shards of a Shar folder."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("cuts.*.jsonl*")) + sorted(path.glob("recording.*.tar"))
    if not files or files[-1].suffix != ".tar":
        raise ValueError(
            f"cuts: found neither cuts.*.jsonl.gz nor recording.*.tar in the folder {path}, want a "
            "Shar folder with both (`speechssl shard` writes one), or a cuts_*.jsonl.gz file"
        )
    return files


def _sizes(path: Path) -> list[list[Any]]:
    stats = [(f.name, f.stat()) for f in manifest_files(path)]
    return [[name, s.st_size, s.st_mtime_ns] for name, s in stats]


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in manifest_files(path):
        if file.suffix != ".tar":
            with open(file, "rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
    return digest.hexdigest()


def _is_current(path: Path, folder: Path) -> bool:
    stamp_path = folder / "stamp.json"
    if not stamp_path.is_file():
        return False
    stamp = json.loads(stamp_path.read_text())
    if stamp.get("format") != FORMAT:
        return False
    sizes = _sizes(path)
    if stamp["files"] == sizes:
        return True
    # A copied or touched manifest has another time but the same content.
    same_sizes = [s[:2] for s in stamp["files"]] == [s[:2] for s in sizes]
    return same_sizes and stamp["digest"] == _digest(path)


def _build(path: Path, folder: Path) -> None:
    from tqdm import tqdm

    offsets, lengths, keys = array("q", [0]), array("i"), array("Q")
    stamp = {"format": FORMAT, "files": _sizes(path), "digest": _digest(path)}
    with open(folder / "records.jsonl", "wb") as file:
        for record in tqdm(
            _records(path), desc=f"index {path.name}", unit="cut", leave=False, disable=None
        ):
            line = _encode(record)
            file.write(line)
            offsets.append(offsets[-1] + len(line))
            lengths.append(record.num_samples)
            keys.append(hash_id(record.id))
    key_array = np.frombuffer(keys, dtype=np.uint64) if len(keys) else np.empty(0, np.uint64)
    order = np.argsort(key_array, kind="stable")
    _refuse_duplicates(path, folder, key_array, order, offsets)
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    np.save(folder / "num_samples.npy", np.array(lengths, dtype=np.int32))
    np.save(folder / "keys.npy", key_array[order])
    (folder / "stamp.json").write_text(json.dumps(stamp))


def _refuse_duplicates(
    path: Path, folder: Path, keys: np.ndarray, order: np.ndarray, offsets: Sequence[int]
) -> None:
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if not len(same):
        return
    first, second = sorted((int(order[same[0]]), int(order[same[0] + 1])))
    with open(folder / "records.jsonl", "rb") as file:
        file.seek(offsets[first])
        name = json.loads(file.readline())[0]
    raise ValueError(
        f"{path}: found the cut id {name!r} on line {first + 1} and again on line {second + 1}, "
        "want each id once; drop or rename one"
    )


def _records(path: Path) -> Iterator[CutRecord]:
    if path.is_dir():
        from speechssl.data.shar import shar_records

        yield from shar_records(path)
        return
    for number, cut in read_manifest(path):
        try:
            yield record_from_cut(cut)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path}, line {number}: found no Lhotse cut ({type(error).__name__}: {error}), "
                "want what `CutSet.to_jsonl` writes"
            ) from None


def read_manifest(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and plain values of each line of a .jsonl or .jsonl.gz, streaming."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError) as error:
            raise ValueError(
                f"{path}, line {number}: found damage ({error}), want one JSON value per line; "
                "make the manifest again"
            ) from None
