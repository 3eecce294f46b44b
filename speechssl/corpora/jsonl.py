"""Corpora with a manifest.jsonl: one row per recording (id, audio, split, text, speaker, ...).

Fields that Lhotse names (speaker, text, language, gender) go to the supervision; every other
one, such as emotion, intent, slots or label, goes to `supervision.custom` unchanged. Paths in
`audio` are relative to the folder of the manifest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechssl.corpora.arpabet import spelled
from speechssl.corpora.manifest import CutsWriter, LeftOut, cut_row, read_header, read_rows

# What becomes part of the cut itself; the rest is carried in `custom`.
_PLACED = {"id", "audio", "duration", "num_samples", "sampling_rate", "split"} | {
    "text",
    "speaker",
    "language",
    "gender",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which corpora, and where the cuts go."""

    source: list[str] | str
    """Corpus folder (with the manifest), parent of such folders, or several: '[dirA,dirB]'."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    only: list[str] = dataclasses.field(default_factory=list)
    """Names of the corpora (folders) to take: '[an4,fsdd]'; empty takes all that are found."""
    manifest: str = "manifest.jsonl"
    """Name of the manifest file inside a corpus folder."""
    prefix_ids: bool = True
    """Put the corpus name before every recording id and speaker, so that both stay unique."""
    one_split: str | None = None
    """Put every row into this split, whatever its own `split` says."""
    phones: str | None = None
    """Field that holds each word's phones (["F_B IH0_I SH_E", ...], ARPAbet): they become the text,
    one letter per phone with nothing between (speechssl/corpora/arpabet.py), so that CER is the
    phone error rate; what was the text stays in `words`."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is missing or unreadable."""


def find_manifests(config: Config) -> list[Path]:
    """Manifests of the corpora asked for, by name; raise `ValueError` where one is not found."""
    found: dict[str, Path] = {}
    sources = [config.source] if isinstance(config.source, str) else config.source
    for source in map(Path, sources):
        if not source.is_dir():
            raise ValueError(f"source: found no folder {source}, want a corpus folder or a parent")
        own = source / config.manifest
        below = [own] if own.is_file() else sorted(source.glob(f"*/{config.manifest}"))
        if not below:
            raise ValueError(
                f"source: found no {config.manifest} in {source} or its folders; want one row per "
                "recording there, or use `speechssl prepare audio_dir` for bare audio"
            )
        for path in below:
            name = path.resolve().parent.name
            if config.only and name not in config.only:
                continue
            if name in found and found[name].resolve() != path.resolve():
                raise ValueError(
                    f"source: found two corpora of the name {name!r}, {found[name].parent} and "
                    f"{path.parent}; want different folder names, since they prefix the ids"
                )
            found[name] = path
    absent = sorted(set(config.only) - set(found))
    if absent:
        raise ValueError(
            f"only: found no corpus {', '.join(absent)} below {', '.join(sources)}, "
            f"want some of: {', '.join(sorted(found)) or 'none there'}"
        )
    return [found[name] for name in sorted(found)]


def _row_to_cut(
    row: dict[str, Any], manifest: Path, config: Config, left_out: LeftOut
) -> tuple[str, dict[str, Any]] | None:
    for name in ("id", "audio"):
        if not row.get(name):
            raise ValueError(f"{manifest}: found a row without {name!r}: {str(row)[:120]}")
    corpus = manifest.resolve().parent.name
    audio = (manifest.parent / str(row["audio"])).resolve()
    if not audio.is_file():
        left_out.add(audio, "missing")
        return None
    try:
        header = read_header(audio)
    except ValueError as error:
        left_out.add(audio, str(error).removeprefix(f"{audio}: "))
        return None
    if header.num_samples == 0:
        left_out.add(audio, "holds no samples")
        return None
    before = f"{corpus}-" if config.prefix_ids else ""
    speaker = row.get("speaker")
    custom = {k: v for k, v in row.items() if k not in _PLACED and v is not None}
    text = row.get("text")
    if config.phones:
        custom["words"], text = text, _phones_as_text(row, manifest, config.phones)
    cut = cut_row(
        id=f"{before}{row['id']}",
        audio=audio,
        header=header,
        text=text,
        language=row.get("language"),
        speaker=None if speaker is None else f"{before}{speaker}",
        gender=row.get("gender"),
        custom={"corpus": corpus, **custom},
    )
    return config.one_split or row.get("split") or "all", cut


def _phones_as_text(row: dict[str, Any], manifest: Path, field: str) -> str:
    words = row.get(field)
    if not words or not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise ValueError(
            f"phones: found {str(words)[:60]!r} in {field!r} of {row['id']!r} ({manifest}), want a "
            'list of words, each its phones: ["F_B IH0_I SH_E"]'
        )
    return "".join(spelled(word, str(row["id"])) for word in words)


def _progress(rows: Iterator[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    from tqdm import tqdm

    return iter(tqdm(rows, desc=name, unit="file", leave=False, disable=None))


def prepare(config: Config) -> dict[str, Path]:
    """Write the cuts of every split; return split -> file.

    Raises `ValueError` for duplicate ids (naming both files), for a row without id or audio, and
    when more than `max_missing_fraction` of the files is missing or has no readable header.
    """
    left_out = LeftOut(config.max_missing_fraction)
    total = 0
    with CutsWriter(config.output) as writer:
        for manifest in find_manifests(config):
            for row in _progress(read_rows(manifest), manifest.parent.name):
                total += 1
                cut = _row_to_cut(row, manifest, config, left_out)
                if cut is not None:
                    writer.add(*cut, origin=str(manifest))
        left_out.finish(config.output, total=total)
    print(writer.table())
    return writer.paths
