"""`speechssl decode` with heads of other answers: who speaks when, slots, numbers, waves.

A head says by its method what it answers: `activities`, `slot_log_probs`, `values`, `separate`. One
of another kind needs nothing here: its method `answer` takes waves as those do, its method `row`
makes of a cut and the answer what answers.jsonl keeps, and the function `results` beside its class
makes figures of these rows (`score_tasks`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.bin.decode_utterances import describe

if TYPE_CHECKING:
    import numpy as np

    from speechssl.bin.decode import DecodeOptions

STALE = (
    "results.json", "scores.txt", "alignments.txt", "hyp.jsonl", "predictions.jsonl", "hyp.rttm",
    "embeddings.npy", "embeddings.jsonl", "segments.jsonl", "slots.jsonl", "values.jsonl",
    "estimates.jsonl", "answers.jsonl",
)  # fmt: skip
"""What an earlier decoding may have left in the folder."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """file: what is written; row: (cut, answer, head, options) -> its line in it."""

    file: str
    row: Callable[[dict[str, Any], Any, Any, Any], dict[str, Any]]


def handles(head: Any) -> bool:
    return any(hasattr(head, name) for name in _kinds())


def run(options: DecodeOptions, head: Any, device: Any) -> int:
    """Write the lines of every cut, and decode.json."""
    from tqdm import tqdm

    from speechssl import dist
    from speechssl.bin.decode import answers
    from speechssl.data.fields import cut_rows

    if options.method != "greedy":
        raise ValueError(
            f"method: found {options.method} with a {type(head).__name__}, want greedy: there is "
            "nothing to search"
        )
    name = next(n for n in _kinds() if hasattr(head, n))
    kind, ask = _kinds()[name], getattr(head, name)
    head.to(device)
    cuts = [options.cuts] if isinstance(options.cuts, str) else options.cuts
    described = {cut["id"]: cut for cut in cut_rows(cuts)}
    clock = {"audio_s": 0.0, "forward_s": 0.0}
    skipped: list[str] = []
    total = -(-len(described) // dist.world_size())
    found = answers(options, head.encoder, ask, device, clock, skipped)
    # Answers become lines at once: those of whole corpora would not fit into memory.
    rows = {
        cut_id: kind.row(described[cut_id], answer, head, options)
        for cut_id, answer in tqdm(found, total=total, desc="decode", unit="utt", disable=None)
    }
    parts = dist.gather_objects((rows, skipped, clock))
    if dist.is_main():
        _write(options, head, kind, described, parts)
    return 0


def _write(
    options: DecodeOptions,
    head: Any,
    kind: Kind,
    described: Mapping[str, Any],
    parts: list[tuple[dict[str, dict[str, Any]], list[str], dict[str, float]]],
) -> None:
    from speechssl.bin.score import write_text

    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {cut_id: row for part, _, _ in parts for cut_id, row in part.items()}
    skipped = sorted({entry for _, found, _ in parts for entry in found})
    clock = {name: sum(part[2][name] for part in parts) for name in parts[0][2]}
    for stale in STALE:
        (folder / stale).unlink(missing_ok=True)
    lines = [json.dumps(rows[i], ensure_ascii=False) + "\n" for i in described if i in rows]
    write_text(folder / kind.file, "".join(lines))
    names = ("model", "cuts", "output", "max_batch_seconds", "device", "dtype")
    if kind.file == "segments.jsonl":
        names += ("threshold", "median")
        _write_rttm(folder / "hyp.rttm", [rows[i] for i in described if i in rows])
    rtf = clock["forward_s"] / max(clock["audio_s"], 1e-9)
    info = {k: getattr(options, k) for k in names}
    info |= {"utterances": len(lines), "skipped": skipped, **describe(head)}
    info["timing"] = clock | {"rtf": rtf}
    write_text(folder / "decode.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    print(
        f"{folder}/{kind.file}: {len(lines)} utterances, {len(skipped)} skipped, "
        f"{clock['audio_s']:.0f} s of audio in {clock['forward_s']:.1f} s (RTF {rtf:.3f})"
    )
    for entry in skipped[:10]:
        print(f"skipped {entry}")


def _kinds() -> dict[str, Kind]:
    return {
        "activities": Kind("segments.jsonl", _segments),
        "slot_log_probs": Kind("slots.jsonl", _slots),
        "values": Kind("values.jsonl", _values),
        "separate": Kind("estimates.jsonl", _estimates),
        "answer": Kind("answers.jsonl", _own),
    }


def _own(
    cut: dict[str, Any], answer: np.ndarray, head: Any, options: DecodeOptions
) -> dict[str, Any]:
    return {"id": cut["id"], **head.row(cut, answer)}


def _segments(
    cut: dict[str, Any], answer: np.ndarray, head: Any, options: DecodeOptions
) -> dict[str, Any]:
    from speechssl.score.diarization import median_filtered, turns_of

    active = median_filtered(answer > options.threshold, options.median)
    names = [f"speaker{i}" for i in range(active.shape[1])]
    turns = turns_of(active, names, head.encoder.frame_rate_hz)
    spoken = [s for s in cut.get("supervisions") or [] if s.get("speaker") is not None]
    return {
        "id": cut["id"],
        "duration": cut["duration"],
        "ref": [[s["speaker"], s["start"], s["start"] + s["duration"]] for s in spoken],
        "hyp": [[t.speaker, t.start, min(t.end, cut["duration"])] for t in turns],
    }


def _slots(
    cut: dict[str, Any], answer: np.ndarray, head: Any, options: DecodeOptions
) -> dict[str, Any]:
    from speechssl.bin.utterance_labels import NONE
    from speechssl.data.fields import field_of

    at, hyp = 0, {}
    for slot, values in zip(head.config.slots, head.config.values, strict=True):
        hyp[slot] = values[int(answer[at : at + len(values)].argmax())]
        at += len(values)
    ref = {slot: field_of(cut, slot) or NONE for slot in head.config.slots}
    return {"id": cut["id"], "ref": ref, "hyp": hyp}


def _values(
    cut: dict[str, Any], answer: np.ndarray, head: Any, options: DecodeOptions
) -> dict[str, Any]:
    from speechssl.data.fields import field_of

    names, ref = head.config.dimensions, {}
    for name in names:
        value = field_of(cut, name)
        try:
            ref[name] = None if value is None else float(value)
        except ValueError:
            ref[name] = math.nan
        if ref[name] is not None and not math.isfinite(ref[name]):
            raise ValueError(
                f"{name}: found {value!r} in the cut {cut['id']!r}, want a number, or no such field"
            )
    hyp = {n: round(float(v), 6) for n, v in zip(names, answer, strict=True)}
    return {"id": cut["id"], "ref": ref, "hyp": hyp}


def _estimates(
    cut: dict[str, Any], answer: np.ndarray, head: Any, options: DecodeOptions
) -> dict[str, Any]:
    """Writes the waves, as float32: a loud one must not be clipped."""
    import soundfile

    folder = Path(options.output) / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i, wave in enumerate(answer.T):
        names.append(f"audio/{str(cut['id']).replace('/', '_')}.{i}.wav")
        path = Path(options.output) / names[-1]
        soundfile.write(path, wave, head.encoder.sample_rate_hz, subtype="FLOAT")
    first = (cut.get("supervisions") or [{}])[0]
    custom = {**(cut.get("custom") or {}), **(first.get("custom") or {})}
    source = cut["recording"]["sources"][0]["source"]
    return {"id": cut["id"], "mixture": source, "sources": custom.get("sources"),
            "estimates": names}  # fmt: skip


def _write_rttm(path: Path, rows: list[dict[str, Any]]) -> None:
    from speechssl.bin.score import write_text
    from speechssl.score.diarization import Turn, rttm

    write_text(path, rttm({row["id"]: [Turn(*t) for t in row["hyp"]] for row in rows}))
