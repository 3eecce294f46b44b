"""The table and the page of `speechssl suite`, made of what suite.json holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from speechssl.report.charts import bars
from speechssl.report.page import SCRIPT, SERIES, STYLE
from speechssl.report.sections import section, table
from speechssl.score.aggregate import Pins, superb_score

NAMES = {
    "uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1", "wer": "WER", "cer": "CER",
    "eer": "EER", "der": "DER", "slots.slot_type_f1": "slot type F1",
    "exact_match": "all slots right", "jer": "JER", "slots.slot_value_cer": "slot value CER",
    "map": "mAP", "slots.slot_f1": "slot F1",
    "slots.superb_slot_type_f1": "slot type F1 as SUPERB's",
    "slots.superb_slot_value_cer": "slot value CER as SUPERB's",
}  # fmt: skip
"""Figures that are shares, and are shown as percentages."""

Cells = list[Mapping[str, Any]]


def cells_of(suite: Mapping[str, Any], upstream: str, task: str) -> Cells:
    """One per seed."""
    return [c for c in suite["cells"] if (c["upstream"], c["task"]) == (upstream, task)]


def mean_of(cells: Cells) -> float | None:
    return statistics.mean(c["score"] for c in cells) if cells else None


def scores_of(suite: Mapping[str, Any], pins: Pins) -> dict[str, dict[str, Any]]:
    """Upstream -> its score over tasks by mean figures of all seeds, and the tasks that count."""
    found = {}
    for upstream in suite["upstreams"]:
        figures: dict[str, dict[str, float | None]] = {}
        for name, task in suite["tasks"].items():
            cells = cells_of(suite, upstream, name)
            figures[name] = {task["metric"]: mean_of(cells)}
            for one in task["also"] if cells else ():
                values = [c["also"][one] for c in cells]
                figures[name][one] = None if None in values else statistics.mean(values)
        score, tasks = superb_score(figures, pins)
        found[upstream] = {"score": score, "tasks": tasks}
    return found


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
    scores = suite.get("scores")
    head = ["upstream", "parameters", *(["score ↑"] if scores else [])]
    head += [title(n, t) for n, t in tasks.items()]
    best = {name: best_upstreams(suite, name) for name in tasks}
    rows = []
    for upstream in suite["upstreams"]:
        own = [c for c in suite["cells"] if c["upstream"] == upstream]
        if not own:
            continue
        row = [upstream, f"{own[0]['encoder_parameters']:,}"]
        if scores:
            row.append(_score_shown(scores[upstream], suite["pins"]))
        for name, task in tasks.items():
            text = shown(cells_of(suite, upstream, name), task["metric"])
            row.append(bold.format(text) if upstream in best[name] else text)
        rows.append(row)
    guesses = [task["chance"] for task in tasks.values()]
    if rows and any(g is not None for g in guesses):
        given = zip(guesses, tasks.values(), strict=True)
        rows.append(["chance", "", *([""] if scores else [])]
                    + ["" if g is None else number(g, t["metric"]) for g, t in given])  # fmt: skip
    return head, rows


def _score_shown(found: Mapping[str, Any], pins: Mapping[str, Any]) -> str:
    if found["score"] is None:
        return "—"
    return f"{found['score']:.0f} ({len(found['tasks'])} of {len(pins['tasks'])} tasks)"


def markdown(suite: Mapping[str, Any]) -> str:
    """The table, and a line for each task without a corpus and each cell that failed."""
    head, rows = rows_of(suite, "**{}**")
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    if "pins" in suite:
        pins = suite["pins"]
        lines.append(f"\nScore by the pins {pins['name']}: {pins['about']}; 0 and 1000")
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
        f'<p class="note">Frozen upstreams, one head per task; {spread}. Learning rates are chosen '
        "on validation data, where several were tried. Bold: the best of a column. Costs are those "
        "of each cell: the first one that reads a corpus also computes the features that others "
        "of its upstream find ready.</p>"
    )
    if "pins" in suite:
        pins = suite["pins"]
        note += (
            f'<p class="note">Score: 0 is the first and 1000 the second of the pins '
            f"{escape(pins['name'])} ({escape(pins['about'])}); comparable only over the same "
            "tasks by the same pins.</p>"
        )
    body = section("Table", table(head, rows, raw=True) + note)
    body += _upstreams(suite)
    links = ""
    for place, (name, task) in enumerate(suite["tasks"].items()):
        if any(c["task"] == name for c in suite["cells"]):
            body += f'<div id="task{place}">{_task(suite, name, task)}</div>'
            links += f'<a href="#task{place}">{escape(name)}</a>'
    body += _troubles(suite)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Suite · speechssl</title><style>{STYLE.replace('SERIES', SERIES)}</style></head>"
        f'<body><h1>Suite of tasks</h1><p class="sub">{escape(suite["made"])}</p>'
        f"<nav>{links}</nav>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _upstreams(suite: Mapping[str, Any]) -> str:
    """What each row's name stands for."""
    given = zip(suite["upstreams"], suite["options"].get("upstreams", []))
    rows = [[name, text.removeprefix(f"{name}=")] for name, text in given]
    return section("Upstreams", table(("upstream", "given as"), rows)) if rows else ""


def _task(suite: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> str:
    metric = task["metric"]
    also = list(task.get("also", []))
    folds = any(c.get("fold_scores") for c in suite["cells"] if c["task"] == name)
    head = ["upstream", "seed", _name(metric), "95 % interval", *(["each fold"] * folds),
            *map(_name, also), "head", "updates", "learning rate", "trained parameters", "scored",
            "wall s", "CPU s", "energy"]  # fmt: skip
    rows, sweeps = [], []
    for upstream in suite["upstreams"]:
        for cell in cells_of(suite, upstream, name):
            rows.append([upstream, str(cell["seed"]), *_cell(cell, metric, also, folds)])
            for fold, scores in enumerate(cell["sweeps"], 1):
                where = f"{upstream}, seed {cell['seed']}, fold {fold}"
                sweeps.append([where, *(_score(s) for s in scores.values())])
    machines = {c["machine"] for c in suite["cells"] if c["task"] == name and "machine" in c}
    costs = f'<p class="note">Costs on {escape("; ".join(sorted(machines)))}.</p>' * bool(machines)
    text = (
        f"<p>{escape(task['about'])}</p>"
        f'<p class="note">Protocol: {escape(task["protocol"])}</p>{table(head, rows)}'
        f"{costs}"
    )
    if sweeps:
        cells = [c for c in suite["cells"] if c["task"] == name and c["sweeps"]]
        rates = list(cells[0]["sweeps"][0])
        kept = [row for row in sweeps if len(row) == len(rates) + 1]
        measured, what = metric, "layer"
        if not task.get("query"):
            chosen_by = task.get("finetune", {}).get("train", {}).get("best_metric")
            measured, what = chosen_by or "its figure", "learning rate"
        heading = f"<h3>Validation: {escape(str(measured))} of each {what}</h3>"
        text += heading + table(["run", *rates], kept)
    return section(name, text + f'<div class="grid">{_weights(suite, name)}</div>')


def _name(metric: str) -> str:
    return f"{NAMES[metric]} %" if metric in NAMES else metric


def _cell(
    cell: Mapping[str, Any], metric: str, also: Sequence[str] = (), folds: bool = False
) -> list[str]:
    interval = cell["ci95"]
    cost = cell["cost"]
    # What a killed run cost is not known.
    least = "at least " if cell.get("kills") else ""
    energy = "—"
    if "energy_kwh" in cost:
        energy = f"{least}{1000 * cost['energy_kwh']:.3g} Wh ({cost['energy_how']})"
    further = cell.get("also", {})
    each = ", ".join(_shown(x, metric) for x in cell.get("fold_scores", [])) or "—"
    return [
        number(cell["score"], metric),
        " to ".join(number(x, metric) for x in interval) if interval else "—",
        *([each] if folds else []),
        *(_shown(further.get(name), name) for name in also),
        cell["head"],
        str(cell["steps"]),
        ", ".join(f"{rate:g}" for rate in cell["learning_rates"]) or "—",
        f"{cell['trained_parameters']:,}",
        f"{cell['scored']} in {cell['folds']} fold{'s' * (cell['folds'] > 1)}",
        f"{least}{cost['wall_s']:.0f}",
        f"{least}{cost['cpu_s']:.0f}",
        energy,
    ]


def _shown(value: float | None, metric: str) -> str:
    return "—" if value is None else number(value, metric)


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
    return section("Not in the table", table(("what", "state", "why"), rows)) if rows else ""
