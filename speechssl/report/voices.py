"""The section about converted voices: figures, and examples to listen to and to look at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from speechssl.report.charts import ticks
from speechssl.report.pictures import flac, inline, spectrogram
from speechssl.report.read import Experiment
from speechssl.report.sections import details, section, table

EXAMPLES = 3
"""Utterances that are shown."""
MOST_SECONDS = 8.0
"""A longer recording is played and drawn up to here."""
MOST_BYTES = 8_000_000
"""Of sound and pictures; what comes behind is left out, and said to be."""
RATE = 16000
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 760, 170, 44, 26, 8

COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("MCD, dB", "mcd", 1, 2),
    ("with c0", "mcd_c0", 1, 2),
    ("F0 RMSE, Hz", "f0_rmse_hz", 1, 1),
    ("F0 correlation", "f0_correlation", 1, 2),
    ("voicing error, %", "voicing_error", 100, 1),
    ("gross pitch error, %", "gross_pitch_error", 100, 1),
    ("duration, s", "duration_difference_s", 1, 2),
    ("closer to target, %", "speaker.closer_to_target", 100, 0),
    ("accepted, %", "speaker.accept_rate", 100, 0),
    ("WER, %", "asr.wer", 100, 1),
    ("CER, %", "asr.cer", 100, 1),
    ("RTF", "conversion.timing.rtf", 1, 3),
)


@dataclasses.dataclass(frozen=True)
class Conversions:
    """A folder that `speechssl score-conversion` has scored."""

    name: str
    results: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    f0: Mapping[str, Mapping[str, Any]]


def voices(experiments: Sequence[Experiment]) -> str:
    """Table and examples of all conversions in these folders; empty where there are none."""
    found = [c for one in experiments for c in read_conversions(one)]
    if not found:
        return ""
    head = ["conversion", *(title for title, *_ in COLUMNS), "compared"]
    rows = []
    first = next((c for c in found if c.results.get("source")), None)
    if first is not None:
        heard = first.results.get("asr") or {}
        asr = {key: heard.get(f"source_{key}") for key in ("wer", "cer")}
        rows.append(_cells("not converted", dict(first.results["source"]) | {"asr": asr}))
    rows += [_cells(c.name, c.results) for c in found]
    kept = [i for i in range(len(head)) if any(row[i] != "—" for row in rows)]
    shown = table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return section("Converted voices", shown + _notes(found) + _examples(found))


def read_conversions(one: Experiment) -> list[Conversions]:
    """Those in an experiment's folder and in the folders of it."""
    found = []
    for folder in [one.path, *sorted(p for p in one.path.iterdir() if p.is_dir())]:
        try:
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            rows = _lines(folder / "conversions.jsonl")
            tracks = _lines(folder / "f0.jsonl")
        except (OSError, ValueError):
            continue
        if isinstance(results, dict) and results.get("kind") == "conversion":
            plain = folder == one.path or folder.name == "converted"
            name = one.name if plain else f"{one.name}/{folder.name}"
            found.append(Conversions(name, results, rows, tracks))
    return found


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row for row in found}


def _cells(name: str, results: Mapping[str, Any]) -> list[str]:
    cells = [name]
    for _, place, factor, digits in COLUMNS:
        value: Any = results
        for key in place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        known = isinstance(value, int | float)
        cells.append(f"{factor * value:.{digits}f}" if known else "—")
    return [*cells, str(results.get("compared", "—"))]


def _notes(found: Sequence[Conversions]) -> str:
    """How it was measured, and what could not be."""
    notes = {}
    for one in found:
        s = one.results.get("settings") or {}
        text = (
            f"mel-cepstra of order {s.get('order')} ({s.get('spectrum')}, alpha {s.get('alpha')}), "
            f"frames above {s.get('threshold_db')} dB, DTW {'on' if s.get('dtw') else 'off'}"
        )
        notes.setdefault(text, []).append(one.name)
    lines = [
        f"{', '.join(names)}: {text}." if len(notes) > 1 else f"Measured on {text}."
        for text, names in notes.items()
    ]
    body = "".join(f'<p class="note">{escape(line)}</p>' for line in lines)
    for one in found:
        troubles = one.results.get("troubles") or []
        if troubles:
            listed = "".join(f"<li>{escape(str(t))}</li>" for t in troubles[:50])
            title = f"{one.name}: {len(troubles)} conversions were not compared"
            body += details(title, f"<ul>{listed}</ul>")
    return body


def choose(found: Sequence[Conversions], most: int = EXAMPLES) -> list[str]:
    """Ids of the utterances to show: the nearest, the middle and the farthest of those in common.

    Folders that have none of the first folder's utterances (copies of the target) do not count.
    """
    base = {i for i, row in found[0].rows.items() if "mcd" in row}
    others = [{i for i, row in c.rows.items() if "mcd" in row} for c in found[1:]]
    for ids in others:
        base = base & ids or base
    distance = {
        i: np.mean([c.rows[i]["mcd"] for c in found if "mcd" in c.rows.get(i, {})]) for i in base
    }
    ordered = sorted(base, key=lambda i: (distance[i], i)) or sorted(found[0].rows)
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return [ordered[p] for p in places]


def _examples(found: Sequence[Conversions]) -> str:
    spent = 0
    body = ""
    for number, name in enumerate(choose(found)):
        if spent > MOST_BYTES:
            body += '<p class="missing">Further examples are left out: the page is large.</p>'
            break
        text = _example(name, [c for c in found if name in c.rows])
        spent += len(text)
        row = next(c.rows[name] for c in found if name in c.rows)
        said = f": “{row['text']}”" if row.get("text") else ""
        title = f"{row.get('source_speaker') or row['source']} as {row['target']}{said}"
        body += details(title, text, shown=number == 0)
    return body


def _example(name: str, found: Sequence[Conversions]) -> str:
    """Source, the target's own recording, and each conversion: player, spectrogram; then F0."""
    row, track = found[0].rows[name], found[0].f0.get(name) or {}
    clips = [("source", row.get("source_audio"), None)]
    clips.append(("target's own", row.get("reference_audio"), None))
    for one in found:
        mine = one.rows[name]
        clips.append((one.name, mine.get("audio"), mine))
    waves = [(title, _wave(path), row) for title, path, row in clips]
    longest = max((len(w) for _, w, _ in waves if w is not None), default=0)
    body = "".join(_clip(title, wave, row, longest) for title, wave, row in waves)
    curves = [("source", track.get("source")), ("target's own", track.get("reference"))]
    curves += [(one.name, (one.f0.get(name) or {}).get("converted")) for one in found]
    known = [(title, values) for title, values in curves if values]
    return body + (f0_overlay(known, float(track.get("hop_s", 0.005))) if known else "")


def _wave(path: str | None) -> np.ndarray | None:
    """(L,) at 16 kHz, at most 8 s; None for a file that is not there any more."""
    import soundfile
    import soxr

    if path is None or not Path(path).is_file():
        return None
    try:
        with soundfile.SoundFile(path) as file:
            most = int(MOST_SECONDS * file.samplerate)
            wave = file.read(most, dtype="float32", always_2d=True).mean(1)
            return wave if file.samplerate == RATE else soxr.resample(wave, file.samplerate, RATE)
    except (soundfile.SoundFileError, OSError, RuntimeError):
        return None


def _clip(title: str, wave: np.ndarray | None, row: Mapping[str, Any] | None, longest: int) -> str:
    head = f"<b>{escape(title)}</b>"
    if row is not None:
        parts = [f"MCD {row['mcd']:.2f} dB"] if "mcd" in row else []
        speaker = row.get("speaker")
        if speaker:
            parts.append(f"cosine with target {speaker['target_cosine']:.2f}")
        if row.get("hyp") is not None:
            parts.append(f"heard “{row['hyp']}”")
        head += f" <small>{escape(', '.join(parts))}</small>" if parts else ""
    if wave is None or not len(wave):
        return f'<div class="clip"><p>{head}</p><p class="missing">no recording here</p></div>'
    sound, picture = inline(flac(wave, RATE), "audio/flac"), spectrogram(wave, RATE)
    # As wide as it is long, so that times of all lie below each other.
    width = 100 * len(wave) / longest
    return (
        f'<div class="clip"><p>{head}</p><audio controls preload="none" src="{sound}"></audio>'
        f'<img alt="spectrogram: {escape(title)}" style="width:{width:.2f}%" '
        f'src="{inline(picture, "image/png")}"></div>'
    )


def f0_overlay(curves: Sequence[tuple[str, Sequence[float]]], hop_s: float) -> str:
    """F0 over time, each on its own time axis, with gaps where it is unvoiced."""
    voiced = [v for _, values in curves for v in values if v > 0]
    if not voiced:
        return '<p class="missing">nothing voiced, so no F0</p>'
    # A few frames an octave off do not flatten the rest: they are drawn at the edge.
    low, high = np.quantile(voiced, [0.02, 0.98]) * [0.9, 1.12]
    seconds = max(len(values) for _, values in curves) * hop_s

    def x(time: float) -> float:
        return LEFT + (WIDTH - LEFT - 8) * time / seconds

    def y(hz: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * min(1.0, max(0.0, (high - hz) / (high - low)))

    body = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.0f}</text>'
        for v in ticks(low, high, 4)
    )
    body += "".join(
        f'<text x="{x(v):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{v:.3g} s</text>'
        for v in ticks(0, seconds, 6)
    )
    keys = ""
    for number, (title, values) in enumerate(curves):
        kind = f"s{number % 8}" + (" dashed" if number < 2 else "")
        runs = np.split(np.asarray(values), np.flatnonzero(np.diff(np.asarray(values) > 0)) + 1)
        start, path = 0, ""
        for run in runs:
            if run[0] > 0 and len(run) > 1:
                points = (f"{x((start + i) * hop_s):.1f} {y(v):.1f}" for i, v in enumerate(run))
                path += "M" + "L".join(points)
            start += len(run)
        body += f'<path class="{kind}" d="{path}"/>' if path else ""
        line = f'<line class="{kind}" x1="0" x2="18" y1="4" y2="4"/>'
        key = f'<svg viewBox="0 0 18 8" class="key">{line}</svg>'
        keys += f"<span>{key}{escape(title)}</span>"
    return (
        '<figure class="wide"><figcaption>F0, Hz</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="F0 over time">{body}</svg>'
        f'<div class="legend">{keys}</div></figure>'
    )
