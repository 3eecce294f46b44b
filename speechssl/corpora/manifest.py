"""Rows and files of Lhotse cut manifests, written without importing Lhotse (or torch).

`cut_row` gives the dictionary that `lhotse.MonoCut.to_dict` would give, so that
`lhotse.CutSet.from_file` reads what `CutsWriter` writes; a test holds the two together.
Rows go through as a stream: what grows with the corpus is only the table of recording ids,
which is needed to find duplicates.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AudioHeader:
    """What the header of an audio file states."""

    num_samples: int
    sampling_rate: int
    num_channels: int

    @property
    def duration(self) -> float:
        return self.num_samples / self.sampling_rate


def read_header(path: str | Path) -> AudioHeader:
    """Read an audio header; raise `ValueError` that names the file if it cannot be read."""
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise ValueError(f"{path}: found no readable audio header ({error})") from None
    if info.samplerate <= 0 or info.channels <= 0:
        raise ValueError(
            f"{path}: found sampling rate {info.samplerate} and {info.channels} channels in the "
            "header, want both above 0"
        )
    return AudioHeader(info.frames, info.samplerate, info.channels)


def alignment_items(items: Sequence[tuple[str, float, float]]) -> list[list[Any]]:
    """Alignment of (symbol, start, end) as Lhotse stores it: symbol, start, duration, score."""
    return [[symbol, round(a, 5), round(b - a, 5), None] for symbol, a, b in items]


def cut_row(
    *,
    id: str,
    audio: str | Path,
    header: AudioHeader,
    text: str | None = None,
    language: str | None = None,
    speaker: str | None = None,
    gender: str | None = None,
    custom: Mapping[str, Any] | None = None,
    alignment: Mapping[str, Sequence[tuple[str, float, float]]] | None = None,
) -> Row:
    """One recording as a Lhotse `MonoCut` dictionary with exactly one supervision."""
    duration = header.duration
    supervision: Row = {
        "id": id,
        "recording_id": id,
        "start": 0.0,
        "duration": duration,
        "channel": 0,
    }
    known = {"text": text, "language": language, "speaker": speaker, "gender": gender}
    supervision.update({name: value for name, value in known.items() if value is not None})
    if custom:
        supervision["custom"] = dict(custom)
    if alignment:
        supervision["alignment"] = {k: alignment_items(v) for k, v in alignment.items()}
    channels = list(range(header.num_channels))
    return {
        "id": id,
        "start": 0.0,
        "duration": duration,
        "channel": 0,
        "supervisions": [supervision],
        "recording": {
            "id": id,
            "sources": [{"type": "file", "channels": channels, "source": str(audio)}],
            "sampling_rate": header.sampling_rate,
            "num_samples": header.num_samples,
            "duration": duration,
            "channel_ids": channels,
        },
        "type": "MonoCut",
    }


def open_gzip_text(path: Path) -> IO[str]:
    """Open for writing without name or time stamp in the header: same rows, same bytes."""
    import io

    raw = gzip.GzipFile(filename="", mode="wb", fileobj=path.open("wb"), compresslevel=5, mtime=0)
    return io.TextIOWrapper(raw, encoding="utf-8", newline="\n")


class JsonlWriter:
    """Rows to a .jsonl or .jsonl.gz under a temporary name, renamed by `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        compressed = path.name.endswith(".gz")
        self._file = (
            open_gzip_text(self._temporary)
            if compressed
            else self._temporary.open("w", encoding="utf-8")
        )

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._close_file()
        os.replace(self._temporary, self.path)

    def discard(self) -> None:
        self._close_file()
        self._temporary.unlink(missing_ok=True)

    def _close_file(self) -> None:
        buffer = getattr(self._file, "buffer", None)
        raw = getattr(buffer, "fileobj", None)
        self._file.close()
        if raw is not None:  # GzipFile leaves a file that it was given open
            raw.close()


@dataclasses.dataclass
class SplitSummary:
    """Counts of one split."""

    cuts: int = 0
    seconds: float = 0.0
    words: int = 0
    speakers: set[str] = dataclasses.field(default_factory=set)
    languages: set[str] = dataclasses.field(default_factory=set)

    def add(self, row: Row) -> None:
        supervision = row["supervisions"][0] if row["supervisions"] else {}
        self.cuts += 1
        self.seconds += row["duration"]
        self.words += len((supervision.get("text") or "").split())
        if supervision.get("speaker"):
            self.speakers.add(supervision["speaker"])
        if supervision.get("language"):
            self.languages.add(supervision["language"])


class CutsWriter:
    """Write `cuts_<split>.jsonl.gz` for every split that occurs.

    All files appear together when the `with` block ends without an error, and none otherwise.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        self.summary: dict[str, SplitSummary] = {}
        self._writers: dict[str, JsonlWriter] = {}
        self._origin: dict[str, str] = {}

    def add(self, split: str, row: Row, *, origin: str = "") -> None:
        """Append a cut; raise `ValueError` naming both files when its id was seen before."""
        source = row["recording"]["sources"][0]["source"]
        place = f"{source} (listed in {origin})" if origin else source
        before = self._origin.setdefault(row["id"], place)
        if before is not place:
            raise ValueError(
                f"recording id: found {row['id']!r} twice, for {before} and for {place}; want each "
                "id once, since labels and features are looked up by it. Rename or remove one row"
            )
        if split not in self._writers:
            self.output.mkdir(parents=True, exist_ok=True)
            self._writers[split] = JsonlWriter(self.output / f"cuts_{split}.jsonl.gz")
            self.summary[split] = SplitSummary()
        self._writers[split].write(row)
        self.summary[split].add(row)

    def __enter__(self) -> CutsWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for writer in self._writers.values():
            writer.close() if kind is None else writer.discard()

    @property
    def paths(self) -> dict[str, Path]:
        return {split: writer.path for split, writer in sorted(self._writers.items())}

    def table(self) -> str:
        """Readable summary, a line a split."""
        lines = [f"{'split':<18}{'cuts':>9}{'hours':>9}{'speakers':>10}{'words':>10}  languages"]
        for split, s in sorted(self.summary.items()):
            shown = " ".join(sorted(s.languages)) or "-"
            lines.append(
                f"{split:<18}{s.cuts:>9}{s.seconds / 3600:>9.3f}{len(s.speakers):>10}"
                f"{s.words:>10}  {shown}"
            )
        return "\n".join(lines)


def read_rows(path: str | Path) -> Iterator[Row]:
    """Stream the rows of a .jsonl or .jsonl.gz; raise `ValueError` naming file and line."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, want a .jsonl or .jsonl.gz manifest")
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: found broken JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: found {line[:40]!r}, want a JSON object")
            yield row


class LeftOut:
    """Files that a preparation could not use: counted, listed, and bounded in number."""

    def __init__(self, max_fraction: float) -> None:
        self.max_fraction = max_fraction
        self.entries: list[tuple[str, str]] = []

    def add(self, path: str | Path, reason: str) -> None:
        self.entries.append((str(path), reason))

    def finish(self, output: str | Path, *, total: int) -> None:
        """Write `missing.txt`; raise `ValueError` when more than `max_fraction` was left out."""
        listing = Path(output) / "missing.txt"
        if not self.entries:
            listing.unlink(missing_ok=True)
            return
        first = "; ".join(f"{p}: {why}" for p, why in self.entries[:3])
        share = len(self.entries) / max(total, 1)
        if share > self.max_fraction:
            raise ValueError(
                f"audio: found {len(self.entries)} of {total} files missing or unreadable "
                f"({first}), want at most {self.max_fraction:.0%}; complete the corpus or raise "
                "--max_missing_fraction"
            )
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{p}\t{why}\n" for p, why in self.entries), encoding="utf-8")
        print(
            f"left out {len(self.entries)} of {total} files, listed in {listing} (first: {first})"
        )
