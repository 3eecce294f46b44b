"""Make conversations of single-speaker cuts, for diarization: pauses, overlaps, who speaks when.

python tools/make_dialogues.py --cuts cuts_train.jsonl.gz --number 100 --output data/train

Writes OUTPUT/audio/*.flac, OUTPUT/cuts.jsonl.gz (a supervision per turn) and to --labels, a label
store of which bit s says that speaker s is active in a frame of 10 ms. Speakers take turns at
random; silence at the ends of a cut is cut off. Everything follows from --seed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.data.fields import cut_rows, field_of
from speechssl.data.index import SAMPLE_RATE, record_from_cut
from speechssl.data.label_store import LabelWriter
from speechssl.data.reader import read_part

FRAME = 160
QUIET_DB = 35.0  # below the loudest frame counts as silence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--field", default="speaker")
    parser.add_argument("--number", type=int, default=100, help="conversations")
    parser.add_argument("--speakers", type=int, default=2)
    parser.add_argument("--turns", type=int, nargs=2, default=[4, 8], help="fewest and most")
    parser.add_argument("--overlap", type=float, default=0.4, help="share of turns that interrupt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="label store to add to; OUTPUT/activity")
    options = parser.parse_args()
    voices = defaultdict(list)
    for cut in cut_rows(options.cuts):
        voices[field_of(cut, options.field)].append(record_from_cut(cut))
    voices.pop(None, None)
    if len(voices) < options.speakers:
        raise SystemExit(
            f"make_dialogues: found {len(voices)} speakers, want {options.speakers} or more"
        )
    if options.turns[0] < options.speakers:
        raise SystemExit(
            f"make_dialogues: found {options.turns[0]} turns, want one of each speaker at least"
        )
    (options.output / "audio").mkdir(parents=True, exist_ok=True)
    writer = JsonlWriter(options.output / "cuts.jsonl.gz")
    meta = {"classes": 2**options.speakers, "frame_rate_hz": SAMPLE_RATE // FRAME}
    labels = LabelWriter(
        options.labels or options.output / "activity", {"name": "activity", **meta}
    )
    spoken = overlapped = 0
    for number in range(options.number):
        random = np.random.default_rng([options.seed, number])
        wave, turns = dialogue(voices, random, options)
        name = f"{options.output.name}-dialogue{number:05d}"
        path = options.output / "audio" / f"{name}.flac"
        soundfile.write(path, wave, SAMPLE_RATE)
        row = cut_row(id=name, audio=path.resolve(), header=read_header(path))
        row["supervisions"] = [
            {"id": f"{name}-{i}", "recording_id": name, "start": begin / SAMPLE_RATE,
             "duration": (end - begin) / SAMPLE_RATE, "channel": 0, "speaker": str(who)}
            for i, (who, begin, end) in enumerate(turns)
        ]  # fmt: skip
        writer.write(row)
        names = list(dict.fromkeys(who for who, _, _ in turns))
        active = np.zeros((options.speakers, -(-len(wave) // FRAME)), dtype=bool)
        for who, begin, end in turns:
            active[names.index(who), round(begin / FRAME) : round(end / FRAME)] = True
        if name not in labels:
            labels.add(name, (active * 2 ** np.arange(options.speakers)[:, None]).sum(0))
        spoken += int(active.any(0).sum())
        overlapped += int((active.sum(0) > 1).sum())
    writer.close()
    labels.finish()
    print(
        f"{options.output}: {options.number} conversations, {spoken / 6000:.1f} min of speech, "
        f"{overlapped / max(spoken, 1):.1%} of it overlapped"
    )


def dialogue(
    voices: dict, random: np.random.Generator, options: argparse.Namespace
) -> tuple[np.ndarray, list[tuple[str, int, int]]]:
    """A wave, and (speaker, first sample, behind the last) of each turn."""
    who = random.choice(sorted(voices), options.speakers, replace=False)
    count = int(random.integers(options.turns[0], options.turns[1] + 1))
    order = list(random.permutation(options.speakers))
    while len(order) < count:
        order.append(int(random.integers(options.speakers)))
    turns, parts, last_of = [], [], {}
    end = int(random.integers(SAMPLE_RATE // 2))
    before = None
    for speaker in order:
        cut = voices[who[speaker]][int(random.integers(len(voices[who[speaker]])))]
        wave = trimmed(read_part(cut, 0, cut.num_samples))
        wave = wave * 0.05 / max(float(np.sqrt(np.square(wave).mean())), 1e-9)
        wave = wave * 10 ** (random.uniform(-3, 3) / 20)
        begin = end + int(random.uniform(0.1, 1.0) * SAMPLE_RATE)
        if before is not None and before != speaker and random.random() < options.overlap:
            begin = max(0, end - int(random.uniform(0.1, 0.5) * len(wave)))
        begin = max(begin, last_of.get(speaker, 0))  # nobody interrupts themselves
        begin = -(-begin // FRAME) * FRAME  # labels are exact
        turns.append((str(who[speaker]), begin, begin + len(wave)))
        parts.append(wave)
        last_of[speaker] = begin + len(wave)
        end, before = max(end, begin + len(wave)), speaker
    whole = np.zeros(end + int(random.integers(SAMPLE_RATE // 2)), dtype=np.float32)
    for (_, begin, behind), wave in zip(turns, parts, strict=True):
        whole[begin:behind] += wave
    return whole * min(1.0, 0.95 / float(np.abs(whole).max())), turns


def trimmed(wave: np.ndarray) -> np.ndarray:
    """Without the silence at both ends, in steps of 10 ms; an all but empty one stays whole."""
    wave = wave[: len(wave) // FRAME * FRAME]
    frames = wave.reshape(-1, FRAME)
    power = np.square(frames).mean(1) if len(frames) else np.zeros(0)
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-QUIET_DB / 10))
    return wave[loud[0] * FRAME : (loud[-1] + 1) * FRAME] if len(loud) else wave


if __name__ == "__main__":
    main()
