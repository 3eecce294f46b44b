"""`speechssl score`: error rates of a decoding, a classification, or speaker verification."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechssl.config import parse

if TYPE_CHECKING:
    from speechssl.score.wer import Scored, Utterance


DESCRIPTION = """Score what `speechssl decode` wrote. A recogniser: word and character error rates.
A classifier: accuracy, UAR and macro F1, those of further fields, and error rates of transcripts
where it has them. Speakers: EER and minDCF on --trials, of cosines or PLDA, AS-norm on either, and
with --calibrate Cllr too. Diarization: DER and JER. Slots: exact matches and F1. Numbers: CCC.
Waves: SI-SDR, and PESQ and STOI where installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    decode: str
    """Folder of `speechssl decode`, which holds hyp.jsonl, predictions.jsonl or embeddings.npy;
    results.json goes there, and alignments.txt or scores.txt."""
    normalisation: Literal["basic", "none"] = "basic"
    """How both sides are brought to one form; stated in results.json."""
    tags: bool = False
    """Texts hold slots, `<drink> iced mocha </drink>`: their matches, F1 and value CER too."""
    worst: int = 20
    """How many utterances with the most errors results.json lists."""
    worst_languages: int = 15
    """Texts of several languages: over how many of the worst ones CER is averaged."""
    trials: str | None = None
    """Verification: file of trials, lines of `1|0 ENROL TEST`, ids as in the cuts."""
    dims: int | None = None
    """Verification: the first so many numbers of all embeddings alone, as with head.prefixes."""
    cohort: str | None = None
    """Verification: folder of a decoding, such as of the training cuts, for AS-norm."""
    top: int = 300
    """Nearest utterances of the cohort that AS-norm takes."""
    cohort_means: bool = False
    """The cohort is the mean embedding of each of its speakers, not each utterance."""
    plda: str | None = None
    """Verification: folder of a decoding of training cuts with speakers; PLDA is learnt of it and
    takes the cosine's place."""
    lda_dim: int | None = None
    """Dimensions that LDA keeps before PLDA; none: all."""
    calibrate: str | None = None
    """Verification: folder of a decoding of further speakers, to turn scores into log-likelihood
    ratios; needs calibrate_trials."""
    calibrate_trials: str | None = None
    """Trials of that decoding."""
    collar: float = 0.0
    """Diarization: seconds on both sides of a boundary that are not scored."""
    overlap: bool = True
    """Diarization: score where several speak too."""
    calibrate_durations: bool = False
    """Calibration sees both sides' durations too."""
    p_targets: list[float] = dataclasses.field(default_factory=lambda: [0.01, 0.05])
    """Verification: target probabilities of minDCF; both errors cost 1."""


def main(argv: list[str] | None = None) -> int:
    options = parse(
        ScoreOptions,
        argv,
        prog="speechssl score",
        description=DESCRIPTION,
    )
    folder = Path(options.decode)
    try:
        results, shown = _results(folder, options)
    except ValueError as error:
        print(f"speechssl score: error: {error}", file=sys.stderr)
        return 2
    decoding = folder / "decode.json"
    if decoding.is_file():
        how = json.loads(decoding.read_text(encoding="utf-8"))
        # Times differ between runs of the same decoding; they stay in decode.json.
        results["decode"] = {k: v for k, v in how.items() if k != "timing"}
    arguments = sys.argv[1:] if argv is None else argv
    results["command"] = shlex.join(["speechssl", "score", *arguments])
    results["commit"] = commit()
    write_text(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(shown)
    return 0


def _results(folder: Path, options: ScoreOptions) -> tuple[dict[str, Any], str]:
    """Results of whatever was decoded, and how they are shown."""
    from speechssl.bin import score_tasks, score_trials, score_utterances

    if (folder / "predictions.jsonl").is_file():
        results = score_utterances.classification(folder, options.normalisation)
        return results, score_utterances.classification_table(results)
    if (folder / "embeddings.npy").is_file():
        results = score_trials.verification(folder, options)
        return results, score_trials.verification_table(results)
    task = score_tasks.task_of(folder)
    if task is not None:
        return task(folder, options)
    from speechssl.score.wer import alignment_text, error_rates, over_languages

    found = read_hypotheses(folder / "hyp.jsonl")
    results, scored = error_rates(found, options.normalisation)
    scored.sort(key=lambda s: (-s.words.errors, s.utterance.id))
    results["worst"] = [_worst(s) for s in scored[: options.worst] if s.words.errors]
    write_text(folder / "alignments.txt", "\n".join(alignment_text(s) for s in scored))
    if len(results["by_language"]) > 1:
        results["over_languages"] = over_languages(results["by_language"], options.worst_languages)
    shown = table(results)
    if options.tags:
        results["slots"], slots = score_tasks.tagged(found)
        shown += "\n" + slots
    return results, shown


def read_hypotheses(path: Path) -> list[Utterance]:
    """Utterances of a hyp.jsonl; raises `ValueError` naming the line that is wrong."""
    from speechssl.score.wer import Utterance

    if not path.is_file():
        raise ValueError(f"decode: found no {path}, want what `speechssl decode --output` wrote")
    found = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                found.append(
                    Utterance(
                        id=entry["id"],
                        ref=entry["ref"],
                        hyp=entry["hyp"],
                        duration_s=entry.get("duration"),
                        speaker=entry.get("speaker"),
                        language=entry.get("language"),
                    )
                )
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: found {line.strip()[:80]!r} ({error!r}), want an object "
                    "with id, ref and hyp"
                ) from None
    return found


def table(results: dict[str, Any]) -> str:
    low, high = results["wer_ci95"]
    lines = [
        f"WER {100 * results['wer']:6.2f} %   95 % interval {100 * low:.2f} to {100 * high:.2f}   "
        f"errors {results['errors']} of {results['words']} words "
        f"(S {results['substitutions']}, D {results['deletions']}, I {results['insertions']})",
        f"CER {100 * results['cer']:6.2f} %   errors {results['character_errors']} of "
        f"{results['characters']} characters",
        f"{results['utterances']} utterances, {results['utterances_with_errors']} with errors",
    ]
    if "over_languages" in results:
        over = results["over_languages"]
        lines.append(
            f"{over['languages']} languages, each alike: CER {100 * over['mean_cer']:.2f} %, "
            f"standard deviation {100 * over['std_cer']:.2f}, of the {len(over['worst'])} worst "
            f"{100 * over['worst_cer']:.2f} %"
        )
    if results["by_duration_s"]:
        lines.append(f"{'seconds':>10} {'WER %':>8} {'words':>8} {'utterances':>11}")
    for name, part in results["by_duration_s"].items():
        rate = "-" if part["wer"] is None else f"{100 * part['wer']:.2f}"
        lines.append(f"{name:>10} {rate:>8} {part['words']:>8} {part['utterances']:>11}")
    return "\n".join(lines)


def _worst(scored: Scored) -> dict[str, Any]:
    return {
        "id": scored.utterance.id,
        "ref": scored.utterance.ref,
        "hyp": scored.utterance.hyp,
        "errors": scored.words.errors,
        "words": scored.words.length,
        "pairs": [list(pair) for pair in scored.pairs],
    }


def commit() -> str | None:
    """Commit of the code that scored, with "+" if it was changed since; None outside git."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
