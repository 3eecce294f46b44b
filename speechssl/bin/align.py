"""`speechssl align`: when each phone and word of a transcript is said."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechssl.config import parse
from speechssl.labels.align_config import AlignOptions

if TYPE_CHECKING:
    import numpy as np

    from speechssl.labels.align_graph import Graph
    from speechssl.labels.align_model import Monophones
    from speechssl.labels.pronunciations import Ways

DESCRIPTION = """Add the times of phones and words to transcribed cuts, from the cuts alone.

Trains hidden Markov models of single phones on the cuts (or takes those of --model), aligns, and
writes the cuts with alignments "phone" and "word" under their own names, with monophones.*,
align.json, and left_out.tsv: what could not be aligned, and is written as it is. A run that was
stopped after training goes on with --model of its own folder. For `speechssl probe`, `cluster
quality` and `segment --reference` on corpora without alignments; not as exact as an aligner with
phones in context, such as the Montreal Forced Aligner."""

WINDOW, SHIFT = 0.025, 0.010
"""Seconds of a frame, and from one to the next."""
PAUSE = "sil"


def main(argv: list[str] | None = None) -> int:
    options = parse(AlignOptions, argv, prog="speechssl align", description=DESCRIPTION)
    try:
        print(run(options))
        return 0
    except ValueError as error:
        print(f"speechssl align: error: {error}", file=sys.stderr)
        return 2


@dataclasses.dataclass
class Utterance:
    """What is said in a cut. frames: (T, 13) MFCC, of those that train."""

    row: dict[str, Any]
    read: Any
    words: list[tuple[str, Ways]]
    speaker: str
    frames: np.ndarray | None = None


def run(options: AlignOptions) -> str:
    from speechssl.labels.align_model import Monophones
    from speechssl.labels.sample_file import write_json

    started = time.monotonic()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    left_out: dict[str, str] = {}
    utterances = transcripts(options, left_out)
    model = None if options.model is None else Monophones.load(options.model)
    means = read(utterances, 0.0 if model else options.train_hours, left_out)
    utterances = [u for u in utterances if u.row["id"] not in left_out]
    if model is None:
        model = trained(options, utterances, means)
        model.save(output, seconds=round(time.monotonic() - started, 1))
    score, frames = write(options, model, utterances, means, left_out)
    lines = [f"{name}\t{why}\n" for name, why in left_out.items()]
    (output / "left_out.tsv").write_text("".join(lines), encoding="utf-8")
    aligned = len(utterances) - sum(u.row["id"] in left_out for u in utterances)
    report = {
        "options": dataclasses.asdict(options), "aligned": aligned, "left_out": len(left_out),
        "hours": frames * SHIFT / 3600, "log_likelihood_per_frame": score / max(frames, 1),
        "phones": list(model.phones), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    write_json(output / "align.json", report)
    if not aligned:
        raise ValueError(f"cuts: found none that could be aligned; {output}/left_out.tsv says why")
    first = next(iter(left_out.items()), None)
    rest = "" if first is None else f"; left out {len(left_out)} (first: {first[0]}: {first[1]})"
    return f"aligned {aligned} cuts, {frames * SHIFT / 3600:.2f} h{rest}"


def transcripts(options: AlignOptions, left_out: dict[str, str]) -> list[Utterance]:
    """What is said in every cut of which it can be told."""
    from speechssl.hub.cuts import CutItems
    from speechssl.labels.pronunciations import read_lexicon, transcribed

    lexicon = {} if options.lexicon is None else read_lexicon(options.lexicon)
    items = CutItems(options.cuts)
    found: list[Utterance] = []
    for item, plain in zip(items, items.plain_cuts()):
        row = plain()
        try:
            words = transcribed(row, options.phones_field, lexicon)
        except ValueError as error:
            left_out[row["id"]] = str(error)
            continue
        speaker = str(row["supervisions"][0].get("speaker") or row["id"])
        found.append(Utterance(row, item.read, words, speaker))
    if not found:
        name, why = next(iter(left_out.items()), ("", "no cuts"))
        raise ValueError(f"cuts: found none whose phones are known ({name}: {why}); give --lexicon")
    return found


def read(
    utterances: list[Utterance], train_hours: float, left_out: dict[str, str]
) -> dict[str, np.ndarray]:
    """Speaker -> mean of the MFCC, (13,); keeps the frames of those that train."""
    import numpy as np

    hours = sum(u.row["duration"] for u in utterances) / 3600
    share = min(1.0, train_hours / max(hours, 1e-9))
    sums: dict[str, np.ndarray] = {}
    for number, (u, frames) in enumerate(mfcc(utterances, left_out, "reading")):
        total = sums.setdefault(u.speaker, np.zeros(frames.shape[1] + 1))
        total += np.append(frames.sum(0), len(frames))
        if int((number + 1) * share) > int(number * share):
            u.frames = frames
    return {name: total[:-1] / max(total[-1], 1) for name, total in sums.items()}


def mfcc(
    utterances: list[Utterance], left_out: dict[str, str], what: str
) -> Iterator[tuple[Utterance, np.ndarray]]:
    """Utterances with their (T, 13) frames; what cannot be read is left out."""
    import torch
    from tqdm import tqdm

    from speechssl.data.index import SAMPLE_RATE
    from speechssl.hub.audio import to_wave
    from speechssl.labels.features import MfccFeatures

    extractor = MfccFeatures()
    for u in tqdm(utterances, desc=what, unit=" cuts", disable=None):
        try:
            samples, rate = u.read()
            wave = to_wave(samples, rate, want_rate=SAMPLE_RATE, name=u.row["id"])
        except (ValueError, OSError, RuntimeError) as error:
            left_out[u.row["id"]] = str(error).replace("\n", " ")
            continue
        if len(wave) < WINDOW * SAMPLE_RATE:
            left_out[u.row["id"]] = f"{len(wave)} samples"
            continue
        with torch.inference_mode():
            yield u, extractor.layer(torch.from_numpy(wave.copy())[None])[0].numpy()


def with_deltas(frames: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(T, 13) -> (T, 39) float64: less the speaker's mean, with slopes and their slopes."""
    import numpy as np
    import torch

    from speechssl.labels.features import deltas

    base = torch.from_numpy(frames - mean)[None]
    length = torch.tensor([base.shape[1]])
    first = deltas(base, length)
    return np.asarray(torch.cat([base, first, deltas(first, length)], dim=-1)[0])


def graph_of(u: Utterance, number: dict[str, int]) -> Graph:
    from speechssl.labels.align_graph import graph

    return graph([[[number[p] for p in way] for way in ways] for _, ways in u.words])


def trained(
    options: AlignOptions, utterances: list[Utterance], means: dict[str, np.ndarray]
) -> Monophones:
    from speechssl.labels.align_model import train

    chosen = [u for u in utterances if u.frames is not None]
    names = sorted({p for u in utterances for _, ways in u.words for way in ways for p in way})
    number = {name: i for i, name in enumerate([PAUSE, *(n for n in names if n != PAUSE)])}
    features = [with_deltas(u.frames, means[u.speaker]) for u in chosen if u.frames is not None]

    def say(iteration: int, score: float) -> None:
        print(f"iteration {iteration}/{options.iterations}: {score:.3f} nats per frame", flush=True)

    return train(
        list(number), [graph_of(u, number) for u in chosen], features,
        iterations=options.iterations, gaussians=options.gaussians, seed=options.seed, progress=say,
    )  # fmt: skip


def write(
    options: AlignOptions,
    model: Monophones,
    utterances: list[Utterance],
    means: dict[str, np.ndarray],
    left_out: dict[str, str],
) -> tuple[float, int]:
    """All cuts under their own names, with alignments; the sum of log likelihoods, and frames."""
    from speechssl.corpora.manifest import JsonlWriter, alignment_items
    from speechssl.data.fields import cut_rows

    number = {name: i for i, name in enumerate(model.phones)}
    total, frames, found = 0.0, 0, {}
    for u, base in mfcc(utterances, left_out, "aligning"):
        strange = {p for _, ways in u.words for way in ways for p in way} - number.keys()
        if strange:
            left_out[u.row["id"]] = f"phones that the model lacks: {' '.join(sorted(strange))}"
            continue
        g = graph_of(u, number)
        result = model.align(g, with_deltas(base, means[u.speaker]))
        if result is None:
            left_out[u.row["id"]] = f"{len(base)} frames are fewer than its phones need, 3 each"
            continue
        found[u.row["id"]] = times(g, result[0], model.phones, u)
        total, frames = total + result[1], frames + len(base)
    for source, target in targets(options).items():
        writer = JsonlWriter(target)
        for row in cut_rows([source]):
            if row["id"] in found:
                spoken = row["supervisions"][0]
                shifted = {
                    kind: [(s, a - spoken["start"], b - spoken["start"]) for s, a, b in items]
                    for kind, items in found[row["id"]].items()
                }
                made = {kind: alignment_items(items) for kind, items in shifted.items()}
                spoken["alignment"] = {**(spoken.get("alignment") or {}), **made}
            writer.write(row)
        writer.close()
    return total, frames


def times(
    g: Graph, states: np.ndarray, phones: tuple[str, ...], u: Utterance
) -> dict[str, list[tuple[str, float, float]]]:
    """(symbol, begin, end) in seconds of the cut. Frames meet halfway between their centres."""
    import numpy as np

    parts = g.part[states]
    begins = np.flatnonzero(np.r_[True, parts[1:] != parts[:-1]])
    edges = [0.0, *((begins[1:] - 0.5) * SHIFT + WINDOW / 2), float(u.row["duration"])]
    said = [g.parts[parts[b]] for b in begins]
    spans = list(zip(said, edges, edges[1:]))
    words: list[tuple[str, float, float]] = []
    last = -1
    for part, begin, end in spans:
        if part.word < 0:
            continue
        if part.word == last:
            words[-1] = (words[-1][0], words[-1][1], end)
        else:
            words.append((u.words[part.word][0], begin, end))
        last = part.word
    return {"phone": [(phones[p.phone], a, b) for p, a, b in spans], "word": words}


def targets(options: AlignOptions) -> dict[str, Path]:
    """Manifest -> where it is written; folders' names tell apart what is called alike."""
    paths = [Path(p) for p in options.cuts]
    names = [p.name for p in paths]
    alike = len(set(names)) < len(names)
    found = {
        str(p): Path(options.output) / (f"{p.resolve().parent.name}_{p.name}" if alike else p.name)
        for p in paths
    }
    own = {str(p.resolve()) for p in paths} & {str(t.resolve()) for t in found.values()}
    if len(set(found.values())) < len(found) or own:
        raise ValueError(
            f"output: found {options.output} for {', '.join(options.cuts)}, want another folder "
            "than theirs, and manifests whose names or folders differ"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
