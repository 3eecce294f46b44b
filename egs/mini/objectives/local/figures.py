"""What a run's metrics.jsonl and a probe's probe.json say, for the tables of recipes."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import NamedTuple

from speechssl.bin.score import read_hypotheses
from speechssl.score.probe import interval as resampled
from speechssl.score.wer import score_utterance

STANDS_ON = {"discrete_bert": "vq_wav2vec", "continuous_bert": "vq_wav2vec"}
SAME_ENCODER = {"bestrq_conformer": "w2v_bert_conformer"}
"""Whose untrained encoder is that of another."""
PROBED = {  # column -> (what chooses the layer, what is shown of it)
    "PNMI": ("pnmi", "pnmi"), "phones %": ("phone_dev_accuracy", "phone_accuracy"),
    "speakers %": ("speaker_dev_accuracy", "speaker_accuracy"),
}  # fmt: skip
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t: the 97.5 % quantile at 1, 2, ... degrees of freedom; the last serves beyond."""
WORSE, UNSURE = "†", "‡"
LEGEND = (
    f"{WORSE} not better than random weights with every seed; {UNSURE} better with every seed, but "
    "the 95 % interval of the mean gain reaches 0 or is not known. The interval is the wider of "
    "those over seeds (paired, Student's t) and over test utterances (of the same ones where each "
    "one's result is known; else both results' own, as if independent); one seed without the "
    "second has none. Random weights are those of the row random_NAME of the same architecture "
    "where there is one, else of the row random."
)


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def error_counts(decode: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Of `wer` and `cer`, by utterance of a decoding: errors, and words or characters."""
    if not (decode / "hyp.jsonl").is_file():
        return {}
    scored = [score_utterance(one) for one in read_hypotheses(decode / "hyp.jsonl")]
    return {
        "wer": {one.utterance.id: (one.words.errors, one.words.length) for one in scored},
        "cer": {one.utterance.id: (one.characters.errors, one.characters.length) for one in scored},
    }


def training(folder: Path) -> dict:
    """Last validation values, seconds of a step (median without the first line), hours."""
    path, valid, seconds, hours, done = folder / "metrics.jsonl", {}, [], 0.0, 0
    for line in map(json.loads, path.read_text().splitlines() if path.is_file() else ()):
        if line["split"] == "valid":
            valid = line
            continue
        seconds.append(line["update_seconds"])
        hours += line["update_seconds"] * (line["step"] - done) / 3600
        done = line["step"]
    return {
        "native loss": valid.get("loss"),
        "code perplexity": valid.get("code_perplexity", valid.get("unit_perplexity")),
        "step s": statistics.median(seconds[1:] or seconds) if seconds else None,
        "hours": hours or None,
    }


def probed(folder: Path, rank_of: str) -> dict:
    """Figures of the layers that are best for each, by their dev parts; RankMe of the one that is
    best for `rank_of`, phone or speaker."""
    probe = read(folder / "probe.json")
    layers, best = {x["layer"]: x for x in probe.get("layers", ())}, probe.get("best", {})
    wanted = PROBED | {"RankMe": (f"{rank_of}_dev_accuracy", "rankme")}
    for column, (choice, measure) in PROBED.items():
        if measure.endswith("accuracy"):
            wanted[interval(column)] = (choice, f"{measure}_ci95")
            wanted[by_cut(column)] = (choice, measure.replace("accuracy", "by_cut"))
    return {
        column: layers.get(best.get(choice), {}).get(measure)
        for column, (choice, measure) in wanted.items()
    }


def cell(values: list[float | None], factor: float, digits: int, mark: str = "") -> str:
    """Mean and deviation over seeds of what is known, and how many those are if not all."""
    known = [factor * v for v in values if v is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    share = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{statistics.mean(known):.{digits}f}{spread}{share}{mark and ' ' + mark}"


class Gain(NamedTuple):
    """How much better than random weights, over the seeds that both have."""

    mean: float
    half: float | None  # half the width of its 95 % interval; None: not known
    mark: str  # WORSE, UNSURE or ""
    seeds: int


def interval(name: str) -> str:
    """Key of a row's 95 % interval over test utterances."""
    return f"{name} ci95"


def by_cut(name: str) -> str:
    """Key of a row's points that were right (or errors), and points, of each test utterance."""
    return f"{name} by cut"


def gain(found: list[dict], random: list[dict], column: str, sign: int) -> Gain | None:
    """Rows of the same seeds; sign: -1 where less is better. None: no seed has both."""
    pairs = [(a, b) for a, b in zip(found, random, strict=True)
             if a.get(column) is not None and b.get(column) is not None]  # fmt: skip
    if not pairs:
        return None
    gains = [sign * (a[column] - b[column]) for a, b in pairs]
    halves = []
    if len(gains) > 1:
        quantile = STUDENT[min(len(gains) - 1, len(STUDENT)) - 1]
        halves.append(quantile * statistics.stdev(gains) / math.sqrt(len(gains)))
    bounds = [[row.get(interval(column)) for row in pair] for pair in pairs]
    counts = [[row.get(by_cut(column)) for row in pair] for pair in pairs]
    if all(a and b and a.keys() == b.keys() for a, b in counts):
        shared = [resampled(*([[0, *one[key]] for key in a] for one in (a, b))) for a, b in counts]
        halves.append(statistics.mean((high - low) / 2 for low, high in shared))
    elif all(low_high for pair in bounds for low_high in pair):
        # The seeds share their test utterances, so more seeds make this no narrower.
        widths = [math.hypot(*((high - low) / 2 for low, high in pair)) for pair in bounds]
        halves.append(statistics.mean(widths))
    mean, half = statistics.mean(gains), max(halves, default=None)
    sure = half is not None and mean > half
    return Gain(mean, half, WORSE if min(gains) <= 0 else "" if sure else UNSURE, len(gains))


def is_baseline(name: str) -> bool:
    return name.startswith("random") or name == "logmel"


def random_of(rows: dict[str, list[dict]], name: str) -> list[dict]:
    """The row of untrained weights to compare with: of the same architecture, if there is one."""
    own = (f"random_{name}", f"random_{SAME_ENCODER.get(name)}")
    return next((rows[one] for one in own if one in rows), rows["random"])


def against_random(rows: dict[str, list[dict]], column: str, sign: int, factor: float) -> str:
    """Which rows are not better than random weights; rows: name -> row of each seed."""
    parts: dict[str, list[str]] = {
        "not better with every seed": [], "better, not beyond the interval": [],
        "not known": [], "with fewer seeds": [],
    }  # fmt: skip
    worse, unsure, unknown, fewer = parts.values()
    for name in sorted(name for name in rows if not is_baseline(name)):
        one = gain(rows[name], random_of(rows, name), column, sign)
        if one is None:
            unknown.append(name)
            continue
        spread = "" if one.half is None else f" ± {factor * one.half:.1f}"
        text = f"{name} ({factor * one.mean:+.1f}{spread})"
        if one.mark:
            (worse if one.mark == WORSE else unsure).append(text)
        if one.seeds < len(rows["random"]):
            fewer.append(f"{name} ({one.seeds} of {len(rows['random'])})")
    found = [f"{what}: {', '.join(names)}" for what, names in parts.items() if names]
    return f"Gain over random weights, {column}: " + ("; ".join(found) or "all better") + "."


def table(
    rows: dict[str, list[dict]], columns: dict[str, tuple[float, int]], signs: dict[str, int]
) -> list[str]:
    """Lines of Markdown: a row per name, and who is not better than the row "random".

    columns: name -> (factor, digits); signs: those to compare -> 1, or -1 where less is better.
    """
    lines = ["| " + " | ".join(["objective", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    random = rows.get("random", [])
    signs = {
        column: sign for column, sign in signs.items()
        if any(one.get(column) is not None for one in random)
    }  # fmt: skip
    for name, found in rows.items():
        cells = [name]
        for column, form in columns.items():
            one = None
            if column in signs and not is_baseline(name):
                one = gain(found, random_of(rows, name), column, signs[column])
            cells.append(cell([v.get(column) for v in found], *form, one.mark if one else ""))
        lines.append("| " + " | ".join(cells) + " |")
    if signs:
        lines += ["", LEGEND]
    for column, sign in signs.items():
        lines += ["", against_random(rows, column, sign, columns[column][0])]
    return lines
