"""VoxCeleb2 (6112 speakers, 2400 h of interviews), dev to train speaker models on, and test.

Layout: SOURCE/dev/wav/id00012/VIDEO/00001.wav, and test beside dev; the published archives have aac
in place of wav and 00001.m4a, which are to be decoded first (FLAC in place of WAV is fine). No
speaker is one of VoxCeleb1. A cut's id is the file's path below wav.

Differs from lhotse.recipes.prepare_voxceleb, which joins dev, test and VoxCeleb1's dev, and reads
.m4a.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from speechssl.corpora.listed import Listed, write_listed

PARTS = ("dev", "test")
FOLDERS = ("wav", "flac", "aac")
SUFFIXES = (".wav", ".flac")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Where VoxCeleb2 lies, and which part to take."""

    source: str
    """Folder that holds dev and test."""
    output: str
    """Folder for cuts_dev.jsonl.gz, cuts_test.jsonl.gz and missing.txt."""
    parts: list[str] = dataclasses.field(default_factory=lambda: ["dev"])
    """Parts to take: dev, test or both."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every part; return part -> file.

    Raises `ValueError` for a part that is absent or not yet decoded.
    """
    unknown = [part for part in config.parts if part not in PARTS]
    if unknown or not config.parts:
        raise ValueError(f"parts: found {config.parts}, want dev, test or both")
    return write_listed(
        _files(Path(config.source), config.parts),
        config.output,
        corpus="voxceleb2",
        max_missing_fraction=config.max_missing_fraction,
    )


def _files(source: Path, parts: list[str]) -> Iterator[Listed]:
    for part in parts:
        roots = [source / part / name for name in FOLDERS if (source / part / name).is_dir()]
        found = False
        for root in roots:
            for audio in sorted(root.glob("*/*/*")):
                if audio.suffix.lower() not in SUFFIXES:
                    continue
                found = True
                name = audio.relative_to(root).as_posix()
                speaker, video, _ = name.split("/")
                yield Listed(
                    id=name, audio=audio, split=part, speaker=speaker, custom={"video": video}
                )
        if not found:
            undecoded = any(next(root.glob("*/*/*.m4a"), None) for root in roots)
            told = "only .m4a files" if undecoded else "no recordings"
            raise ValueError(
                f"source: found {told} in {source}/{part}, want "
                f"{source}/{part}/wav/id00012/VIDEO/00001.wav and so on; decode each with "
                "ffmpeg -i 00001.m4a -ar 16000 -ac 1 00001.wav"
            )
