"""Lhotse Shar folders as seekable records: where in which tar file each cut's audio lies."""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechssl.data.index import CutRecord, read_manifest, record_from_cut

ORIGIN = "speechssl_origin"
"""Custom field of a sharded cut: [start, duration of the recording] before it was cut out."""


def shar_records(folder: Path) -> Iterator[CutRecord]:
    """Records of every cut of a Shar folder, in order.

    Raises `ValueError` where cuts and tar files do not belong together, or a tar file is damaged.
    """
    manifests = sorted(folder.glob("cuts.*.jsonl*"))
    tars = sorted(folder.glob("recording.*.tar"))
    if len(manifests) != len(tars):
        raise ValueError(
            f"{folder}: found {len(manifests)} cuts.* and {len(tars)} recording.* shards, want "
            "as many of each; run `speechssl shard` again"
        )
    for manifest, tar in zip(manifests, tars):
        members = _audio_members(tar)
        for number, cut in read_manifest(manifest):
            name, offset, size = next(members, ("", 0, 0))
            if name != cut["id"]:
                raise ValueError(
                    f"{tar}: found audio of {name!r} where line {number} of {manifest.name} is "
                    f"the cut {cut['id']!r}; run `speechssl shard` again"
                )
            yield _record(cut, tar, offset, size)


def _audio_members(tar: Path) -> Iterator[tuple[str, int, int]]:
    try:
        with tarfile.open(tar) as file:
            for member in file:
                name = Path(member.name)
                if name.suffix not in (".json", ".nodata", ".nometa"):
                    yield member.name[: -len(name.suffix)], member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{tar}: found damage ({error}), want a tar file of Shar") from None


def _record(cut: dict[str, Any], tar: Path, offset: int, size: int) -> CutRecord:
    recording = cut["recording"]
    if cut["start"]:
        raise ValueError(
            f"{tar}: found the cut {cut['id']!r} starting at {cut['start']} s of its audio, want 0 "
            "as in every Shar; run `speechssl shard` again"
        )
    plain = {**recording, "sources": [{**recording["sources"][0], "type": "file"}]}
    record = record_from_cut({**cut, "recording": plain})
    start, duration = (cut.get("custom") or {}).get(ORIGIN, (cut["start"], recording["duration"]))
    return dataclasses.replace(
        record,
        path=str(tar.absolute()),
        offset=offset,
        size=size,
        start=start,
        recording_duration=duration,
    )
