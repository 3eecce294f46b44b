"""The table and the page of `speechssl suite`, made of what suite.json holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from speechssl.report.charts import bars
from speechssl.report.page import SCRIPT, SERIES, STYLE
from speechssl.report.sections import section, table

NAMES = {
    "uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1", "wer": "WER", "cer": "CER",
    "eer": "EER", "der": "DER", "slots.slot_type_f1": "slot type F1",
    "exact_match": "all slots right",
}  # fmt: skip
"""Figures that are shares, and are shown as percentages."""

Cells = list[Mapping[str, Any]]


def cells_of(suite: Mapping[str, Any], upstream: str, task: str) -> Cells:
    """One per seed."""
    return [c for c in suite["cells"] if (c["upstream"], c["task"]) == (upstream, task)]


def mean_of(cells: Cells) -> float | None:
    return statistics.mean(c["score"] for c in cells) if cells else None


def number(value: float, metric: str) -> str:
    return f"{100 * value:.2f}" if metric in NAMES else f"{value:.4g}"


def shown(cells: Cells, metric: str) -> str:
    """Mean ± deviation over seeds; of one seed, the score with its 95 % interval."""
    if not cells:
        return "—"
    text = number(statistics.mean(c["score"] for c in cells), metric)
    if len(cells) > 1:
        return f"{text} ± {number(statistics.stdev(c['score'] for c in cells), metric)}"
    interval = cells[0]["ci95"]
    if interval is None:
        return text
    return f"{text} ({number(interval[0], metric)} to {number(interval[1], metric)})"


def title(name: str, task: Mapping[str, Any]) -> str:
    metric, arrow = task["metric"], "↑" if task["best"] == "highest" else "↓"
    return f"{name}, {NAMES.get(metric, metric)}{' %' if metric in NAMES else ''} {arrow}"


def best_upstreams(suite: Mapping[str, Any], task: str) -> set[str]:
    """Those with the best mean of a task, where two or more have one."""
    means = {u: mean_of(cells_of(suite, u, task)) for u in suite["upstreams"]}
    found = {u: m for u, m in means.items() if m is not None}
    if len(found) < 2:
        return set()
    end = (max if suite["tasks"][task]["best"] == "highest" else min)(found.values())
    return {u for u, m in found.items() if m == end}


def rows_of(suite: Mapping[str, Any], bold: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: an upstream a row, a task a column. bold: a format."""
    tasks = {n: t for n, t in suite["tasks"].items() if any(c["task"] == n for c in suite["cells"])}
    head = ["upstream", "parameters", *(title(n, t) for n, t in tasks.items())]
    best = {name: best_upstreams(suite, name) for name in tasks}
    rows = []
    for upstream in suite["upstreams"]:
        own = [c for c in suite["cells"] if c["upstream"] == upstream]
        if not own:
            continue
        row = [upstream, f"{own[0]['encoder_parameters']:,}"]
        for name, task in tasks.items():
            text = shown(cells_of(suite, upstream, name), task["metric"])
            row.append(bold.format(text) if upstream in best[name] else text)
        rows.append(row)
    guesses = [task["chance"] for task in tasks.values()]
    if rows and any(g is not None for g in guesses):
        given = zip(guesses, tasks.values(), strict=True)
        rows.append(["chance", ""]
                    + ["" if g is None else number(g, t["metric"]) for g, t in given])  # fmt: skip
    return head, rows


def markdown(suite: Mapping[str, Any]) -> str:
    """The table, and a line for each task without a corpus and each cell that failed."""
    head, rows = rows_of(suite, "**{}**")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += [f"\nLeft out: {name}: {why}" for name, why in suite["missing"].items()]
    lines += [f"\nFailed: {name}: {why}" for name, why in suite["failed"].items()]
    return "\n".join(lines) + "\n"


def render_suite(suite: Mapping[str, Any]) -> str:
    """The whole page: table, each task's cells, layer weights, what is missing."""
    head, rows = rows_of(suite, "<b>{}</b>")
    # Names come from the command line and from folders; the rest of a row is numbers.
    rows = [[escape(row[0]), *row[1:]] for row in rows]
    seeds = len(suite["options"]["seeds"])
    spread = "mean ± deviation over seeds" if seeds > 1 else "one seed, with 95 % intervals"
    note = (
        f'<p class="note">Frozen upstreams, one head per task; {spread}. The learning rate is '
        "chosen on validation data, by the sweep below. Bold: the best of a column.</p>"
    )
    body = section("Table", table(head, rows, raw=True) + note)
    for name, task in suite["tasks"].items():
        if any(c["task"] == name for c in suite["cells"]):
            body += _task(suite, name, task)
    body += _troubles(suite)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Suite · speechssl</title><style>{STYLE.replace('SERIES', SERIES)}</style></head>"
        f'<body><h1>Suite of tasks</h1><p class="sub">{escape(suite["made"])}</p>'
        f"{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _task(suite: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> str:
    metric = task["metric"]
    head = ("upstream", "seed", NAMES.get(metric, metric), "95 % interval", "head", "updates",
            "learning rate", "trained parameters", "scored", "wall s", "CPU s",
            "energy")  # fmt: skip
    rows, sweeps = [], []
    for upstream in suite["upstreams"]:
        for cell in cells_of(suite, upstream, name):
            rows.append([upstream, str(cell["seed"]), *_cell(cell, metric)])
            for fold, scores in enumerate(cell["sweeps"], 1):
                where = f"{upstream}, seed {cell['seed']}, fold {fold}"
                sweeps.append([where, *(_score(s) for s in scores.values())])
    text = (
        f"<p>{escape(task['about'])}</p>"
        f'<p class="note">Protocol: {escape(task["protocol"])}</p>{table(head, rows)}'
    )
    if sweeps:
        cells = [c for c in suite["cells"] if c["task"] == name and c["sweeps"]]
        rates = list(cells[0]["sweeps"][0])
        kept = [row for row in sweeps if len(row) == len(rates) + 1]
        text += "<h3>Validation figure of each learning rate</h3>" + table(["run", *rates], kept)
    return section(name, text + f'<div class="grid">{_weights(suite, name)}</div>')


def _cell(cell: Mapping[str, Any], metric: str) -> list[str]:
    interval = cell["ci95"]
    cost = cell["cost"]
    energy = "—"
    if "energy_kwh" in cost:
        energy = f"{1000 * cost['energy_kwh']:.3g} Wh ({cost['energy_how']})"
    return [
        number(cell["score"], metric),
        " to ".join(number(x, metric) for x in interval) if interval else "—",
        cell["head"],
        str(cell["steps"]),
        ", ".join(f"{rate:g}" for rate in cell["learning_rates"]),
        f"{cell['trained_parameters']:,}",
        f"{cell['scored']} in {cell['folds']} fold{'s' * (cell['folds'] > 1)}",
        f"{cost['wall_s']:.0f}",
        f"{cost['cpu_s']:.0f}",
        energy,
    ]


def _score(value: float | None) -> str:
    return "broke down" if value is None else f"{value:.4f}"


def _weights(suite: Mapping[str, Any], task: str) -> str:
    """Softmax weight of each layer, mean over seeds and folds, by upstream."""
    figures = ""
    for upstream in suite["upstreams"]:
        found = [c["layer_weights"] for c in cells_of(suite, upstream, task)]
        found = [weights for weights in found if len(weights) > 1]
        if not found:
            continue
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        groups: Sequence[tuple[str, Sequence[float]]] = [(str(i), [w]) for i, w in enumerate(means)]
        figures += bars(
            f"{upstream}: weights of layers", groups, ["weight"], x_label="layer",
            note="Of layers brought to one variance, if the head normalises them; else their "
            "sizes are part of it.",
        )  # fmt: skip
    return figures


def _troubles(suite: Mapping[str, Any]) -> str:
    rows = [[name, "left out", why] for name, why in suite["missing"].items()]
    rows += [[name, "failed", why] for name, why in suite["failed"].items()]
    return section("Not in the table", table(("task", "", "why"), rows)) if rows else ""
