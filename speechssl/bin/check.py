"""`speechssl check ...`: decode and validate every cut; list the bad, write a clean manifest.

Cuts that cannot be trained on are left out of the clean manifest; others that only deserve
attention (another sampling rate, several channels, silence at the ends, ...) stay, with a note.
The manifest is read and written as a stream.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

BAD = {
    "missing": "the file does not exist",
    "broken": "the file cannot be decoded (to its end)",
    "empty": "no samples",
    "too_short": "shorter than the receptive field of the encoder",
    "silent": "no signal",
    "not_finite": "NaN or infinite samples",
    "duration": "the cut ends after the audio, or the file's length is not the manifest's",
    "labels": "supervision, alignment or label store longer or shorter than the audio",
    "duplicate": "the id occurred before",
    "malformed": "the row lacks what a cut needs",
}
NOTES = {
    "rate": "another sampling rate; the reader resamples",
    "channels": "several channels; the reader takes their mean",
    "clipped": "samples at full scale",
    "no_text": "no transcript",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What to check, and where the results go."""

    cuts: str
    """Manifest to check: cuts_<split>.jsonl or .jsonl.gz."""
    output: str | None = None
    """Clean manifest to write: the cuts that are not bad."""
    report: str | None = None
    """JSON report to write: counts, and every bad cut by name."""
    sample: int | None = None
    """Decode only this many cuts, drawn by `seed`; the others are taken as they are."""
    labels: str | None = None
    """Label store whose lengths are compared with the audio."""
    sampling_rate: int = 16000
    """Expected sampling rate in Hz."""
    min_samples: int = 400
    """Shortest cut that is usable, in samples at `sampling_rate`."""
    silent_db: float = -70.0
    """A cut is silent when its loudest quarter of a second has a root mean square below this."""
    clipped_share: float = 0.001
    """Share of samples at full scale from which on a cut is noted as clipped."""
    tolerance_seconds: float = 0.1
    """Largest allowed difference between audio and manifest, supervisions or labels."""
    strict: bool = False
    """Exit with status 1 when any cut is bad."""
    seed: int = 0
    """Seed of the sample."""
    jobs: int = 0
    """Worker processes; 0 takes one per processor core."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result for one cut: codes of `BAD` and `NOTES`, each with what was found."""

    id: str
    audio: str
    bad: dict[str, str]
    notes: dict[str, str]


def examine(row: Row, config: CheckConfig, store: Any = None) -> Finding:
    """Decode the cut and name what is wrong with it; never raises for bad data."""
    try:
        recording = row["recording"]
        audio = str(recording["sources"][0]["source"])
        rate, length = int(recording["sampling_rate"]), int(recording["num_samples"])
        start, duration = float(row.get("start", 0.0)), float(row["duration"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        return Finding(str(row.get("id")), "", {"malformed": f"{type(error).__name__} {error}"}, {})
    bad: dict[str, str] = {}
    notes: dict[str, str] = {}
    span = (start, duration, length / rate if rate > 0 else 0.0)
    seconds = _examine_audio(audio, span, config, bad, notes)
    if seconds is not None:
        if "duration" not in bad:
            _examine_labels(row, seconds, config, store, bad)
        if not any(s.get("text") for s in row.get("supervisions", [])):
            notes["no_text"] = "no transcript"
    return Finding(str(row["id"]), audio, bad, notes)


def _examine_audio(
    audio: str,
    span: tuple[float, float, float],
    config: CheckConfig,
    bad: dict[str, str],
    notes: dict[str, str],
) -> float | None:
    """Fill `bad` and `notes`; return the seconds of the cut that the file has, None if unusable."""
    import soundfile

    start, duration, stated = span
    if not Path(audio).is_file():
        bad["missing"] = "no such file"
        return None
    if Path(audio).stat().st_size == 0:
        bad["empty"] = "a file of 0 bytes"
        return None
    try:
        with soundfile.SoundFile(audio) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels
            if frames == 0:
                bad["empty"] = "no samples"
                return None
            first = min(round(start * rate), frames)
            wanted = min(round((start + duration) * rate), frames) - first
            file.seek(first)
            wave = file.read(wanted, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        bad["broken"] = str(error)
        return None
    if len(wave) < wanted:
        bad["broken"] = f"decoding ended at sample {first + len(wave)} of {frames}"
        return None
    if rate != config.sampling_rate:
        notes["rate"] = f"{rate} Hz, want {config.sampling_rate} Hz"
    if channels != 1:
        notes["channels"] = f"{channels} channels, want 1"
    if abs(frames / rate - stated) > config.tolerance_seconds:
        bad["duration"] = f"file {frames / rate:.3f} s, manifest {stated:.3f} s"
    elif start + duration > frames / rate + config.tolerance_seconds:
        bad["duration"] = f"cut ends at {start + duration:.3f} s, file at {frames / rate:.3f} s"
    seconds = len(wave) / rate
    if seconds * config.sampling_rate < config.min_samples:
        samples = round(seconds * config.sampling_rate)
        bad["too_short"] = f"{samples} samples, want {config.min_samples} or more"
        return seconds
    _examine_samples(wave, rate, config, bad, notes)
    return seconds


def _quarters(wave: Any, rate: int) -> list[Any]:
    """Mono pieces of a quarter of a second, so that a short sound in a long silence counts."""
    import numpy as np

    mono = wave.mean(axis=1, dtype=np.float64)
    return np.array_split(mono, max(1, 4 * len(mono) // rate))


def _examine_samples(
    wave: Any, rate: int, config: CheckConfig, bad: dict[str, str], notes: dict[str, str]
) -> None:
    """Level, full-scale and finiteness of `wave` (samples, channels) float32."""
    import numpy as np

    if not np.isfinite(wave).all():
        bad["not_finite"] = f"{int((~np.isfinite(wave)).sum())} samples are NaN or infinite"
        return
    power = max(float(np.mean(np.square(part))) for part in _quarters(wave, rate))
    level = 10 * np.log10(power) if power > 0 else float("-inf")
    if level < config.silent_db:
        bad["silent"] = f"{level:.1f} dB, want {config.silent_db} dB or more"
    full = float(np.mean(np.abs(wave) >= 32767 / 32768))
    if full > config.clipped_share:
        notes["clipped"] = f"{full:.2%} of the samples at full scale"


def _examine_labels(
    row: Row, seconds: float, config: CheckConfig, store: Any, bad: dict[str, str]
) -> None:
    """Compare the times of supervisions, alignments and stored labels with the audio."""
    slack = config.tolerance_seconds
    for supervision in row.get("supervisions", []):
        begin = float(supervision.get("start", 0.0))
        end = begin + float(supervision.get("duration", 0.0))
        if begin < -slack or end > seconds + slack:
            bad["labels"] = f"supervision {begin:.3f} - {end:.3f} s, audio {seconds:.3f} s"
        for kind, items in (supervision.get("alignment") or {}).items():
            # Alignments count from the recording's start.
            last = max((item[1] + item[2] for item in items), default=0.0) - row.get("start", 0.0)
            if last > seconds + slack:
                bad["labels"] = f"alignment {kind!r} ends at {last:.3f} s, audio {seconds:.3f} s"
    if store is None:
        return
    recording, rate = row["recording"], store.meta["frame_rate_hz"]
    try:
        labelled = len(store.frames(recording["id"])) / rate
    except (KeyError, ValueError):
        bad["labels"] = f"label store has none for {recording['id']!r}"
        return
    length = recording["num_samples"] / recording["sampling_rate"]
    # The last frames need samples that end before the audio does: up to a receptive field.
    if abs(labelled - length) > slack + 1 / rate:
        bad["labels"] = f"label store has {labelled:.3f} s, recording {length:.3f} s"


_WORKER: dict[str, Any] = {}


def _start(config: CheckConfig) -> None:
    _WORKER["config"] = config
    _WORKER["store"] = None
    if config.labels:
        from speechssl.data.label_store import LabelStore

        _WORKER["store"] = LabelStore.open(Path(config.labels))


def _work(task: tuple[Row, bool]) -> tuple[Row, Finding | None]:
    row, decode = task
    return row, examine(row, _WORKER["config"], _WORKER["store"]) if decode else None


def _chosen(config: CheckConfig) -> set[int] | None:
    """Indices of the rows to decode; None stands for all."""
    if config.sample is None:
        return None
    import random

    from speechssl.corpora.manifest import read_rows

    total = sum(1 for _ in read_rows(config.cuts))
    return set(random.Random(config.seed).sample(range(total), min(config.sample, total)))


def _results(config: CheckConfig) -> Iterator[tuple[Row, Finding | None]]:
    """(row, finding) in the order of the manifest."""
    from speechssl.corpora.manifest import read_rows

    chosen = _chosen(config)
    tasks = (
        (row, chosen is None or index in chosen) for index, row in enumerate(read_rows(config.cuts))
    )
    # A pool costs some tenths of a second, and reads the manifest ahead of itself.
    head = list(itertools.islice(tasks, 256))
    jobs = config.jobs or os.cpu_count() or 1
    if jobs <= 1 or len(head) < 256:
        _start(config)
        yield from map(_work, itertools.chain(head, tasks))
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start, (config,)) as pool:
        # Batches bound what is in flight: `map` alone would read the whole manifest into memory.
        everything = itertools.chain(head, tasks)
        while batch := list(itertools.islice(everything, 2048)):
            yield from pool.map(_work, batch, chunksize=16)


def run(config: CheckConfig) -> dict[str, Any]:
    """Check the manifest, write the clean one and the report; return the report."""
    from tqdm import tqdm

    from speechssl.corpora.manifest import JsonlWriter

    writer = JsonlWriter(Path(config.output)) if config.output else None
    report: dict[str, Any] = {"cuts": 0, "decoded": 0, "clean": 0, "clean_hours": 0.0}
    counts: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    noted: list[dict[str, Any]] = []
    seen: set[bytes] = set()
    try:
        for row, found in tqdm(_results(config), desc="check", unit="cut", disable=None):
            found = _with_duplicates(row, found, seen)
            report["cuts"] += 1
            report["decoded"] += found is not None
            problems = found.bad if found else {}
            counts.update(problems.keys())
            if found:
                counts.update(found.notes.keys())
                entry = {"id": found.id, "audio": found.audio}
                if problems:
                    bad.append({**entry, **problems})
                elif set(found.notes) - {"no_text"}:
                    noted.append({**entry, **found.notes})
            if not problems:
                report["clean"] += 1
                report["clean_hours"] += row["duration"] / 3600
                if writer:
                    writer.write(row)
    except BaseException:
        if writer:
            writer.discard()
        raise
    if writer:
        writer.close()
    report.update(counts=dict(counts), bad=bad, noted=noted)
    if config.report:
        _write_json(Path(config.report), report)
    return report


def _with_duplicates(row: Row, found: Finding | None, seen: set[bytes]) -> Finding | None:
    """Add 'duplicate' when the cut's id occurred before; ids are kept as 8-byte hashes."""
    id = str(row.get("id"))
    key = hashlib.blake2b(id.encode(), digest_size=8).digest()
    if key not in seen:
        seen.add(key)
        return found
    audio = found.audio if found else ""
    before = found.bad if found else {}
    return Finding(id, audio, {**before, "duplicate": f"{id!r} occurred before"}, {})


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def table(report: dict[str, Any], *, shown: int = 10) -> str:
    """Counts by kind, and the first bad cuts by name."""
    counts = report["counts"]

    def lines(kinds: dict[str, str]) -> Iterable[str]:
        return (f"  {k:<12}{counts[k]:>8}  {text}" for k, text in kinds.items() if counts.get(k))

    out = [
        f"{report['cuts']} cuts, {report['decoded']} decoded, {report['clean']} clean "
        f"({report['clean_hours']:.3f} h), {len(report['bad'])} bad"
    ]
    if report["bad"]:
        out += ["bad (left out):", *lines(BAD)]
    if any(counts.get(kind) for kind in NOTES):
        out += ["noted (kept):", *lines(NOTES)]
    for entry in report["bad"][:shown]:
        reasons = "; ".join(f"{k}: {v}" for k, v in entry.items() if k not in ("id", "audio"))
        out.append(f"  {entry['id']}  {entry['audio']}  {reasons}")
    if len(report["bad"]) > shown:
        out.append(f"  ... and {len(report['bad']) - shown} more; --report lists all")
    return "\n".join(out)


def main(argv: list[str] | None = None) -> int:
    from speechssl.config import parse

    config = parse(
        CheckConfig, argv, prog="speechssl check", description=(__doc__ or "").split("\n")[0]
    )
    try:
        report = run(config)
    except ValueError as error:
        print(f"speechssl check: error: {error}", file=sys.stderr)
        return 1
    print(table(report))
    if report["clean"] == 0:
        print("speechssl check: error: no clean cut is left", file=sys.stderr)
        return 1
    return 1 if config.strict and report["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
