"""The sections about pseudo-labels and about recognition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from speechssl.report.charts import Series, bars, lines
from speechssl.report.read import Decoding, Experiment
from speechssl.report.sections import details, missing, picture, section, table

MEASURES = (
    "pnmi", "phone_purity", "cluster_purity", "classes", "perplexity", "empty", "mean_run_length",
    "phones", "frames", "aligned_frames", "cuts_without_labels", "cuts_without_alignment",
)  # fmt: skip
MAX_PICTURE_BYTES = 4_000_000


def clusters(experiments: Sequence[Experiment]) -> str:
    """Measures of each label set, use of the clusters, inertia of the fit, PNMI by layer."""
    rows: list[list[str]] = []
    layered: list[tuple[str, list[tuple[int, float]]]] = []
    figures = ""
    for one in experiments:
        for file, values in one.tables.items():
            name = f"{one.name}/{file}"
            if values.get("kind") == "probe":
                continue  # it has a section of its own
            layers = by_layer(values)
            if layers:
                layered.append((name, layers))
            if isinstance(values.get("pnmi"), int | float):
                rows.append([name, *(_figure(values.get(m)) for m in MEASURES)])
                figures += _picture(one, values, name)
            if isinstance(values.get("counts"), list):
                figures += usage(values["counts"], name)
            if isinstance(values.get("inertia"), list) and len(values["inertia"]) > 1:
                steps = [float(i) for i in range(len(values["inertia"]))]
                series = [Series("inertia per frame", steps, values["inertia"])]
                figures += lines(f"Inertia of the fit: {name}", series, x_label="pass")
    if not rows and not layered and not figures:
        return section(
            "Pseudo-labels",
            missing("no clusters.json, quality.json or layers table in these folders"),
        )
    body = ""
    if rows:
        # Columns that no label set has a value in are left out.
        head = ["labels", *(m.replace("_", " ").replace("pnmi", "PNMI") for m in MEASURES)]
        kept = [i for i in range(len(head)) if any(row[i] not in ("—", "0") for row in rows)]
        body += table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return section("Pseudo-labels", body + f'<div class="grid">{_layers(layered)}{figures}</div>')


def by_layer(values: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(layer, PNMI) of a table: {"layers": [{"layer": 3, "pnmi": 0.4}, ...]} or {"3": {...}}."""
    layers = values.get("layers")
    if isinstance(layers, Mapping):
        layers = [{"layer": k, **v} for k, v in layers.items() if isinstance(v, Mapping)]
    if not isinstance(layers, list):
        return []
    return sorted(
        (int(row["layer"]), float(row["pnmi"]))
        for row in layers
        if isinstance(row, Mapping) and isinstance(row.get("pnmi"), int | float)
    )


def _layers(layered: Sequence[tuple[str, list[tuple[int, float]]]]) -> str:
    if not layered:
        return ""
    numbers = sorted({layer for _, pairs in layered for layer, _ in pairs})
    lookup = [dict(pairs) for _, pairs in layered]
    groups = [(str(n), [pairs.get(n) for pairs in lookup]) for n in numbers]
    return bars(
        "PNMI by layer", groups, [name for name, _ in layered], x_label="layer",
        note="Share of the phones' information that clusters of each layer's frames hold.",
    )  # fmt: skip


def usage(counts: Sequence[float], name: str) -> str:
    """Share of frames of each cluster, the most used first."""
    total = sum(counts) or 1
    shares = sorted((100 * c / total for c in counts), reverse=True)
    groups = [(str(i + 1), [share]) for i, share in enumerate(shares)]
    empty = sum(1 for c in counts if not c)
    note = (
        f"{len(counts)} clusters, {empty} empty; even use would be {100 / len(counts):.2f} % each."
    )
    return bars(
        f"Use of the clusters: {name}", groups, ["share"], unit=" %",
        x_label="cluster by rank; % of frames", note=note, show_values=False,
    )  # fmt: skip


def _picture(one: Experiment, values: Mapping[str, Any], name: str) -> str:
    place = values.get("picture")
    if not isinstance(place, str):
        return ""
    # The picture lies beside its JSON file, wherever the folder has been moved to.
    beside = (one.path / name.removeprefix(f"{one.name}/")).with_name(Path(place).name)
    for path in (beside, Path(place)):
        if path.is_file() and path.stat().st_size < MAX_PICTURE_BYTES:
            return picture(path.read_bytes(), f"Phones and clusters: {name}")
    return ""


def _figure(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def recognition(experiments: Sequence[Experiment]) -> str:
    """Error rates of every decoding, by length, and the worst utterances word by word."""
    decodings = [(f"{e.name}/{d.name}", d) for e in experiments for d in e.decodings]
    found = [(name, d) for name, d in decodings if "wer" in d.results]
    if not found:
        return section("Recognition", missing("no results.json or hyp.jsonl: nothing was decoded"))
    rows = [[name, _how(d), *_rates(d.results)] for name, d in found]
    head = ("decoding", "search", "WER", "95 % interval", "CER", "S", "D", "I", "words",
            "utterances", "of them wrong")  # fmt: skip
    body = table(head, rows) + f'<div class="grid">{_by_length(found)}</div>'
    for name, decoding in found:
        worst = decoding.results.get("worst") or []
        if worst:
            body += details(
                f"{name}: the {len(worst)} worst utterances",
                "".join(alignment(u) for u in worst),
                shown=len(found) == 1,
            )
        confused = _confusions(decoding)
        if confused:
            body += details(f"{name}: most frequent errors", confused)
    return section("Recognition", body)


def _how(decoding: Decoding) -> str:
    """Method, weights and real-time factor, as far as decode.json tells them."""
    how = decoding.how
    parts = [str(how["method"])] if how.get("method") else []
    if how.get("lm"):
        parts.append(f"LM weight {_figure(how.get('lm_weight'))}")
    rtf = (how.get("timing") or {}).get("rtf")
    if isinstance(rtf, float):
        parts.append(f"RTF {rtf:.3f}")
    return ", ".join(parts) or "—"


def _rates(results: Mapping[str, Any]) -> list[str]:
    low, high = results.get("wer_ci95") or (None, None)
    counts = ("substitutions", "deletions", "insertions", "words", "utterances",
              "utterances_with_errors")  # fmt: skip
    return [
        f"{100 * results['wer']:.2f} %",
        "—" if low is None else f"{100 * low:.2f} to {100 * high:.2f}",
        f"{100 * results['cer']:.2f} %" if results.get("cer") is not None else "—",
        *(_figure(results.get(k)) for k in counts),
    ]


def _by_length(found: Sequence[tuple[str, Decoding]]) -> str:
    tables = [d.results.get("by_duration_s") or {} for _, d in found]
    names = list(dict.fromkeys(k for t in tables for k in t))
    names.sort(key=lambda n: float(n.split("-")[0].rstrip("+") or 0))
    groups = [(n, [_percent(t.get(n)) for t in tables]) for n in names]
    if not groups:
        return ""
    return bars(
        "Word error rate by length", groups, [n for n, _ in found], unit=" %",
        x_label="seconds of the utterance; WER in %",
    )  # fmt: skip


def _percent(part: Any) -> float | None:
    rate = part.get("wer") if isinstance(part, Mapping) else None
    return None if rate is None else 100 * rate


def alignment(utterance: Mapping[str, Any]) -> str:
    """Reference over hypothesis, word by word; errors coloured and marked."""
    cells = []
    for ref, hyp in utterance.get("pairs") or []:
        mark = "ins" if ref is None else "del" if hyp is None else "sub" if ref != hyp else "ok"
        cells.append(
            f'<span class="w {mark}"><b>{escape(ref or "·")}</b><i>{escape(hyp or "·")}</i></span>'
        )
    body = "".join(cells) or (
        f"<p>{escape(str(utterance.get('ref', '')))}<br>{escape(str(utterance.get('hyp', '')))}</p>"
    )
    head = (
        f"{utterance.get('id')}: {utterance.get('errors')} errors in {utterance.get('words')} words"
    )
    return f'<div class="utt"><h4>{escape(head)}</h4>{body}</div>'


def _confusions(decoding: Decoding) -> str:
    confused = decoding.results.get("confusions") or {}
    parts = []
    for kind, shown in (("substitutions", "{} → {}"), ("deletions", "{}"), ("insertions", "{}")):
        rows = [[shown.format(*row[:-1]), str(row[-1])] for row in (confused.get(kind) or [])[:12]]
        if rows:
            parts.append(f"<div><h4>{kind}</h4>{table(('words', 'times'), rows)}</div>")
    return f'<div class="grid three">{"".join(parts)}</div>' if parts else ""
