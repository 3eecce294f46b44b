"""`speechssl align`: when each phone and word of a transcript is said."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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
SLACK = 0.1
"""Seconds that a supervision may begin before its cut, or end behind it."""
LONGEST = 300.0
"""Seconds of a supervision: memory grows with its square."""


def main(argv: list[str] | None = None) -> int:
    options = parse(AlignOptions, argv, prog="speechssl align", description=DESCRIPTION)
    try:
        print(run(options))
        return 0
    except ValueError as error:
        print(f"speechssl align: error: {error}", file=sys.stderr)
        return 2


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What is said in a cut from `begin` to `end`, in seconds of it."""

    id: str
    read: Any
    words: list[tuple[str, Ways]]
    speaker: str
    begin: float
    end: float


def run(options: AlignOptions) -> str:
    """Reads the cuts three times, the second and third time with their audio. Holds in memory the
    frames that train, and of every speaker a mean."""
    from speechssl.labels.align_model import Monophones
    from speechssl.labels.pronunciations import read_lexicon
    from speechssl.labels.sample_file import write_json

    started = time.monotonic()
    output = Path(options.output)
    places = targets(options)
    lexicon = {} if options.lexicon is None else read_lexicon(options.lexicon)
    model = None if options.model is None else Monophones.load(options.model)
    names, seconds = survey(options, lexicon)
    share = 0.0 if model else min(1.0, 3600 * options.train_hours / max(seconds, 1e-9))
    output.mkdir(parents=True, exist_ok=True)
    means, chosen = read(options, lexicon, share)
    if model is None:
        model = trained(options, names, chosen, means)
        model.save(output, seconds=round(time.monotonic() - started, 1))
    chosen.clear()
    left_out: dict[str, str] = {}
    sums = [
        write(source, target, options, lexicon, model, means, left_out)
        for source, target in places.items()
    ]
    count, frames, score = map(sum, zip(*sums))
    lines = [f"{name}\t{why}\n" for name, why in left_out.items()]
    (output / "left_out.tsv").write_text("".join(lines), encoding="utf-8")
    report = {
        "options": dataclasses.asdict(options), "aligned": count, "left_out": len(left_out),
        "hours": frames * SHIFT / 3600, "log_likelihood_per_frame": score / max(frames, 1),
        "phones": list(model.phones), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    write_json(output / "align.json", report)
    if not count:
        raise ValueError(f"cuts: found none that could be aligned; {output}/left_out.tsv says why")
    first = next(iter(left_out.items()), None)
    rest = "" if first is None else f"; left out {len(left_out)} (first: {first[0]}: {first[1]})"
    return f"aligned {count} cuts, {frames * SHIFT / 3600:.2f} h{rest}"


def utterances(
    what: str, cuts: Sequence[str], options: AlignOptions, lexicon: Mapping[str, Ways]
) -> Iterator[tuple[dict[str, Any], Utterance | str]]:
    """Plain values of every cut, and what is said in it, or why that cannot be told.

    what: name of the progress that is shown.
    """
    from speechssl.hub.cuts import CutItems
    from speechssl.labels.stream import Progress

    items = CutItems(cuts)
    with Progress(what, len(items)) as progress:
        for item, plain in zip(items, items.plain_cuts()):
            row = plain()
            found: Utterance | str
            try:
                found = utterance(row, item.read, options, lexicon)
            except ValueError as error:
                found = str(error)
            yield row, found
            progress(row.get("duration", 0.0), 1)


def utterance(
    row: dict[str, Any], read: Any, options: AlignOptions, lexicon: Mapping[str, Ways]
) -> Utterance:
    from speechssl.labels.pronunciations import transcribed

    words = transcribed(row, options.phones_field, lexicon, options.unknown)
    (spoken,) = row["supervisions"]
    begin, end = spoken["start"], spoken["start"] + spoken["duration"]
    if begin < -SLACK or end > row["duration"] + SLACK:
        raise ValueError(f"its supervision is from {begin:g} to {end:g} s of {row['duration']:g} s")
    if end - begin > LONGEST:
        raise ValueError(f"{end - begin:.0f} s, want {LONGEST:.0f} s at most")
    speaker = str(spoken.get("speaker") or row["id"])
    return Utterance(row["id"], read, words, speaker, max(begin, 0.0), min(end, row["duration"]))


def survey(options: AlignOptions, lexicon: Mapping[str, Ways]) -> tuple[list[str], float]:
    """Names of the phones that may be said, the pause first, and seconds of speech."""
    names: set[str] = set()
    seconds, first = 0.0, ("", "no cuts")
    for row, u in utterances("transcripts", options.cuts, options, lexicon):
        if isinstance(u, Utterance):
            seconds += u.end - u.begin
            names.update(p for _, ways in u.words for way in ways for p in way)
        elif not first[0]:
            first = row["id"], u
    if not names:
        raise ValueError(
            f"cuts: found none whose phones are known ({first[0]}: {first[1]}); give --lexicon"
        )
    return [PAUSE, *sorted(names - {PAUSE})], seconds


def read(
    options: AlignOptions, lexicon: Mapping[str, Ways], share: float
) -> tuple[dict[str, np.ndarray], list[tuple[Utterance, np.ndarray]]]:
    """Speaker -> mean of the MFCC, (13,); and a share of the utterances with their frames."""
    import numpy as np

    from speechssl.data.reader import UnusableError

    mfcc, number, first = Mfcc(), 0, ""
    sums: dict[str, np.ndarray] = {}
    chosen = []
    for _, u in utterances("reading", options.cuts, options, lexicon):
        if not isinstance(u, Utterance):
            continue
        try:
            frames = mfcc(u)
        except UnusableError as error:  # left out when its turn to be aligned comes
            first = first or f"{u.id}: {error}"
            continue
        total = sums.setdefault(u.speaker, np.zeros(frames.shape[1] + 1))
        total += np.append(frames.sum(0, dtype=np.float64), len(frames))
        number += 1
        if math.ceil(number * share) > math.ceil((number - 1) * share):
            chosen.append((u, frames))
    if not sums:
        raise ValueError(f"cuts: found no audio that can be used ({first})")
    return {name: total[:-1] / total[-1] for name, total in sums.items()}, chosen


class Mfcc:
    """Utterance -> its (T, 13) frames, float32. Raises `UnusableError` with the reason."""

    def __init__(self) -> None:
        from speechssl.labels.features import MfccFeatures

        self.layer = MfccFeatures().layer

    def __call__(self, u: Utterance) -> np.ndarray:
        import torch

        from speechssl.data.index import SAMPLE_RATE
        from speechssl.data.reader import UnusableError
        from speechssl.hub.audio import to_wave

        try:
            samples, rate = u.read()
            wave = to_wave(samples, rate, want_rate=SAMPLE_RATE, name=u.id)
        except (ValueError, OSError, RuntimeError) as error:
            raise UnusableError(" ".join(str(error).split())) from None
        wave = wave[round(u.begin * SAMPLE_RATE) : round(u.end * SAMPLE_RATE)]
        if len(wave) < WINDOW * SAMPLE_RATE:
            raise UnusableError(f"{len(wave)} samples")
        with torch.inference_mode():
            return self.layer(torch.from_numpy(wave.copy())[None])[0].numpy()


def with_deltas(frames: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(T, 13) -> (T, 39) float32: less the speaker's mean, with slopes and their slopes."""
    import numpy as np
    import torch

    from speechssl.labels.features import deltas

    base = torch.from_numpy(frames - mean)[None]
    length = torch.tensor([base.shape[1]])
    first = deltas(base, length)
    return np.asarray(torch.cat([base, first, deltas(first, length)], dim=-1)[0].float())


def graph_of(u: Utterance, number: dict[str, int]) -> Graph:
    from speechssl.labels.align_graph import graph

    return graph([[[number[p] for p in way] for way in ways] for _, ways in u.words])


def trained(
    options: AlignOptions,
    names: list[str],
    chosen: list[tuple[Utterance, np.ndarray]],
    means: dict[str, np.ndarray],
) -> Monophones:
    from speechssl.labels.align_model import train

    number = {name: i for i, name in enumerate(names)}

    def say(iteration: int, score: float) -> None:
        print(f"iteration {iteration}/{options.iterations}: {score:.3f} nats per frame", flush=True)

    return train(
        names, [graph_of(u, number) for u, _ in chosen],
        [with_deltas(frames, means[u.speaker]) for u, frames in chosen],
        iterations=options.iterations, gaussians=options.gaussians, seed=options.seed, progress=say,
    )  # fmt: skip


def write(
    source: str,
    target: Path,
    options: AlignOptions,
    lexicon: Mapping[str, Ways],
    model: Monophones,
    means: dict[str, np.ndarray],
    left_out: dict[str, str],
) -> tuple[int, int, float]:
    """All cuts of a manifest, with alignments where they can be. How many have them, their frames
    and log likelihood. left_out: gets cut id -> reason."""
    from speechssl.corpora.manifest import JsonlWriter, alignment_items
    from speechssl.data.reader import UnusableError

    mfcc, number = Mfcc(), {name: i for i, name in enumerate(model.phones)}
    count, length, score = 0, 0, 0.0
    writer = JsonlWriter(target)
    try:
        for row, u in utterances(f"aligning {source}", [source], options, lexicon):
            try:
                if not isinstance(u, Utterance):
                    raise UnusableError(u)
                frames = mfcc(u)
                found, own = aligned(u, frames, model, number, means.get(u.speaker))
            except UnusableError as error:
                left_out[row["id"]] = str(error)
            else:
                spoken, start = row["supervisions"][0], row["start"]
                # Lhotse counts alignments from the recording's start.
                made = {
                    kind: alignment_items([(s, start + a, start + b) for s, a, b in items])
                    for kind, items in found.items()
                }
                spoken["alignment"] = {**(spoken.get("alignment") or {}), **made}
                count, length, score = count + 1, length + len(frames), score + own
            writer.write(row)
    except BaseException:
        writer.discard()
        raise
    writer.close()
    return count, length, score


Times = dict[str, list[tuple[str, float, float]]]
"""Kind -> (symbol, begin, end) in seconds of the cut."""


def aligned(
    u: Utterance,
    frames: np.ndarray,
    model: Monophones,
    number: dict[str, int],
    mean: np.ndarray | None,
) -> tuple[Times, float]:
    """Times and log likelihood. Raises `UnusableError` with the reason where there are none.

    frames: (T, 13). mean: (13,) of the speaker.
    """
    from speechssl.data.reader import UnusableError

    if mean is None:
        raise UnusableError("could not be read at first")
    strange = {p for _, ways in u.words for way in ways for p in way} - number.keys()
    if strange:
        raise UnusableError(f"phones that the model lacks: {' '.join(sorted(strange))}")
    g = graph_of(u, number)
    result = model.align(g, with_deltas(frames, mean))
    if result is None:
        raise UnusableError(f"{len(frames)} frames are fewer than its phones need, 3 each")
    return times(g, result[0], model.phones, u), result[1]


def times(g: Graph, states: np.ndarray, phones: tuple[str, ...], u: Utterance) -> Times:
    """Of the (T,) states of its frames, which meet halfway between their centres."""
    import numpy as np

    parts = g.part[states]
    begins = np.flatnonzero(np.r_[True, parts[1:] != parts[:-1]])
    edges = [u.begin, *(u.begin + (begins[1:] - 0.5) * SHIFT + WINDOW / 2), u.end]
    spans = [(g.parts[parts[b]], *edge) for b, edge in zip(begins, itertools.pairwise(edges))]
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
    for path in paths:
        if path.is_dir():
            raise ValueError(
                f"cuts: found the folder {path}, want a cuts_*.jsonl.gz file; align before "
                "`speechssl shard`"
            )
    names = [p.name for p in paths]
    alike = len(set(names)) < len(names)
    found = {
        str(p): Path(options.output) / (f"{p.resolve().parent.name}_{p.name}" if alike else p.name)
        for p in paths
    }
    own = {str(p.resolve()) for p in paths} & {str(t.resolve()) for t in found.values()}
    if len(set(found.values())) < len(paths) or own:
        raise ValueError(
            f"output: found {options.output} for {', '.join(options.cuts)}, want another folder "
            "than theirs, and manifests whose names or folders differ"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
