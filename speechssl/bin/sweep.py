"""Learning rates for `speechssl finetune --rates`: one run each, the best on validation data.

Source: Yang et al. 2021 (SUPERB), section 4: the learning rate is the one setting searched per
encoder and task. Differs: the search is part of the run, and its scores are kept (sweep.json).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechssl.bin.finetune import FinetuneConfig
    from speechssl.train.trainer import FitResult


def sweep(config: FinetuneConfig) -> FitResult:
    """Train with each of `config.rates` in OUTPUT/sweep, export the best to OUTPUT.

    A rate that was tried is not tried again; a run in which training broke down (its loss became
    infinite, say) has no score. Raises `ValueError` if all did.
    """
    from speechssl import dist
    from speechssl.bin.finetune import train
    from speechssl.train.folder import open_folder
    from speechssl.train.log import say

    open_folder(config.output, config, force=config.force)
    path = Path(config.output) / "sweep.json"
    before = json.loads(path.read_text())["rates"] if path.is_file() else []
    tried = {row["learning_rate"]: row for row in before}
    rows: list[dict[str, Any]] = []
    for rate in config.rates:
        own = _of_rate(config, rate)
        row = tried.get(rate)
        if row is not None:
            open_folder(own.output, own, force=config.force)  # refuses other data or options
        if row is None or row["steps"] < config.train.steps:
            say(f"learning rate {rate:g}")
            start = time.perf_counter()
            row = {"learning_rate": rate, "score": None, "step": None, "steps": config.train.steps}
            try:
                result = train(own, export_to=None)
            except ValueError as error:
                if not str(error).startswith("training: "):
                    raise
                row["failed"] = str(error)
            else:
                if not result.finished:
                    return result
                if result.best is None:
                    row["failed"] = f"validation: found no {config.train.best_metric} but NaN"
                else:
                    row |= {"score": result.best["value"], "step": int(result.best["step"])}
            row["seconds"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        # Rates whose turn comes later, or that are not asked for any more, stay known.
        done = {r["learning_rate"] for r in rows}
        others = [r for r in before if r["learning_rate"] not in done]
        if dist.is_main():
            _write(path, config, rows + others, None)
    chosen = best_of(rows, config.train.best_is)
    say(_shown(rows, chosen, config.train.best_metric))
    result = train(_of_rate(config, chosen), export_to=config.output)
    if dist.is_main():
        for name in ("architecture.json", "metrics.jsonl"):
            shutil.copyfile(_folder(config, chosen) / name, Path(config.output) / name)
        _write(path, config, rows + others, chosen)
    return result


def best_of(rows: list[dict[str, Any]], best_is: str) -> float:
    """The learning rate of the best score; of equal ones the smaller."""
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        raise ValueError(
            f"rates: found no learning rate among {[r['learning_rate'] for r in rows]} with which "
            f"training holds, want smaller ones; {rows[0]['failed']}"
        )
    sign = 1 if best_is == "lowest" else -1
    return min(scored, key=lambda r: (sign * r["score"], r["learning_rate"]))["learning_rate"]


def _folder(config: FinetuneConfig, rate: float) -> Path:
    return Path(config.output) / "sweep" / f"rate_{rate:g}"


def _of_rate(config: FinetuneConfig, rate: float) -> FinetuneConfig:
    return dataclasses.replace(
        config,
        output=str(_folder(config, rate)),
        train=dataclasses.replace(config.train, learning_rate=rate),
        rates=[],
    )


def _write(
    path: Path, config: FinetuneConfig, rows: list[dict[str, Any]], chosen: float | None
) -> None:
    values = {
        "metric": config.train.best_metric,
        "best_is": config.train.best_is,
        "chosen": chosen,
        "rates": rows,
    }
    temporary = path.with_name("sweep.json.tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)


def _shown(rows: list[dict[str, Any]], chosen: float, metric: str) -> str:
    lines = [
        f"learning rate {row['learning_rate']:8g}: "
        + ("broke down" if row["score"] is None else f"{metric} {row['score']:.4f}")
        + f" in {row['seconds']:.1f} s"
        + " <- best" * (row["learning_rate"] == chosen)
        for row in rows
    ]
    ends = [r["learning_rate"] for r in rows]
    if len(ends) > 2 and chosen in (min(ends), max(ends)):
        end = "largest" if chosen == max(ends) else "smallest"
        lines.append(f"the best learning rate is the {end} tried; beyond it may be better")
    return "\n".join(lines)
