"""`speechssl score` of what `decode_tasks` wrote: diarization, slots, numbers, waves, and whatever
a head's own file scores.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.bin.score_utterances import entries

if TYPE_CHECKING:
    from speechssl.bin.score import ScoreOptions
    from speechssl.score.wer import Utterance


def task_of(folder: Path) -> Callable[[Path, ScoreOptions], tuple[dict[str, Any], str]] | None:
    """What scores this folder, by the file that is in it: -> results, and how they are shown."""
    kinds = {
        "segments.jsonl": _diarization,
        "slots.jsonl": _slots,
        "values.jsonl": _values,
        "estimates.jsonl": _separation,
        "answers.jsonl": _own,
    }
    return next((score for name, score in kinds.items() if (folder / name).is_file()), None)


def _diarization(folder: Path, options: ScoreOptions) -> tuple[dict[str, Any], str]:
    from speechssl.score.diarization import Recording, Turn, diarization_results

    found = []
    for number, entry in entries(folder / "segments.jsonl"):
        try:
            sides = [tuple(Turn(str(n), float(a), float(b)) for n, a, b in entry[k])
                     for k in ("ref", "hyp")]  # fmt: skip
            found.append(Recording(entry["id"], float(entry["duration"]), *sides))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder}/segments.jsonl:{number}: found {error!r}, want an object with id, "
                "duration, and ref and hyp as lists of [speaker, start, end]"
            ) from None
    results = diarization_results(found, options.collar, options.overlap)
    overlap = "scored" if options.overlap else "left out"
    shown = (
        f"DER {100 * results['der']:6.2f} %   miss {100 * results['miss']:.2f}, false alarm "
        f"{100 * results['false_alarm']:.2f}, confusion {100 * results['confusion']:.2f}   "
        f"collar {options.collar:g} s, overlap {overlap}\n"
        f"JER {100 * results['jer']:6.2f} %   {results['recordings']} recordings, "
        f"{results['speaker_s']:.0f} s of speakers"
    )
    return results, shown


def _slots(folder: Path, options: ScoreOptions) -> tuple[dict[str, Any], str]:
    from speechssl.bin.utterance_labels import NONE
    from speechssl.score.slots import slot_results

    refs, hyps = (
        [[(s, str(v)) for s, v in row.items() if v != NONE] for row in side]
        for side in _sides(folder / "slots.jsonl")
    )
    results = slot_results(refs, hyps)
    return results, _slot_table(results)


def tagged(found: Sequence[Utterance]) -> tuple[dict[str, Any], str]:
    """Slots of texts with tags, as a recogniser writes them; case and spaces are evened out."""
    from speechssl.score.slots import slot_results, tagged_slots

    sides = [[tagged_slots(t.lower()) for t in texts]
             for texts in ([u.ref for u in found], [u.hyp for u in found])]  # fmt: skip
    results = slot_results(sides[0], sides[1])
    return results, _slot_table(results)


def _slot_table(results: dict[str, Any]) -> str:
    lines = [
        f"all slots right {100 * results['exact_match']:6.2f} %   slot F1 "
        f"{100 * results['slot_f1']:.2f}, of types alone {100 * results['slot_type_f1']:.2f}   "
        f"value CER {100 * results['slot_value_cer']:.2f}   {results['utterances']} utterances"
    ]
    lines += [f"{name:>24}  F1 {100 * x['f1']:6.2f}" for name, x in results["by_slot"].items()]
    return "\n".join(lines)


def _values(folder: Path, options: ScoreOptions) -> tuple[dict[str, Any], str]:
    from speechssl.score.regression import regression_results

    refs, hyps = _sides(folder / "values.jsonl")
    names = list(hyps[0]) if hyps else []
    rows = [[[row[n] for n in names] for row in side] for side in (refs, hyps)]
    results = regression_results(rows[0], rows[1], names)
    lines = [f"CCC {results['ccc']:6.3f}   {results['utterances']} utterances"]
    for name, x in results["by_dimension"].items():
        correlation = "-" if x["pearson"] is None else f"{x['pearson']:.3f}"
        lines.append(
            f"{name:>14}  CCC {x['ccc']:6.3f}  Pearson {correlation}  RMSE {x['rmse']:.4g}"
        )
    return results, "\n".join(lines)


def _sides(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """References and hypotheses of every line."""
    refs, hyps = [], []
    for number, entry in entries(path):
        ref, hyp = entry.get("ref"), entry.get("hyp")
        if not isinstance(ref, dict) or not isinstance(hyp, dict) or ref.keys() != hyp.keys():
            raise ValueError(
                f"{path}:{number}: found ref {ref!r:.60} and hyp {hyp!r:.60}, want objects of the "
                "same names"
            )
        refs.append(ref)
        hyps.append(hyp)
    return refs, hyps


def _separation(folder: Path, options: ScoreOptions) -> tuple[dict[str, Any], str]:
    import numpy as np

    from speechssl.score.separation import (
        LIBRARIES,
        audio_digest,
        available,
        separation_results,
        wave_figures,
    )

    there = available()
    perceptual = [name for name, found in there.items() if found]
    rows, utterances, heard = [], 0, []
    for number, entry in entries(folder / "estimates.jsonl"):
        sources, estimates = entry.get("sources"), entry.get("estimates")
        if not sources or not estimates or len(sources) != len(estimates):
            raise ValueError(
                f"{folder}/estimates.jsonl:{number}: found sources {sources!r:.60} for estimates "
                f"{estimates!r:.60}, want as many of each; tools/make_mixtures.py writes cuts that "
                "name their sources"
            )
        paths = [entry["mixture"], *(str(folder / e) for e in estimates), *sources]
        waves = _waves(paths, f"{folder}/estimates.jsonl:{number}")
        length = min(map(len, waves))
        found = np.stack([w[:length] for w in waves])
        count = 1 + len(estimates)
        heard.append(audio_digest(str(entry.get("id")), [waves[0], *waves[count:]]))
        rows += wave_figures(found[0], found[1:count], found[count:], perceptual)
        utterances += 1
    results = separation_results(rows, utterances)
    # Of mixtures and sources alone: equal digests tell that two systems heard the same test.
    whole = "".join(sorted(heard)).encode()
    results["test_digest"] = hashlib.blake2b(whole, digest_size=8).hexdigest()
    gain = results["si_sdr_improvement_db"]
    shown = (
        f"SI-SDR {results['si_sdr_db']:6.2f} dB, {gain:+.2f} dB against the mixture "
        f"  {results['sources']} sources of {results['utterances']} mixtures, "
        f"digest {results['test_digest']}"
    )
    for name, library in LIBRARIES.items():
        value = f"not measured: pip install {library}"
        if there[name]:
            value = "-" if results[name] is None else f"{results[name]:.3f}"
        without = results["undefined"].get(name, 0)
        left_out = f"   left out {without} sources, silent or too short" * bool(without)
        shown += f"\n{name.upper()} {value}{left_out}"
    return results, shown


def _waves(paths: Sequence[str], where: str) -> list[Any]:
    """(L,) float64 of each file; `ValueError` for files that do not belong together."""
    import soundfile

    read = [soundfile.read(path, dtype="float64", always_2d=True) for path in paths]
    forms = [(wave.shape[1], rate) for wave, rate in read]
    lengths = [len(wave) for wave, _ in read]
    if set(forms) != {(1, forms[1][1])} or max(lengths) - min(lengths) > 0.05 * forms[1][1]:
        told = ", ".join(
            f"{Path(p).name} {n} samples at {rate} Hz, {channels} channels"
            for p, n, (channels, rate) in zip(paths, lengths, forms, strict=True)
        )
        raise ValueError(
            f"{where}: found {told}, want one channel of one rate and length in the mixture, the "
            "estimates and the sources: whole recordings, brought to the encoder's rate"
        )
    return [wave[:, 0] for wave, _ in read]


def _own(folder: Path, options: ScoreOptions) -> tuple[dict[str, Any], str]:
    """By `results(rows)` of the file of the head that answered, which decode.json names."""
    how = folder / "decode.json"
    described = json.loads(how.read_text(encoding="utf-8")) if how.is_file() else {}
    path = str((described.get("head") or {}).get("class_path"))
    if not path.startswith("speechssl.heads."):
        raise ValueError(
            f"{how}: found the head {path}, want one of speechssl.heads, whose file scores it"
        )
    module = importlib.import_module(path.rsplit(".", 1)[0])
    if not hasattr(module, "results"):
        raise ValueError(f"{how}: found no function `results` in {module.__name__}, want one")
    rows = [row for _, row in entries(folder / "answers.jsonl")]
    if not rows:
        raise ValueError(f"{folder}/answers.jsonl: found no answer, want some")
    results = {"utterances": len(rows), **module.results(rows)}
    figures = (f"{k} {v:.4f}" for k, v in results.items() if isinstance(v, float))
    return results, "   ".join([*figures, f"{len(rows)} utterances"])
