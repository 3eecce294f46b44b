"""`speechssl score-conversion`: what a conversion keeps of content and prosody, and whose it is."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.config import parse

if TYPE_CHECKING:
    from speechssl.score.conversion import Analysis, Settings

DESCRIPTION = """Score what `speechssl convert-voice` wrote against the target speaker's own
recordings of the same sentences: mel-cepstral distortion, F0 and durations; the source's distance
from them beside it. With embeddings of a speaker model: is it the target's voice? With decodings
of a recogniser: is it what was said? Writes results.json, conversions.jsonl and f0.jsonl into the
folder, which `speechssl report` shows with audio."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConversionOptions:
    converted: str
    """Folder of `speechssl convert-voice` (index.jsonl and audio); results go there."""
    sources: list[str] | str
    """Manifests of the recordings that were converted."""
    targets: list[str] | str
    """Manifests of the target speakers' own recordings, the references among them."""
    target: str | None = None
    """Target of all conversions, where index.jsonl names none."""
    match: list[str] = dataclasses.field(default_factory=lambda: ["text"])
    """Fields in which source and reference agree: the same sentence, in the same mood maybe."""
    embeddings: str | None = None
    """Decoding of the converted files with a speaker model."""
    natural: str | None = None
    """Decoding of natural recordings, sources and targets, with the same model."""
    transcripts: str | None = None
    """Decoding of the converted files with a recogniser."""
    source_transcripts: str | None = None
    """Decoding of the sources with the same recogniser."""
    dtw: bool = True
    """Pair frames by time warping; false for copies of the same timing."""
    order: int = 24
    """Order of the mel-cepstrum."""
    f0_floor: float = 60.0
    """Lowest F0 in Hz."""
    f0_ceiling: float = 500.0
    """Highest F0 in Hz."""

    def __post_init__(self) -> None:
        if (self.embeddings is None) != (self.natural is None):
            raise ValueError("embeddings, natural: found one of them, want both or none")
        if not self.match:
            raise ValueError("match: found no field, want one or more, such as '[text]'")


@dataclasses.dataclass(frozen=True)
class Natural:
    """Cuts by id, and which of a speaker says a sentence."""

    cuts: Mapping[str, Mapping[str, Any]]
    speakers: Mapping[str, str | None]
    said: Mapping[tuple[str, ...], Sequence[str]]
    """(speaker, values of the matched fields) -> ids, sorted."""


def main(argv: list[str] | None = None) -> int:
    options = parse(
        ScoreConversionOptions, argv, prog="speechssl score-conversion", description=DESCRIPTION
    )
    try:
        results = run(options)
    except ValueError as error:
        print(f"speechssl score-conversion: error: {error}", file=sys.stderr)
        return 2
    from speechssl.bin.score import commit, write_text

    arguments = sys.argv[1:] if argv is None else argv
    results["command"] = shlex.join(["speechssl", "score-conversion", *arguments])
    results["commit"] = commit()
    text = json.dumps(results, indent=2, ensure_ascii=False)
    write_text(Path(options.converted) / "results.json", text + "\n")
    print(table(results))
    return 0


def run(options: ScoreConversionOptions) -> dict[str, Any]:
    """Score, write the rows, and return what results.json holds.

    Raises ValueError for conversions of unknown sources, or none with anything to compare.
    """
    from speechssl.bin.score import write_text
    from speechssl.score.conversion import MEASURES, PitchConfig, Settings, averages

    folder = Path(options.converted)
    entries = read_index(folder)
    sources = find_natural(options.sources, options.match)
    targets = find_natural(options.targets, options.match)
    settings = Settings(
        dtw=options.dtw,
        order=options.order,
        pitch=PitchConfig(floor_hz=options.f0_floor, ceiling_hz=options.f0_ceiling),
    )
    rows, tracks, troubles = _measured(folder, entries, sources, targets, options, settings)
    results: dict[str, Any] = {"kind": "conversion", "utterances": len(rows)}
    compared = [row for row in rows if "mcd" in row]
    results |= averages(compared, MEASURES)
    results["compared"] = len(compared)
    results["source"] = averages([row["source_measures"] for row in compared], MEASURES)
    results["settings"] = settings.stated() | {"match": list(options.match)}
    if options.embeddings is not None and options.natural is not None:
        results["speaker"] = _speakers(rows, Path(options.embeddings), Path(options.natural))
    if options.transcripts is not None:
        results["asr"] = _transcripts(rows, options)
    if not compared and "speaker" not in results and "asr" not in results:
        raise ValueError(
            f"targets: found no recording by the target speakers that agrees with a source in "
            f"{', '.join(options.match)}, want references; or give embeddings or transcripts"
        )
    results["by_target"] = {
        name: averages([r for r in compared if r["target"] == name], MEASURES)
        for name in sorted({r["target"] for r in compared})
    }
    results["troubles"] = troubles
    how = folder / "convert.json"
    if how.is_file():
        results["conversion"] = json.loads(how.read_text(encoding="utf-8"))
    for name, lines in (("conversions.jsonl", rows), ("f0.jsonl", tracks)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(folder / name, text)
    return results


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Rows of index.jsonl; raises ValueError for a folder without conversions."""
    from speechssl.bin.score_utterances import entries

    path = folder / "index.jsonl"
    if not path.is_file():
        raise ValueError(
            f"converted: found no {path}, want what `speechssl convert-voice --output` wrote"
        )
    rows = [entry for _, entry in entries(path)]
    wrong = [i for i, row in enumerate(rows, 1) if not {"id", "audio"} <= row.keys()]
    if wrong or not rows:
        raise ValueError(
            f"{path}: found {f'line {wrong[0]} without id or audio' if wrong else 'no line'}, want "
            "a line for each converted file"
        )
    return rows


def find_natural(cuts: Sequence[str] | str, match: Sequence[str]) -> Natural:
    """What some manifests hold, ready to be looked up."""
    from speechssl.data.fields import cut_rows, field_of

    found: dict[str, Mapping[str, Any]] = {}
    speakers: dict[str, str | None] = {}
    said: dict[tuple[str, ...], list[str]] = {}
    for cut in cut_rows([cuts] if isinstance(cuts, str) else cuts):
        found[cut["id"]] = cut
        speaker = speakers[cut["id"]] = field_of(cut, "speaker")
        values = [field_of(cut, name) for name in match]
        if speaker is not None and None not in values:
            said.setdefault((speaker, *map(str, values)), []).append(cut["id"])
    return Natural(found, speakers, {key: sorted(ids) for key, ids in said.items()})


def _measured(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    sources: Natural,
    targets: Natural,
    options: ScoreConversionOptions,
    settings: Settings,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """A row and the F0 of each conversion, and what could not be compared."""
    from tqdm import tqdm

    from speechssl.data.fields import field_of
    from speechssl.score.conversion import compare

    waves = _Waves(settings)
    rows, tracks, troubles = [], [], []
    for entry in tqdm(entries, desc="compare", unit="utt", disable=None):
        source_id = str(entry.get("source_id", entry["id"]))
        source = sources.cuts.get(source_id)
        target = options.target or entry.get("target")
        if source is None or target is None:
            raise ValueError(
                f"{folder}/index.jsonl: found {entry['id']!r} "
                + (f"of the source {source_id!r}, want one of --sources" if source is None
                   else "without a target, want --target")
            )  # fmt: skip
        key = (target, *(str(field_of(source, name)) for name in options.match))
        ids = targets.said.get(key, ())
        # A second take is another recording of the sentence; the first by id is the reference.
        reference = targets.cuts[ids[0]] if ids else None
        row = {
            "id": entry["id"],
            "source": source_id,
            "source_speaker": sources.speakers[source_id],
            "target": target,
            "reference": reference["id"] if reference else None,
            "text": field_of(source, "text"),
            "audio": str(folder / entry["audio"]),
            "source_audio": _audio(source),
            "reference_audio": _audio(reference) if reference else None,
        }
        rows.append(row)
        try:
            mine, theirs = waves.file(row["audio"]), waves.cut(source)
            track = {"id": entry["id"], "hop_s": 0.005, "converted": _rounded(mine.f0),
                     "source": _rounded(theirs.f0)}  # fmt: skip
            if reference is None:
                troubles.append(f"{entry['id']}: no recording of {target} agrees with it")
            else:
                wanted = waves.cut(reference)
                row |= compare(mine, wanted, dtw=options.dtw)
                row["source_measures"] = compare(theirs, wanted, dtw=True)
                track["reference"] = _rounded(wanted.f0)
            tracks.append(track)
        except ValueError as error:
            troubles.append(f"{entry['id']}: {error}")
    return rows, tracks, troubles


class _Waves:
    """Analyses of files and cuts; those of cuts are kept, for they come again with each target."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kept: dict[str, Analysis] = {}

    def file(self, path: str) -> Analysis:
        from speechssl.hub.audio import read_file, to_wave
        from speechssl.score.conversion import analyse

        samples, rate = read_file(path)
        return analyse(to_wave(samples, rate, want_rate=self.settings.rate), self.settings)

    def cut(self, cut: Mapping[str, Any]) -> Analysis:
        from speechssl.data.index import record_from_cut
        from speechssl.data.reader import read_part
        from speechssl.score.conversion import analyse

        if cut["id"] not in self.kept:
            record = record_from_cut(dict(cut))
            wave = read_part(record, 0, record.num_samples)
            self.kept[cut["id"]] = analyse(wave, self.settings)
        return self.kept[cut["id"]]


def _audio(cut: Mapping[str, Any]) -> str | None:
    """The file of a cut that is a whole recording, for the report to play."""
    recording = cut.get("recording") or {}
    sources = recording.get("sources") or [{}]
    whole = cut.get("start", 0) == 0 and cut.get("duration") == recording.get("duration")
    return str(sources[0]["source"]) if whole and sources[0].get("type") == "file" else None


def _rounded(f0: Any) -> list[float]:
    return [round(float(x), 1) for x in f0]


def _speakers(rows: Sequence[dict[str, Any]], folder: Path, natural: Path) -> dict[str, Any]:
    """Add speaker figures to the rows; means over them."""
    import numpy as np

    from speechssl.bin.score_trials import read_embeddings
    from speechssl.score.conversion import natural_threshold, speaker_scores

    vectors, place, _ = read_embeddings(folder)
    theirs, known, described = read_embeddings(natural)
    names = [entry.get("speaker") for entry in described]
    if not all(names):
        raise ValueError(f"natural: found no speaker of some in {natural}, want all named")
    rate, threshold = natural_threshold(theirs, [str(n) for n in names])
    scored = []
    for row in rows:
        if row["id"] not in place or row["source"] not in known:
            continue  # decode.json lists what was too short
        if row["source_speaker"] == row["target"]:
            continue  # its own voice
        own = [i for key, i in known.items() if names[i] == row["target"] and key != row["source"]]
        if not own:
            raise ValueError(f"natural: found no recording of {row['target']!r} in {natural}")
        row["speaker"] = speaker_scores(
            vectors[place[row["id"]]], theirs[own], theirs[known[row["source"]]], threshold
        )
        scored.append(row["speaker"])
    if not scored:
        raise ValueError(
            f"embeddings: found none of the conversions in {folder} with its source in {natural}, "
            "want the ids of index.jsonl and of --sources"
        )
    return {
        "utterances": len(scored),
        **{k: float(np.mean([s[k] for s in scored])) for k in scored[0]},
        "threshold": threshold,
        "natural_eer": rate,
        "natural_recordings": len(theirs),
    }


def _transcripts(rows: Sequence[dict[str, Any]], options: ScoreConversionOptions) -> dict[str, Any]:
    """Add error rates to the rows; WER and CER pooled over them, and over their sources."""
    from speechssl.bin.score import read_hypotheses
    from speechssl.score.wer import error_rates

    found: dict[str, Any] = {}
    wanted = {"": ("id", options.transcripts), "source_": ("source", options.source_transcripts)}
    for prefix, (name, folder) in wanted.items():
        if folder is None:
            continue
        ids = {row[name] for row in rows}
        heard = [u for u in read_hypotheses(Path(folder) / "hyp.jsonl") if u.id in ids]
        if not heard:
            raise ValueError(f"transcripts: found no conversion in {folder}, want their ids")
        results, scored = error_rates(heard)
        found |= {f"{prefix}{key}": results[key] for key in ("wer", "cer", "words")}
        by_id = {s.utterance.id: s for s in scored}
        for row in rows:
            if row[name] in by_id:
                one = by_id[row[name]]
                row[f"{prefix}hyp"] = one.utterance.hyp
                row[f"{prefix}cer"] = one.characters.rate
    return found


def table(results: Mapping[str, Any]) -> str:
    """What is printed: conversion and source, measure by measure."""
    lines = []
    settings = results["settings"]
    if results["compared"]:
        lines.append(f"{results['compared']} conversions against the target's own recordings")
        lines.append(f"{'':<34}{'converted':>10}{'source':>10}")
    for key, title, unit, factor in SHOWN:
        values = (results.get(key), results["source"].get(key))
        if values != (None, None):
            cells = ("-" if v is None else f"{factor * v:.2f}" for v in values)
            lines.append(f"{title + unit:<34}" + "".join(f"{c:>10}" for c in cells))
    speaker = results.get("speaker")
    if speaker:
        lines.append(
            f"closer to target than to source {100 * speaker['closer_to_target']:.1f} %, accepted "
            f"{100 * speaker['accept_rate']:.1f} % at the EER threshold of natural speech (EER "
            f"{100 * speaker['natural_eer']:.1f} %), cosine with target "
            f"{speaker['target_cosine']:.3f}, with source {speaker['source_cosine']:.3f}"
        )
    asr = results.get("asr")
    if asr:
        shown = f"WER {100 * asr['wer']:.1f} %, CER {100 * asr['cer']:.1f} %"
        if "source_wer" in asr:
            wer, cer = 100 * asr["source_wer"], 100 * asr["source_cer"]
            shown += f"; of the sources {wer:.1f} and {cer:.1f} %"
        lines.append(shown)
    lines.append(
        f"mel-cepstra of order {settings['order']} at {settings['rate_hz']} Hz (alpha "
        f"{settings['alpha']}), {settings['spectrum']}, frames above "
        f"{settings['threshold_db']:g} dB, DTW {'on' if settings['dtw'] else 'off'}"
    )
    lines += [f"not compared: {t}" for t in _few(results["troubles"])]
    return "\n".join(lines)


SHOWN: Iterable[tuple[str, str, str, float]] = (
    ("mcd", "MCD without c0", ", dB", 1),
    ("mcd_c0", "MCD with c0", ", dB", 1),
    ("f0_rmse_hz", "F0 RMSE", ", Hz", 1),
    ("f0_correlation", "F0 correlation", "", 1),
    ("voicing_error", "voicing decision error", ", %", 100),
    ("gross_pitch_error", "gross pitch error", ", %", 100),
    ("duration_difference_s", "duration difference", ", s", 1),
)


def _few(items: Sequence[str], most: int = 5) -> list[str]:
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return [*items[:most], *rest]


if __name__ == "__main__":
    sys.exit(main())
