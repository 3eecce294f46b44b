"""A task of `speechssl suite`: one YAML file, and the cuts that it makes of a corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from speechssl.config import from_dict, to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How cuts are divided."""

    kind: Literal["own", "folds", "held_out", "verification"] = "own"
    """own: the corpus's splits; folds: cross-validation whose parts share no value of `field`;
    held_out: of each value of `field` a share to validate and a share to test; verification: train
    on the speakers of `train`, of whose cuts a share validates, trials among those of `test`."""
    train: list[str] = dataclasses.field(default_factory=lambda: ["train"])
    """Splits of the prepared corpus that are trained on; folds and held_out take all splits."""
    valid: list[str] = dataclasses.field(default_factory=lambda: ["valid"])
    """own: splits on which learning rate and checkpoint are chosen; empty: `share` of the training
    cuts of each value of `field`."""
    test: list[str] = dataclasses.field(default_factory=lambda: ["test"])
    """Splits that are scored."""
    field: str = "speaker"
    """Field of the manifest by which cuts are divided."""
    folds: int = 4
    """Parts of folds."""
    run: list[int] = dataclasses.field(default_factory=list)
    """Folds to run, from 1; empty: all."""
    balance: list[str] = dataclasses.field(default_factory=list)
    """Fields whose values are spread evenly over folds."""
    share: float = 0.1
    """Share of each value's cuts for validation (and as much for held_out's test)."""
    fraction: float = 1.0
    """Share of the training cuts that is used, for tasks of few labels."""
    require: list[str] = dataclasses.field(default_factory=list)
    """Cuts without one of these fields are left out."""
    where: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Field -> values: cuts with other values are left out."""
    test_where: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """The same, of test cuts alone."""
    same: list[str] = dataclasses.field(default_factory=list)
    """Fields in which both sides of a trial agree."""
    different: list[str] = dataclasses.field(default_factory=list)
    """Fields in which both sides of a trial differ."""
    trials: str | None = None
    """Published trials, lines of `1|0 ENROL TEST` by ids of cuts, instead of made ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One YAML file of the tasks' folder; its name is the task's."""

    about: str
    """What is told apart, in a line."""
    protocol: str
    """On which utterances of whom it is tested, in a line."""
    folders: list[str]
    """Folders that must lie below --corpora."""
    obtain: str
    """Where they can be had, in a line."""
    prepare: str
    """Corpus of `speechssl prepare`: jsonl, librispeech, lhotse_recipe, ..."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its options; {corpora} in a value stands for --corpora."""
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    metric: str = "accuracy"
    """Figure of results.json that counts: uar, accuracy, macro_f1, wer, cer, eer, ...; dots lead
    into nested ones: slots.slot_type_f1."""
    best: Literal["highest", "lowest"] = "highest"
    """Which end of the figure is good."""
    also: list[str] = dataclasses.field(default_factory=list)
    """Further figures of results.json that are shown beside it."""
    chance: float | None = None
    """The figure without knowledge of the recording, if that is known."""
    rates: list[float] = dataclasses.field(default_factory=list)
    """Learning rates to choose from on validation data; empty: the one of `finetune`."""
    finetune: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `speechssl finetune`: head, data, train, tokenizer; {data} in a value stands for
    the folder of the prepared corpus."""
    decode: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of `speechssl decode`, such as the median of diarization."""
    score: list[str] = dataclasses.field(default_factory=list)
    """Further options of `speechssl score`: [--tags, "true"]."""
    cache: bool = True
    """Whether features may be kept; false where training changes the wave, as mixing does."""
    query: dict[str, Any] = dataclasses.field(default_factory=dict)
    """In place of all that: spoken queries are found by warping, and nothing is trained. field: of
    the manifest, in which a query and the recordings that hold it agree; layers: to choose from,
    default all. Queries of split.train choose the layer, those of split.valid are scored, both in
    the recordings of split.test."""

    def __post_init__(self) -> None:
        if self.query and (set(self.query) - {"field", "layers"} or not self.query.get("field")):
            raise ValueError(f"query: found {self.query}, want field, and layers if not all")
        if self.query and (self.finetune or self.split.kind != "own"):
            raise ValueError(
                "query: found finetune too, or another split, want own and no finetune"
            )


def read_tasks(folder: str | Path, only: list[str]) -> dict[str, TaskConfig]:
    """Name -> task of each YAML file of a folder, or of those in `only`, in their order.

    Raises `ValueError` for a file that is no task, and a name that is not there.
    """
    import yaml

    files = {path.stem: path for path in sorted(Path(folder).glob("*.yaml"))}
    absent = [name for name in only if name not in files]
    if not files or absent:
        raise ValueError(
            f"tasks: found {', '.join(files) or 'no .yaml file'} in {folder}, want "
            f"{', '.join(absent) or 'a file for each task'}"
        )
    found = {}
    for name in only or files:
        try:
            values = dict(yaml.safe_load(files[name].read_text()))
            # Kept as they are: the programs that they are for read them.
            keys = ("finetune", "options", "decode", "query")
            free = {k: dict(values.pop(k, {})) for k in keys}
            found[name] = dataclasses.replace(from_dict(TaskConfig, values), **free)
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise ValueError(f"{files[name]}: {error}") from None
    return found


def missing_folders(task: TaskConfig, corpora: str) -> list[str]:
    return [name for name in task.folders if not (Path(corpora) / name).is_dir()]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Manifests of one fold. trials: file, for verification."""

    number: int
    train: str
    valid: str
    test: str
    trials: str | None = None


def make_cuts(task: TaskConfig, corpora: str, folder: Path) -> list[Fold]:
    """Prepare the corpus and divide its cuts below `folder`; what is there already is kept.

    Raises `ValueError` if preparing fails or leaves a part empty.
    """
    from speechssl.bin import prepare

    given = {"corpora": str(Path(corpora).resolve()), "task": to_dict(task)}
    for other in ("finetune", "rates", "decode", "score", "cache", "also", "query"):
        del given["task"][other]
    stamp = hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=8).hexdigest()
    mark = folder / "made.json"
    if mark.is_file():
        values = json.loads(mark.read_text())
        if values["stamp"] == stamp:
            return [Fold(**fold) for fold in values["folds"]]
    for stale in (folder / "all").glob("cuts_*.jsonl.gz"):  # of other options: folds take them all
        stale.unlink()
    words = prepare_words(task, given["corpora"], folder)
    if prepare.run(task.prepare, words, prog=f"speechssl prepare {task.prepare}"):
        raise ValueError(f"prepare: found no usable corpus, want one; {task.obtain}")
    folds = _divide(task, folder, given["corpora"])
    temporary = mark.with_name("made.json.tmp")
    values = {"stamp": stamp, "folds": [dataclasses.asdict(fold) for fold in folds]}
    temporary.write_text(json.dumps(values, indent=2))
    temporary.replace(mark)
    return folds


def prepare_words(task: TaskConfig, corpora: str, folder: Path) -> list[str]:
    """Options of `speechssl prepare` for the task's corpus."""
    words = ["--output", str(folder / "all")]
    for key, value in task.options.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{key}", text.replace("{corpora}", corpora)]
    return words


def _divide(task: TaskConfig, folder: Path, corpora: str) -> list[Fold]:
    from speechssl.data.fields import cut_rows, field_of
    from speechssl.data.splits import few, fold_splits, held_out, trial_lines

    split = task.split

    def rows(names: list[str]) -> list[dict[str, Any]]:
        files = [str(folder / "all" / f"cuts_{name}.jsonl.gz") for name in names]
        own = [r for r in cut_rows(files) if _fits(r, split.where)]
        return [r for r in own if all(field_of(r, f) is not None for f in split.require)]

    every = sorted(p.name[5:-9] for p in (folder / "all").glob("cuts_*.jsonl.gz"))
    found: list[dict[str, list[dict[str, Any]]]] = []
    if split.kind == "own":
        own = {s: rows(getattr(split, s)) for s in ("train", "valid", "test")}
        if not split.valid:
            held = held_out(own["train"], split.field, split.share)
            own["valid"] = [r for r in own["train"] if r["id"] in held]
            own["train"] = [r for r in own["train"] if r["id"] not in held]
        found = [own]
    elif split.kind == "folds":
        found = fold_splits(rows(every), split.folds, split.field, split.balance)
    else:
        known = rows(every if split.kind == "held_out" else split.train)
        valid = held_out(known, split.field, split.share)
        rest = [r for r in known if r["id"] not in valid]
        # A share of all, of what is left.
        part = split.share / (1 - split.share)
        test = held_out(rest, split.field, part) if split.kind == "held_out" else set()
        parts = {
            "train": [r for r in rest if r["id"] not in test],
            "valid": [r for r in known if r["id"] in valid],
            "test": [r for r in rest if r["id"] in test],
        }
        if split.kind == "verification":
            parts["test"] = rows(split.test)
        found = [parts]
    folds = []
    for number, parts in enumerate(found, 1):
        if split.run and number not in split.run:
            continue
        parts["test"] = [r for r in parts["test"] if _fits(r, split.test_where)]
        if split.fraction < 1:
            parts["train"] = few(parts["train"], split.fraction)
        own = folder / f"fold{number}"
        paths = {name: _write(own / f"cuts_{name}.jsonl.gz", x) for name, x in parts.items()}
        trials = None
        if split.trials:
            trials = split.trials.replace("{corpora}", corpora)
            if not Path(trials).is_file():
                raise ValueError(f"split.trials: found no {trials}, want it; {task.obtain}")
        elif split.kind == "verification":
            lines = trial_lines(parts["test"], split.field, split.same, split.different)
            (own / "trials.txt").write_text("".join(lines), encoding="utf-8")
            trials = str(own / "trials.txt")
        folds.append(Fold(number, **paths, trials=trials))
    return folds


def _fits(row: dict[str, Any], where: dict[str, list[str]]) -> bool:
    from speechssl.data.fields import field_of

    return all(field_of(row, field) in values for field, values in where.items())


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    from speechssl.corpora.manifest import JsonlWriter

    if not rows:
        raise ValueError(
            f"split: found no cut for {path.name}, want some; look at split and options"
        )
    writer = JsonlWriter(path)
    for row in rows:
        writer.write(row)
    writer.close()
    return str(path)
