"""Feature extraction from files of mixed lengths, against transformers with the same weights.

Every way gives every layer of every file to a consumer that drops it, in a process of its own, so
that its time and its peak memory are its own. transformers runs in three ways: padded batches of
the given order, which is its usual loop; the same sorted by length first, up to a number of
seconds; and one file at a time. Masks are passed where its documentation asks for them. Reported
are seconds of audio per second, the most memory beyond that of the loaded model, and how far the
features are from transformers' of single files. Weights are random, so no download is needed.

    python tools/bench/extract.py --audio '/corpora/an4' '/corpora/librispeech_sample'

--long 60 adds one recording of 60 minutes, made of those files. transformers gets as much memory
for it as the machine has free, without swap.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import speechssl
from speechssl.hub.audio import find_audio, read_file, to_wave

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("Hubert", {}),
    "wavlm": ("WavLM", {}),
    "wav2vec2_layer_norm": ("Wav2Vec2", {"feat_extract_norm": "layer", "conv_bias": True}),
}
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "conv_dim": (32,) * 7,
}  # fmt: skip
USUAL = "transformers, batches in order"
WAYS = ("speechssl", USUAL, "transformers, sorted batches", "transformers, one at a time")
COMPARED = 8
"""Files whose features are kept to be compared."""
Found = tuple[int, list[np.ndarray]]


def main() -> int:
    options = _options()
    if options.way is not None:
        return _measured(options)
    with tempfile.TemporaryDirectory(prefix="bench") as scratch:
        folder = Path(scratch)
        _write_model(folder / "model", options)
        files = _files(options, folder / "files.json")
        seconds = sum(soundfile.info(f).duration for f in files)
        threads = options.threads or torch.get_num_threads()
        print(f"{options.kind}, {options.layers} layers, {len(files)} files, {seconds:.0f} s, "
              f"{threads} threads, {options.device}", flush=True)  # fmt: skip
        results = _rounds(options, folder)
        rows = _report(results, seconds, folder)
        long = _long(options, folder, files) if options.long else None
    if options.json:
        content = {"seconds": seconds, "ways": rows, "long": long}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audio", nargs="+", required=True, help="files, folders or globs")
    parser.add_argument("--minutes", type=float, default=10.0, help="of audio, drawn from them")
    parser.add_argument("--kind", choices=[*KINDS], default="hubert")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--small", action="store_true", help="a narrow model, to try the script")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--batch-size", type=int, default=8, help="of transformers' usual loop")
    parser.add_argument("--batch-seconds", type=float, default=80.0, help="of its sorted batches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=float, default=0.0, help="minutes of the long recording")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of the child process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--list", default="files.json", help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _write_model(folder: Path, options: argparse.Namespace) -> None:
    import transformers

    torch.manual_seed(options.seed)
    family, values = KINDS[options.kind]
    values = values | {"num_hidden_layers": options.layers} | (SMALL if options.small else {})
    config = getattr(transformers, f"{family}Config")(**values)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    layered = config.feat_extract_norm == "layer"
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=layered, return_attention_mask=layered
    ).save_pretrained(folder)


def _files(options: argparse.Namespace, path: Path) -> list[str]:
    """Random files of at least a tenth of a second, as many as make `minutes`."""
    found = find_audio(options.audio)
    files, seconds = [], 0.0
    for number in np.random.default_rng(options.seed).permutation(len(found)):
        if seconds >= 60 * options.minutes:
            break
        duration = soundfile.info(found[number]).duration
        if duration >= 0.1:
            files.append(str(found[number]))
            seconds += duration
    path.write_text(json.dumps(files))
    return files


# --- One way, in a process of its own ---------------------------------------------------------


def _measured(options: argparse.Namespace) -> int:
    """Extract from all files of the list; print what it took."""
    if options.threads:
        torch.set_num_threads(options.threads)
    files = json.loads((options.folder / options.list).read_text())
    device = torch.device(options.device)
    extract = _own if options.way == "speechssl" else _theirs
    stream = extract(options, files, device)
    next(stream)  # the model is there
    before = _held_bytes(device)
    if options.memory:
        used = _of_proc("self/status", "VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (used + options.memory,) * 2)
    kept: dict[str, np.ndarray] = {}
    clock, cpu, frames = time.perf_counter(), time.process_time(), 0
    for number, layers in stream:
        frames += len(layers[-1])
        # Features of a long recording are on disk; a copy of them would count as memory.
        if number < COMPARED and options.list == "files.json":
            kept |= {f"{number}_{i}": np.array(x) for i, x in enumerate(layers)}
    took = {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "frames": frames,
        "peak_mib": (_peak_bytes(device) - before) / 2**20,
    }
    if options.list == "files.json":
        np.savez(options.folder / f"{WAYS.index(options.way)}.npz", **kept)  # pyright: ignore
    print(json.dumps(took))
    return 0


def _held_bytes(device: torch.device) -> int:
    """Memory that is taken now, from which on the peak counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # loading had a peak of its own
    return _of_proc("self/status", "VmRSS")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _of_proc("self/status", "VmHWM")


def _of_proc(file: str, key: str) -> int:
    """Bytes of a line of /proc (Linux)."""
    lines = Path("/proc", file).read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def _own(options: argparse.Namespace, files: Sequence[str], device: torch.device) -> Iterator[Any]:
    model = speechssl.load(options.folder / "model", device)
    yield None
    for number, features in enumerate(model.extract_iter(files)):
        yield number, list(features.hidden.values())


def _theirs(
    options: argparse.Namespace, files: Sequence[str], device: torch.device
) -> Iterator[Any]:
    import transformers

    model: Any = transformers.AutoModel.from_pretrained(options.folder / "model")
    processor: Any = transformers.AutoFeatureExtractor.from_pretrained(options.folder / "model")
    model = model.eval().to(device)
    yield None
    for batch in _batches(options, files):
        waves = [to_wave(*read_file(files[i]), want_rate=16000) for i in batch]
        given = processor(waves, sampling_rate=16000, padding=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            hidden = model(**given, output_hidden_states=True).hidden_states
        hidden = [h.cpu().numpy() for h in hidden]
        for row, (number, wave) in enumerate(zip(batch, waves, strict=True)):
            frames = (len(wave) - 400) // 320 + 1
            yield number, [h[row, :frames] for h in hidden]


def _batches(options: argparse.Namespace, files: Sequence[str]) -> Iterator[list[int]]:
    if options.way != "transformers, sorted batches":
        size = options.batch_size if options.way == USUAL else 1
        yield from ([*range(len(files))[i : i + size]] for i in range(0, len(files), size))
        return
    seconds = [soundfile.info(f).duration for f in files]
    batch: list[int] = []
    for number in sorted(range(len(files)), key=lambda i: -seconds[i]):
        if batch and seconds[batch[0]] * (len(batch) + 1) > options.batch_seconds:
            yield batch
            batch = []
        batch.append(number)
    yield batch


# --- All ways, and their figures --------------------------------------------------------------


def _run(way: str, options: argparse.Namespace, folder: Path, *more: str) -> dict[str, float]:
    """What a process of `way` took; an empty dict if it failed, with its last words on stderr."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--folder", str(folder)]
    done = subprocess.run([*command, *more], capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        print(f"{way}: {words[-1][:300]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def _rounds(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Rounds interleaved, so that a change of the machine's load meets all ways."""
    results: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    for number in range(options.rounds):
        for way in options.ways:
            found = _run(way, options, folder)
            if found:
                results[way].append(found)
                print(f"round {number + 1}: {way}, {found['seconds']:.1f} s", flush=True)
    return results


def _report(
    results: dict[str, list[dict[str, float]]], seconds: float, folder: Path
) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for way, found in results.items():
        if not found:
            continue
        rows[way] = {k: float(np.median([f[k] for f in found])) for k in found[0]}
        rows[way]["times_real_time"] = seconds / rows[way]["seconds"]
        rows[way]["difference"] = _difference(folder, way)
    print("\n| way | audio s / s | audio s / CPU s | peak MiB | largest difference |")
    print("|---|---|---|---|---|")
    for way, row in rows.items():
        print(f"| {way} | {row['times_real_time']:.2f} | {seconds / row['cpu_seconds']:.2f} | "
              f"{row['peak_mib']:.0f} | {row['difference']:.1e} |")  # fmt: skip
    ours = rows.get("speechssl")
    for way, row in rows.items():
        if ours is not None and way != "speechssl":
            print(f"speechssl / {way}: {row['seconds'] / ours['seconds']:.2f} times the speed, "
                  f"{ours['peak_mib'] / max(row['peak_mib'], 1):.2f} of the memory")  # fmt: skip
    return rows


def _difference(folder: Path, way: str) -> float:
    """To the features of transformers, one file at a time."""
    path, reference = (folder / f"{WAYS.index(w)}.npz" for w in (way, WAYS[-1]))
    if not reference.is_file():
        return float("nan")
    found, want = np.load(path), np.load(reference)
    return max(float(np.abs(found[k] - want[k]).max()) for k in want.files)


def _long(options: argparse.Namespace, folder: Path, files: Sequence[str]) -> dict[str, Any]:
    """One recording of `long` minutes through ours, and through transformers if it can."""
    path = folder / "long.flac"
    left = int(16000 * 60 * options.long)
    total = left
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        while left > 0:
            for name in files:
                wave = to_wave(*read_file(name), want_rate=16000)[:left]
                file.write(wave)
                left -= len(wave)
    (folder / "long.json").write_text(json.dumps([str(path)]))
    free = _of_proc("meminfo", "MemAvailable")
    print(f"\none recording of {total / 16000 / 60:.1f} minutes, {free / 2**30:.1f} GiB free")
    results = {}
    for way in ("speechssl", WAYS[-1]):
        memory = 0 if way == "speechssl" or options.device != "cpu" else free
        found = _run(way, options, folder, "--list", "long.json", "--memory", str(memory))
        results[way] = found
        text = "failed"
        if found:
            rate = total / 16000 / found["seconds"]
            text = f"{rate:.2f} x real time, peak {found['peak_mib']:.0f} MiB"
        print(f"{way}: {text}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
