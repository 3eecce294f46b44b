"""Units instead of features: the class of each frame, by an assigner that is handed in.

As one line of JSON per utterance, or through any writer with `add` and `done_ids`, such as
`data.label_store.LabelWriter`:

    units/
      extract.json   which model, layer and codebook; a later run must agree
      units.jsonl    {"id", "units": [7, 7, 31, ...], "samples", "seconds"} a line
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechssl import dist
from speechssl.data.label_store import LabelWriter
from speechssl.hub.extract import Features
from speechssl.hub.store import (
    Store,
    append_lines,
    blocks,
    make_folder,
    merge_parts,
    parts_of,
    whole_lines,
)

Assign = Callable[[np.ndarray], np.ndarray]
"""(T, D) float32 features -> (T,) integer units."""
OnUnits = Callable[[np.ndarray], None]


def units_of(features: Features, assign: Assign) -> np.ndarray:
    """(T,) units of the one layer, block by block."""
    (frames,) = features.hidden.values()
    return np.concatenate([assign(block) for block in blocks(frames)])


class UnitFile(Store):
    """Writes units.jsonl. on_units: called with the units of each utterance."""

    def __init__(
        self, folder: str | Path, meta: Mapping[str, Any], assign: Assign, on_units: OnUnits
    ) -> None:
        super().__init__(folder, {**meta, "format": "jsonl"})
        self.assign, self.on_units = assign, on_units
        several = dist.world_size() > 1
        self.path = self.folder / (f"units.{dist.rank()}.jsonl" if several else "units.jsonl")
        for path in parts_of(self.folder, "units"):
            end = 0
            for line, behind in whole_lines(path):
                self.done[line["id"]], end = line["samples"], behind
            os.truncate(path, end)

    def add(self, features: Features) -> None:
        units = units_of(features, self.assign)
        line = {
            "id": features.id,
            "units": units.tolist(),
            "samples": features.num_samples,
            "seconds": round(features.seconds, 6),
        }
        append_lines(self.path, [line])
        self.done[features.id] = features.num_samples
        self.on_units(units)

    def finish(self) -> dict[str, str]:
        skipped = super().finish()
        if dist.is_main():
            merge_parts(self.folder, "units", read_units(self.folder))
        return skipped


def read_units(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of units.jsonl, and of parts of it that are not merged yet."""
    seen: set[str] = set()
    for path in parts_of(folder, "units"):
        for line, _ in whole_lines(path):
            if line["id"] not in seen:
                seen.add(line["id"])
                yield line


class UnitLabels(Store):
    """Writes a label store. Every rank makes it at the same time.

    A continued run leaves out what is done, whose lengths a label store does not know: where two
    centroids are equally near up to rounding, batches cut in another way may decide otherwise.
    """

    def __init__(
        self, folder: str | Path, meta: Mapping[str, Any], assign: Assign, on_units: OnUnits
    ) -> None:
        # The label store checks by itself what it continues.
        self.folder = make_folder(folder)
        self.faults: dict[str, str] = {}
        self.assign, self.on_units = assign, on_units
        self.writer = LabelWriter(folder, meta, flush_every=1)
        self.done: dict[str, int | None] = dict.fromkeys(self.writer.done_ids())

    def add(self, features: Features) -> None:
        units = units_of(features, self.assign)
        self.writer.add(features.id, units)
        self.done[features.id] = None
        self.on_units(units)

    def finish(self) -> dict[str, str]:
        self.writer.finish()
        return super().finish()
