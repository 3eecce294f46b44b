"""VoiceBank-DEMAND: clean and noisy speech of the same utterances, for enhancement.

Layout: SOURCE/{clean,noisy}_{trainset_28spk,testset}_wav/p226_001.wav, brought to 16 kHz, or
folders of these names with _16k behind them. Test holds the noisy recordings with the paths of the
clean ones, for `speechssl score`. Train and valid (two of the training speakers) hold clean speech,
and OUTPUT/noise what was added to it (noisy minus clean), which `data.mixing` adds to other
utterances. The split mixtures holds the noisy recording of each of them, for `data.mixtures`:
the published pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed
from speechssl.corpora.manifest import read_header

RATE = 16000
VALID = ("p226", "p287")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where VoiceBank-DEMAND lies."""

    source: str
    """Folder that holds clean_trainset_28spk_wav and so on."""
    output: str
    """Folder for cuts_<split>.jsonl.gz, noise and missing.txt."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of train, valid, test, noise and mixtures; return split -> file.

    Raises `ValueError` for folders that are absent, or not at 16 kHz.
    """
    return write_listed(
        _files(config),
        config.output,
        corpus="voicebank_demand",
        max_missing_fraction=config.max_missing_fraction,
    )


def _files(config: Config) -> Iterator[Listed]:
    source = Path(config.source)
    for part in ("trainset_28spk", "testset"):
        for clean, noisy in _pairs(source, part):
            who = clean.stem.split("_")[0]
            if part == "testset":
                custom = {"sources": [str(clean.resolve())]}
                yield Listed(id=clean.stem, audio=noisy, split="test", speaker=who, custom=custom)
                continue
            split = "valid" if who in VALID else "train"
            yield Listed(id=clean.stem, audio=clean, split=split, speaker=who)
            custom = {"mixture_of": clean.stem}
            yield Listed(id=f"noisy-{clean.stem}", audio=noisy, split="mixtures", custom=custom)
            if split == "train":
                noise = Path(config.output) / "noise" / f"{clean.stem}.flac"
                _write_difference(clean, noisy, noise)
                yield Listed(id=f"noise-{clean.stem}", audio=noise, split="noise")


def _pairs(source: Path, part: str) -> list[tuple[Path, Path]]:
    folders = [source / f"{kind}_{part}_wav" for kind in ("clean", "noisy")]
    converted = [folder.with_name(f"{folder.name}_16k") for folder in folders]
    folders = [other if other.is_dir() else own for own, other in zip(folders, converted)]
    absent = [folder.name for folder in folders if not folder.is_dir()]
    if absent:
        raise ValueError(
            f"source: found no {', '.join(absent)} in {source}, want them; "
            "https://datashare.ed.ac.uk/handle/10283/2791"
        )
    pairs = [(clean, folders[1] / clean.name) for clean in sorted(folders[0].glob("*.wav"))]
    for path in pairs[0] if pairs else ():
        rate = read_header(path).sampling_rate
        if rate != RATE:
            raise ValueError(
                f"source: found {rate} Hz in {path}, want {RATE}: estimates are compared with "
                "these files; resample each with sox IN.wav -r 16000 OUT.wav"
            )
    return pairs


def _write_difference(clean: Path, noisy: Path, output: Path) -> None:
    import soundfile

    if output.is_file() or not noisy.is_file():  # one that is missing is noted as such
        return
    waves = [soundfile.read(path, dtype="float32")[0] for path in (noisy, clean)]
    length = min(map(len, waves))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}")
    soundfile.write(temporary, waves[0][:length] - waves[1][:length], RATE, format="FLAC")
    temporary.replace(output)
