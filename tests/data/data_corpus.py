"""A small corpus of FLAC files with labels that tell where they are from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechssl.data.label_store import LabelWriter

RATE = 16000


def make_cut(name: str, path: Path | str, seconds: float, text: str = "AB") -> dict[str, Any]:
    return {
        "id": name,
        "start": 0.0,
        "duration": seconds,
        "channel": 0,
        "supervisions": [
            {"id": name, "recording_id": name, "start": 0.0, "duration": seconds, "text": text}
        ],
        "recording": {
            "id": name,
            "sources": [{"type": "file", "channels": [0], "source": str(path)}],
            "sampling_rate": RATE,
            "num_samples": round(seconds * RATE),
            "duration": seconds,
            "channel_ids": [0],
        },
        "type": "MonoCut",
    }


def write_cuts(path: Path, cuts: list[dict[str, Any]]) -> str:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    return str(path)


def make_audio(path: Path, seconds: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    wave = (0.1 * draw.standard_normal(round(seconds * RATE))).astype(np.float32)
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    return soundfile.read(path, dtype="float32")[0]


class Corpus:
    """60 recordings of 0.5 to 3 s; frame labels at 50 Hz count frames, at 100 Hz half frames."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lengths = np.random.default_rng(5).uniform(0.5, 3.0, 60).round(2)
        self.waves: dict[str, np.ndarray] = {}
        self.cuts = []
        stores = {"km": 50, "fine": 100, "speaker": 0}
        writers = {
            name: LabelWriter(folder / name, {"classes": 1000, "frame_rate_hz": rate})
            for name, rate in stores.items()
        }
        for i, seconds in enumerate(lengths):
            name = f"utt{i:02d}"
            path = folder / f"{name}.flac"
            self.waves[name] = make_audio(path, float(seconds), i)
            self.cuts.append(make_cut(name, path, float(seconds)))
            writers["km"].add(name, np.arange(int(seconds * 50)))
            writers["fine"].add(name, np.arange(int(seconds * 100)))
            writers["speaker"].add(name, i % 7)
        for writer in writers.values():
            writer.finish()
        self.path = write_cuts(folder / "cuts_train.jsonl.gz", self.cuts)
        self.labels = {name: str(folder / name) for name in stores}
