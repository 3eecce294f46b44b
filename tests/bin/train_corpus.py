"""A small corpus of generated tones with transcripts and labels, for the training programs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import soundfile

from speechssl.data.label_store import LabelWriter

TONES = {"A": 300.0, "B": 700.0, "C": 1500.0, " ": 0.0}
SYMBOLS = list(TONES)


def make_corpus(
    folder: Path, split: str, count: int, seed: int
) -> tuple[str, dict[str, list[int]]]:
    """Write wave files and cuts of `count` utterances; return the cuts and labels at 25 Hz."""
    rng = np.random.default_rng(seed)
    audio = folder / "audio" / split
    audio.mkdir(parents=True)
    labels, lines = {}, []
    for number in range(count):
        text = "".join(rng.choice(list("ABC"), 3)) + " " + "".join(rng.choice(list("ABC"), 2))
        wave = np.concatenate([_tone(c, rng) for c in text]).astype(np.float32)
        name = f"{split}{number}"
        soundfile.write(audio / f"{name}.wav", wave, 16000)
        labels[name] = [SYMBOLS.index(c) for c in text for _ in range(5)]
        lines.append(json.dumps(_cut(name, audio / f"{name}.wav", len(wave), text)))
    path = folder / f"cuts_{split}.jsonl.gz"
    with gzip.open(path, "wt") as stream:
        stream.write("\n".join(lines) + "\n")
    return str(path), labels


def write_labels(folder: Path, labels: dict[str, list[int]]) -> str:
    meta = {"name": "tone", "classes": len(SYMBOLS), "frame_rate_hz": 25.0,
            "codebook_hash": "0", "source": "tones", "layer": None}  # fmt: skip
    writer = LabelWriter(folder, meta)
    for name, values in labels.items():
        writer.add(name, np.asarray(values))
    writer.finish()
    return str(folder)


def _tone(symbol: str, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(3200) / 16000
    return 0.3 * np.sin(2 * np.pi * TONES[symbol] * time) + 0.01 * rng.standard_normal(3200)


def _cut(name: str, path: Path, samples: int, text: str) -> dict:
    duration = samples / 16000
    recording = {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": 16000,
        "num_samples": samples,
        "duration": duration,
        "channel_ids": [0],
    }
    supervision = {"id": name, "recording_id": name, "start": 0.0, "duration": duration,
                   "channel": 0, "text": text, "language": "en", "speaker": "s"}  # fmt: skip
    return {"id": name, "start": 0, "duration": duration, "channel": 0, "type": "MonoCut",
            "supervisions": [supervision], "recording": recording}  # fmt: skip
