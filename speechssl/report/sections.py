"""The sections of a report: each takes experiments and returns HTML."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from speechssl.report.charts import Series, lines, short
from speechssl.report.read import FIGURES, Experiment

# Measure -> (title, note), in the order of the page; others follow under their own names.
TITLES: dict[str, tuple[str, str]] = {
    "loss": ("Loss", ""),
    "masked_accuracy": ("Accuracy on masked frames", ""),
    "unmasked_accuracy": (
        "Accuracy on unmasked frames",
        "It may fall in the first iteration: masked prediction is what is learnt.",
    ),
    "accuracy": ("Accuracy", ""),
    "wer": ("Word error rate", ""),
    "cer": ("Character error rate", ""),
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", "Before clipping."),
    "audio_s_per_s": ("Throughput: seconds of audio per second", ""),
    "update_seconds": ("Seconds per update", ""),
    "data_seconds": ("Seconds of an update spent waiting for data", ""),
    "memory_gb": ("Peak memory, GB", ""),
}
NO_CHART = {"step", "split", "epoch", "time"}
CUMULATIVE = {"utterances", "audio_seconds", "skipped"}
LOWER_IS_BETTER = ("loss", "wer", "cer", "eer", "error")


def measures(experiment: Experiment) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Measure -> split -> (steps, values), from any numeric field; "train/loss" is split too."""
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for line in experiment.metrics:
        for field, value in line.items():
            if field in NO_CHART or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            split, name = str(line.get("split", "train")), field
            for known in ("train", "valid"):
                if field.startswith(known + "/"):
                    split, name = known, field[len(known) + 1 :]
            steps, values = found.setdefault(name, {}).setdefault(split, ([], []))
            steps.append(float(line["step"]))
            values.append(float(value))
    return found


def overview(experiments: Sequence[Experiment]) -> str:
    """One row per experiment: what it is, how far it is, and its best figures."""
    rows = []
    for one in experiments:
        rows.append(
            [
                f'<a href="#{anchor(one)}">{escape(one.name)}</a>',
                escape(one.verb),
                escape(_what(one)),
                _parameters(one),
                _progress(one),
                _best(one),
                _quality(one),
                _scores(one),
                _cost(one),
            ]
        )
    head = ("experiment", "program", "what", "parameters", "updates", "best validation",
            "clusters", "scores", "cost")  # fmt: skip
    kept = [i for i in range(len(head)) if i < 3 or any(row[i] != "—" for row in rows)]
    shown = table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], raw=True)
    return section("Overview", f'<div class="overview">{shown}</div>')


def anchor(experiment: Experiment) -> str:
    return "x-" + "".join(c if c.isalnum() else "-" for c in experiment.name)


def _what(one: Experiment) -> str:
    names = []
    for key in ("objective", "head"):
        part = one.config.get(key)
        if isinstance(part, Mapping) and part.get("class_path"):
            names.append(str(part["class_path"]).rsplit(".", 1)[-1].removesuffix("Config"))
    clusters = one.tables.get("clusters.json")
    if clusters:
        features = clusters.get("features")
        kind = features.get("kind", "?") if isinstance(features, Mapping) else features
        layer = features.get("layer") if isinstance(features, Mapping) else clusters.get("layer")
        names.append(f"{clusters.get('classes', clusters.get('K', '?'))} classes of {kind}")
        names += [f"layer {layer}"] if layer is not None else []
    return ", ".join(names) or "—"


def _parameters(one: Experiment) -> str:
    return "—" if one.parameters is None else f"{one.parameters / 1e6:.2f} M"


def _progress(one: Experiment) -> str:
    if not one.metrics:
        return "—"
    total = (one.config.get("train") or {}).get("steps")
    if not total:
        return f"{one.steps}"
    state = (
        "" if one.steps >= total else f' <span class="bad">({100 * one.steps / total:.0f} %)</span>'
    )
    return f"{one.steps} of {total}{state}"


def _best(one: Experiment) -> str:
    """Best validation value of each measure of interest, with its step."""
    parts = []
    for name, splits in measures(one).items():
        if "valid" not in splits or name in CUMULATIVE or name not in _headline(one):
            continue
        steps, values = splits["valid"]
        pairs = [(v, s) for v, s in zip(values, steps, strict=True) if math.isfinite(v)]
        if pairs:
            pick = min if any(w in name for w in LOWER_IS_BETTER) else max
            value, step = pick(pairs)
            parts.append(f"{escape(name)} {value:.4g} <small>at {short(step)}</small>")
    return "<br>".join(parts) or "—"


def _headline(one: Experiment) -> set[str]:
    names = set(measures(one))
    wanted = {"loss", "masked_accuracy", "accuracy", "wer", "cer", "token_error_rate"}
    metric = (one.config.get("train") or {}).get("best_metric")
    return names & (wanted | {metric})


def _quality(one: Experiment) -> str:
    parts = []
    for name, values in one.tables.items():
        if isinstance(values.get("pnmi"), int | float):
            shown = f"PNMI {values['pnmi']:.3f}"
            parts.append(
                shown if name == "quality.json" else f"{shown} <small>{escape(name)}</small>"
            )
    return "<br>".join(parts) or "—"


def _scores(one: Experiment) -> str:
    parts = []
    for decoding in one.decodings:
        results = decoding.results
        key = next(k for k in FIGURES if k in results)
        if key in ("ccc", "si_sdr_db"):
            parts.append(
                f"{escape(key)} <b>{results[key]:.3f}</b> <small>{escape(decoding.name)}</small>"
            )
            continue
        low, high = results.get(f"{key}_ci95") or (None, None)
        spread = "" if low is None else f" <small>{100 * low:.1f}–{100 * high:.1f}</small>"
        parts.append(
            f"{key.replace('_', ' ').upper()} <b>{100 * results[key]:.2f} %</b>{spread} "
            f"<small>{escape(decoding.name)}</small>"
        )
    return "<br>".join(parts) or "—"


def _cost(one: Experiment) -> str:
    """Hours of training, from the times of its lines, and hours of audio that went in."""
    parts = []
    update = [m for m in one.split("train") if isinstance(m.get("update_seconds"), float)]
    if update:
        before, seconds = 0, 0.0
        for line in update:
            seconds += line["update_seconds"] * (line["step"] - before)
            before = line["step"]
        parts.append(f"{_duration(seconds)} of computing")
    heard = [m["audio_seconds"] for m in one.metrics if isinstance(m.get("audio_seconds"), float)]
    if heard:
        parts.append(f"{_duration(max(heard))} of audio")
    return "<br>".join(parts) or "—"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def curves(experiments: Sequence[Experiment]) -> str:
    """One chart per measure with all experiments that have it; validation is dashed."""
    trained = [e for e in experiments if e.metrics]
    if not trained:
        return section("Training", missing("no metrics.jsonl: nothing here was trained"))
    # Losses of different programs have different units: each program has its own charts.
    verbs = list(dict.fromkeys(e.verb for e in trained))
    groups = {verb: [e for e in trained if e.verb == verb] for verb in verbs}
    body = ""
    for verb, group in groups.items():
        head = f"<h3>{escape(verb)}</h3>" if len(groups) > 1 else ""
        body += head + _charts({e.name: measures(e) for e in group})
    return section("Training", body)


def _charts(by_experiment: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(n for found in by_experiment.values() for n in found))
    order = {name: number for number, name in enumerate(TITLES)}
    names.sort(key=lambda n: (order.get(n, len(order)), n in CUMULATIVE))
    main = "".join(_curve(n, by_experiment) for n in names if n in TITLES)
    rest = "".join(_curve(n, by_experiment) for n in names if n not in TITLES)
    more = details("Further measures", f'<div class="grid">{rest}</div>') if rest else ""
    return f'<div class="grid">{main}</div>{more}'


def _curve(name: str, by_experiment: Mapping[str, Mapping[str, Any]]) -> str:
    series = []
    several = len(by_experiment) > 1
    for number, (experiment, found) in enumerate(by_experiment.items()):
        for split, (steps, values) in found.get(name, {}).items():
            label = f"{experiment}, {split}" if several else split
            color = number if several else int(split != "train")
            series.append(Series(label, steps, values, color=color, dashed=split != "train"))
    title, note = TITLES.get(name, (name.replace("_", " "), ""))
    return lines(title, series, note=note)


def configurations(experiments: Sequence[Experiment]) -> str:
    """What differs between the configurations, then each in full."""
    configured = [e for e in experiments if e.config_text is not None]
    if not configured:
        return section("Configuration", missing("no config.yaml"))
    body = ""
    if len(configured) > 1:
        flat = [flatten(e.config) for e in configured]
        keys = dict.fromkeys(k for values in flat for k in values)
        differing = [k for k in keys if len({repr(values.get(k)) for values in flat}) > 1]
        rows = [[k, *("—" if v.get(k) is None else str(v[k]) for v in flat)] for k in differing]
        if rows:
            body += details(
                f"{len(rows)} options that differ",
                table(("option", *(e.name for e in configured)), rows),
            )
    for one in configured:
        body += details(f"{one.name}/config.yaml", f"<pre>{escape(one.config_text or '')}</pre>")
    return section("Configuration", body)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix.rstrip("."): values}
    return {
        k: v for key, part in values.items() for k, v in flatten(part, f"{prefix}{key}.").items()
    }


def health(experiments: Sequence[Experiment]) -> str:
    """Skipped utterances, refused updates and files that could not be read."""
    rows = []
    for one in experiments:
        if one.skipped:
            rows.append([one.name, f"{one.skipped} utterances left out, see skipped.txt"])
        if one.bad_updates:
            rows.append([one.name, f"{one.bad_updates} updates refused, see bad_updates.jsonl"])
        rows += [[one.name, trouble] for trouble in one.troubles]
    body = table(("experiment", "finding"), rows) if rows else "<p>Nothing was left out.</p>"
    return section("Troubles", body)


def section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def details(title: str, body: str, *, shown: bool = False) -> str:
    state = " open" if shown else ""
    return f"<details{state}><summary>{escape(title)}</summary>{body}</details>"


def missing(text: str) -> str:
    return f'<p class="missing">Missing: {escape(text)}.</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, raw: bool = False) -> str:
    """raw: the cells are HTML already."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{c if raw else escape(c)}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def picture(data: bytes, title: str) -> str:
    """A PNG inside the page."""
    text = base64.b64encode(data).decode()
    return (
        f'<figure class="wide"><figcaption>{escape(title)}</figcaption>'
        f'<img alt="{escape(title)}" src="data:image/png;base64,{text}"></figure>'
    )
