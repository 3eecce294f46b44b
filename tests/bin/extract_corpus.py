"""A tiny model, short recordings and their cuts, for the tests of `speechssl extract`."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from speechssl.encoders.transformer import TransformerConfig
from speechssl.model_file import save_model

TINY = TransformerConfig(
    layers=2, dim=32, ffn_dim=64, heads=4, front_dim=16, pos_conv_kernel=16, pos_conv_groups=4
)


def make_model(folder: Path) -> Path:
    torch.manual_seed(1)
    save_model(folder, TINY, TINY.build().state_dict())
    return folder


def make_files(folder: Path, count: int, seconds: tuple[float, float] = (0.3, 1.5)) -> list[Path]:
    """Noise of falling loudness, seconds drawn between the two."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    paths = []
    for number in range(count):
        samples = int(16000 * rng.uniform(*seconds))
        wave = rng.standard_normal(samples) * np.linspace(0.3, 0.01, samples)
        paths.append(folder / f"u{number:03d}.wav")
        soundfile.write(paths[-1], wave, 16000)
    return paths


def make_cuts(path: Path, files: list[Path], start: float = 0.0) -> Path:
    """One cut per file, from `start` to its end, with a transcript."""
    with gzip.open(path, "wt") as file:
        for audio in files:
            samples = soundfile.info(str(audio)).frames
            recording = {
                "id": f"r-{audio.stem}",
                "sources": [{"type": "file", "channels": [0], "source": str(audio)}],
                "sampling_rate": 16000, "num_samples": samples, "duration": samples / 16000,
                "channel_ids": [0],
            }  # fmt: skip
            cut = {
                "id": audio.stem, "start": start, "duration": samples / 16000 - start,
                "channel": 0, "recording": recording, "type": "MonoCut",
            }  # fmt: skip
            words = {"id": f"s-{audio.stem}", "recording_id": recording["id"], "start": 0.0,
                     "duration": cut["duration"], "text": f"TEXT {audio.stem}"}  # fmt: skip
            file.write(json.dumps({**cut, "supervisions": [words]}) + "\n")
    return path


def digests(folder: Path) -> dict[str, str]:
    """The content of every file below the folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
