"""A folder of features on disk: one .npy per utterance and layer, with an index; resumable.

    feats/
      extract.json     which model, layers and number type; a later run must agree
      index.jsonl      {"id", "layer", "file", "frames", "dim", "frame_rate_hz", "samples",
                       "seconds"} a line
      layer_06/a.npy   (T, D), or one vector where frames were pooled
      skipped.txt      what could not be read, and why

A line enters the index when its file is complete, so whatever the index names is whole.
`Store` is what every form of output has in common: see also `hub.shar` and `hub.units`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from speechssl import dist
from speechssl.hub.audio import AudioItem, forget
from speechssl.hub.extract import Features

Pool = Literal["none", "mean", "mean_std"]
BLOCK_FRAMES = 16384
"""Frames handled at a time, so that hours of features on disk never come into memory."""


class Store:
    """Features go in, files come out; a later run of the same `meta` continues.

    folder: made if it is not there.
    meta: what the output depends on; kept in extract.json.
    in_order: whether features must come in the order of their items.
    Raises ValueError if the folder holds output of another `meta`.
    """

    in_order = False

    def __init__(self, folder: str | Path, meta: Mapping[str, Any]) -> None:
        self.folder = make_folder(folder)
        self.faults: dict[str, str] = {}
        # id -> samples of what is there, None where the length is not known.
        self.done: dict[str, int | None] = {}
        _agree(self.folder, meta)

    def __len__(self) -> int:
        """Utterances that are there."""
        return len(self.done)

    def shares(self, items: Any) -> Iterator[Iterable[AudioItem]]:
        """What this rank has to do, in parts that are done one after the other.

        The next part may be asked for when all features of the one before were added.
        """
        yield self._share(items)

    def _share(self, items: Iterable[AudioItem]) -> Iterator[AudioItem]:
        for number, item in enumerate(items):
            if number % dist.world_size() != dist.rank():
                continue
            if item.id not in self.done:
                yield item
            elif (samples := self.done[item.id]) is not None:
                # In its old place in the batches: what follows is then the same bit for bit.
                yield dataclasses.replace(item, done_samples=samples)

    def add(self, features: Features) -> None:
        raise NotImplementedError

    def fault(self, name: str, error: Exception) -> None:
        """Note why an item is left out."""
        self.faults[name] = str(error)

    def finish(self) -> dict[str, str]:
        """Complete the output, on every rank; all items left out, with the reason."""
        return {k: v for part in dist.gather_objects(self.faults) for k, v in part.items()}


class FeatureWriter(Store):
    """Writes .npy files.

    dtype: "float32" or "float16".
    pool: see `pooled`.
    part: the rank, where several processes write into one folder: each has an index of its own,
        until one of them calls `merge_index`.
    """

    def __init__(
        self,
        folder: str | Path,
        meta: Mapping[str, Any],
        dtype: str = "float32",
        part: int | None = None,
        pool: Pool = "none",
    ) -> None:
        super().__init__(folder, {**meta, "format": "npy", "dtype": dtype, "pool": pool})
        self.dtype = np.dtype(dtype)
        self.pool: Pool = pool
        self.index = self.folder / ("index.jsonl" if part is None else f"index.{part}.jsonl")
        for path in parts_of(self.folder, "index"):
            self.done |= _repair(path, set(meta["layers"]))

    def add(self, features: Features) -> None:
        lines = []
        for layer, values in features.hidden.items():
            name = f"layer_{layer:02d}/{file_name(features.id)}.npy"
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(path.name + ".tmp")
            written = pooled(values, self.pool)
            with temporary.open("wb") as file:
                write_npy(file, written, self.dtype)
            os.replace(temporary, path)
            lines.append(
                {
                    "id": features.id,
                    "layer": layer,
                    "file": name,
                    "frames": len(values),
                    "dim": written.shape[-1],
                    "frame_rate_hz": features.frame_rate_hz,
                    "samples": features.num_samples,
                    "seconds": round(features.seconds, 6),
                }
            )
        append_lines(self.index, lines)
        self.done[features.id] = features.num_samples

    def finish(self) -> dict[str, str]:
        skipped = super().finish()
        if dist.is_main():
            merge_index(self.folder)
        return skipped


def make_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output: found {folder}, want a folder ({error.strerror})") from None
    return folder


def _agree(folder: Path, meta: Mapping[str, Any]) -> None:
    path = folder / "extract.json"
    meta = json.loads(json.dumps(meta))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != meta:
            keys = sorted(k for k in {*before, *meta} if before.get(k) != meta.get(k))
            shown = "; ".join(f"{k}: found {before.get(k)!r}, want {meta.get(k)!r}" for k in keys)
            raise ValueError(
                f"output: {folder} holds features of another run ({shown}); choose another folder, "
                "or delete this one"
            )
        return
    write_json(path, meta)


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def pooled(values: np.ndarray, kind: Pool) -> np.ndarray:
    """(T, D) frames of one utterance -> themselves, their mean (D,), or mean and deviation (2D,).

    The deviation is that of the population: sqrt(sum (x - mean)^2 / T), 0 for a single frame.
    Sums are float64, the result is float32.
    """
    if kind == "none":
        return values
    mean, squares = np.zeros((2, values.shape[1]))
    for block in blocks(values):
        mean += block.sum(0, dtype=np.float64) / len(values)
    if kind == "mean":
        return mean.astype(np.float32)
    for block in blocks(values):
        squares += np.square(block - mean).sum(0)
    return np.concatenate([mean, np.sqrt(squares / len(values))]).astype(np.float32)


def blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), BLOCK_FRAMES):
        yield values[start : start + BLOCK_FRAMES]
        forget(values)


def write_npy(file: IO[bytes], values: np.ndarray, dtype: np.dtype) -> None:
    """What `numpy.save` writes for `values.astype(dtype)`, block by block."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": values.shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks(values):
        file.write(np.ascontiguousarray(block, dtype).tobytes())


def file_name(name: str) -> str:
    """A file name for any id: itself if harmless, else its harmless end and a hash of all of it."""
    harmless = re.sub(r"[^\w.+=@-]+", "_", name, flags=re.ASCII)
    if harmless == name and len(name) <= 120 and not name.startswith("."):
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return f"{harmless[-80:].lstrip('._')}-{digest}"


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def parts_of(folder: str | Path, stem: str) -> list[Path]:
    """<stem>.jsonl, and parts of it that several processes write."""
    return sorted(p for p in Path(folder).glob(f"{stem}*.jsonl"))


def whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line's value and the byte behind it, up to one that a kill, or a writer, left open."""
    end = 0
    with path.open("rb") as file:
        for text in file:
            if not text.endswith(b"\n"):
                return
            end += len(text)
            yield json.loads(text), end


def _repair(path: Path, layers: set[int]) -> dict[str, int | None]:
    """Cut off what a kill left of a last utterance; the id and samples of every whole one."""
    done: dict[str, int | None] = {}
    name, found, whole = None, set(), 0
    for line, end in whole_lines(path):
        if line["id"] != name:
            name, found = line["id"], set()
        found.add(line["layer"])
        if layers <= found:
            done[line["id"]], whole = line["samples"], end
    os.truncate(path, whole)
    return done


def read_index(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a feature folder's index, and of parts of it that are not merged yet."""
    seen: set[tuple[str, int]] = set()
    for path in parts_of(folder, "index"):
        for line, _ in whole_lines(path):
            if (line["id"], line["layer"]) not in seen:
                seen.add((line["id"], line["layer"]))
                yield line


def merge_index(folder: str | Path) -> None:
    """Gather the parts that several processes wrote into index.jsonl."""
    merge_parts(folder, "index", read_index(folder))


def merge_parts(folder: str | Path, stem: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace <stem>.jsonl and its parts by one file of these lines."""
    parts = [p for p in parts_of(folder, stem) if p.name != f"{stem}.jsonl"]
    if not parts:
        return
    temporary = Path(folder) / f"{stem}.tmp"
    temporary.unlink(missing_ok=True)
    with temporary.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(temporary, Path(folder) / f"{stem}.jsonl")
    for part in parts:
        part.unlink()


def require_h5py() -> Any:
    try:
        import h5py  # pyright: ignore
    except ImportError:
        raise ValueError("format: hdf5 needs h5py; pip install h5py, or use npy") from None
    return h5py


def write_hdf5(folder: str | Path, path: str | Path) -> int:
    """Gather a feature folder into one HDF5 file, dataset "<layer>/<id>"; returns how many.

    Raises ValueError if h5py is not installed.
    """
    h5py = require_h5py()
    path, folder = Path(path), Path(folder)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with h5py.File(temporary, "w") as file:
        for line in read_index(folder):
            # HDF5 reads "/" in a name as a group, so ids with slashes nest; lookups still work.
            data = file.create_dataset(
                f"{line['layer']}/{line['id'].lstrip('/')}",
                data=np.load(folder / line["file"], mmap_mode="r"),
            )
            for key in ("id", "frame_rate_hz", "samples", "seconds"):
                data.attrs[key] = line[key]
            count += 1
    os.replace(temporary, path)
    return count
