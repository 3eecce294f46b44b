"""Loading: batches with labels and mixing, against one soundfile.read per file, and lhotse's way.

    python tools/bench/loading.py
    python tools/bench/loading.py --cuts data/an4/cuts_train.jsonl.gz --rounds 7

Every round reads the same cuts once by each way, in turn, in this process; the ratios are medians
over rounds, of CPU time (a loaded machine disturbs it little) and of wall time. Ours and lhotse's
make padded batches bucketed by length; ours also reads frame labels and mixes utterances
(probability 0.2, as WavLM), lhotse's does neither. Rates are seconds of audio per second.

The memory rows open manifests of 1,000 and 100,000 cuts, plan 50 updates, and give the growth of
this process's anonymous memory (memory-mapped files can be dropped at any time and do not count).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RATE = 16000


def make_corpus(folder: Path, count: int, seed: int) -> str:
    """FLAC files of 1 to 16 s whose spectrum and envelope are about those of speech."""
    import numpy as np
    import soundfile

    draw = np.random.default_rng(seed)
    path = folder / "cuts_bench.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(count):
            seconds = round(float(np.clip(draw.lognormal(np.log(6.0), 0.6), 1.0, 15.5)), 2)
            size = round(seconds * RATE)
            spectrum = np.fft.rfft(draw.standard_normal(size))
            spectrum /= 1 + (np.linspace(0, 8000, len(spectrum)) / 500) ** 1.5
            knots = np.arange(0, size + 1600, 1600)
            envelope = np.interp(np.arange(size), knots, draw.random(len(knots)) ** 2)
            wave = np.fft.irfft(spectrum, size) * envelope
            audio = folder / f"{i:05d}.flac"
            soundfile.write(audio, 0.3 * wave / np.abs(wave).max(), RATE, subtype="PCM_16")
            file.write(json.dumps(cut_of(f"u{i:05d}", audio, seconds)) + "\n")
    return str(path)


def cut_of(name: str, audio: Path, seconds: float) -> dict[str, Any]:
    recording = {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": str(audio)}],
        "sampling_rate": RATE,
        "num_samples": round(seconds * RATE),
        "duration": seconds,
        "channel_ids": [0],
    }
    cut = {"id": name, "start": 0.0, "duration": seconds, "channel": 0, "supervisions": []}
    return {**cut, "recording": recording, "type": "MonoCut"}


def make_labels(cuts: str, folder: Path) -> str:
    import numpy as np

    from speechssl.data.index import CutIndex
    from speechssl.data.label_store import LabelWriter

    writer = LabelWriter(folder, {"classes": 500, "frame_rate_hz": 50})
    draw = np.random.default_rng(0)
    index = CutIndex(cuts)
    for i in range(len(index)):
        writer.add(index[i].id, draw.integers(0, 500, int(index.num_samples[i]) // 320))
    writer.finish()
    return str(folder)


def ways(cuts: str, labels: str, seconds: float) -> dict[str, Callable[[], float]]:
    """Name -> a function that reads all cuts once and returns the seconds of audio it read."""
    import soundfile
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler
    from lhotse.dataset.collation import collate_audio

    from speechssl.data.config import DataConfig, MixingConfig
    from speechssl.data.index import CutIndex
    from speechssl.data.loader import open_source

    index = CutIndex(cuts)
    paths = [index[i].path for i in range(len(index))]

    def raw() -> float:
        return sum(len(soundfile.read(path, dtype="float32")[0]) for path in paths) / RATE

    def by_lhotse() -> float:
        # duration_bins would otherwise be estimated, at the cost of another pass.
        sampler = DynamicBucketingSampler(
            CutSet.from_file(cuts), max_duration=seconds, shuffle=True, num_buckets=10
        )
        return sum(int(collate_audio(batch)[1].sum()) for batch in sampler) / RATE

    def ours(mixing: MixingConfig | None, stores: dict[str, str]) -> Callable[[], float]:
        config = DataConfig(
            train=[cuts],
            labels=stores,
            mixing=mixing,
            batch_seconds=4 * seconds,
            max_batch_seconds=seconds,
            max_seconds=min(seconds, 20.0),
            min_seconds=0.0,
            num_workers=0,
        )

        updates = open_source(config, hop_samples=320, split="train").updates()

        def read() -> float:
            total = 0
            while True:
                update = next(updates)
                total += sum(int(b.wave_lengths.sum()) for b in update.batches)
                if update.position["window"] == update.position["update"] == 0:
                    return total / RATE

        return read

    return {
        "soundfile.read per file": raw,
        "speechssl, bucketing": ours(None, {}),
        "speechssl, bucketing + labels": ours(None, {"km": labels}),
        "speechssl, bucketing + labels + mixing": ours(MixingConfig(), {"km": labels}),
        "lhotse DynamicBucketingSampler + collate": by_lhotse,
    }


def with_workers(cuts: str, labels: str, seconds: float, num_workers: int) -> dict[str, float]:
    """Rates of worker processes over four epochs, their start included: wall, and per CPU second.

    The latter is the work of one worker, handing batches over included.
    """
    from speechssl.data.config import DataConfig, MixingConfig
    from speechssl.data.loader import open_source

    config = DataConfig(
        train=[cuts],
        labels={"km": labels},
        mixing=MixingConfig(),
        batch_seconds=4 * seconds,
        max_batch_seconds=seconds,
        max_seconds=min(seconds, 20.0),
        num_workers=num_workers,
    )
    total, start, before = 0, time.perf_counter(), os.times()
    updates = open_source(config, hop_samples=320, split="train").updates()
    for update in updates:
        total += sum(int(b.wave_lengths.sum()) for b in update.batches)
        if update.position["epoch"] == 4:
            break
    passed = time.perf_counter() - start
    del updates, update  # ends the workers, so that the system counts their time
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return {"audio_s_per_s": total / RATE / passed, "audio_s_per_cpu_s": total / RATE / used}


def measure(found: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, Any]]:
    cpu: dict[str, list[float]] = {name: [] for name in found}
    wall: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, read in found.items():
            start_cpu, start_wall = time.process_time(), time.perf_counter()
            seconds = read()
            used, passed = time.process_time() - start_cpu, time.perf_counter() - start_wall
            if turn:  # the first round warms caches up
                cpu[name].append(seconds / used)
                wall[name].append(seconds / passed)
    first = next(iter(found))
    return [
        {
            "way": name,
            "audio_s_per_cpu_s": statistics.median(cpu[name]),
            "ratio_cpu": statistics.median(a / b for a, b in zip(cpu[name], cpu[first])),
            "ratio_wall": statistics.median(a / b for a, b in zip(wall[name], wall[first])),
        }
        for name in found
    ]


_MEMORY_PROGRAM = """
import re, sys
from speechssl.data.config import DataConfig
from speechssl.data.index import CutIndices
from speechssl.data.sampler import UpdateSampler
def anonymous_kib():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
CutIndices([sys.argv[1]])  # builds the index
def plan(path):
    config = DataConfig(train=[path], window=1000)
    sampler = UpdateSampler(CutIndices([path]), config)
    plans = sampler.plans()
    for _ in range(50): next(plans)
    return sampler
first = plan(sys.argv[2])  # whatever the first use allocates, with a small manifest
before = anonymous_kib()
sampler = plan(sys.argv[1])
print(anonymous_kib() - before)
"""


def memory_kib(folder: Path, count: int) -> int:
    """Growth of anonymous memory by opening `count` cuts, in a process of its own."""
    paths = []
    for size in (count, 1000):
        path = folder / f"cuts_memory_{size}.jsonl.gz"
        paths.append(str(path))
        if not path.exists():
            with gzip.open(path, "wt", compresslevel=1) as file:
                for i in range(size):
                    cut = cut_of(f"cut{i:09d}", Path("/nowhere.flac"), 1 + i % 14)
                    file.write(json.dumps(cut) + "\n")
    # Two runs: the first builds the index, the second measures.
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY_PROGRAM, *paths], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
    return int(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", help="cuts of single FLAC files; default: a generated corpus")
    parser.add_argument("--files", type=int, default=300, help="size of the generated corpus")
    parser.add_argument("--seconds", type=float, default=40.0, help="audio of one batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="0 leaves this row out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory rows out")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cuts = options.cuts or make_corpus(folder, options.files, seed=0)
        labels = make_labels(cuts, folder / "labels")
        rows = measure(ways(cuts, labels, options.seconds), options.rounds)
        result: dict[str, Any] = {"cuts": options.cuts or f"{options.files} generated FLAC files"}
        result |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": rows}
        print(f"{'way':<42} {'audio s / CPU s':>16} {'ratio, CPU':>11} {'ratio, wall':>12}")
        for row in rows:
            print(
                f"{row['way']:<42} {row['audio_s_per_cpu_s']:>16.0f} {row['ratio_cpu']:>11.3f} "
                f"{row['ratio_wall']:>12.3f}"
            )
        if options.workers:
            rates = with_workers(cuts, labels, options.seconds, options.workers)
            result["workers"] = {"num_workers": options.workers, **rates}
            print(
                f"{options.workers} worker processes: {rates['audio_s_per_s']:.0f} audio s / s; "
                f"{rates['audio_s_per_cpu_s']:.0f} audio s / CPU s of a worker, "
                f"{rates['audio_s_per_cpu_s'] / rows[0]['audio_s_per_cpu_s']:.3f} of the raw rate"
            )
        if not options.no_memory:
            result["memory_kib"] = {n: memory_kib(folder, n) for n in (1_000, 100_000)}
            for count, kib in result["memory_kib"].items():
                print(f"memory to open and plan {count:>7} cuts: {kib} KiB")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
