"""`speechssl score` of classifications and of speaker verification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from speechssl.bin.score import ScoreOptions


def classification(folder: Path) -> dict[str, Any]:
    """Results of predictions.jsonl; raises `ValueError` that names the line which is wrong."""
    from speechssl.score.classification import Prediction, classification_results

    found = []
    for number, entry in _entries(folder / "predictions.jsonl"):
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


def verification(folder: Path, options: ScoreOptions) -> dict[str, Any]:
    """Results of a list of trials; writes scores.txt.

    Raises `ValueError` for a trial of an utterance without embedding.
    """
    from speechssl.bin.score import write_text
    from speechssl.score.verification import (
        as_norm,
        cohort_statistics,
        cosine,
        read_trials,
        unit,
    )

    if options.trials is None:
        raise ValueError(
            "trials: found none, want a file with lines of `1|0 ENROL TEST`; tools/make_trials.py "
            "makes one of a manifest"
        )
    trials = read_trials(options.trials)
    embeddings, place, speakers = read_embeddings(folder)
    unknown = [i for t in trials for i in (t.enrol, t.test) if i not in place]
    if unknown:
        raise ValueError(
            f"trials: found {unknown[0]!r} ({len(set(unknown))} ids) without an embedding in "
            f"{folder}, want utterances that were decoded; decode.json lists those skipped"
        )
    import numpy as np

    enrol = np.array([place[t.enrol] for t in trials], dtype=np.int64)
    test = np.array([place[t.test] for t in trials], dtype=np.int64)
    is_target = np.array([t.target for t in trials], dtype=bool)
    scores = cosine(embeddings[enrol], embeddings[test])
    sides = None
    if all(speakers):
        sides = [[str(speakers[i]) for i in side] for side in (enrol, test)]
    results = _results(scores, is_target, sides, options)
    if options.cohort is not None:
        cohort, _, _ = read_embeddings(Path(options.cohort))
        mean, deviation = cohort_statistics(unit(embeddings) @ unit(cohort).T, options.top)
        plain = results
        scores = as_norm(scores, (mean[enrol], deviation[enrol]), (mean[test], deviation[test]))
        results = _results(scores, is_target, sides, options)
        plain.pop("det")
        results |= {"cohort": len(cohort), "top": min(options.top, len(cohort)), "cosine": plain}
    lines = [
        f"{int(t.target)} {t.enrol} {t.test} {s:.6f}\n"
        for t, s in zip(trials, scores.tolist(), strict=True)
    ]
    write_text(folder / "scores.txt", "".join(lines))
    return results


def _results(
    scores: np.ndarray,
    is_target: np.ndarray,
    sides: list[list[str]] | None,
    options: ScoreOptions,
) -> dict[str, Any]:
    from speechssl.score.verification import verification_results

    one, two = (None, None) if sides is None else sides
    return verification_results(scores, is_target, one, two, options.p_targets)


def read_embeddings(folder: Path) -> tuple[np.ndarray, dict[str, int], list[str | None]]:
    """(N, E) embeddings of a decoding, the row of each id, and each row's speaker."""
    import numpy as np

    path = folder / "embeddings.npy"
    if not path.is_file():
        raise ValueError(
            f"embeddings: found no {path}, want what `speechssl decode` writes with a speaker model"
        )
    embeddings = np.load(path, allow_pickle=False)
    entries = [entry for _, entry in _entries(folder / "embeddings.jsonl")]
    if len(entries) != len(embeddings):
        raise ValueError(
            f"{folder}: found {len(embeddings)} embeddings and {len(entries)} lines in "
            "embeddings.jsonl, want as many of each; decode again"
        )
    place = {entry["id"]: i for i, entry in enumerate(entries)}
    return embeddings, place, [entry.get("speaker") for entry in entries]


def _entries(path: Path) -> Any:
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


def verification_table(results: dict[str, Any]) -> str:
    lines = [_rates("AS-norm" if "cosine" in results else "cosine", results)]
    if "cosine" in results:
        lines.append(_rates("cosine", results["cosine"]))
    lines.append(f"{results['targets']} target and {results['nontargets']} non-target trials")
    return "\n".join(lines)


def _rates(name: str, results: dict[str, Any]) -> str:
    found = results["eer_ci95"]
    spread = ""
    if found is not None:
        spread = f"   95 % interval {100 * found[0]:.2f} to {100 * found[1]:.2f}"
    costs = ", ".join(f"minDCF({p}) {cost:.3f}" for p, cost in results["min_dcf"].items())
    return f"{name:>8}: EER {100 * results['eer']:6.2f} %{spread}   {costs}"
