"""A folder of features on disk: one .npy per utterance and layer, with an index; resumable.

    feats/
      extract.json     which model, layers and number type; a later run must agree
      index.jsonl      {"id", "layer", "file", "frames", "dim", "frame_rate_hz", "seconds"} a line
      layer_06/a.npy   (T, D)

A line enters the index when its file is complete, so whatever the index names is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.hub.extract import Features


class FeatureWriter:
    """Writes features into `folder`, continuing what earlier runs with the same `meta` began.

    meta: what the features depend on; kept in extract.json.
    dtype: "float32" or "float16".
    part: the rank, where several processes write into one folder: each has an index of its own,
        until one of them calls `merge_index`.
    Raises ValueError if the folder holds features of another `meta`.
    """

    def __init__(
        self,
        folder: str | Path,
        meta: Mapping[str, Any],
        dtype: str = "float32",
        part: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.dtype = np.dtype(dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._agree({**meta, "dtype": dtype})
        self.index = self.folder / ("index.jsonl" if part is None else f"index.{part}.jsonl")
        _drop_torn_line(self.index)
        wanted = set(meta["layers"])
        layers: dict[str, set[int]] = {}
        for line in read_index(self.folder):
            layers.setdefault(line["id"], set()).add(line["layer"])
        self.done = {name for name, found in layers.items() if wanted <= found}

    def _agree(self, meta: Mapping[str, Any]) -> None:
        path = self.folder / "extract.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before != dict(meta):
                keys = sorted(k for k in {*before, *meta} if before.get(k) != meta.get(k))
                shown = "; ".join(
                    f"{k}: found {before.get(k)!r}, want {meta.get(k)!r}" for k in keys
                )
                raise ValueError(
                    f"output: {self.folder} holds features of another run ({shown}); choose "
                    "another folder, or delete this one"
                )
            return
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)

    def add(self, features: Features) -> None:
        lines = []
        for layer, values in features.hidden.items():
            name = f"layer_{layer:02d}/{file_name(features.id)}.npy"
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(path.name + ".tmp")
            with temporary.open("wb") as file:
                np.save(file, values.astype(self.dtype, copy=False))
            os.replace(temporary, path)
            lines.append(
                {
                    "id": features.id,
                    "layer": layer,
                    "file": name,
                    "frames": len(values),
                    "dim": values.shape[1],
                    "frame_rate_hz": features.frame_rate_hz,
                    "seconds": round(features.seconds, 6),
                }
            )
        with self.index.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.done.add(features.id)


def file_name(name: str) -> str:
    """A file name for any id: itself if harmless, else its harmless end and a hash of all of it."""
    harmless = re.sub(r"[^\w.+=@-]+", "_", name, flags=re.ASCII)
    if harmless == name and len(name) <= 120 and not name.startswith("."):
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return f"{harmless[-80:].lstrip('._')}-{digest}"


def read_index(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a feature folder's index, and of parts of it that are not merged yet."""
    seen: set[tuple[str, int]] = set()
    for path in sorted(Path(folder).glob("index*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for text in lines:
                if not text.endswith("\n"):  # another process is writing it
                    continue
                line = json.loads(text)
                if (line["id"], line["layer"]) not in seen:
                    seen.add((line["id"], line["layer"]))
                    yield line


def merge_index(folder: str | Path) -> None:
    """Gather the parts that several processes wrote into index.jsonl."""
    folder = Path(folder)
    parts = sorted(folder.glob("index.*.jsonl"))
    if not parts:
        return
    temporary = folder / "index.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        for line in read_index(folder):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(temporary, folder / "index.jsonl")
    for part in parts:
        part.unlink()


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left without its end."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            file.truncate(whole)


def write_hdf5(folder: str | Path, path: str | Path) -> int:
    """Gather a feature folder into one HDF5 file, dataset "<layer>/<id>"; returns how many.

    Raises ValueError if h5py is not installed.
    """
    try:
        import h5py  # pyright: ignore
    except ImportError:
        raise ValueError("format: hdf5 needs h5py; pip install h5py, or use npy") from None
    path, folder = Path(path), Path(folder)
    temporary = path.with_name(path.name + ".tmp")
    count = 0
    with h5py.File(temporary, "w") as file:
        for line in read_index(folder):
            # HDF5 reads "/" in a name as a group, so ids with slashes nest; lookups still work.
            data = file.create_dataset(
                f"{line['layer']}/{line['id'].lstrip('/')}", data=np.load(folder / line["file"])
            )
            for key in ("id", "frame_rate_hz", "seconds"):
                data.attrs[key] = line[key]
            count += 1
    os.replace(temporary, path)
    return count
