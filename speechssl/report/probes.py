"""The section about probes: curves over layers, and what a layer knows of phones and speakers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechssl.report.charts import Series, lines
from speechssl.report.read import Experiment
from speechssl.report.sections import missing, section, table

CURVES = (
    ("phone_accuracy", "Accuracy of a linear classifier of phones",
     "On speakers that it was not trained on."),
    ("speaker_accuracy", "Accuracy of a linear classifier of speakers",
     "On utterances that it was not trained on."),
    ("abx_within", "ABX error of phones within a speaker", "Chance: 0.5; lower is better."),
    ("abx_across", "ABX error of phones across speakers", "Chance: 0.5; lower is better."),
    ("pnmi", "PNMI by layer, of the probe", "Of a quick k-means on the same frames."),
    ("rankme", "RankMe", "Effective number of dimensions; not comparable across widths."),
    ("effective_rank", "Effective rank of the covariance", "Low: dimensions have collapsed."),
    ("cka_mel", "Linear CKA with log-mel", "How near a layer still is to the spectrum."),
    ("cca_mel", "CCA with log-mel", "Projection-weighted, on utterances left out of it."),
    ("cca_first", "CCA with the first layer", "How much of its input a layer still holds."),
    ("cca_phone", "CCA with the identity of phones", "Of means over each phone."),
    ("cca_word", "CCA with the identity of words", "Of means over each word, the commonest ones."),
)  # fmt: skip
ABX = ("abx_within", "abx_across")
OPTIONAL = (*ABX, "cca_mel", "cca_first", "cca_phone", "cca_word")
"""Measured only if asked for, or where cuts have what it takes."""
COLUMNS = (
    "layers", "RankMe", "PNMI", "phones", "their chance", "speakers", "their chance",
    "ABX within", "ABX across", "frames", "utterances",
)  # fmt: skip


def probes(experiments: Sequence[Experiment]) -> str:
    """One row and one colour per probe.json; a baseline without layers is a dot."""
    found = list(_probes(experiments))
    if not found:
        return section("Probes", missing("no probe.json: nothing was probed"))
    body = table(("probe", *COLUMNS), [[name, *_row(values)] for name, values in found])
    measured = {name for _, values in found for row in values["layers"] for name in row}
    shown = [curve for curve in CURVES if curve[0] in measured or curve[0] not in OPTIONAL]
    figures = "".join(_curve(found, *curve) for curve in shown) + _trade_off(found)
    return section("Probes", f'{body}<div class="grid">{figures}</div>')


def _probes(experiments: Sequence[Experiment]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for one in experiments:
        for file, values in one.tables.items():
            if values.get("kind") == "probe" and isinstance(values.get("layers"), list):
                yield f"{one.name}/{file}".removesuffix("/probe.json"), values


def _row(values: Mapping[str, Any]) -> list[str]:
    """The best of each measure, with its layer; of the classifiers, by their dev part."""
    layers = {row["layer"]: row for row in values["layers"]}
    best, chance = values.get("best") or {}, values.get("chance") or {}
    data = values.get("data") or {}

    def at(layer: int | None, measure: str) -> str:
        value = None if layer is None else layers[layer].get(measure)
        return "—" if value is None else f"{value:.3f} (layer {layer})"

    def plain(value: float | None) -> str:
        return "—" if value is None else f"{value:.3f}"

    phone, speaker = best.get("phone_dev_accuracy"), best.get("speaker_dev_accuracy")
    return [
        str(len(layers)),
        at(phone, "rankme"),
        at(best.get("pnmi"), "pnmi"),
        at(phone, "phone_accuracy"),
        plain(chance.get("phone")),
        at(speaker, "speaker_accuracy"),
        plain(chance.get("speaker")),
        *(at(best.get(measure), measure) for measure in ABX),
        str(data.get("frames", "—")),
        str(data.get("utterances", "—")),
    ]


def _curve(
    found: Sequence[tuple[str, Mapping[str, Any]]], measure: str, title: str, note: str
) -> str:
    series = []
    for color, (name, values) in enumerate(found):
        rows = [row for row in values["layers"] if row.get(measure) is not None]
        xs, ys = [float(r["layer"]) for r in rows], [float(r[measure]) for r in rows]
        series.append(Series(name, xs, ys, color=color))
    return lines(title, series, x_label="layer", note=note)


def _trade_off(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Speakers to the right, phones upwards: a line through each upstream's layers, and a dot for
    the best one for phones."""
    series = []
    for color, (name, values) in enumerate(found):
        layer = (values.get("best") or {}).get("phone_dev_accuracy")
        both = {
            row["layer"]: (float(row["speaker_accuracy"]), float(row["phone_accuracy"]))
            for row in values["layers"]
            if None not in (row.get("speaker_accuracy"), row.get("phone_accuracy"))
        }
        if len(both) > 1:
            xs, ys = zip(*both.values(), strict=True)
            label = f"{name}, layers {min(both)} to {max(both)}"
            series.append(Series(label, xs, ys, color=color))
        if layer in both:
            x, y = both[layer]
            series.append(Series(f"{name}, layer {layer}", [x], [y], color=color))
    return lines(
        "Phones against speakers", series, x_label="accuracy of the classifier of speakers",
        note="Upwards the classifier of phones; dots: the layer that is best for it.",
    )  # fmt: skip
