"""`speechssl score` of classifications."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def classification(folder: Path) -> dict[str, Any]:
    """Results of predictions.jsonl; raises `ValueError` that names the line which is wrong."""
    from speechssl.score.classification import Prediction, classification_results

    found = []
    for number, entry in entries(folder / "predictions.jsonl"):
        try:
            found.append(Prediction(entry["id"], entry["ref"], entry["hyp"], entry.get("speaker")))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}/predictions.jsonl:{number}: found no {error}, want an object with id, "
                "ref and hyp"
            ) from None
    how = folder / "decode.json"
    if not how.is_file():
        raise ValueError(f"decode: found no {how}, want the one that `speechssl decode` wrote")
    return classification_results(found, json.loads(how.read_text(encoding="utf-8"))["classes"])


def entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and object of each line; raises `ValueError` naming the one that is no object."""
    if not path.is_file():
        raise ValueError(f"decode: found no {path}, want what `speechssl decode --output` wrote")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: found {line.strip()[:80]!r} ({error}), want a JSON object"
                ) from None


def classification_table(results: dict[str, Any]) -> str:
    low, high = results["accuracy_ci95"]
    lines = [
        f"accuracy {100 * results['accuracy']:6.2f} %   95 % interval {100 * low:.2f} to "
        f"{100 * high:.2f}   always the commonest class {100 * results['majority_accuracy']:.2f} %",
        f"UAR      {100 * results['uar']:6.2f} %   95 % interval "
        f"{100 * results['uar_ci95'][0]:.2f} to {100 * results['uar_ci95'][1]:.2f}",
        f"macro F1 {100 * results['macro_f1']:6.2f} %   {results['utterances']} utterances",
    ]
    width = max(len(name) for name in results["classes"])
    for name, row in results["per_class"].items():
        recall = "-" if row["recall"] is None else f"{100 * row['recall']:.1f}"
        lines.append(f"{name:>{width}}  recall {recall:>5} % of {row['utterances']}")
    if results["unseen_classes"]:
        shown = ", ".join(f"{k} ({n})" for k, n in results["unseen_classes"].items())
        lines.append(f"classes that the model does not know, counted as errors: {shown}")
    return "\n".join(lines)
