"""Mix recordings with noise or with another speaker, for tests of enhancement and separation.

python tools/make_mixtures.py --cuts cuts_test.jsonl.gz --noise noise.jsonl.gz --output data/mixed
python tools/make_mixtures.py --cuts cuts_test.jsonl.gz --output data/two      # of two speakers

Writes OUTPUT/mixed/*.flac, OUTPUT/sources/*.flac and OUTPUT/cuts.jsonl.gz, whose cuts name their
sources: the speech alone, or both speakers as they are in the mixture, which is their sum. The
ratio of powers is drawn from --ratio-db for each; everything follows from --seed.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", required=True)
    parser.add_argument("--noise", nargs="+", help="cuts of noise; without: another speaker")
    parser.add_argument("--number", type=int, help="mixtures; one of each cut")
    parser.add_argument("--ratio-db", type=float, nargs=2, default=[0.0, 10.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    cuts = list(cut_rows(options.cuts))
    others = list(cut_rows(options.noise)) if options.noise else cuts
    if not options.noise and len({field_of(c, "speaker") for c in cuts}) < 2:
        raise SystemExit("make_mixtures: found fewer than two speakers, want two, or --noise")
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
        other = choice[int(random.integers(len(choice)))]
        first = read(cut)
        second = stretched(read(other), len(first), random)
        ratio_db = random.uniform(*options.ratio_db)
        powers = [max(float(np.square(x).mean()), 1e-12) for x in (first, second)]
        second = second * np.sqrt(powers[0] / powers[1] / 10 ** (ratio_db / 10))
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
            "of": [cut["id"], other["id"]],
            "ratio_db": round(ratio_db, 3),
        }
        row = cut_row(id=name, audio=path.resolve(), header=read_header(path), custom=custom)
        writer.write(row)
    writer.close()
    print(f"{options.output}: {options.number or len(cuts)} mixtures")


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
