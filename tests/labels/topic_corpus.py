"""Label stores and manifests of made-up units, without audio."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.corpora.manifest import AudioHeader, cut_row
from speechssl.data.label_store import LabelStore, LabelWriter

RATE = 50


def write_store(folder: Path, units: Mapping[str, np.ndarray], classes: int) -> LabelStore:
    meta = {"classes": classes, "frame_rate_hz": RATE, "codebook_hash": f"book of {classes}"}
    writer = LabelWriter(folder, meta)
    for name, row in units.items():
        writer.add(name, row)
    writer.finish()
    return LabelStore.open(folder)


def row_of(name: str, frames: int, **fields: Any) -> dict[str, Any]:
    """A cut that has so many labels at 50 Hz with windows of 25 ms."""
    samples = round((frames - 1) / RATE * 16000) + 400
    own = {k: fields.pop(k) for k in ("text", "speaker", "gender", "language") if k in fields}
    header = AudioHeader(samples, 16000, 1)
    return cut_row(id=name, audio=f"{name}.wav", header=header, custom=fields, **own)


def write_cuts(path: Path, rows: list[dict[str, Any]]) -> str:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def two_worlds(folder: Path, utterances: int = 120) -> tuple[LabelStore, str, dict[str, int]]:
    """Utterances of one of two worlds, each with units of its own; the store, the cuts, the worlds.

    World 0 is "low" with speakers 0 to 3 and the word "moon", world 1 "high" with 4 to 7 and "sun".
    """
    draw, classes = np.random.default_rng(0), 40
    units, rows, worlds = {}, [], {}
    for i in range(utterances):
        world, name = int(draw.integers(2)), f"u{i:03d}"
        half = classes // 2
        runs = draw.integers(1, 4, 30)
        units[name] = np.repeat(draw.integers(half, size=30) + half * world, runs)
        worlds[name] = world
        rows.append(
            row_of(
                name,
                len(units[name]),
                text=f"the {('moon', 'sun')[world]} is {('big', 'far')[int(draw.integers(2))]}",
                speaker=f"s{4 * world + int(draw.integers(4))}",
                gender=("male", "female")[int(draw.integers(2))],
                theme=("low", "high")[world],
            )
        )
    store = write_store(folder / "units", units, classes)
    return store, write_cuts(folder / "cuts.jsonl.gz", rows), worlds


def many_worlds(folder: Path, worlds: int, utterances: int = 120) -> tuple[LabelStore, str]:
    """Utterances of worlds of six units each."""
    draw = np.random.default_rng(0)
    units = {
        f"u{i:03d}": 6 * (i % worlds) + draw.integers(6, size=40) for i in range(utterances)
    }  # fmt: skip
    store = write_store(folder / "units", units, 6 * worlds)
    rows = [row_of(name, 40) for name in units]
    return store, write_cuts(folder / "cuts.jsonl.gz", rows)
