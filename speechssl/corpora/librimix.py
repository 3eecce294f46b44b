"""Libri2Mix's mixtures of two speakers, and the sources that they are made of.

Layout: SOURCE/wav16k/min/{train-100,dev,test}/{mix_clean,s1,s2}/NAME.wav, as LibriMix's scripts
write them. Test holds the mixtures with the paths of their sources, for `speechssl score`; train
and valid hold the sources, which `data.mixing` mixes anew. The split mixtures holds the mixture of
each of them, for `data.mixtures`: the published pairs.

Differs from lhotse.recipes.prepare_librimix, which mixes when it reads, in mode max only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where Libri2Mix lies."""

    source: str
    """Folder Libri2Mix, which holds wav16k."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    mode: str = "min"
    """min: as long as the shorter source; max: as the longer one."""
    train: str = "train-100"
    """Part to train on."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of train, valid, test and mixtures; return split -> file."""
    return write_listed(
        _files(config, Path(config.source) / "wav16k" / config.mode),
        config.output,
        corpus="librimix",
        max_missing_fraction=config.max_missing_fraction,
    )


def _files(config: Config, root: Path) -> Iterator[Listed]:
    for split, part in (("train", config.train), ("valid", "dev"), ("test", "test")):
        folders = ("mix_clean", "s1", "s2")
        absent = [f"{part}/{x}" for x in folders if not (root / part / x).is_dir()]
        if absent:
            raise ValueError(
                f"source: found no {', '.join(absent)} in {root}, want them; "
                "https://github.com/JorisCos/LibriMix makes them of LibriSpeech"
            )
        if split == "test":
            for mixture in sorted((root / part / "mix_clean").glob("*.wav")):
                sources = [root / part / x / mixture.name for x in folders[1:]]
                custom = {"sources": [str(path.resolve()) for path in sources]}
                yield Listed(id=mixture.stem, audio=mixture, split=split, custom=custom)
            continue
        for place, folder in enumerate(folders[1:]):
            for audio in sorted((root / part / folder).glob("*.wav")):
                # SPEAKER-CHAPTER-NUMBER_SPEAKER-CHAPTER-NUMBER: of the first and of the second.
                names = audio.stem.split("_")
                who = names[place].split("-")[0] if len(names) == 2 else None
                name = f"{audio.stem}-{folder}"
                yield Listed(id=name, audio=audio, split=split, speaker=who)
                mixture = root / part / "mix_clean" / audio.name
                custom = {"mixture_of": name}
                yield Listed(id=f"{name}-mix", audio=mixture, split="mixtures", custom=custom)
