"""Charts as inline SVG whose colours follow the page, with values under the pointer.

Written by hand rather than by a plotting library: a page stays small, themes with the reader's
system, and needs nothing installed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 36
MAX_POINTS = 500


@dataclasses.dataclass(frozen=True)
class Series:
    """A line. color: index of the page's palette; dashed tells validation from training."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    dashed: bool = False


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers that span [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis: 12k, 3.5M, 0.02, 1e-05."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = 1e3 if unit == "k" else limit
            return f"{value / divisor:.4g}{unit}"
    return "0" if size < 1e-300 else f"{value:.4g}"


def thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MAX_POINTS points: of each bucket the lowest and the highest, so spikes stay."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if len(points) > MAX_POINTS:
        size = math.ceil(len(points) / (MAX_POINTS // 2))
        kept = []
        for begin in range(0, len(points), size):
            bucket = points[begin : begin + size]
            ends = {min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}
            kept += sorted(ends)
        points = kept
    return [p[0] for p in points], [p[1] for p in points]


def lines(title: str, series: Sequence[Series], *, x_label: str = "step", note: str = "") -> str:
    """A chart of lines, as a <figure>; series without a finite point are left out."""
    kept = []
    for one in series:
        xs, ys = thin(one.xs, one.ys)
        if xs:
            kept.append(dataclasses.replace(one, xs=xs, ys=ys))
    if not kept:
        return _figure(title, '<p class="missing">no values</p>', note)
    x_range = _span([x for s in kept for x in s.xs], pad=0.0)
    y_range = _span(_without_outliers([y for s in kept for y in s.ys]), pad=0.05)
    body = _axes(x_range, y_range, x_label)
    for one in kept:
        body += _path(one, x_range, y_range)
    values = [
        {"n": s.name, "c": s.color, "x": list(s.xs), "y": [float(f"{y:.5g}") for y in s.ys]}
        for s in kept
    ]
    data = escape(json.dumps({"x": x_range, "label": x_label, "s": values}), quote=True)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="lines" data-chart="{data}" role="img" '
        f'aria-label="{escape(title)}">{body}<line class="cursor" y1="{TOP}" '
        f'y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/></svg>'
    )
    return _figure(title, svg + _legend(kept), note)


def bars(
    title: str,
    groups: Sequence[tuple[str, Sequence[float | None]]],
    names: Sequence[str],
    *,
    unit: str = "",
    x_label: str = "",
    note: str = "",
    show_values: bool = True,
) -> str:
    """Upright bars: groups of (label, one value per name); None leaves a gap."""
    found = [v for _, values in groups for v in values if v is not None and math.isfinite(v)]
    if not found:
        return _figure(title, '<p class="missing">no values</p>', note)
    high = max(*found, 0.0) * 1.12 or 1.0
    y_range = (min(*found, 0.0), high)
    body = _axes(None, y_range, x_label)
    slot = (WIDTH - LEFT - RIGHT) / len(groups)
    width = slot * (0.72 if len(groups) < 60 else 1.0) / max(1, len(names))
    every = math.ceil(len(groups) / 16)
    for i, (label, values) in enumerate(groups):
        begin = LEFT + slot * i + (slot - width * len(names)) / 2
        for j, value in enumerate(values):
            if value is not None and math.isfinite(value):
                number = show_values and width > 26
                body += _bar(begin + j * width, width, value, y_range, j, names[j], label, unit,
                             number=number)  # fmt: skip
        if i % every == 0:
            body += _label(LEFT + slot * (i + 0.5), HEIGHT - BOTTOM + 15, label)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )
    legend = _legend([Series(n, (), (), color=j) for j, n in enumerate(names)])
    return _figure(title, svg + (legend if len(names) > 1 else ""), note)


def _bar(
    x: float, width: float, value: float, y_range: tuple[float, float], color: int,
    name: str, label: str, unit: str, *, number: bool,
) -> str:  # fmt: skip
    top, zero = sorted((_y(value, y_range), _y(0.0, y_range)))
    text = f"{name}, {label}: {value:.4g}{unit}"
    out = (
        f'<rect class="c{color % 8}" x="{x:.1f}" y="{top:.1f}" width="{max(width - 1, 0.7):.1f}" '
        f'height="{max(zero - top, 0.5):.1f}"><title>{escape(text)}</title></rect>'
    )
    return out + (_label(x + width / 2, top - 4, short(round(value, 2))) if number else "")


def _label(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _span(values: Sequence[float], pad: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return (low - margin, high + margin) if pad else (low - 1, high + 1)
    return low - pad * (high - low), high + pad * (high - low)


def _without_outliers(values: Sequence[float]) -> list[float]:
    """Values that set the axis: a lone spike of many times the usual range does not flatten it."""
    ordered = sorted(values)
    if len(ordered) < 40:
        return ordered
    low, high = ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]
    reach = 3 * (high - low)
    kept = [v for v in ordered if low - reach <= v <= high + reach]
    return kept or ordered


def _x(value: float, span: tuple[float, float]) -> float:
    return LEFT + (value - span[0]) / (span[1] - span[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, span: tuple[float, float]) -> float:
    share = (value - span[0]) / (span[1] - span[0])
    # What lies off the axis is drawn at its edge.
    return HEIGHT - BOTTOM - min(1.0, max(0.0, share)) * (HEIGHT - TOP - BOTTOM)


def _axes(x_range: tuple[float, float] | None, y_range: tuple[float, float], x_label: str) -> str:
    out = []
    for value in ticks(*y_range):
        y = _y(value, y_range)
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        out.append(_label(LEFT - 6, y + 4, short(value), "end"))
    if x_range is not None:
        for value in ticks(*x_range):
            out.append(_label(_x(value, x_range), HEIGHT - BOTTOM + 15, short(value)))
    if x_label:
        out.append(_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label))
    return "".join(out)


def _path(one: Series, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    points = [(_x(x, x_range), _y(y, y_range)) for x, y in zip(one.xs, one.ys, strict=True)]
    kind = f"s{one.color % 8}" + (" dashed" if one.dashed else "")
    if len(points) == 1:
        return f'<circle class="{kind} dot" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3"/>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="{path}"/>'


def _legend(series: Sequence[Series]) -> str:
    items = ""
    for one in series:
        kind = f"s{one.color % 8}" + (" dashed" if one.dashed else "")
        key = f'<line class="{kind}" x1="0" x2="18" y1="4" y2="4"/>'
        items += f'<span><svg viewBox="0 0 18 8" class="key">{key}</svg>{escape(one.name)}</span>'
    return f'<div class="legend">{items}</div>'


def _figure(title: str, body: str, note: str) -> str:
    small = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{body}{small}</figure>"
