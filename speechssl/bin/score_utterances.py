"""`speechssl score` of classifications."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def classification(folder: Path, normalisation: str = "basic") -> dict[str, Any]:
    """Results of predictions.jsonl; raises `ValueError` that names the line which is wrong.

    Where a head answered them too: "further", results of each further field, and "text", error
    rates of the transcripts.
    """
    from speechssl.score.classification import Prediction, classification_results

    found, rows = [], []
    for number, entry in entries(folder / "predictions.jsonl"):
        rows.append(entry)
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
    described = json.loads(how.read_text(encoding="utf-8"))
    results = classification_results(found, described["classes"])
    options = (described.get("head") or {}).get("init_args", {})
    values = zip(options.get("further", []), options.get("further_values", []))
    further = further_results(rows, dict(values))
    text = text_results(rows, normalisation)
    return results | ({"further": further} if further else {}) | ({"text": text} if text else {})


def further_results(
    rows: Sequence[dict[str, Any]], values: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Of each further field of predictions.jsonl what is scored of a class.

    values: names of the model's outputs for each; fields that no row has a reference of are left
    out.
    """
    from speechssl.score.classification import Prediction, classification_results

    results = {}
    for name, classes in values.items():
        answers = [(row["id"], row["further"][name]) for row in rows]
        found = [Prediction(i, x["ref"], x["hyp"]) for i, x in answers]
        if any(p.ref is not None for p in found):
            results[name] = classification_results(found, classes)
    return results


def text_results(rows: Sequence[dict[str, Any]], normalisation: str) -> dict[str, Any]:
    """Error rates of the transcripts of predictions.jsonl; empty if there are none to compare."""
    from speechssl.score.wer import Utterance, error_rates, normalise

    found = [
        Utterance(row["id"], row["text"]["ref"], row["text"]["hyp"], row.get("duration"),
                  row.get("speaker"))
        for row in rows if row.get("text") and row["text"]["ref"] is not None
    ]  # fmt: skip
    if not any(normalise(u.ref, normalisation) for u in found):
        return {}
    return error_rates(found, normalisation)[0]


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
    for name, one in results.get("further", {}).items():
        lines.append(
            f"{name}: UAR {100 * one['uar']:.2f} %, accuracy {100 * one['accuracy']:.2f} % of "
            f"{one['utterances']} utterances"
        )
    if "text" in results:
        one = results["text"]
        lines.append(
            f"transcripts: WER {100 * one['wer']:.2f} %, CER {100 * one['cer']:.2f} % of "
            f"{one['utterances']} utterances"
        )
    return "\n".join(lines)
