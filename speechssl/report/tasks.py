"""The section about tasks beside recognition: classification, verification, and further ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from speechssl.report.charts import Series, lines
from speechssl.report.read import Decoding, Experiment
from speechssl.report.sections import details, missing, section, table
from speechssl.score.verification import probit

MOST_CLASSES = 40
"""Confusions of more classes than this are not shown as a table."""
FURTHER = {  # what results.json calls a figure -> how it is shown, and its unit
    "der": ("DER", "%"),
    "jer": ("JER", "%"),
    "exact_match": ("all slots right", "%"),
    "slot_f1": ("slot F1", "%"),
    "slot_value_cer": ("slot value CER", "%"),
    "ccc": ("CCC", ""),
    "si_sdr_db": ("SI-SDR", "dB"),
    "si_sdr_improvement_db": ("SI-SDR improvement", "dB"),
    "pesq": ("PESQ", ""),
    "stoi": ("STOI", ""),
    "map": ("mAP", "%"),
    "mtwv": ("MTWV", ""),
    "auc": ("AUC", "%"),
}
"""Figures of tasks that need no more than a row."""


def tasks(experiments: Sequence[Experiment]) -> str:
    """Figures of each task, confusions, and DET curves."""
    found = [(f"{e.name}/{d.name}", d) for e in experiments for d in e.decodings]
    classified = [(name, d) for name, d in found if "uar" in d.results]
    verified = [(name, d) for name, d in found if "eer" in d.results]
    others = [(name, d) for name, d in found if FURTHER.keys() & d.results.keys()]
    if not classified and not verified and not others:
        return section("Utterances", missing("no classification or verification was scored"))
    body = ""
    if classified:
        head = ("decoding", "field", "accuracy", "95 % interval", "UAR", "95 % interval",
                "macro F1", "commonest class", "utterances")  # fmt: skip
        body += table(head, [_classified(name, d) for name, d in classified])
        for name, decoding in classified:
            shown = confusions(decoding.results)
            if shown:
                body += details(f"{name}: confusions", shown, shown=len(classified) == 1)
    if verified:
        head = ("decoding", "scores", "EER", "95 % interval", "minDCF", "targets", "non-targets")
        body += table(head, [row for name, d in verified for row in _verified(name, d.results)])
        body += f'<div class="grid">{_det(verified)}</div>'
    if others:
        body += table(("decoding", "figures", "of"), [_further(name, d) for name, d in others])
    return section("Utterances", body)


def _further(name: str, decoding: Decoding) -> list[str]:
    results, figures = decoding.results, []
    for key, (shown, unit) in FURTHER.items():
        value = results.get(key)
        if isinstance(value, int | float):
            text = _percent(value) if unit == "%" else f"{value:.3f} {unit}".rstrip()
            figures.append(f"{shown} {text}")
    counts = [f"{results[k]} {k}" for k in ("utterances", "recordings") if k in results]
    return [name, ", ".join(figures), ", ".join(counts) or "—"]


def _classified(name: str, decoding: Decoding) -> list[str]:
    results = decoding.results
    cells = [name, str(decoding.how.get("field") or "—")]
    for key in ("accuracy", "uar"):
        cells += [_percent(results.get(key)), _interval(results.get(f"{key}_ci95"))]
    cells += [_percent(results.get(k)) for k in ("macro_f1", "majority_accuracy")]
    return [*cells, str(results.get("utterances", "—"))]


def _verified(name: str, results: Mapping[str, Any]) -> list[list[str]]:
    plain = results.get("cosine")
    kinds = [("cosine", results)]
    if plain is not None:
        kinds = [(str(results.get("scores", "AS-norm")), results), ("cosine", plain)]
    return [
        [
            name,
            kind,
            _percent(found.get("eer")),
            _interval(found.get("eer_ci95")),
            ", ".join(f"{v:.3f} at {p}" for p, v in (found.get("min_dcf") or {}).items()) or "—",
            str(found.get("targets", "—")),
            str(found.get("nontargets", "—")),
        ]
        for kind, found in kinds
    ]


def confusions(results: Mapping[str, Any]) -> str:
    """References in rows, answers in columns; a darker cell is a larger share of its row."""
    names, counts = results.get("classes") or [], results.get("confusion") or []
    if not names or len(names) > MOST_CLASSES or len(names) != len(counts):
        return ""
    top = "".join(f"<th>{escape(str(n))}</th>" for n in names)
    body = ""
    for name, row in zip(names, counts, strict=True):
        total = max(sum(row), 1)
        cells = "".join(
            f'<td style="background:color-mix(in srgb,var(--c0) {60 * n / total:.0f}%,'
            f'transparent)">{n or ""}</td>'
            for n in row
        )
        recall = (results.get("per_class") or {}).get(name, {}).get("recall")
        body += f"<tr><th>{escape(str(name))}</th>{cells}<td>{_percent(recall)}</td></tr>"
    return (
        '<div class="scroll"><table><tr><th>reference, then answers</th>'
        f"{top}<th>recall</th></tr>{body}</table></div>"
    )


def _det(verified: Sequence[tuple[str, Decoding]]) -> str:
    series = []
    for number, (name, decoding) in enumerate(verified):
        points = decoding.results.get("det") or {}
        alarm, miss = points.get("false_alarm") or [], points.get("miss") or []
        series.append(Series(name, [probit(x) for x in alarm], [probit(y) for y in miss], number))
    return lines(
        "DET curve", series, x_label="false alarms, normal deviate",
        note="Misses upwards; 0 is 50 %, -1 is 15.9 %, -2 is 2.3 %, -3 is 0.1 %.",
    )  # fmt: skip


def _percent(value: Any) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else "—"


def _interval(value: Any) -> str:
    return f"{100 * value[0]:.1f} to {100 * value[1]:.1f}" if value else "—"
