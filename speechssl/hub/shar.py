"""Features as Lhotse Shar: the cuts, and one array field per layer, in shards of N cuts.

    feats/
      extract.json                  which model, layers and number type; a later run must agree
      shar/cuts.000000.jsonl.gz     the cuts, as they came in
      shar/layer_06.000000.tar      <cut id>.npy (T, D) and <cut id>.json for each
      shards/000000.json            written last: the shard is complete
      open/                         shards that are being written

`lhotse.CutSet.from_shar(in_dir="feats/shar")` reads it; `cut.load_layer_06()` gives the frames,
and of a truncated cut the frames of its part. Frames are a TemporalArray and not Lhotse's
Features, whose reader adds a frame where the count is not duration / frame_shift rounded.

Shard k is items [k N, (k + 1) N), in order, and what is in its files depends on nothing else: an
interrupted extraction makes the same files as one that was not. Written here and not by lhotse's
SharWriter, whose files hold the time of writing, and which needs each array whole in memory.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from speechssl import dist
from speechssl.hub.audio import AudioItem
from speechssl.hub.cuts import CutItems, FileItems, PlainCut
from speechssl.hub.extract import Features
from speechssl.hub.store import Pool, Store, pooled, write_json, write_npy

SPOOL_BYTES = 2**26
"""Larger arrays go through a file on disk on their way into the tar."""


class SharWriter(Store):
    """Writes Shar. Of several processes, each takes whole shards.

    dtype: "float32" or "float16".
    pool: see `hub.store.pooled`; pooled vectors are Arrays, which have no time.
    """

    in_order = True

    def __init__(
        self,
        folder: str | Path,
        meta: Mapping[str, Any],
        dtype: str = "float32",
        shard_size: int = 1000,
        pool: Pool = "none",
    ) -> None:
        form = {"format": "shar", "dtype": dtype, "pool": pool, "shard_size": shard_size}
        super().__init__(folder, {**meta, **form})
        self.dtype, self.shard_size = np.dtype(dtype), shard_size
        self.pool: Pool = pool
        self.layers: list[int] = list(meta["layers"])
        self.frame_shift: float = meta["hop_samples"] / meta["sample_rate_hz"]
        if dist.is_main():
            shutil.rmtree(self.folder / "open", ignore_errors=True)
        for name in ("shar", "shards", "open"):
            (self.folder / name).mkdir(exist_ok=True)
        self.complete = self._marks()
        self._count = sum(mark["cuts"] for mark in self.complete.values())
        self._shard: _Shard | None = None
        self._plain: dict[str, PlainCut] = {}

    def __len__(self) -> int:
        return self._count

    def _marks(self) -> dict[int, dict[str, Any]]:
        paths = sorted((self.folder / "shards").glob("*.json"))
        return {int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in paths}

    def shares(self, items: Any) -> Iterator[list[AudioItem]]:
        work = cast(CutItems | FileItems, items)
        beyond = [number for number in self.complete if number * self.shard_size >= len(work)]
        pairs = iter(zip(work, work.plain_cuts(), strict=True))
        for number in itertools.count():
            shard = list(itertools.islice(pairs, self.shard_size))
            if not shard:
                return
            digest = _digest(item.id for item, _ in shard)
            if beyond or self.complete.get(number, {"ids": digest})["ids"] != digest:
                raise ValueError(
                    f"output: found shards of other utterances in {self.folder} (shard "
                    f"{beyond[0] if beyond else number}), want the same cuts or files in the same "
                    "order; choose another folder, or delete this one"
                )
            if number not in self.complete and number % dist.world_size() == dist.rank():
                yield from self._fill(number, digest, shard)

    def _fill(
        self, number: int, digest: str, pairs: Sequence[tuple[AudioItem, PlainCut]]
    ) -> Iterator[list[AudioItem]]:
        self._plain = {item.id: plain for item, plain in pairs}
        self._shard = _Shard(self.folder / "open" / f"{number:06d}", self.layers)
        yield [item for item, _ in pairs]
        self._shard.publish(self.folder / "shar", number)
        skipped = {item.id: self.faults[item.id] for item, _ in pairs if item.id in self.faults}
        assert self._shard.cuts + len(skipped) == len(pairs)
        mark = {"cuts": self._shard.cuts, "ids": digest, "skipped": skipped}
        write_json(self.folder / "shards" / f"{number:06d}.json", mark)

    def add(self, features: Features) -> None:
        assert self._shard is not None
        try:
            cut = _checked(features.id, self._plain[features.id]())
        except ValueError as error:
            self.fault(features.id, error)
            return
        arrays = {layer: pooled(values, self.pool) for layer, values in features.hidden.items()}
        self._shard.write(
            cut,
            {k: (array, self._manifest(array, cut)) for k, array in arrays.items()},
            self.dtype,
        )
        self._count += 1

    def _manifest(self, array: np.ndarray, cut: Mapping[str, Any]) -> dict[str, Any]:
        """Lhotse's description of an array whose data lies beside it in the tar."""
        place = {"storage_type": "shar", "storage_path": "", "storage_key": ""}
        plain = {**place, "shape": list(array.shape)}
        if array.ndim == 1:
            return plain
        time = {"temporal_dim": 0, "frame_shift": self.frame_shift, "start": cut["start"]}
        return {"array": plain, **time}

    def finish(self) -> dict[str, str]:
        super().finish()
        if dist.is_main():
            shutil.rmtree(self.folder / "open", ignore_errors=True)
        # Complete shards are not looked at again: what they lack stays listed.
        return {k: v for mark in self._marks().values() for k, v in mark["skipped"].items()}


class _Shard:
    """The files of one shard while they are written; `publish` moves them into place."""

    def __init__(self, folder: Path, layers: Iterable[int]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.cuts = folder, 0
        self._text = (folder / "cuts").open("wb")
        # Without a time, unlike gzip's usual header: equal content makes equal files.
        self._lines = gzip.GzipFile("", "wb", fileobj=self._text, mtime=0)
        self._tars = {
            layer: tarfile.TarFile(folder / field(layer), "w", encoding="utf-8") for layer in layers
        }

    def write(
        self,
        cut: Mapping[str, Any],
        arrays: Mapping[int, tuple[np.ndarray, Mapping[str, Any]]],
        dtype: np.dtype,
    ) -> None:
        for layer, (array, manifest) in arrays.items():
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as file:
                write_npy(file, array, dtype)
                self._member(layer, f"{cut['id']}.npy", file)
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as file:
                file.write(json.dumps(manifest).encode() + b"\n")
                self._member(layer, f"{cut['id']}.json", file)
        self._lines.write(json.dumps(cut, ensure_ascii=False).encode() + b"\n")
        self.cuts += 1

    def _member(self, layer: int, name: str, file: Any) -> None:
        info = tarfile.TarInfo(name)
        info.size = file.tell()
        file.seek(0)
        self._tars[layer].addfile(info, file)

    def publish(self, folder: Path, number: int) -> None:
        for file in (self._lines, self._text, *self._tars.values()):
            file.close()
        if self.cuts:
            for layer in self._tars:
                name = field(layer)
                os.replace(self.folder / name, folder / f"{name}.{number:06d}.tar")
            os.replace(self.folder / "cuts", folder / f"cuts.{number:06d}.jsonl.gz")
        shutil.rmtree(self.folder)


def field(layer: int) -> str:
    return f"layer_{layer:02d}"


def _digest(ids: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=16).hexdigest()


def _checked(name: str, cut: dict[str, Any]) -> dict[str, Any]:
    """The cut, if Shar can carry arrays of it."""
    kind = cut.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut"):
        raise ValueError(
            f"{name}: found a {kind}, want a MonoCut or MultiCut: Lhotse would give the arrays of "
            "others to one of their tracks; use another format"
        )
    path = PurePosixPath(f"{name}.npy")
    if str(path.parent / path.stem) != name:
        raise ValueError(
            f"{name!r}: found an id that is no plain path, want one without '//', './' and '/' at "
            "its end: a Shar tar names its members by them; use another format"
        )
    return cut
