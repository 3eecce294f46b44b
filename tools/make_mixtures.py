"""Mix recordings with noise or with another speaker, for tests of enhancement and separation.

python tools/make_mixtures.py --cuts cuts_test.jsonl.gz --noise noise.jsonl.gz --output data/mixed
python tools/make_mixtures.py --cuts cuts_test.jsonl.gz --output data/two      # of two speakers
python tools/make_mixtures.py --cuts cuts_test.jsonl.gz --noise cuts_speech.jsonl.gz \\
  --noise-count 3 7 --output data/babble     # in the babble of three to seven

Writes OUTPUT/mixed/*.flac, OUTPUT/sources/*.flac and OUTPUT/cuts.jsonl.gz, whose cuts name their
sources: the speech alone, or both speakers as they are in the mixture, which is their sum. The
ratio of powers is drawn from --ratio-db for each. Several noises at once are brought to one power,
and their sum to the ratio. Everything follows from --seed; mixture n of a larger --number is that
of a smaller one. `speechssl score` states a digest of the audio, the same for the same mixtures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile

from speechssl.corpora.manifest import JsonlWriter, cut_row, read_header
from speechssl.data.fields import cut_rows, field_of
from speechssl.data.index import SAMPLE_RATE, record_from_cut
from speechssl.data.reader import read_part

LOUDEST = 0.9
TRIES = 100  # to find a part of a noise that is not silent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--noise", nargs="+", help="cuts of noise; without: another speaker")
    parser.add_argument("--noise-count", type=int, nargs=2, default=[1, 1], help="at once")
    parser.add_argument("--number", type=int, help="mixtures; one of each cut")
    parser.add_argument("--ratio-db", type=float, nargs=2, default=[0.0, 10.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    cuts = list(cut_rows(options.cuts))
    others = list(cut_rows(options.noise)) if options.noise else cuts
    if not options.noise and len({field_of(c, "speaker") for c in cuts}) < 2:
        raise SystemExit("make_mixtures: found fewer than two speakers, want two, or --noise")
    fewest, most = options.noise_count
    limit = len(others) if options.noise else 1  # one other speaker
    if not 1 <= fewest <= most <= limit:
        raise SystemExit(
            f"make_mixtures: found --noise-count {fewest} {most}, want fewest and most, from 1 to "
            f"{limit}: {'as many noises there are' if options.noise else 'there is no --noise'}"
        )
    for name in ("mixed", "sources"):
        (options.output / name).mkdir(parents=True, exist_ok=True)
    writer = JsonlWriter(options.output / "cuts.jsonl.gz")
    for number in range(options.number or len(cuts)):
        random = np.random.default_rng([options.seed, number])
        cut = cuts[number % len(cuts)]
        choice = others
        if not options.noise:
            who = field_of(cut, "speaker")
            choice = [c for c in others if field_of(c, "speaker") != who]
        first = read(cut)
        if not power(first):
            raise SystemExit(f"make_mixtures: found silence in {cut['id']}, want cuts with sound")
        for _ in range(TRIES):
            added = drawn(choice, fewest, most, random)
            second = together([stretched(read(c), len(first), random) for c in added])
            if power(second):
                break
        else:
            names = ", ".join(c["id"] for c in added)
            raise SystemExit(f"make_mixtures: found silence {TRIES} times, want sound; now {names}")
        ratio_db = random.uniform(*options.ratio_db)
        second = second * np.sqrt(power(first) / power(second) / 10 ** (ratio_db / 10))
        loudest = max(float(np.abs(x).max()) for x in (first, second, first + second))
        waves = [x * min(1.0, LOUDEST / loudest) for x in (first, second)]
        name = f"{options.output.name}-{number:05d}"
        path = options.output / "mixed" / f"{name}.flac"
        soundfile.write(path, sum(waves), SAMPLE_RATE)
        sources = []
        for i, wave in enumerate(waves[: 1 if options.noise else 2]):
            sources.append(options.output / "sources" / f"{name}.{i}.flac")
            soundfile.write(sources[-1], wave, SAMPLE_RATE)
        custom = {
            "sources": [str(p.resolve()) for p in sources],
            "of": [cut["id"], *(c["id"] for c in added)],
            "ratio_db": round(ratio_db, 3),
        }
        row = cut_row(id=name, audio=path.resolve(), header=read_header(path), custom=custom)
        writer.write(row)
    writer.close()
    print(f"{options.output}: {options.number or len(cuts)} mixtures")


def power(wave: np.ndarray) -> float:
    return float(np.square(wave).mean())


def drawn(choice: list[dict], fewest: int, most: int, random: np.random.Generator) -> list[dict]:
    """Different cuts of `choice`, as many as are drawn."""
    if most == 1:
        return [choice[int(random.integers(len(choice)))]]
    count = int(random.integers(fewest, most + 1))
    return [choice[int(i)] for i in random.choice(len(choice), count, replace=False)]


def together(waves: list[np.ndarray]) -> np.ndarray:
    """The sum of waves, each as loud as the others; a silent one adds nothing."""
    if len(waves) == 1:
        return waves[0]
    return np.sum([w / np.sqrt(power(w)) for w in waves if power(w)] or waves, axis=0)


def read(cut: dict) -> np.ndarray:
    record = record_from_cut(cut)
    return read_part(record, 0, record.num_samples)


def stretched(wave: np.ndarray, length: int, random: np.random.Generator) -> np.ndarray:
    """A part of `length` samples, from anywhere; a shorter wave lies anywhere in silence."""
    if len(wave) >= length:
        begin = int(random.integers(len(wave) - length + 1))
        return wave[begin : begin + length]
    begin = int(random.integers(length - len(wave) + 1))
    return np.pad(wave, (begin, length - len(wave) - begin))


if __name__ == "__main__":
    main()
