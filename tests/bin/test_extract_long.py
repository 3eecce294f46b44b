"""An hour in one file, by the real program: every frame, in the memory of five minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from extract_corpus import make_cuts

from speechssl.encoders.transformer import TransformerConfig
from speechssl.hub.audio import find_audio, read_file, to_wave
from speechssl.model_file import save_model

# Wide enough that an hour of features (92 MB) would show.
WIDE = TransformerConfig(
    layers=1, dim=128, ffn_dim=64, heads=4, front_dim=8, pos_conv_kernel=16, pos_conv_groups=4
)
PROGRAM = """
import resource, sys
from speechssl.bin.extract import main
code = main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


def _speech() -> np.ndarray:
    """A minute of real recordings one after the other, or else of generated syllables."""
    corpora = os.environ.get("SPEECHSSL_CORPORA")
    if corpora and (folder := Path(corpora) / "librispeech_sample").is_dir():
        waves, total = [], 0
        for path in find_audio([str(folder)]):
            waves.append(to_wave(*read_file(path), want_rate=16000))
            total += len(waves[-1])
            if total >= 960000:
                return np.concatenate(waves)[:960000]
    time = np.arange(960000) / 16000
    wave = sum(np.sin(2 * np.pi * k * 120 * time) / k for k in range(1, 20))
    return (0.1 * wave * np.abs(np.sin(2 * np.pi * 2 * time))).astype(np.float32)


def _extract(folder: Path, audio: Path, *more: str) -> tuple[int, Path]:
    """Peak memory in MB, and the output."""
    output = folder / f"feats-{audio.stem}-{len(more)}"
    words = ["--model", str(folder / "model"), "--layers", "[1]"]
    if "--pool" in more:
        cuts = make_cuts(folder / f"{audio.stem}.jsonl.gz", [audio])
        words += ["--cuts", f"[{cuts}]"]
    else:
        words += ["--audio", f"[{audio}]"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, "--output", str(output), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split("PEAK")[1]), output


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rate", [16000, 22050])
def test_an_hour_takes_the_memory_of_five_minutes(tmp_path: Path, rate: int) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "model", WIDE, WIDE.build().state_dict())
    minute = _speech()[: 60 * rate]
    minute = np.pad(minute, (0, 60 * rate - len(minute)), mode="wrap")
    odd = 777  # a length of no whole number of frames
    for minutes in (5, 60):
        with soundfile.SoundFile(tmp_path / f"{minutes}.wav", "w", rate, 1) as file:
            for _ in range(minutes):
                file.write(minute)
            file.write(minute[:odd])
    more = ((), ("--pool", "mean_std"), ("--format", "shar", "--dtype", "float16"))
    for options in more if rate == 16000 else more[:1]:
        short, _ = _extract(tmp_path, tmp_path / "5.wav", *options)
        long, output = _extract(tmp_path, tmp_path / "60.wav", *options)
        # As float32, an hour is 230 MB of wave and 92 MB of features.
        assert long - short < 40, (short, long)
        if "shar" in options:
            continue
        (line,) = map(json.loads, (output / "index.jsonl").read_text().splitlines())
        samples = line["samples"]
        assert abs(samples - (3600 * 16000 + odd * 16000 / rate)) <= 1
        frames = (samples - 400) // 320 + 1
        assert line["frames"] == frames
        found = np.load(output / line["file"], mmap_mode="r")
        assert found.shape == ((256,) if options else (frames, 128))
        assert all(np.isfinite(found[i : i + 10000]).all() for i in range(0, len(found), 10000))
