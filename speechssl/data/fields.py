"""Values of a field of the manifest: what a head is to tell apart, such as speaker or emotion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechssl import dist
from speechssl.data.index import manifest_files, read_manifest
from speechssl.data.label_store import LabelWriter


def field_of(cut: Mapping[str, Any], field: str) -> str | None:
    """A cut's value as text, None if it has none: of its first supervision, else its own.

    field: a name such as "speaker"; one that Lhotse has no place for is looked up in `custom`.
        Dots lead into nested values: "slots.coffeeDrink".
    """
    first = (cut.get("supervisions") or [{}])[0]
    places = (first, first.get("custom") or {}, cut.get("custom") or {})
    for place in places:
        value: Any = place
        for name in field.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, Mapping | list):
            return str(value)
    return None


def cut_rows(cuts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Plain values of every cut of some manifests or Shar folders, in their order."""
    for path in map(Path, cuts):
        if not path.exists():
            raise ValueError(f"cuts: found no {path}, want a cuts_*.jsonl.gz or a Shar folder")
        for file in manifest_files(path):
            if file.suffix != ".tar":
                for _, cut in read_manifest(file):
                    yield cut


def field_values(cuts: Sequence[str], field: str) -> dict[str, str]:
    """Cut id -> value of `field`, in manifest order.

    Raises `ValueError` for a cut without it; the error lists the fields that the cut has.
    """
    found: dict[str, str] = {}
    for cut in cut_rows(cuts):
        value = field_of(cut, field)
        if value is None:
            raise ValueError(
                f"field: found no {field!r} in the cut {cut['id']!r}, want a value in every cut; "
                f"its fields are {', '.join(_fields(cut))}. Leave out cuts without it"
            )
        found[cut["id"]] = value
    return found


def _fields(cut: Mapping[str, Any]) -> list[str]:
    first = (cut.get("supervisions") or [{}])[0]
    custom = {**(cut.get("custom") or {}), **(first.get("custom") or {})}
    plain = {"id", "recording_id", "start", "duration", "channel", "custom", "alignment"}
    return sorted((first.keys() - plain) | custom.keys())


def write_class_labels(
    folder: str | Path, values: Mapping[str, str], classes: Sequence[str], field: str
) -> None:
    """Write a label store of utterance labels: cut id -> place of its value in `classes`.

    A store that is there and holds the same is kept. Every rank calls it.
    Raises `ValueError` for a value that `classes` lacks, and for a store of other values.
    """
    place = {name: i for i, name in enumerate(classes)}
    unknown = sorted({v for v in values.values() if v not in place})
    if unknown:
        raise ValueError(
            f"{field}: found {', '.join(unknown[:8])} ({len(unknown)} values) beside the classes "
            f"{', '.join(classes[:8])}{', ...' * (len(classes) > 8)}; want each of them among "
            "the classes. Leave those cuts out, or train on cuts that hold them too"
        )
    lines = "".join(json.dumps(pair) + "\n" for pair in sorted(values.items()))
    meta = {"name": field, "classes": len(classes), "class_names": list(classes)}
    write_utterance_labels(folder, meta, lines, {i: place[v] for i, v in values.items()})


def write_utterance_labels(
    folder: str | Path, meta: Mapping[str, Any], text: str, rows: Mapping[str, int | list[int]]
) -> None:
    """Write a label store of one integer per utterance, or of several: cut id -> labels.

    A store that is there, of the same meta and `text` (all that the labels are made of), is kept.
    Every rank calls it. Raises `ValueError` for a store of others.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    meta = {**meta, "frame_rate_hz": 0, "digest": digest}
    path = Path(folder) / "meta.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if all(found.get(k) == v for k, v in meta.items()):
            return
    writer = LabelWriter(folder, meta)
    if dist.is_main():
        for cut_id, row in rows.items():
            if cut_id not in writer:  # a killed run wrote some
                writer.add(cut_id, row)
    writer.finish()
