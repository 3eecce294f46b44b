"""`speechssl score` of speaker verification: cosine or PLDA, AS-norm, calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.bin.score_utterances import entries

if TYPE_CHECKING:
    import numpy as np

    from speechssl.bin.score import ScoreOptions
    from speechssl.score.verification import Trial


BLOCK = 4096
"""Utterances whose scores against the cohort are in memory at once."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """Trials of one decoding, before and behind the back-end."""

    trials: list[Trial]
    is_target: np.ndarray
    cosine: np.ndarray
    scores: np.ndarray
    speakers: tuple[list[str], list[str]] | None
    durations: np.ndarray | None  # (N, 2) seconds of both sides


def verification(folder: Path, options: ScoreOptions) -> dict[str, Any]:
    """Results of a list of trials; writes scores.txt.

    Raises `ValueError` for a trial of an utterance without embedding.
    """
    from speechssl.bin.score import write_text
    from speechssl.score.verification import verification_results

    if options.trials is None:
        raise ValueError(
            "trials: found none, want a file with lines of `1|0 ENROL TEST`; tools/make_trials.py "
            "makes one of a manifest"
        )
    if (options.calibrate is None) != (options.calibrate_trials is None):
        raise ValueError(
            "calibrate, calibrate_trials: found one of them, want both: a decoding of speakers who "
            "are not in `trials`, and trials of it"
        )
    backend = Backend(options)
    own = backend.score(folder, options.trials)

    def results(scores: np.ndarray) -> dict[str, Any]:
        one, two = own.speakers or (None, None)
        return verification_results(scores, own.is_target, one, two, options.p_targets)

    scores = own.scores
    calibration: dict[str, Any] = {}
    if options.calibrate is not None:
        other = backend.score(Path(options.calibrate), str(options.calibrate_trials))
        scores, calibration = _calibrated(own, other, options)
    found = results(scores) | calibration
    if backend.name != "cosine":
        plain = results(own.cosine)
        plain.pop("det")
        found |= {"scores": backend.name, "cosine": plain, **backend.about}
    if options.dims is not None:
        found["dims"] = options.dims
    lines = [
        f"{int(t.target)} {t.enrol} {t.test} {s:.6f}\n"
        for t, s in zip(own.trials, scores.tolist(), strict=True)
    ]
    write_text(folder / "scores.txt", "".join(lines))
    return found


class Backend:
    """From two embeddings to a score, as `options` say; learnt once, for any trials."""

    def __init__(self, options: ScoreOptions) -> None:
        from speechssl.score.plda import fit_backend

        self.options = options
        self.plda, self.cohort = None, None
        self.learnt_of: dict[str, set[str]] = {}
        steps = []
        self.about: dict[str, Any] = {}
        if options.plda is not None:
            embeddings, _, rows = read_embeddings(Path(options.plda), options.dims)
            speakers = [row.get("speaker") for row in rows]
            if not all(speakers):
                raise ValueError(
                    f"plda: found embeddings without speaker in {options.plda}, want a decoding of "
                    "cuts that name theirs"
                )
            self.plda = fit_backend(embeddings, [str(s) for s in speakers], options.lda_dim)
            self.learnt_of["plda"] = set(map(str, speakers))
            steps.append("PLDA")
            self.about["plda"] = {
                "utterances": len(embeddings),
                "speakers": len(set(speakers)),
                "dim": self.plda.projection.shape[1],
            }
        if options.cohort is not None:
            self.cohort, known = _cohort(Path(options.cohort), options.cohort_means, options.dims)
            self.learnt_of["cohort"] = known
            steps.append("AS-norm")
            count = len(self.cohort)
            self.about |= {"cohort": count, "top": min(options.top, count)}
        self.name = ", ".join(steps) or "cosine"

    def score(self, folder: Path, trials_file: str) -> Scored:
        import numpy as np

        from speechssl.score.verification import (
            as_norm,
            cohort_statistics,
            cosine,
            read_trials,
            unit,
        )

        trials = read_trials(trials_file)
        embeddings, place, rows = read_embeddings(folder, self.options.dims)
        unknown = [i for t in trials for i in (t.enrol, t.test) if i not in place]
        if unknown:
            raise ValueError(
                f"trials: found {unknown[0]!r} ({len(set(unknown))} ids) without an embedding in "
                f"{folder}, want utterances that were decoded; decode.json lists those skipped"
            )
        enrol = np.array([place[t.enrol] for t in trials], dtype=np.int64)
        test = np.array([place[t.test] for t in trials], dtype=np.int64)
        plain = cosine(embeddings[enrol], embeddings[test])
        scores, x = plain, embeddings
        if self.plda is not None:
            x = self.plda.prepared(embeddings)
            scores = self.plda.plda.log_ratios(x[enrol], x[test])
        if self.cohort is not None:
            others = self.cohort if self.plda is None else self.plda.prepared(self.cohort)
            used = np.unique(np.concatenate([enrol, test]))
            mean, deviation = np.zeros((2, len(x)))
            for start in range(0, len(used), BLOCK):  # all at once would fill the memory
                some = used[start : start + BLOCK]
                if self.plda is None:
                    against = unit(x[some]) @ unit(others).T
                else:
                    against = self.plda.plda.all_log_ratios(x[some], others)
                mean[some], deviation[some] = cohort_statistics(against, self.options.top)
            sides = [(mean[i], deviation[i]) for i in (enrol, test)]
            scores = as_norm(scores, sides[0], sides[1])
        speakers = _speakers(rows, enrol, test)
        for name, known in self.learnt_of.items():
            _refuse_shared(name, trials_file, known, speakers)
        return Scored(
            trials,
            np.array([t.target for t in trials], dtype=bool),
            plain,
            scores,
            speakers,
            _durations(rows, enrol, test),
        )


def _refuse_shared(
    option: str, trials_file: str, known: set[str], speakers: tuple[list[str], list[str]] | None
) -> None:
    shared = known & {*speakers[0], *speakers[1]} if speakers is not None else set()
    if shared:
        raise ValueError(
            f"{option}: found {len(shared)} speakers of {trials_file} there too, such as "
            f"{min(shared)!r}, want others, such as those trained on: what is learnt of speakers "
            "makes their own scores look better"
        )


def _cohort(folder: Path, means: bool, dims: int | None) -> tuple[np.ndarray, set[str]]:
    """(K, E) embeddings of the cohort, or the mean direction of each of its speakers; and who they
    are, as far as it is known."""
    import numpy as np

    from speechssl.score.verification import unit

    embeddings, _, rows = read_embeddings(folder, dims)
    speakers = [row.get("speaker") for row in rows]
    known = {str(s) for s in speakers if s}
    if not means:
        return embeddings, known
    if not all(speakers):
        raise ValueError(
            f"cohort_means: found embeddings without speaker in {folder}, want a decoding of cuts "
            "that name theirs"
        )
    names, place = np.unique([str(s) for s in speakers], return_inverse=True)
    sums = np.zeros((len(names), embeddings.shape[1]))
    np.add.at(sums, place, unit(embeddings))
    return sums / np.bincount(place)[:, None], known


def _speakers(
    rows: Sequence[dict[str, Any]], enrol: np.ndarray, test: np.ndarray
) -> tuple[list[str], list[str]] | None:
    if not all(row.get("speaker") for row in rows):
        return None
    one, two = ([str(rows[i]["speaker"]) for i in side] for side in (enrol, test))
    return one, two


def _durations(
    rows: Sequence[dict[str, Any]], enrol: np.ndarray, test: np.ndarray
) -> np.ndarray | None:
    import numpy as np

    if not all(row.get("duration") for row in rows):
        return None
    seconds = np.array([float(row["duration"]) for row in rows])
    return np.stack([seconds[enrol], seconds[test]], axis=1)


def _calibrated(
    own: Scored, other: Scored, options: ScoreOptions
) -> tuple[np.ndarray, dict[str, Any]]:
    """Log-likelihood ratios of own's trials by a map learnt of other's, and how good they are."""
    from speechssl.score.calibration import actual_dcf, cllr, fit_calibration, min_cllr

    _refuse_shared_speakers(own, other)
    learnt = fit_calibration(_features(other, options), other.is_target)
    ratios = learnt.log_ratios(_features(own, options))
    about = {
        "weights": learnt.weights.tolist(),
        "offset": learnt.offset,
        "durations": options.calibrate_durations,
        "trials": len(other.trials),
    }
    return ratios, {
        "cllr": cllr(ratios, own.is_target),
        "min_cllr": min_cllr(ratios, own.is_target),
        "act_dcf": {f"{p:g}": actual_dcf(ratios, own.is_target, p) for p in options.p_targets},
        "calibration": about,
    }


def _refuse_shared_speakers(own: Scored, other: Scored) -> None:
    if own.speakers is None or other.speakers is None:
        return
    shared = {*own.speakers[0], *own.speakers[1]} & {*other.speakers[0], *other.speakers[1]}
    if shared:
        raise ValueError(
            f"calibrate: found {len(shared)} speakers of `trials` there too, such as "
            f"{min(shared)!r}, want others: the map would be learnt of what it is judged by"
        )


def _features(scored: Scored, options: ScoreOptions) -> np.ndarray:
    import numpy as np

    if not options.calibrate_durations:
        return scored.scores
    if scored.durations is None:
        raise ValueError(
            "calibrate_durations: found embeddings without duration, want cuts that state theirs"
        )
    shorter, longer = np.log(scored.durations.min(1)), np.log(scored.durations.max(1))
    return np.stack([scored.scores, shorter, longer], axis=1)


def read_embeddings(
    folder: Path, dims: int | None = None
) -> tuple[np.ndarray, dict[str, int], list[dict[str, Any]]]:
    """(N, E) embeddings of a decoding, or their first `dims` numbers, the row of each id, and what
    is known of each."""
    import numpy as np

    path = folder / "embeddings.npy"
    if not path.is_file():
        raise ValueError(
            f"embeddings: found no {path}, want what `speechssl decode` writes with a speaker model"
        )
    embeddings = np.load(path, allow_pickle=False)
    rows = [row for _, row in entries(folder / "embeddings.jsonl")]
    if len(rows) != len(embeddings):
        raise ValueError(
            f"{folder}: found {len(embeddings)} embeddings and {len(rows)} lines in "
            "embeddings.jsonl, want as many of each; decode again"
        )
    if dims is not None and not 1 <= dims <= embeddings.shape[1]:
        raise ValueError(
            f"dims: found {dims}, want 1 to {embeddings.shape[1]}, the width of the embeddings in "
            f"{folder}"
        )
    return embeddings[:, :dims], {row["id"]: i for i, row in enumerate(rows)}, rows


def verification_table(results: dict[str, Any]) -> str:
    lines = [_rates(results.get("scores", "cosine"), results)]
    if "cosine" in results:
        lines.append(_rates("cosine", results["cosine"]))
    if "cllr" in results:
        costs = ", ".join(f"DCF({p}) {cost:.3f}" for p, cost in results["act_dcf"].items())
        lines.append(
            f"calibrated: Cllr {results['cllr']:.3f} bits (least {results['min_cllr']:.3f})   "
            f"{costs} at the prior's own threshold"
        )
    lines.append(f"{results['targets']} target and {results['nontargets']} non-target trials")
    return "\n".join(lines)


def _rates(name: str, results: dict[str, Any]) -> str:
    found = results["eer_ci95"]
    spread = ""
    if found is not None:
        spread = f"   95 % interval {100 * found[0]:.2f} to {100 * found[1]:.2f}"
    costs = ", ".join(f"minDCF({p}) {cost:.3f}" for p, cost in results["min_dcf"].items())
    return f"{name:>8}: EER {100 * results['eer']:6.2f} %{spread}   {costs}"
