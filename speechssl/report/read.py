"""Read what lies in experiment folders; whatever is absent or half-written is simply absent."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MARKS = (
    "metrics.jsonl", "config.yaml", "model.json", "clusters.json", "results.json", "hyp.jsonl",
    "meta.json", "topics.json", "probe.json",
)  # fmt: skip
"""Files by which a folder is known as an experiment, a clustering, a decoding or a probe."""

FIGURES = ("wer", "uar", "eer", "der", "exact_match", "map", "auc", "ccc", "si_sdr_db")
"""What results.json holds, one of them for each kind of task that a decoding may be of."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A folder of `speechssl decode`: results as `speechssl score` writes them.

    how: what decode.json says of method, weights and time.
    """

    name: str
    results: Mapping[str, Any]
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One folder. metrics: lines of metrics.jsonl; tables: JSON files about clusters and labels."""

    name: str
    path: Path
    config_text: str | None
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    model: Mapping[str, Any] | None
    parameters: int | None
    decodings: Sequence[Decoding]
    tables: Mapping[str, Mapping[str, Any]]
    skipped: int
    bad_updates: int
    troubles: Sequence[str]

    @property
    def verb(self) -> str:
        if self.config.get("objective"):
            return "pretrain"
        if self.config.get("head"):
            return "finetune"
        if any(name.startswith("clusters.json") for name in self.tables):
            return "cluster"
        if "topics.json" in self.tables:
            return "topics"
        if "probe.json" in self.tables:
            return "probe"
        return "decode" if self.decodings and not self.metrics else "—"

    @property
    def steps(self) -> int:
        return max((int(m["step"]) for m in self.metrics), default=0)

    def split(self, name: str) -> list[Mapping[str, Any]]:
        return [m for m in self.metrics if m.get("split") == name]


def find_experiments(paths: Sequence[str | Path]) -> list[Experiment]:
    """Read each folder; one that holds only folders of experiments stands for all of them.

    Raises ValueError for a folder that is absent or holds nothing of an experiment.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"report: found no folder {path}, want an experiment such as exp/a")
        if _marked(path):
            found.append(path)
            continue
        children = sorted(p for p in path.iterdir() if p.is_dir() and _marked(p))
        if not children:
            raise ValueError(
                f"report: found nothing of an experiment in {path}, want at least one of "
                f"{', '.join(MARKS)}"
            )
        found += children
    unique = list(dict.fromkeys(found))
    names = _short_names(unique)
    return [read_experiment(p, n) for p, n in zip(unique, names, strict=True)]


def read_experiment(path: Path, name: str | None = None) -> Experiment:
    troubles: list[str] = []
    config_text = _text(path / "config.yaml")
    return Experiment(
        name=name or path.name,
        path=path,
        config_text=config_text,
        config=_yaml(config_text, path / "config.yaml", troubles),
        metrics=_dedupe(m for m in _json_lines(path / "metrics.jsonl", troubles) if "step" in m),
        model=_json(path / "model.json", troubles),
        parameters=count_parameters(path / "model.safetensors"),
        decodings=_decodings(path, troubles),
        tables=_tables(path, troubles),
        skipped=len((_text(path / "skipped.txt") or "").splitlines()),
        bad_updates=len((_text(path / "bad_updates.jsonl") or "").splitlines()),
        troubles=troubles,
    )


def count_parameters(path: Path) -> int | None:
    """Numbers in a safetensors file, read from its header alone."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < 100_000_000 else {}
    except (OSError, ValueError):
        return None
    return sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")


def _marked(path: Path) -> bool:
    return any((path / mark).is_file() for mark in MARKS)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Folder names; with their parent's where two are alike."""
    names = [p.resolve().name for p in paths]
    return [
        n if names.count(n) == 1 else f"{p.resolve().parent.name}/{n}"
        for p, n in zip(paths, names, strict=True)
    ]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _json(path: Path, troubles: list[str]) -> Any:
    text = _text(path)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        troubles.append(f"{path.name} cannot be read: {error}")
        return None


def _json_lines(path: Path, troubles: list[str]) -> Iterator[dict[str, Any]]:
    broken = 0
    for line in (_text(path) or "").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if isinstance(value, dict):
            yield value
    if broken:
        troubles.append(f"{path.name}: {broken} lines cannot be read")


def _dedupe(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each (split, step): a resumed run may have logged a step twice."""
    last = {(line.get("split"), line["step"]): line for line in lines}
    return sorted(last.values(), key=lambda m: m["step"])


def _yaml(text: str | None, path: Path, troubles: list[str]) -> dict[str, Any]:
    import yaml

    if text is None:
        return {}
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        troubles.append(f"{path.name} cannot be read: {error}")
        return {}
    return values if isinstance(values, dict) else {}


def _decodings(path: Path, troubles: list[str]) -> list[Decoding]:
    found = []
    for folder in [path, *sorted(p for p in path.iterdir() if p.is_dir())]:
        results = _json(folder / "results.json", troubles)
        if results is None and (folder / "hyp.jsonl").is_file():
            results = _score(folder / "hyp.jsonl", troubles)
        if isinstance(results, dict) and results.keys() & set(FIGURES):
            how = _json(folder / "decode.json", troubles) or results.get("decode") or {}
            found.append(Decoding(folder.name, results, how))
    return found


def _score(path: Path, troubles: list[str]) -> dict[str, Any] | None:
    """Score a decoding that nobody has scored yet."""
    from speechssl.score.wer import Utterance, error_rates

    try:
        results, scored = error_rates(
            Utterance(id=x["id"], ref=x["ref"], hyp=x["hyp"], duration_s=x.get("duration"))
            for x in _json_lines(path, troubles)
        )
    except (ValueError, KeyError) as error:
        troubles.append(f"{path} cannot be scored: {error}")
        return None
    scored.sort(key=lambda s: (-s.words.errors, s.utterance.id))
    results["worst"] = [
        {
            "id": s.utterance.id,
            "errors": s.words.errors,
            "words": s.words.length,
            "pairs": s.pairs,
        }
        for s in scored[:20]
        if s.words.errors
    ]
    return results


def _tables(path: Path, troubles: list[str]) -> dict[str, dict[str, Any]]:
    """Every other small JSON file of the folder and of its folders: clusters, quality, layers."""
    known = {"model.json", "results.json", "decode.json", "config.json", "best.json"}
    tables = {}
    for file in sorted([*path.glob("*.json"), *path.glob("*/*.json")]):
        if file.name in known or "checkpoints" in file.parts or file.stat().st_size > 20_000_000:
            continue
        values = _json(file, troubles)
        if isinstance(values, dict):
            tables[file.relative_to(path).as_posix()] = values
    return tables
