"""What a run's metrics.jsonl and a probe's probe.json say, for the tables of recipes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

STANDS_ON = {"discrete_bert": "vq_wav2vec", "continuous_bert": "vq_wav2vec"}
PROBED = {  # column -> (what chooses the layer, what is shown of it)
    "PNMI": ("pnmi", "pnmi"), "phones %": ("phone_dev_accuracy", "phone_accuracy"),
    "speakers %": ("speaker_dev_accuracy", "speaker_accuracy"),
}  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


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
    return {
        column: layers.get(best.get(choice), {}).get(measure)
        for column, (choice, measure) in wanted.items()
    }


def cell(values: list[float | None], factor: float, digits: int) -> str:
    """Mean and deviation over seeds of what is known."""
    known = [factor * v for v in values if v is not None]
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}" if known else "-"


def against_random(rows: dict[str, list[dict]], column: str, sign: int) -> str:
    """Which rows are not better than random weights with every seed; rows: name -> of each seed."""
    worse, unknown = [], []
    for name in sorted(rows.keys() - {"random", "logmel"}):
        pairs = [(a.get(column), b.get(column)) for a, b in zip(rows[name], rows["random"])]
        gains = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
        if not gains:
            unknown.append(name)
        elif min(gains) <= 0:
            worse.append(name)
    text = f"Not better than random weights with every seed, {column}: "
    text += ", ".join(worse) or "none"
    return text + (f"; not known: {', '.join(unknown)}." if unknown else ".")


def table(rows: dict[str, list[dict]], columns: dict[str, tuple[float, int]]) -> list[str]:
    """Lines of Markdown: a row per name; columns: name -> (factor, digits)."""
    lines = ["| " + " | ".join(["objective", *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, found in rows.items():
        cells = [cell([v.get(column) for v in found], *form) for column, form in columns.items()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines
