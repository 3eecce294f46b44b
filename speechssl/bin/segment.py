"""`speechssl segment`: syllable-like segments of speech, and how near their boundaries are."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from speechssl.config import parse

DESCRIPTION = """Cut speech into syllable-like segments: segments.jsonl, and with --labels a label
store that training reads (objective.segments). By a model's frames, as Sylber does, or without one:
at dips of the energy, or at a fixed rate.

With --reference, boundaries are compared with those of the cuts' alignments: precision, recall, F1
and R-value with a tolerance, in results.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    cuts: list[str]
    """Cuts to segment: cuts_*.jsonl.gz files, as '[a,b]'."""
    output: str
    """Folder for segments.jsonl and results.json."""
    method: Literal["greedy", "energy", "rate"] = "greedy"
    """greedy: by the cosine of a model's frames; energy: dips of the level; rate: equal lengths."""
    model: str | None = None
    """greedy: a run's folder with model.safetensors, or a public model."""
    layer: int = -1
    """greedy: the model's layer."""
    merge_threshold: float = 0.8
    """greedy: least cosine of a frame with the mean of its segment."""
    norm_threshold: float = 0.0
    """greedy: frames of smaller norm are in no segment (Sylber 2.6)."""
    silence_db: float = 25.0
    """greedy, energy: frames so far below the loudest are in no segment; 0: all are in one."""
    dip_db: float = 3.0
    """energy: how far the level falls and rises around a boundary."""
    rate_hz: float | None = None
    """rate: segments per second; none: those of the reference, over all cuts."""
    reference: Literal["none", "syllable", "vowel", "phone", "word"] = "none"
    """What the boundaries are compared with, of the cuts' alignments; syllables are made of their
    phones and words."""
    tolerance_ms: float = 50.0
    """How far a found boundary may be from a true one."""
    labels: str | None = None
    """Folder for a label store: 0 outside of segments, else 1 and 2 in turn, of each frame."""
    label_rate_hz: float = 50.0
    """energy, rate: frames per second of the labels; a model has its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        if not self.cuts:
            raise ValueError("cuts: found none, want at least one cuts_*.jsonl.gz")
        if (self.method == "greedy") != (self.model is not None):
            raise ValueError(
                f"model: found {self.model} with method {self.method}, want a model with greedy, "
                "and none with energy and rate"
            )
        if self.method == "rate" and self.rate_hz is None and self.reference == "none":
            raise ValueError(
                "rate_hz: found none without a reference, want segments per second, such as 4.5"
            )
        if self.tolerance_ms < 0 or self.silence_db < 0 or self.label_rate_hz <= 0:
            raise ValueError(
                f"found tolerance_ms {self.tolerance_ms}, silence_db {self.silence_db} and "
                f"label_rate_hz {self.label_rate_hz}, want 0 or more, and more than 0"
            )


def main(argv: list[str] | None = None) -> int:
    options = parse(SegmentOptions, argv, prog="speechssl segment", description=DESCRIPTION)
    from speechssl import dist

    try:
        print(run(options))
        return 0
    except ValueError as error:
        print(f"speechssl segment: error: {error}", file=sys.stderr)
        return 2
    finally:
        dist.shutdown()


@dataclasses.dataclass(frozen=True)
class Segmented:
    """segments: (S, 2) seconds. frames, rate_hz, window: the grid of the labels."""

    id: str
    segments: Any
    seconds: float
    frames: int
    rate_hz: float
    window_seconds: float


def run(options: SegmentOptions) -> str:
    """Segment all cuts, write, and return what to print."""
    from speechssl import dist
    from speechssl.data.label_store import LabelWriter
    from speechssl.labels.segments import frame_labels

    device = dist.init(options.device)
    if dist.world_size() > 1:
        raise ValueError(f"found {dist.world_size()} ranks, want 1: run it without torchrun")
    truth = reference(options)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Segmented] = {}
    writer: LabelWriter | None = None
    for one in segmented(options, truth, device):
        found[one.id] = one
        if options.labels is not None:
            if writer is None:
                meta = {"classes": 3, "frame_rate_hz": one.rate_hz, "method": options.method}
                writer = LabelWriter(options.labels, meta)
            grid = one.frames, one.rate_hz, one.window_seconds
            if one.id not in writer:  # a killed run wrote some
                writer.add(one.id, frame_labels(one.segments, *grid))
    if writer is not None:
        writer.finish()
    lines = [
        json.dumps({"id": one.id, "segments": one.segments.round(4).tolist(),
                    "seconds": round(one.seconds, 4)}) + "\n"
        for one in found.values()
    ]  # fmt: skip
    _write(output / "segments.jsonl", "".join(lines))
    seconds = sum(one.seconds for one in found.values())
    number = sum(len(one.segments) for one in found.values())
    rate = number / max(seconds, 1e-9)
    results: dict[str, Any] = {
        "options": dataclasses.asdict(options),
        "utterances": len(found),
        "segments": number,
        "segments_per_second": rate,
    }
    text = f"{number} segments in {len(found)} utterances, {rate:.2f} a second"
    if options.reference != "none":
        results |= scores(options, truth, found)
        shown = ", ".join(f"{k} {results[k]:.3f}" for k in ("precision", "recall", "f1", "r_value"))
        text += f"; {options.reference} boundaries: {shown}"
    _write(output / "results.json", json.dumps(results, indent=2) + "\n")
    return text


def reference(options: SegmentOptions) -> dict[str, list[tuple[float, float, str]]]:
    """Cut id -> true segments, of the cuts that have an alignment."""
    from speechssl.labels.measure import alignments
    from speechssl.score.segmentation import syllables, vowels

    if options.reference == "none":
        return {}
    kind = options.reference
    first = {cut.id: items for cut, items in alignments(options.cuts, "word")}
    found = {}
    for cut, items in alignments(options.cuts, "word" if kind == "word" else "phone"):
        items = sorted(items)
        if not items:
            continue
        if kind == "syllable":
            items = syllables(items, sorted(first.get(cut.id, ())))
        elif kind == "vowel":
            items = vowels(items)
        found[cut.id] = items
    if not found:
        raise ValueError(
            f"reference: found no alignment for {kind} in {', '.join(options.cuts)}, want cuts "
            "with one, such as those of `speechssl synth`"
        )
    return found


def scores(options: SegmentOptions, truth: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    from speechssl.score.segmentation import BoundaryCounts, boundaries, count_boundaries

    total = BoundaryCounts()
    shared = [name for name in found if name in truth]
    for name in shared:
        true, own = boundaries(truth[name]), boundaries(found[name].segments)
        total += count_boundaries(true, own, options.tolerance_ms / 1000)
    return {"scored": len(shared), **dataclasses.asdict(total), **total.scores()}


def segmented(options: SegmentOptions, truth: dict[str, Any], device: Any) -> Iterator[Segmented]:
    """Every cut with its segments."""
    if options.method == "greedy":
        yield from by_model(options, device)
        return
    from speechssl.hub.cuts import CutItems
    from speechssl.labels.segments import SAMPLE_RATE, energy_segments, fixed_rate

    rate_hz = options.rate_hz
    if options.method == "rate" and rate_hz is None:
        seconds = sum(items[-1][1] - items[0][0] for items in truth.values() if items)
        rate_hz = sum(map(len, truth.values())) / seconds
    for item in CutItems(options.cuts):
        wave, _ = item.read()
        seconds = len(wave) / SAMPLE_RATE
        if options.method == "rate":
            assert rate_hz is not None
            parts = fixed_rate(seconds, rate_hz)
        else:
            parts = energy_segments(wave, options.silence_db or 120.0, options.dip_db)
        window = 1 / options.label_rate_hz
        frames = int(seconds * options.label_rate_hz)
        yield Segmented(item.id, parts, seconds, frames, options.label_rate_hz, window)


def by_model(options: SegmentOptions, device: Any) -> Iterator[Segmented]:
    """Segments of a model's layer; what is silent is said by the wave."""
    import numpy as np
    import torch

    from speechssl import load
    from speechssl.hub.audio import AudioItem, to_wave
    from speechssl.hub.cuts import CutItems
    from speechssl.nn.segmentation import frame_levels_db, segment, spans

    model = load(str(options.model), device)
    rate, hop = model.sample_rate_hz, model.geometry.hop_samples
    waves: dict[str, Any] = {}

    def kept(item: AudioItem) -> AudioItem:
        def read() -> tuple[Any, int]:
            samples, own = item.read()
            waves[item.id] = to_wave(samples, own, want_rate=rate, name=item.id)
            return waves[item.id], rate

        return AudioItem(item.id, read)

    items = (kept(item) for item in CutItems(options.cuts))
    threshold = torch.tensor([options.merge_threshold], device=device)
    for features in model.extract_iter(items, options.layer):
        (frames,) = features.hidden.values()
        x = torch.from_numpy(frames).to(device)[None]
        alive = x.norm(dim=-1) >= options.norm_threshold
        wave = torch.from_numpy(np.array(waves.pop(features.id)))[None].to(device)
        if options.silence_db > 0:
            length = torch.tensor([wave.shape[1]], device=device)
            alive &= frame_levels_db(wave, length, hop, x.shape[1]) >= -options.silence_db
        edges = spans(segment(x, alive, threshold)[0])
        # Between the centres of two neighbouring frames.
        offset = (features.field_samples - hop) / 2 / rate
        times = np.where(edges > 0, edges * (hop / rate) + offset, 0.0)
        yield Segmented(
            features.id, times, features.seconds, len(frames), features.frame_rate_hz,
            features.field_samples / rate,
        )  # fmt: skip


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
