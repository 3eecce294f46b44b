"""Any corpus that lhotse.recipes can prepare, by name: gigaspeech, commonvoice, aishell, ...

`lhotse.recipes.prepare_<name>(**arguments)` gives recordings and supervisions; they become cuts,
one per supervision where a recording holds several or only a part of it is speech.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from speechssl.corpora.audio_dir import SUFFIXES, find_audio
from speechssl.corpora.manifest import CutsWriter, LeftOut, Row, read_header


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which recipe, with which arguments."""

    name: str
    """Name of the recipe: what follows `prepare_` in lhotse.recipes, such as gigaspeech."""
    output: str
    """Folder for cuts_<split>.jsonl.gz and missing.txt."""
    source: str | None = None
    """Folder of the corpus; passed on as the recipe's `corpus_dir`."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the recipe: '{dataset_parts: [XS], num_jobs: 4}'."""
    trim: bool = True
    """Cut recordings to their supervisions; without it a cut is a whole recording."""
    max_missing_fraction: float = 0.1
    """Stop with an error when a larger share of the files is unreadable."""


def recipe(name: str) -> Callable[..., Any]:
    """The function lhotse.recipes.prepare_<name>; `ValueError` with near names if there is none."""
    import difflib

    import lhotse.recipes

    found = getattr(lhotse.recipes, f"prepare_{name}", None)
    if found is None:
        known = [n[len("prepare_") :] for n in dir(lhotse.recipes) if n.startswith("prepare_")]
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        raise ValueError(
            f"name: found {name!r}, want a recipe of lhotse {lhotse.__version__}; "
            f"{'near: ' + ', '.join(close) if close else 'known: ' + ', '.join(sorted(known))}"
        )
    return found


def run_recipe(name: str, arguments: Mapping[str, Any], left_out: LeftOut) -> tuple[Any, int]:
    """Run a recipe; return what it gave and the number of audio files that were looked through.

    Most recipes stop at the first broken file. Then the files of `corpus_dir` without a readable
    header are put into `left_out`, and the recipe runs again on a view of the corpus (a folder of
    links) without them. The number is 0 when the first run succeeded.
    """
    prepare_corpus = recipe(name)
    accepted = inspect.signature(prepare_corpus).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    unknown = sorted(set(arguments) - set(accepted))
    if unknown and not open_ended:
        raise ValueError(
            f"arguments: found {', '.join(unknown)}, want some of: {', '.join(accepted)}"
        )
    try:
        return prepare_corpus(**arguments), 0
    except Exception as error:  # recipes raise whatever their corpus makes them raise
        first = error
    source = arguments.get("corpus_dir")
    files = list(find_audio(Path(source), SUFFIXES)) if source and Path(source).is_dir() else []
    broken = set()
    for path in files:
        try:
            read_header(path)
        except ValueError as error:
            broken.add(path)
            left_out.add(path, str(error).removeprefix(f"{path}: "))
    if not broken:
        raise ValueError(
            f"lhotse.recipes.prepare_{name} ended with {type(first).__name__}: {first}"
        ) from first
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder) / Path(source).resolve().name
        _link_all_but(Path(source).resolve(), view, {path.resolve() for path in broken})
        try:
            manifests = prepare_corpus(**{**arguments, "corpus_dir": view})
            return _with_real_paths(manifests), len(files)
        except Exception as error:
            raise ValueError(
                f"lhotse.recipes.prepare_{name} ended with {type(error).__name__}: {error}, also "
                f"without the {len(broken)} files that have no readable header"
            ) from error


def _link_all_but(source: Path, view: Path, left_out: set[Path]) -> None:
    for root, _, files in os.walk(source, followlinks=True):
        folder = view / Path(root).relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            real = (Path(root) / name).resolve()
            if real not in left_out:
                (folder / name).symlink_to(real)


def _with_real_paths(manifests: Any) -> Any:
    """Resolve the links of the view while it exists."""
    for _, _, recordings, _ in pairs(manifests):
        for recording in recordings:
            for source in recording.sources:
                if source.type == "file":
                    source.source = str(Path(source.source).resolve())
    return manifests


def pairs(manifests: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """(split, holder, recordings, supervisions) at any depth of what a recipe gave."""
    if not isinstance(manifests, Mapping):
        raise ValueError(
            f"recipe: found a result of type {type(manifests).__name__}, want a mapping with "
            "recordings and supervisions; such a recipe needs a corpus module of its own"
        )
    if "recordings" in manifests:
        yield path or "all", manifests, manifests["recordings"], manifests.get("supervisions")
        return
    for key, value in manifests.items():
        yield from pairs(value, f"{path}-{key}" if path else str(key))


def supervised_cuts(recordings: Any, supervisions: Any, *, trim: bool) -> Iterator[Row]:
    """Cut rows with absolute paths; trimmed to supervisions where these are not the recording."""
    from lhotse import CutSet

    cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    for cut in cuts:
        parts = [cut]
        if trim and cut.supervisions and not _is_whole(cut):
            parts = list(cut.trim_to_supervisions(keep_overlapping=False))
        for part in parts:
            for source in part.recording.sources:
                if source.type == "file":
                    source.source = str(Path(source.source).resolve())
            if len(parts) == 1 and len(part.supervisions) == 1:
                part = part.with_id(part.supervisions[0].id)
            yield part.to_dict()


def _is_whole(cut: Any) -> bool:
    if len(cut.supervisions) != 1:
        return False
    only = cut.supervisions[0]
    return abs(only.start) < 1e-3 and abs(only.duration - cut.duration) < 1e-2


def write_cuts(
    manifests: Any,
    output: str,
    left_out: LeftOut,
    *,
    searched: int,
    corpus: str,
    trim: bool = True,
) -> dict[str, Path]:
    """Write one manifest per split of a recipe's result; return split -> file."""
    with CutsWriter(output) as writer:
        for split, _, recordings, supervisions in pairs(manifests):
            for row in supervised_cuts(recordings, supervisions, trim=trim):
                for supervision in row["supervisions"]:
                    custom = supervision.get("custom") or {}
                    supervision["custom"] = {"corpus": corpus, **custom}
                writer.add(split, row)
        left_out.finish(output, total=searched)
    if not writer.paths:
        raise ValueError(f"{corpus}: found no utterances, want at least one; is the folder right?")
    print(writer.table())
    return writer.paths


def prepare(config: Config) -> dict[str, Path]:
    """Run the recipe and write its cuts; return split -> file."""
    arguments = dict(config.arguments)
    if config.source is not None:
        arguments["corpus_dir"] = config.source
    left_out = LeftOut(config.max_missing_fraction)
    manifests, searched = run_recipe(config.name, arguments, left_out)
    return write_cuts(
        manifests,
        config.output,
        left_out,
        searched=searched,
        corpus=config.name,
        trim=config.trim,
    )
