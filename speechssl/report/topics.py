"""The section about topics of utterances, and the chart of what they tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from speechssl.report.charts import WIDTH, bars, ticks
from speechssl.report.read import Experiment
from speechssl.report.sections import details, section, table

_LEFT, _RIGHT, _ROW, _FOOT = 92, 118, 30, 34
# For the chart as a file of its own; in a page the page's colours are taken.
_STYLE = (
    "<style>text{font:11.5px system-ui,sans-serif;fill:#66707a}.grid{stroke:#dfe2e5}"
    ".c0{fill:#2563a8}.chance{stroke:#d0561c;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#98a2ac}.grid{stroke:#2d3338}"
    ".c0{fill:#6ea8ea}.chance{stroke:#f0925c}}</style>"
)


def topics(experiments: Sequence[Experiment]) -> str:
    """Associations, coherence and use of every set of topics; empty where there is none."""
    body = ""
    for one in experiments:
        for file, values in one.tables.items():
            name = f"{one.name}/{file}"
            if isinstance(values.get("associations"), Mapping):
                body += _shown(name, values)
            if isinstance(values.get("documents_of_topic"), list):
                body += _fitted(name, values)
    return section("Topics", body) if body else ""


def _shown(name: str, values: Mapping[str, Any]) -> str:
    rows = _sorted(values["associations"])
    head = ("field", "NMI", "by chance", "z", "p", "explained", "values", "utterances")
    cells = [
        [
            field,
            _number(row.get("nmi")),
            f"{_number(row.get('baseline'))} ± {_number(row.get('baseline_deviation'))}",
            _number(row.get("z"), 1),
            _number(row.get("p")),
            _number(row.get("explained"), 3),
            str(row.get("values")),
            str(row.get("utterances")),
        ]
        for field, row in rows
    ]
    within = f", shuffled within {values['within']}" if values.get("within") else ""
    title = f"What topics tell: {name}"
    note = (
        "Bars: normalised mutual information of topic and field. Upright lines: mean of "
        f"{values.get('permutations')} random assignments{within}, with two deviations."
    )
    chart = (
        f'<figure class="wide"><figcaption>{escape(title)}</figcaption>'
        f'{association_svg(dict(rows))}<p class="note">{escape(note)}</p></figure>'
    )
    columns = ("topic", "documents", *(field for field, _ in rows))
    listed = [
        [str(t), str(topic["documents"]), *(_values(topic["fields"].get(f)) for f, _ in rows)]
        for t, topic in enumerate(values.get("topics") or ())
    ]
    return (
        f'<div class="grid">{chart}</div>{table(head, cells)}'
        + details(f"{name}: the values that each topic has more of", table(columns, listed))
    )  # fmt: skip


def _fitted(name: str, values: Mapping[str, Any]) -> str:
    counts = sorted(values["documents_of_topic"], reverse=True)
    total = sum(counts) or 1
    note = (
        f"{len(counts)} topics, {len(values.get('empty_topics') or ())} empty; coherence (NPMI) "
        f"{_number(values.get('coherence'), 3)}, of all top words "
        f"{_number(values.get('coherence_baseline'), 3)}; entropy of a document's topics "
        f"{_number(values.get('posterior_entropy'), 2)} nats, at most "
        f"{_number(values.get('largest_entropy'), 2)}."
    )
    groups = [(str(i + 1), [100 * c / total]) for i, c in enumerate(counts)]
    chart = bars(
        f"Documents of the topics: {name}", groups, ["share"], unit=" %",
        x_label="topic by rank; % of documents", note=note, show_values=False,
    )  # fmt: skip
    return f'<div class="grid">{chart}</div>'


def association_svg(rows: Mapping[str, Mapping[str, Any]], *, standalone: bool = False) -> str:
    """Bars of NMI by field, the strongest first, each with its baseline and two deviations.

    standalone: with colours of its own, to be written as a file.
    """
    shown = _sorted(rows)
    height = _ROW * len(shown) + _FOOT
    reach = [row["nmi"] for _, row in shown]
    reach += [row["baseline"] + 2 * row["baseline_deviation"] for _, row in shown]
    high = max([v for v in reach if v is not None and math.isfinite(v)], default=0.0) or 1.0

    def x(value: float) -> float:
        return _LEFT + max(value, 0.0) / high * (WIDTH - _LEFT - _RIGHT)

    body = "".join(
        f'<line class="grid" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="0" y2="{height - _FOOT}"/>'
        f'<text x="{x(v):.1f}" y="{height - _FOOT + 14}" text-anchor="middle">{v:.4g}</text>'
        for v in ticks(0.0, high)
    )
    for place, (field, row) in enumerate(shown):
        top = _ROW * place + 6
        if row.get("nmi") is None:
            continue
        low, up = (row["baseline"] + k * row["baseline_deviation"] for k in (-2, 2))
        told = f"{_number(row['nmi'], 3)}, z {_number(row.get('z'), 1)}"
        about = f"{field}: NMI {row['nmi']:.4f}, by chance {row['baseline']:.4f}"
        mean, middle = x(row["baseline"]), top + 9
        body += (
            f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(field)}</text>'
            f'<rect class="c0" x="{_LEFT}" y="{top}" width="{max(x(row["nmi"]) - _LEFT, 0.7):.1f}" '
            f'height="18"><title>{escape(about)}</title></rect>'
            f'<line class="chance s1" x1="{mean:.1f}" x2="{mean:.1f}" y1="{top - 3}" '
            f'y2="{top + 21}"/>'
            f'<line class="chance s1" x1="{x(low):.1f}" x2="{x(up):.1f}" y1="{middle}" '
            f'y2="{middle}"/>'
            f'<text x="{max(x(row["nmi"]), x(up)) + 6:.1f}" y="{top + 13}">{told}</text>'
        )
    body += (
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{height - 4}" text-anchor="middle">'
        "normalised mutual information with the topic</text>"
    )
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    return (
        f'<svg{space} viewBox="0 0 {WIDTH} {height}" role="img" aria-label="What topics tell">'
        f"{_STYLE if standalone else ''}{body}</svg>"
    )


def _sorted(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(rows.items(), key=lambda item: -(item[1].get("excess") or 0.0))


def _values(found: Sequence[Mapping[str, Any]] | None) -> str:
    return ", ".join(f"{v['value']} {v['count']}" for v in found or ()) or "—"


def _number(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "—"
