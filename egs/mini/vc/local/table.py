"""Print the recipe's table, mean and deviation over seeds; write EXP/table.md and EXP/table.json.

python local/table.py --exp exp --upstreams "logmel hubert"

Rows: what was not converted, copies through each vocoder, and each upstream. Below it, which
upstreams meet what is asked of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = {
    "MCD dB": ("mcd", 1, 2),
    "with c0": ("mcd_c0", 1, 2),
    "F0 RMSE Hz": ("f0_rmse_hz", 1, 1),
    "F0 corr.": ("f0_correlation", 1, 2),
    "voicing err. %": ("voicing_error", 100, 1),
    "gross pitch err. %": ("gross_pitch_error", 100, 1),
    "duration s": ("duration_difference_s", 1, 2),
    "closer to target %": ("speaker.closer_to_target", 100, 0),
    "accepted %": ("speaker.accept_rate", 100, 0),
    "WER %": ("asr.wer", 100, 1),
    "CER %": ("asr.cer", 100, 1),
    "RTF": ("conversion.timing.rtf", 1, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, default=Path("exp"))
    parser.add_argument("--upstreams", required=True)
    options = parser.parse_args()
    rows = dict(found(options.exp, options.upstreams.split()))
    if not rows:
        raise SystemExit(f"table: found no results.json below {options.exp}, want stage 10's")
    names = [c for c in COLUMNS if any(v[c] is not None for seeds in rows.values() for v in seeds)]
    lines = ["| " + " | ".join(["", *names]) + " |", "|" + "---|" * (len(names) + 1)]
    for name, seeds in rows.items():
        cells = [cell([seed[c] for seed in seeds], COLUMNS[c][2]) for c in names]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    lines += ["", *verdicts(rows)]
    text = "\n".join(lines) + "\n"
    (options.exp / "table.md").write_text(text)
    (options.exp / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(text, end="")


def found(exp: Path, upstreams: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name of a row -> its figures, one for each seed."""
    results = {}
    for name in upstreams:
        paths = sorted(exp.glob(f"seed*/{name}/converted/results.json"))
        results[name] = [json.loads(path.read_text()) for path in paths]
    known = next((r for seeds in results.values() for r in seeds), None)
    if known is not None:
        # The same for every upstream: the sources themselves against the references.
        asr = known.get("asr") or {}
        heard = {k.removeprefix("source_"): v for k, v in asr.items() if k.startswith("source_")}
        yield "sources, not converted", [figures(known["source"] | {"asr": heard})]
    for path in sorted(exp.glob("copy_*/results.json")):
        name = path.parent.name.removeprefix("copy_")
        yield f"target through {name}", [figures(json.loads(path.read_text()))]
    for name, seeds in results.items():
        if seeds:
            yield name, [figures(one) for one in seeds]


def figures(results: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for column, (place, factor, _) in COLUMNS.items():
        value: Any = results
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        values[column] = None if value is None else factor * value
    return values


def cell(values: list[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"


def verdicts(rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Who meets, with every seed, what the recipe asks for."""
    source = rows.get("sources, not converted", [{}])[0]
    wanted = {
        "MCD below 0.8 of the sources'": ("MCD dB", source.get("MCD dB"), 0.8),
        "WER at most 1.5 times the sources'": ("WER %", source.get("WER %"), 1.5),
    }
    upstreams = {k: v for k, v in rows.items() if not k.startswith(("sources", "target through"))}
    for title, (column, base, factor) in wanted.items():
        # Sources that are their own references are at distance 0.
        if base is not None and (base or column != "MCD dB"):
            good = [
                name
                for name, seeds in upstreams.items()
                if all(s[column] is not None and s[column] <= factor * base for s in seeds)
            ]
            yield f"{title}: {', '.join(good) or 'none'}."
    near = [
        name
        for name, seeds in upstreams.items()
        if all((s["closer to target %"] or 0) >= 90 for s in seeds)
    ]
    if any(s["closer to target %"] is not None for seeds in upstreams.values() for s in seeds):
        yield f"At least 90 % closer to target than to source: {', '.join(near) or 'none'}."


if __name__ == "__main__":
    main()
