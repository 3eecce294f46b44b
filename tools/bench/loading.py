"""Loading: batches with labels and mixing, against one soundfile.read per file, and lhotse's way.

    python tools/bench/loading.py
    python tools/bench/loading.py --cuts data/an4/cuts_train.jsonl.gz --rounds 9

Every round reads the same cuts once by each way, in turn; the ratios are medians over rounds, of
audio seconds per CPU second (user and system; a loaded machine disturbs it little) over those of
`soundfile.read` to float32 in the same round. Ways:

- "in process": batches are made in this process.
- "per worker": by one reading process. `ratio` counts that process's CPU time alone, `ratio, all`
  that of this process too, which copies the batches out of shared memory.

Ours and lhotse's make padded batches bucketed by length; ours also reads frame labels and mixes
utterances (probability 0.2, as WavLM), lhotse's does neither. lhotse in a worker is its usual
recipe: a map-style data set, its sampler in this process, torch's DataLoader.

The memory rows open manifests of 1,000 and 100,000 cuts, plan 50 updates, and give the growth of
this process's anonymous memory (memory-mapped files can be dropped at any time and do not count).
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
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


class RawReads:
    """Every file by one soundfile.read."""

    def __init__(self, cuts: str) -> None:
        from speechssl.data.index import CutIndex

        index = CutIndex(cuts)
        self.paths = [index[i].path for i in range(len(index))]

    def read(self) -> float:
        import soundfile

        return sum(len(soundfile.read(path, dtype="float32")[0]) for path in self.paths) / RATE


class OurBatches:
    """One epoch after the other from one source, its worker running all the time."""

    def __init__(self, cuts: str, seconds: float, num_workers: int, **options: Any) -> None:
        from speechssl.data.config import DataConfig
        from speechssl.data.loader import open_source

        config = DataConfig(
            train=[cuts],
            batch_seconds=4 * seconds,
            max_batch_seconds=seconds,
            max_seconds=min(seconds, 20.0),
            min_seconds=0.0,
            num_workers=num_workers,
            **options,
        )
        self.updates = open_source(config, hop_samples=320, split="train").updates()

    def read(self) -> float:
        total = 0
        for update in self.updates:
            total += sum(int(b.wave_lengths.sum()) for b in update.batches)
            if update.position["window"] == update.position["update"] == 0:
                break
        return total / RATE


class LhotseBatches:
    """DynamicBucketingSampler and collate_audio, in this process or in a DataLoader's worker."""

    def __init__(self, cuts: str, seconds: float, num_workers: int) -> None:
        import torch
        from lhotse import CutSet
        from lhotse.dataset import DynamicBucketingSampler
        from lhotse.dataset.collation import collate_audio

        self.sampler = DynamicBucketingSampler(
            CutSet.from_file(cuts), max_duration=seconds, shuffle=True, num_buckets=10
        )
        self.collate = collate_audio
        self.loader = None
        if num_workers:

            class Cuts(torch.utils.data.Dataset):
                def __getitem__(self, batch: Any) -> Any:
                    return collate_audio(batch)

            self.loader = torch.utils.data.DataLoader(
                Cuts(),
                sampler=self.sampler,
                batch_size=None,
                num_workers=num_workers,
                persistent_workers=True,
            )

    def read(self) -> float:
        batches: Any = self.loader
        if batches is None:
            batches = (self.collate(batch) for batch in self.sampler)
        return sum(int(lengths.sum()) for _, lengths in batches) / RATE


class Measured:
    """A way, with the processes that it started."""

    def __init__(self, make: Callable[[], Any]) -> None:
        before = {p.pid for p in multiprocessing.active_children()}
        self.way = make()
        self.way.read()  # warms caches up; starts the worker
        self.workers = {p.pid for p in multiprocessing.active_children()} - before

    def settle(self) -> float:
        """CPU seconds of the workers once they have nothing left to read ahead."""
        found, last = -1.0, -2.0
        while self.workers and found - last > 1e-3:
            time.sleep(0.1)
            # The clock of another process: see clock_getcpuclockid(3).
            last, found = found, sum(time.clock_gettime((~p << 3) | 2) for p in self.workers)
        return found

    def run(self) -> tuple[float, float, float]:
        """Audio seconds of one reading, CPU seconds of those who read, and of all processes."""
        worker, own = self.settle(), time.process_time()
        seconds = self.way.read()
        own = time.process_time() - own
        worker = self.settle() - worker
        return seconds, worker if self.workers else own, own + worker


def measure(cuts: str, labels: str, seconds: float, rounds: int) -> list[dict[str, Any]]:
    from speechssl.data.config import MixingConfig

    with_labels = {"labels": {"km": labels}}
    options: dict[str, dict[str, Any]] = {
        "bucketing": {},
        "bucketing + labels": with_labels,
        "bucketing + labels + mixing": {**with_labels, "mixing": MixingConfig()},
    }
    found = {("soundfile.read per file", "in process"): Measured(lambda: RawReads(cuts))}
    for workers, where in ((0, "in process"), (1, "per worker")):
        for name, given in options.items():
            found[f"speechssl, {name}", where] = Measured(
                lambda w=workers, g=given: OurBatches(cuts, seconds, w, **g)
            )
        found["lhotse sampler + collate_audio", where] = Measured(
            lambda w=workers: LhotseBatches(cuts, seconds, w)
        )
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in found}
    for _ in range(rounds):
        for key, measured in found.items():
            audio, readers, everyone = measured.run()
            rates[key].append((audio / readers, audio / everyone))
    first = next(iter(rates.values()))
    return [
        {
            "way": name,
            "where": where,
            "audio_s_per_cpu_s": statistics.median(rate for rate, _ in own),
            "ratio": statistics.median(a[0] / b[0] for a, b in zip(own, first)),
            "ratio_all": statistics.median(a[1] / b[0] for a, b in zip(own, first)),
        }
        for (name, where), own in rates.items()
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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-memory", action="store_true", help="leave the memory rows out")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cuts = options.cuts or make_corpus(folder, options.files, seed=0)
        labels = make_labels(cuts, folder / "labels")
        rows = measure(cuts, labels, options.seconds, options.rounds)
        result: dict[str, Any] = {"cuts": options.cuts or f"{options.files} generated FLAC files"}
        result |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": rows}
        print(f"{'way':<40} {'where':<11} {'audio s / CPU s':>15} {'ratio':>6} {'ratio, all':>10}")
        for row in rows:
            print(
                f"{row['way']:<40} {row['where']:<11} {row['audio_s_per_cpu_s']:>15.0f} "
                f"{row['ratio']:>6.3f} {row['ratio_all']:>10.3f}"
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
